package postgres

import (
	"bytes"
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// History is a timeline's history file.
type History struct {
	Name    string // as 00000002.history
	Content []byte
	Parsed  []lsn.Switch
}

// TimelineHistory asks a replication connection for the history of a timeline,
// which must be kept before anything of that timeline (C-50). Timeline 1 has none.
func TimelineHistory(ctx context.Context, c *Conn, timeline uint32) (History, error) {
	rows, err := c.simple(ctx, fmt.Sprint("TIMELINE_HISTORY ", timeline))
	if err != nil {
		return History{}, fmt.Errorf("ask for the history of timeline %d: %w", timeline, err)
	}
	if len(rows) != 1 || len(rows[0]) != 2 {
		return History{}, fmt.Errorf("ask for the history of timeline %d: the server gave no row of two columns", timeline)
	}
	h := History{Name: string(rows[0][0]), Content: rows[0][1]}
	if want := lsn.HistoryName(timeline); h.Name != want {
		return History{}, fmt.Errorf("ask for the history of timeline %d: the server gave %q, want %s", timeline, h.Name, want)
	}
	if h.Parsed, err = lsn.ParseHistory(h.Content); err != nil {
		return History{}, fmt.Errorf("ask for the history of timeline %d: %w", timeline, err)
	}
	return h, nil
}

// AncestorHistory is the history of a timeline that a later one descends from, cut
// out of the later one's: PostgreSQL begins each history with its parent's, and a
// newline (writeTimeLineHistory in src/backend/access/transam/timeline.c).
func AncestorHistory(later History, timeline uint32) (History, error) {
	content := later.Content
	for range later.Parsed {
		content = bytes.TrimRight(content, "\n")
		content = content[:bytes.LastIndexByte(content, '\n')+1]
		parsed, err := lsn.ParseHistory(content)
		if err != nil {
			return History{}, fmt.Errorf("cut the history of timeline %d out of %s: %w", timeline, later.Name, err)
		}
		if n := len(parsed); n > 0 && n < len(later.Parsed) && later.Parsed[n].Timeline == timeline {
			content = bytes.TrimSuffix(content, []byte("\n"))
			return History{Name: lsn.HistoryName(timeline), Content: content, Parsed: parsed}, nil
		}
	}
	return History{}, fmt.Errorf("cut the history of timeline %d out of %s: it does not descend from a timeline of that number with a parent", timeline, later.Name)
}

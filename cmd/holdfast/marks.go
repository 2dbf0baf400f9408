package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// marks are a cluster's forgotten snapshots and WAL, as they were last read.
type marks struct {
	snapshots map[string]bool
	spans     []catalog.WALSpan
	covered   []catalog.WALSpan // of which the slices go, and the segments stay
	// needed are names below clusters/<cluster>/ that snapshots which stay refer to,
	// in the directories of those that do not.
	needed map[string]bool
}

// covers says whether a name below clusters/<cluster>/ lies under a mark, and
// nothing that stays needs it.
func (m marks) covers(below string) bool {
	if rest, ok := strings.CutPrefix(below, "snapshots/"); ok {
		id, _, _ := strings.Cut(rest, "/")
		return m.snapshots[id] && !m.needed[below]
	}
	e, ok := catalog.ParseWALNote(catalog.ClusterDir("x") + below)
	if !ok {
		return false
	}
	return e.Taken(m.spans) || !e.Whole() && e.Taken(m.covered)
}

// marksOf reads a cluster's marks, without what is needed.
func (w *world) marksOf(ctx context.Context, cluster string) (marks, error) {
	m := marks{snapshots: map[string]bool{}}
	forgotten, list, err := w.catalog.Marked(ctx, cluster)
	if err != nil {
		return m, err
	}
	for id := range forgotten {
		m.snapshots[id] = true
	}
	for _, f := range list.Bodies() {
		if f.OnlyCovered() {
			m.covered = append(m.covered, f.WAL...)
		} else {
			m.spans = append(m.spans, f.WAL...)
		}
	}
	return m, nil
}

// refreshMarks reads what back-fill must not bring back. What is needed of the
// forgotten is read only when more was forgotten, or after a snapshot: one whose base
// was marked at the last moment may need what no other does.
func (n *node) refreshMarks(ctx context.Context) {
	for name, p := range n.protectors() {
		m, err := n.marksOf(ctx, name)
		if err != nil {
			continue
		}
		n.mu.Lock()
		old := p.forgotten
		n.mu.Unlock()
		if m.needed = old.needed; old.snapshots == nil || !maps.Equal(m.snapshots, old.snapshots) {
			if m.needed, err = n.neededOf(ctx, name, m.snapshots); err != nil {
				continue // what was read last stays in force
			}
		}
		n.mu.Lock()
		p.forgotten = m
		n.mu.Unlock()
	}
}

// needsChanged lets the next refresh read what is needed again.
func (n *node) needsChanged(p *protected) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p.forgotten.snapshots = nil
}

// neededOf are the objects of forgotten snapshots that those which stay refer to.
func (w *world) neededOf(ctx context.Context, cluster string, forgotten map[string]bool) (map[string]bool, error) {
	needed := map[string]bool{}
	snaps, err := w.catalog.Snapshots(ctx, cluster)
	if err != nil {
		return nil, err
	}
	for _, s := range snaps.Bodies() {
		body, err := w.vault.Reader().Get(ctx, s.Objects.Name, s.Objects.Size, s.Objects.SHA256)
		if err != nil {
			return nil, fmt.Errorf("reading what snapshot %s needs: %w", s.ID, err)
		}
		refs, err := catalog.DecodeObjects(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		for _, r := range refs {
			below := strings.TrimPrefix(r.Name, catalog.ClusterDir(cluster))
			if rest, ok := strings.CutPrefix(below, "snapshots/"); ok {
				if id, _, _ := strings.Cut(rest, "/"); forgotten[id] {
					needed[below] = true
				}
			}
		}
	}
	return needed, nil
}

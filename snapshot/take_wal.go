package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// ArchivedWAL makes the WALRefs of a [TakeConfig]: it finds the archived objects
// that hold all WAL of a stretch without a hole, with the notes that vouch for
// them and their indexes. A hole is an error: a snapshot without all its WAL is
// none (C-8).
func ArchivedWAL(src catalog.Source, trust catalog.Truster, cluster string, epoch int) func(ctx context.Context, timeline uint32, from, to lsn.LSN) ([]catalog.Ref, error) {
	return func(ctx context.Context, timeline uint32, from, to lsn.LSN) ([]catalog.Ref, error) {
		all, err := catalog.NewReader(src, trust).WALEntries(ctx, cluster, catalog.WALDir(cluster, epoch, timeline))
		if err != nil {
			return nil, err
		}
		chosen, err := cover(all.List, from, to)
		if err != nil && !all.Complete {
			err = errors.Join(err, catalog.ErrIncomplete)
		}
		var refs []catalog.Ref
		for _, e := range chosen {
			more, noteErr := vouched(ctx, src, trust, cluster, e.Name)
			if err = errors.Join(err, noteErr); err != nil {
				break
			}
			refs = append(refs, more...)
		}
		return refs, err
	}
}

// cover chooses from entries (by From, the longer first) few that hold all of
// [from, to): at each point the one that reaches farthest.
func cover(entries []catalog.WALEntry, from, to lsn.LSN) (chosen []catalog.WALEntry, err error) {
	for at := from; at < to; {
		best := -1
		for i, e := range entries {
			if e.From <= at && e.To > at && (best < 0 || e.To > entries[best].To) {
				best = i
			}
		}
		if best < 0 {
			return nil, fmt.Errorf("WAL from %s on is not archived; %s to %s is needed: has archiving begun before the snapshot?", at, from, to)
		}
		chosen = append(chosen, entries[best])
		at = entries[best].To
	}
	return chosen, nil
}

// vouched opens one WAL note and returns it and what it vouches for.
func vouched(ctx context.Context, src catalog.Source, trust catalog.Truster, cluster, name string) ([]catalog.Ref, error) {
	w, own, err := walNote(ctx, src, trust, cluster, name)
	if err != nil {
		return nil, err
	}
	refs := []catalog.Ref{own, w.Object}
	if w.Index.Name != "" {
		refs = append(refs, w.Index)
	}
	return refs, nil
}

// walNote opens one WAL note.
func walNote(ctx context.Context, src catalog.Source, trust catalog.Truster, cluster, name string) (w catalog.WAL, own catalog.Ref, err error) {
	data, err := src.Fetch(ctx, name, func(_ string, data []byte) error {
		var body catalog.WAL
		_, err := trust.Open(data, catalog.KindWAL, string(catalog.DutyWAL), cluster, &body)
		if err == nil {
			w = body
		}
		return err
	})
	if err != nil {
		return w, own, fmt.Errorf("read %s: %w", name, err)
	}
	sum := sha256.Sum256(data)
	return w, catalog.Ref{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}, nil
}

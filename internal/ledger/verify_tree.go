package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// entries reads the bundles up to the largest checkpoint, hashes each entry and
// reads each record.
func (v *verifier) entries(ctx context.Context, l *verified) error {
	want := tlog.TileHashReader(tlog.Tree{N: l.top.Size, Hash: l.top.Root}, &tileReader{ctx, v.src, l.top})
	for n := int64(0); n*width < l.top.Size; n++ {
		w := int(min(width, l.top.Size-n*width))
		proven, _ := provenHashes(want, n, w)
		leaves, err := v.bundle(ctx, l, bundleOf(n, w), proven)
		if err != nil {
			return err
		}
		for i := range w {
			var h tlog.Hash
			switch {
			case proven != nil:
				h = proven[i]
			case i < len(leaves):
				h = tlog.RecordHash(leaves[i])
			default:
				return nil // the roots of all later checkpoints will not be reached
			}
			stored, err := tlog.StoredHashesForRecordHash(n*width+int64(i), h, l)
			if err != nil {
				return err
			}
			l.hashes = append(l.hashes, stored...)
		}
		if err := v.read(l, n*width, leaves); err != nil {
			return err
		}
		if err := v.partials(ctx, l, n, leaves); err != nil {
			return err
		}
	}
	return nil
}

// provenHashes are the leaf hashes of a bundle as the signed root proves them;
// nil where a tile on the way is wrong: then the entries speak for themselves,
// and the tile is found by comparing.
func provenHashes(want tlog.HashReader, n int64, w int) ([]tlog.Hash, error) {
	indexes := make([]int64, w)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, n*width+int64(i))
	}
	return want.ReadHashes(indexes)
}

// bundle returns the entries of a copy that is right, or of the last one seen.
func (v *verifier) bundle(ctx context.Context, l *verified, t tlog.Tile, proven []tlog.Hash) (leaves [][]byte, err error) {
	_, err = v.take(ctx, l, t, func(body []byte) (int64, string) {
		got, err := decodeBundle(body, t.W)
		leaves = got
		for i, leaf := range got {
			if proven != nil && tlog.RecordHash(leaf) != proven[i] {
				leaves = got[:i]
				return t.N*width + int64(i), "the entry is not the one that the signed root proves"
			}
		}
		if err != nil {
			return t.N*width + int64(min(len(got), t.W-1)), err.Error()
		}
		return 0, ""
	})
	return leaves, err
}

// partials compares the narrower bundles, of earlier checkpoints, with the wide one.
func (v *verifier) partials(ctx context.Context, l *verified, n int64, leaves [][]byte) error {
	for _, t := range l.bundles[n] {
		if t.W >= len(leaves) {
			continue
		}
		_, err := v.take(ctx, l, t, func(body []byte) (int64, string) {
			got, err := decodeBundle(body, t.W)
			for i, leaf := range got {
				if !bytes.Equal(leaf, leaves[i]) {
					return n*width + int64(i), "the entry differs from the one in the later bundle"
				}
			}
			if err != nil {
				return n*width + int64(min(len(got), t.W-1)), err.Error()
			}
			return 0, ""
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tiles compares every tile of hashes up to the largest checkpoint with what the
// entries give.
func (v *verifier) tiles(ctx context.Context, l *verified) error {
	for _, t := range l.hashTiles() {
		want, err := tlog.ReadTileData(t, l)
		if err != nil {
			v.faultf(l.name, t.N*width<<(height*t.L), tilePath(t), "its entries could not be read")
			continue
		}
		_, err = v.take(ctx, l, t, func(body []byte) (int64, string) {
			if bytes.Equal(body, want) {
				return 0, ""
			}
			at := 0
			for at < min(len(body), len(want))-1 && body[at] == want[at] {
				at++
			}
			return (t.N*width + int64(at/tlog.HashSize)) << (height * t.L), "the tile is not what the entries give"
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hashTiles are the tiles of hashes up to the largest checkpoint: those that are
// listed, and those that the log needs.
func (l *verified) hashTiles() []tlog.Tile {
	all := slices.DeleteFunc(slices.Clone(l.listed.tiles), func(t tlog.Tile) bool {
		levels := uint(height * max(t.L, 0))
		return t.L == entriesLevel || t.L > 6 || t.N >= 1<<(62-levels)/width || (t.N*width+int64(t.W))<<levels > l.top.Size
	})
	seen := map[tlog.Tile]bool{}
	for _, t := range all {
		seen[t] = true
	}
	for _, t := range tlog.NewTiles(height, 0, l.top.Size) { // a missing one is read, too
		if !seen[t] {
			all = append(all, t)
		}
	}
	return all
}

// read looks at the records of a bundle that begins at index first.
func (v *verifier) read(l *verified, first int64, leaves [][]byte) error {
	for i, leaf := range leaves {
		index := first + int64(i)
		r, err := decodeRecord(l.name, index, leaf)
		if err != nil {
			v.faultf(l.name, index, "", "%v", err)
			continue
		}
		if v.records[r.RecordID] {
			v.faultf(l.name, index, "", "record id %s was used before", r.RecordID)
		}
		v.records[r.RecordID] = true
		if l.report.First.IsZero() {
			l.report.First = r.Time.Wall
		}
		l.report.Last = r.Time.Wall
		if err := v.note(l, r); err != nil {
			v.faultf(l.name, index, "", "%v", err)
		}
		if v.opt.Each != nil {
			if err := v.opt.Each(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// note remembers what is judged when all logs were read.
func (v *verifier) note(l *verified, r Record) error {
	switch r.Type {
	case TypeDrillDue:
		return v.slots.due(r)
	case TypeDrillOutcome:
		return v.slots.outcome(r)
	case TypeKeyRotated:
		k := NewKey{Index: r.Index, At: r.Time.Wall}
		if err := json.Unmarshal(r.Body, &k.KeyRotated); err != nil {
			return fmt.Errorf("body of an entry that announces a key: %w", err)
		}
		l.report.Keys = append(l.report.Keys, k)
	case TypeOrigin:
		var o Origin
		if err := json.Unmarshal(r.Body, &o); err != nil {
			return fmt.Errorf("body of an origin entry: %w", err)
		}
		for _, p := range o.After {
			v.named = append(v.named, Checkpoint{Origin: p.Origin, Size: p.Size, Root: p.Root})
		}
	}
	return nil
}

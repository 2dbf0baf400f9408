package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// listed is what a listing shows of one origin.
type listed struct {
	name        string
	checkpoints []int64 // sizes, ascending
	tiles       []tlog.Tile
	strange     []string // names that are none of ours
}

// origins groups the names under ledger/.
func origins(names []string) []listed {
	by := map[string]*listed{}
	var order []string
	for _, name := range names {
		origin, path, ok := strings.Cut(strings.TrimPrefix(name, dir), "/")
		if !ok || !originRE.MatchString(origin) {
			continue
		}
		if by[origin] == nil {
			by[origin] = &listed{name: origin}
			order = append(order, origin)
		}
		o := by[origin]
		if size, ok := parseCheckpointPath(path); ok {
			o.checkpoints = append(o.checkpoints, size)
		} else if t, ok := parseTilePath(path); ok {
			o.tiles = append(o.tiles, t)
		} else {
			o.strange = append(o.strange, name)
		}
	}
	slices.Sort(order)
	out := make([]listed, 0, len(order))
	for _, name := range order {
		slices.Sort(by[name].checkpoints)
		out = append(out, *by[name])
	}
	return out
}

// fetchCheckpoint returns the checkpoint of a size that a trusted key signed.
func fetchCheckpoint(ctx context.Context, src Source, conf Config, origin string, size int64) (c Checkpoint, err error) {
	_, err = src.Fetch(ctx, OriginDir(origin)+checkpointPath(size), func(_ string, body []byte) error {
		got, err := openCheckpoint(body, conf.Repository, origin, conf.Trust)
		if err == nil && got.Size != size {
			err = fmt.Errorf("checkpoint: %w: it is of size %d", seal.ErrDamaged, got.Size)
		}
		c = got
		return err
	})
	return c, err
}

// Latest returns the largest checkpoint of an origin that a trusted key signed.
func Latest(ctx context.Context, src Source, trust seal.Trust, repository, origin string) (Checkpoint, error) {
	names, err := src.List(ctx, OriginDir(origin)+"checkpoint/")
	if err != nil {
		return Checkpoint{}, fmt.Errorf("latest checkpoint of %s: %w", origin, err)
	}
	var faults []error
	for _, o := range origins(names) {
		for _, size := range slices.Backward(o.checkpoints) {
			c, err := fetchCheckpoint(ctx, src, Config{Repository: repository, Trust: trust}, origin, size)
			if err == nil {
				return c, nil
			}
			faults = append(faults, err)
		}
	}
	for _, err := range faults {
		if !errors.Is(err, seal.ErrUntrusted) && !errors.Is(err, seal.ErrDamaged) {
			return Checkpoint{}, fmt.Errorf("latest checkpoint of %s: %w", origin, errors.Join(faults...))
		}
	}
	return Checkpoint{}, fmt.Errorf("latest checkpoint of %s: %w: %w", origin, ErrNoCheckpoint, errors.Join(faults...))
}

// Read returns the records [from, to) of a checkpoint's tree, each proven to be
// in it; to beyond its size or negative is its size. It never reads a log that is
// open for writing.
func Read(ctx context.Context, src Source, c Checkpoint, from, to int64) ([]Record, error) {
	if to < 0 || to > c.Size {
		to = c.Size
	}
	hashes := provenBy(ctx, src, c)
	var out []Record
	for i := max(from, 0); i < to; {
		end := min(to, (i/width+1)*width)
		leaves, err := readBundle(ctx, src, c, i/width, hashes)
		if err != nil {
			return nil, fmt.Errorf("read ledger %s: %w", c.Origin, err)
		}
		for ; i < end; i++ {
			r, err := decodeRecord(c.Origin, i, leaves[i%width])
			if err != nil {
				return nil, fmt.Errorf("read ledger %s, entry %d: %w", c.Origin, i, err)
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// readBundle fetches a bundle as it was at c and takes only a copy whose entries
// are in the tree.
func readBundle(ctx context.Context, src Source, c Checkpoint, n int64, hashes tlog.HashReader) (leaves [][]byte, err error) {
	w := int(min(width, c.Size-n*width))
	indexes := make([]int64, w)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, n*width+int64(i))
	}
	want, err := hashes.ReadHashes(indexes)
	if err != nil {
		return nil, err
	}
	_, err = src.Fetch(ctx, OriginDir(c.Origin)+tilePath(bundleOf(n, w)), func(zone string, body []byte) error {
		got, err := decodeBundle(body, w)
		if err != nil {
			return err
		}
		for i, leaf := range got {
			if tlog.RecordHash(leaf) != want[i] {
				return fmt.Errorf("%s: entry %d: %w: it is not in the tree", zone, n*width+int64(i), seal.ErrDamaged)
			}
		}
		leaves = got
		return nil
	})
	return leaves, err
}

// provenBy reads hashes that the root of c proves. Where the first copies of the
// tiles on the way do not, those that most zones show are tried.
func provenBy(ctx context.Context, src Source, c Checkpoint) tlog.HashReader {
	tree := tlog.Tree{N: c.Size, Hash: c.Root}
	first, most := tlog.TileHashReader(tree, &tileReader{ctx, src, c}), tlog.TileHashReader(tree, &mostCopies{tileReader{ctx, src, c}})
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes, err := first.ReadHashes(indexes)
		if err != nil && ctx.Err() == nil {
			hashes, err = most.ReadHashes(indexes)
		}
		return hashes, err
	})
}

// mostCopies reads every zone's copy of a tile and takes the one that most show.
type mostCopies struct{ tileReader }

func (r *mostCopies) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		votes := map[string]int{}
		_, err := r.src.Fetch(r.ctx, OriginDir(r.c.Origin)+tilePath(t), func(_ string, body []byte) error {
			if len(body) == t.W*tlog.HashSize {
				votes[string(body)]++
			}
			return vault.ErrGoOn
		})
		for body, n := range votes {
			if n > votes[string(out[i])] {
				out[i] = []byte(body)
			}
		}
		if out[i] == nil {
			return nil, err
		}
	}
	return out, nil
}

// tileReader reads tiles for tlog, which checks them against the root.
type tileReader struct {
	ctx context.Context
	src Source
	c   Checkpoint
}

func (r *tileReader) Height() int                     { return height }
func (r *tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		body, err := r.src.Fetch(r.ctx, OriginDir(r.c.Origin)+tilePath(t), func(_ string, body []byte) error {
			if len(body) != t.W*tlog.HashSize {
				return fmt.Errorf("tile: %w: %d bytes, want %d", seal.ErrDamaged, len(body), t.W*tlog.HashSize)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		out[i] = bytes.Clone(body)
	}
	return out, nil
}

// Contains says whether old, a checkpoint that somebody kept, is of the log whose
// checkpoint c is: false where the log was cut since, or replaced.
func Contains(ctx context.Context, src Source, c, old Checkpoint) (bool, error) {
	if old.Origin != c.Origin || old.Size < 1 || old.Size > c.Size {
		return false, nil
	}
	root, err := tlog.TreeHash(old.Size, provenBy(ctx, src, c))
	if err != nil {
		return false, fmt.Errorf("compare two checkpoints of ledger %s: %w", c.Origin, err)
	}
	return root == old.Root, nil
}

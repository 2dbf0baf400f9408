package snapshot

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// prior describes the base to the server, so that it sends what changed since (C-28);
// nil where there is no base, or summaries were not asked for. Files that it does not
// name come whole: those of which something must be copied afresh are left out.
func (t *take) prior(ctx context.Context) (*postgres.Prior, error) {
	if t.base == nil || !t.cfg.Summaries {
		return nil, nil
	}
	id, err := strconv.ParseUint(t.srv.facts.SystemID, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("the system identifier: %w", err)
	}
	s := t.base.snap
	p := &postgres.Prior{SystemID: id, Timeline: s.Timeline, Start: s.StartLSN, End: s.StopLSN, AnyMinor: t.cfg.AnyMinor}
	p.Files = func(yield func(postgres.ManifestFile, error) bool) {
		for i := range t.base.manifest.Files {
			f := &t.base.manifest.Files[i]
			ok, err := t.base.carries(ctx, f)
			if (ok || err != nil) && !yield(postgres.ManifestFile{Path: f.Path, Size: f.Size, Modified: f.MTime}, err) {
				return
			}
		}
	}
	return p, postgres.CheckSummaries(ctx, t.srv.conn, *p)
}

// carries says whether any block of a file can be taken over without a look at it.
func (b *base) carries(ctx context.Context, f *catalog.ManifestFile) (bool, error) {
	if f.Kind != catalog.FileRelation || f.Outside || f.Size%page.Size != 0 {
		return false, nil
	}
	if !slices.Contains(b.renew, true) {
		return true, nil
	}
	leaves, err := b.leaves(ctx, f, 0, f.Size/page.Size)
	return !slices.ContainsFunc(leaves, func(o *oldLeaf) bool { return slices.Contains(o.renew, true) }), err
}

// Blocks implements postgres.BlockSink.
func (s *streamSink) Blocks(ctx context.Context, c postgres.ChangedFile, pages io.Reader) error {
	rel, _ := datadir.ParseRelation(c.Path) // it is one, or it would not come so
	f := s.t.newFile(datadir.File{Path: c.Path, Size: c.Size, Mode: c.Mode, ModTime: c.ModTime, Kind: datadir.Relation, Name: rel})
	check := f.verifier(s.start, nil)
	old, err := s.t.known(ctx, f, 0, f.blocks())
	if err != nil {
		return err
	}
	if err := s.cut.changed(piece{f: f, count: f.blocks(), r: pages, check: check, old: old}, c.Blocks, int64(c.Keep)); err != nil {
		return err
	}
	s.t.checked(f, check, int64(len(c.Blocks))*page.Size)
	s.t.unread(f.blocks() - int64(len(c.Blocks)))
	s.t.keep(f)
	return nil
}

// unread counts pages that were taken over from the base, where they were checked.
func (t *take) unread(pages int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.skipped += pages
}

// changed brings in a file of which p.r holds the blocks that are named alone. Of
// the others those below keep are the old ones, and what is nowhere is zeros.
func (c *cutter) changed(p piece, blocks []uint32, keep int64) error {
	zeros := c.digest(make([]byte, page.Size))
	for first := int64(0); first < p.count; first += catalog.LeafBlocks {
		c.leaf, c.frame = newLeafMaker(p.f, first, int(min(p.count-first, catalog.LeafBlocks))), -1
		if n := first / catalog.LeafBlocks; n < int64(len(p.old)) {
			c.leaf.old = p.old[n]
		}
		for i := range c.leaf.leaf.Blocks {
			var err error
			switch at := first + int64(i); {
			case len(blocks) > 0 && int64(blocks[0]) == at:
				blocks, err = blocks[1:], c.next(p, i)
			case at >= keep || c.leaf.old == nil || i >= c.leaf.old.leaf.Blocks:
				c.leaf.zero(i, zeros)
			case c.leaf.certain(i):
				c.leaf.carry(i, zeros)
			default:
				err = fmt.Errorf("%s: block %d did not come, and is not known as it was", p.f.path, at)
			}
			if err != nil {
				return err
			}
		}
		if c.leaf.close() {
			if err := c.whole([]*leafMaker{c.leaf}); err != nil {
				return err
			}
		}
	}
	return nil
}

// next reads one block of the leaf and treats it.
func (c *cutter) next(p piece, i int) error {
	at := len(c.cur.raw)
	data := c.cur.raw[at : at+page.Size]
	if _, err := io.ReadFull(p.r, data); err != nil {
		return fmt.Errorf("read block %d of %s: %w", c.leaf.first+int64(i), p.f.path, err)
	}
	if err := c.block(p, i, data); err != nil {
		return err
	}
	return c.took(page.Size)
}

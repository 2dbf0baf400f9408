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
		for i := range t.base.files.list.Len() {
			f := t.base.file(i)
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
	old, err := s.t.known(ctx, f, 0, f.blocks())
	if err != nil {
		return err
	}
	r := &sparseFile{pages: pages, came: c.Blocks}
	if f.base != nil {
		r.kept = min(int64(c.Keep), f.base.Size/page.Size)
	}
	// Where the base tells nothing any more all must be looked at.
	n, _ := slices.BinarySearch(c.Blocks, uint32(r.kept))
	asked := blockList{list: slices.Clip(c.Blocks[:n])}
	for block := r.kept; block < f.blocks(); block++ {
		asked.list = append(asked.list, uint32(block))
	}
	return s.changed(piece{f: f, count: f.blocks(), r: r, seek: r.seek, old: old, suspects: &suspects{base: asked, attempt: asked}}, len(c.Blocks))
}

func (s *streamSink) changed(p piece, came int) error {
	if !s.t.untouched(p) {
		p.check = p.f.verifier(s.start, nil)
		if err := s.cut.piece(p); err != nil {
			return err
		}
		s.t.checked(p.f, p.check, int64(came)*page.Size)
	}
	return nil
}

// sparseFile reads, in order, a file of which some blocks come and the rest is
// either as the base has it, and not asked for, or zeros.
type sparseFile struct {
	pages io.Reader
	came  []uint32 // that are not read yet
	kept  int64    // blocks that the base tells
	at    int64
}

func (r *sparseFile) seek(off int64) { r.at = off / page.Size }

// Read reads one block.
func (r *sparseFile) Read(p []byte) (int, error) {
	block := r.at
	r.at++
	switch {
	case len(p) < page.Size:
		return 0, io.ErrShortBuffer
	case len(r.came) > 0 && int64(r.came[0]) == block:
		r.came = r.came[1:]
		return io.ReadFull(r.pages, p[:page.Size])
	case block < r.kept:
		return 0, fmt.Errorf("block %d did not come, and is not known as it was", block)
	}
	clear(p[:page.Size])
	return page.Size, nil
}

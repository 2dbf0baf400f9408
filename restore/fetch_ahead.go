package restore

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/thin/ahead"
)

const (
	// aheadFor bounds a run of FetchAhead, aheadAge the age of what it keeps.
	aheadFor = 2 * time.Minute
	aheadAge = 10 * time.Minute
	// aheadAtOnce bounds the segments in memory.
	aheadAtOnce = 2
)

// FetchAhead fetches the n segments behind name into spool, as far as the archive
// has them whole, and removes what else is there: so n segments bound it. It does
// nothing while another process does the same.
func FetchAhead(ctx context.Context, r Repo, cluster, name string, spool ahead.Spool, n int) error {
	ctx, cancel := context.WithTimeout(ctx, aheadFor)
	defer cancel()
	release, err := spool.Lock()
	if err != nil || release == nil {
		return err
	}
	defer release()
	a, err := openArchive(ctx, r, cluster, name)
	if err != nil {
		return err
	}
	segSize, err := a.segSize(ctx, a.wal.List)
	if err != nil {
		return err
	}
	timeline, from, err := lsn.ParseSegmentName(name, segSize)
	if err != nil {
		return err
	}
	next := make([]string, n)
	for i := range next {
		from += lsn.LSN(segSize)
		next[i] = lsn.SegmentName(timeline, from.Segment(segSize), segSize)
	}
	last := next[n-1]
	if err := spool.Clear(func(s string) bool { return s > name && s <= last }, aheadAge); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(aheadAtOnce)
	for _, s := range next {
		if spool.Has(s) {
			continue
		}
		file, err := a.find(gctx, s)
		if err != nil || !file.whole() {
			if errors.Is(err, errAbsent) {
				err = nil // there the log ends, for now
			}
			return errors.Join(err, group.Wait())
		}
		group.Go(func() error {
			return spool.Put(s, func(path string) error { return writeWAL(gctx, r, file, path) })
		})
	}
	return group.Wait()
}

// whole says that no byte is missing: what is archived in part may grow.
func (f File) whole() bool {
	var n int64
	for _, p := range f.Parts {
		n += p.Len
	}
	return n == f.Size
}

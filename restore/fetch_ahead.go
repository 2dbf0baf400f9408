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
	// aheadLook is how often it is looked whether recovery took a segment.
	aheadLook = 10 * time.Millisecond
)

// aheadIdle is how long recovery may take nothing before a run ends.
var aheadIdle = 5 * time.Second

// FetchAhead keeps the n segments behind the one that recovery has, at first name, in
// spool, and removes what else is there: so n segments bound it. It ends where the
// archive, as it was listed, has no more whole ones, and when recovery takes none for a
// while. It does nothing while another process does the same.
func FetchAhead(ctx context.Context, r Repo, cluster, name string, spool ahead.Spool, n int) error {
	ctx, cancel := context.WithTimeout(ctx, aheadFor)
	defer cancel()
	release, err := spool.Lock()
	if err != nil || release == nil {
		return err
	}
	defer release()
	done, err := spool.Fill() // before the listing: what is asked for meanwhile may come
	if err != nil {
		return err
	}
	defer func() { done() }()
	a, err := openArchive(ctx, r, cluster, name)
	if err != nil {
		return err
	}
	segSize, err := a.segSize(ctx, a.wal.List)
	if err != nil {
		return err
	}
	for {
		next, err := following(name, segSize, n)
		if err != nil {
			return err
		}
		more, err := a.fetchInto(ctx, spool, name, next)
		if done(); err != nil || !more {
			return err
		}
		if name = awaitTaken(ctx, spool, next); name == "" {
			return nil
		}
		if done, err = spool.Fill(); err != nil {
			done = func() {}
			return err
		}
	}
}

// following are the names of the n segments behind one.
func following(name string, segSize int64, n int) ([]string, error) {
	timeline, from, err := lsn.ParseSegmentName(name, segSize)
	if err != nil {
		return nil, err
	}
	next := make([]string, n)
	for i := range next {
		from += lsn.LSN(segSize)
		next[i] = lsn.SegmentName(timeline, from.Segment(segSize), segSize)
	}
	return next, nil
}

// fetchInto brings the segments that are not there; more says that all are then.
func (a archive) fetchInto(ctx context.Context, spool ahead.Spool, name string, next []string) (more bool, err error) {
	last := next[len(next)-1]
	if err := spool.Clear(func(s string) bool { return s > name && s <= last }, aheadAge); err != nil {
		return false, err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(aheadAtOnce)
	more = true
	for _, s := range spool.Missing(next) {
		file, err := a.find(gctx, s)
		if err != nil || !file.whole() {
			if more = false; errors.Is(err, errAbsent) {
				err = nil // there the log ends, for now
			}
			return more, errors.Join(err, group.Wait())
		}
		group.Go(func() error {
			return spool.Put(s, func(path string) error { return writeWAL(gctx, a.Repo, file, path) })
		})
	}
	return more, group.Wait()
}

// awaitTaken waits until some of the segments are taken, and names the last of these:
// recovery may be past others, which it had fetched itself; "" when it takes none.
func awaitTaken(ctx context.Context, spool ahead.Spool, next []string) string {
	look := time.NewTicker(aheadLook)
	defer look.Stop()
	idle := time.NewTimer(aheadIdle)
	defer idle.Stop()
	for {
		if taken := spool.Missing(next); len(taken) > 0 {
			return taken[len(taken)-1]
		}
		select {
		case <-look.C:
		case <-idle.C:
			return ""
		case <-ctx.Done():
			return ""
		}
	}
}

// whole says that no byte is missing: what is archived in part may grow.
func (f File) whole() bool {
	var n int64
	for _, p := range f.Parts {
		n += p.Len
	}
	return n == f.Size
}

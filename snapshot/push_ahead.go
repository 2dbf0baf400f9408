package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Run sends ahead until ctx ends, after what an earlier process left in the
// spool. Pushes work without it, one at a time.
func (p *Pusher) Run(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return p.w.insist(gctx, func() error { return p.w.Recover(gctx) })
	})
	for range cap(p.w.comps) {
		group.Go(func() error {
			for {
				select {
				case path := <-p.ahead:
					p.sendAhead(gctx, path)
				case <-gctx.Done():
					return gctx.Err()
				}
			}
		})
	}
	err := group.Wait()
	if ctx.Err() != nil {
		err = nil
	}
	p.w.done.end(errors.Join(errors.New("WAL archiving has stopped"), err))
	return err
}

func (p *Pusher) sendAhead(ctx context.Context, path string) {
	name := filepath.Base(path)
	p.mu.Lock()
	e := p.underway[name]
	if e == nil || e.begun {
		p.mu.Unlock()
		return // PostgreSQL was faster
	}
	e.begun = true
	p.mu.Unlock()
	err := p.pushFile(ctx, path, false)
	p.mu.Lock()
	delete(p.underway, name)
	close(e.ended)
	p.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		p.w.c.Log.Info("a segment was not sent ahead; it is sent when PostgreSQL asks", zap.String("path", path), zap.Error(err))
	}
}

// lookAhead picks the segments that PostgreSQL will push next, by the marks that
// it leaves in archive_status. Those marks are PostgreSQL's: they are read, never
// touched (C-38).
func (p *Pusher) lookAhead(path string) {
	dir := filepath.Dir(path)
	if p.enough(filepath.Base(path)) {
		return
	}
	marks, err := os.ReadDir(filepath.Join(dir, "archive_status"))
	if err != nil {
		return // pushed from elsewhere: there is nothing to look ahead to
	}
	names := make([]string, 0, len(marks))
	for _, m := range marks {
		names = append(names, m.Name())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range chooseAhead(names, filepath.Base(path), p.c.LookAhead, p.known) {
		select {
		case p.ahead <- filepath.Join(dir, name):
			p.underway[name] = &errand{ended: make(chan struct{})}
		default:
			return
		}
	}
}

func (p *Pusher) known(name string) bool { return p.done[name].mac != "" || p.underway[name] != nil }

// enough says that more than half of what may be sent ahead of current still is:
// a directory with many marks is not read for each push.
func (p *Pusher) enough(current string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for name := range p.underway {
		if name > current {
			n++
		}
	}
	for name := range p.done {
		if name > current {
			n++
		}
	}
	return n > p.c.LookAhead/2 || p.c.LookAhead == 0
}

// chooseAhead returns up to n segments behind current that are ready, the oldest
// first, without those that are known.
func chooseAhead(marks []string, current string, n int, known func(string) bool) []string {
	var out []string
	for _, m := range marks {
		name, ready := strings.CutSuffix(m, ".ready")
		if ready && segmentRE.MatchString(name) && name > current {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	out = out[:min(n, len(out))]
	return slices.DeleteFunc(out, known)
}

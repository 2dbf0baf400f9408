package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// fromFiles copies the data directory beside the server, between the start and
// the stop of a backup on one connection (C-1, C-2).
func (t *take) fromFiles(ctx context.Context, started func(lsn.LSN)) error {
	dir := cmp.Or(t.cfg.DataDirectory, t.srv.facts.DataDirectory)
	if err := t.sameServer(dir); err != nil {
		return err
	}
	backup, err := postgres.StartBackup(ctx, t.srv.conn, "holdfast "+t.id, t.cfg.Fast)
	if err != nil {
		return err
	}
	t.started(backup.Start, backup.Timeline)
	t.header.Facts.StartedAt, t.header.Facts.FromStandby = backup.Started.UTC(), backup.InRecovery
	started(backup.Start)
	if err := t.copyDir(ctx, dir, backup); err != nil {
		return errors.Join(err, backup.Abort())
	}
	r, err := backup.Stop(ctx)
	if err != nil {
		return err
	}
	return t.stopped(ctx, r)
}

// sameServer wants the directory to be that of the server that answers: another
// one's files under this one's label would be a snapshot of nothing.
func (t *take) sameServer(dir string) error {
	c, _, err := control.ReadFile(filepath.Join(dir, "global/pg_control"))
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if id := fmt.Sprint(c.SystemID); id != t.srv.facts.SystemID {
		return fmt.Errorf("data directory %s belongs to system %s, the server that answers is %s: the path or the connection is another cluster's", dir, id, t.srv.facts.SystemID)
	}
	return nil
}

func (t *take) copyDir(ctx context.Context, dir string, backup *postgres.Backup) error {
	layout, err := datadir.Scan(dir, datadir.ScanOptions{ConfigFiles: t.srv.facts.ConfigFiles, StatsTemp: t.srv.facts.StatsTemp})
	if err != nil {
		return err
	}
	t.layout(layout)
	files := slices.DeleteFunc(queueOrder(layout.Files), func(f datadir.File) bool { return t.unnameable(f.Path) })
	if err := t.copyFiles(ctx, files, backup.Start); err != nil {
		return err
	}
	if err := backup.Check(ctx); err != nil {
		return err
	}
	return t.copyControl(dir, layout)
}

// layout brings what is not bytes into the header.
func (t *take) layout(l datadir.Layout) {
	for _, d := range l.Dirs {
		if t.unnameable(d.Path) {
			continue
		}
		t.header.Dirs = append(t.header.Dirs, catalog.Dir{Path: d.Path, Mode: uint32(d.Mode.Perm())})
	}
	for _, s := range l.Links {
		space := catalog.Tablespace{OID: s.OID, Path: s.Target, InPlace: s.InPlace}
		if s.InPlace {
			space.Path = ""
		}
		t.header.Tablespaces = append(t.header.Tablespaces, space)
	}
	for _, r := range l.Refused {
		t.header.Inventory.NotAssessed = append(t.header.Inventory.NotAssessed, "not copied: "+r.Path+": "+r.Why)
	}
	t.mu.Lock()
	t.total = l.Bytes()
	t.mu.Unlock()
}

// unnameable says that a path is not UTF-8, which no file of PostgreSQL's own is
// and a manifest cannot hold: it is left out with a remark.
func (t *take) unnameable(path string) bool {
	if utf8.ValidString(path) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.header.Inventory.NotAssessed = append(t.header.Inventory.NotAssessed, fmt.Sprintf("not copied: %q: its name is not UTF-8", path))
	return true
}

// queueOrder puts the largest first, so that no worker is left alone with one at
// the end, and those that share frames by path, so that like lies with like.
// pg_control is not among them.
func queueOrder(files []datadir.File) []datadir.File {
	out := slices.DeleteFunc(slices.Clone(files), func(f datadir.File) bool { return f.Kind == datadir.Control })
	weight := func(f datadir.File) int64 {
		if f.Size < seal.MaxFrame {
			return 0
		}
		return f.Size
	}
	slices.SortStableFunc(out, func(a, b datadir.File) int {
		return cmp.Or(cmp.Compare(weight(b), weight(a)), cmp.Compare(a.Path, b.Path))
	})
	return out
}

// copyFiles shares the files out among the workers.
func (t *take) copyFiles(ctx context.Context, files []datadir.File, start lsn.LSN) error {
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range t.cfg.Workers {
		group.Go(func() error {
			lane := t.pack.lane()
			cut := t.cutter(ctx, lane)
			for n := next.Add(1) - 1; n < int64(len(files)); n = next.Add(1) - 1 {
				if err := t.copyFile(cut, files[n], start); err != nil {
					return err
				}
			}
			return errors.Join(cut.flush(), lane.flush())
		})
	}
	return group.Wait()
}

// cutter feeds the lane of the goroutine that calls it.
func (t *take) cutter(ctx context.Context, l *lane) *cutter {
	return &cutter{
		cur:  newChunk(),
		took: func(n int) error { return t.took(ctx, n) },
		emit: func(c *chunk) (*chunk, error) {
			err := l.add(c)
			c.reset()
			return c, err
		},
	}
}

// copyFile copies one file as it was when it was listed; one that is gone since
// is left out, for the WAL tells its end (C-16).
func (t *take) copyFile(cut *cutter, d datadir.File, start lsn.LSN) error {
	r, err := datadir.OpenFile(d)
	if errors.Is(err, datadir.ErrVanished) {
		return nil
	}
	if err != nil && d.Outside {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.header.Inventory.NotAssessed = append(t.header.Inventory.NotAssessed, "configuration not copied: "+err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // it was only read
	f := t.newFile(d, start, r.Reread)
	if err := cut.file(f, r, r.Size()); err != nil {
		return err
	}
	t.keep(f)
	return nil
}

// copyControl copies pg_control, after everything else and from a read whose
// checksum is right (C-7, C-18).
func (t *take) copyControl(dir string, layout datadir.Layout) error {
	i := slices.IndexFunc(layout.Files, func(f datadir.File) bool { return f.Kind == datadir.Control })
	if i < 0 {
		return errors.New("the data directory has no global/pg_control")
	}
	d := layout.Files[i]
	_, data, err := control.ReadFile(filepath.Join(dir, "global/pg_control"))
	if err != nil {
		return err
	}
	lane := t.pack.lane()
	cut := t.cutter(t.pack.ctx, lane)
	f := t.newFile(d, 0, nil)
	if err := cut.file(f, bytes.NewReader(data), int64(len(data))); err != nil {
		return err
	}
	t.keep(f)
	return errors.Join(cut.flush(), lane.flush())
}

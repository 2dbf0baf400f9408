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

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
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
	if err := asStarted(dir, backup); err != nil {
		return errors.Join(err, backup.Abort())
	}
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

// asStarted wants the directory to be as new as the checkpoint that began the
// backup. One of another server of the same system, as when the connection leads to
// a new primary after a failover and the path to the old one, would lack what that
// checkpoint wrote, and no WAL of the backup would bring it.
func asStarted(dir string, b *postgres.Backup) error {
	c, _, err := control.ReadFile(filepath.Join(dir, "global/pg_control"))
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if c.Redo < b.Start || c.Timeline != b.Timeline {
		return fmt.Errorf("data directory %s is at %s on timeline %d and the server that answers began the backup at %s on timeline %d: it is another server's of the same cluster; take the snapshot where the server runs, or over the replication protocol (source: stream)",
			dir, c.Redo, c.Timeline, b.Start, b.Timeline)
	}
	return nil
}

func (t *take) copyDir(ctx context.Context, dir string, backup *postgres.Backup) error {
	layout, err := datadir.Scan(dir, datadir.ScanOptions{ConfigFiles: t.srv.facts.ConfigFiles, StatsTemp: t.srv.facts.StatsTemp})
	if err != nil {
		return err
	}
	t.layout(layout)
	t.enrol(layout.Files)
	if err := t.findChanges(ctx, backup.Start, backup.Timeline); err != nil {
		return err
	}
	if err := t.copyFiles(ctx, queue(layout.Files, t.roll.kept()), backup.Start); err != nil {
		return err
	}
	if err := backup.Check(ctx); err != nil {
		return err
	}
	return t.copyControl(ctx, dir)
}

// enrol makes the files of a layout those of the snapshot, but for what no manifest
// can name.
func (t *take) enrol(files *datadir.Files) {
	t.roll.adopt(files, t.base.find)
	for n := range files.Len() {
		if t.unnameable(files.At(n).Path) {
			t.roll.vanish(n)
		}
	}
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

// copyFiles shares the files out among the workers.
func (t *take) copyFiles(ctx context.Context, work []bundle, start lsn.LSN) error {
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range min(t.cfg.Workers, len(work)) {
		group.Go(func() error {
			back, err := datadir.GiveWay()
			if err != nil {
				t.log.Debug("reading at the priority of everything else", zap.Error(err))
			}
			defer back()
			cut := t.lane(ctx)
			for n := next.Add(1) - 1; n < int64(len(work)); n = next.Add(1) - 1 {
				for _, f := range work[n].files {
					if err := t.copyStretch(ctx, cut, t.stretch(int(f), work[n]), start); err != nil {
						return err
					}
				}
			}
			return cut.flush()
		})
	}
	return group.Wait()
}

// stretch is a part of a file, or all of it.
type stretch struct {
	d            datadir.File
	f            *file
	first, count int64
}

func (t *take) stretch(n int, of bundle) stretch {
	d, _ := t.roll.at(n)
	s := stretch{d, t.file(n), of.first, of.count}
	if s.count == 0 {
		s.count = s.f.blocks()
	}
	return s
}

// lane is a cutter for one goroutine that compresses what it cuts itself.
func (t *take) lane(ctx context.Context) *cutter {
	comp := seal.NewCompressor(t.cfg.Level)
	return t.cutter(ctx, func(c *chunk) (*chunk, error) {
		err := t.frame(comp, c)
		c.reset()
		return c, err
	})
}

func (t *take) cutter(ctx context.Context, emit func(*chunk) (*chunk, error)) *cutter {
	return &cutter{
		emit: emit, whole: t.finished, took: func(n int) error { return t.took(ctx, n) },
		passed: t.passed, digest: t.digester(), cur: newChunk(),
	}
}

// digester sums blocks up for the next snapshot. Without a key that nobody else
// knows there are no digests, and the next one finds nothing to compare with.
func (t *take) digester() func([]byte) uint64 {
	if t.cfg.Keys.Epoch == 0 {
		return func([]byte) uint64 { return 0 }
	}
	return page.NewDigester(t.cfg.Keys.Key).Sum
}

// frame compresses a chunk and brings it into the pack in the making.
func (t *take) frame(comp *seal.Compressor, c *chunk) error {
	if t.pack.ctx.Err() != nil {
		return context.Cause(t.pack.ctx)
	}
	at, err := t.pack.add(comp.Compress(c.raw))
	if err != nil {
		return err
	}
	return t.finished(c.place(at))
}

// copyStretch copies a part of a file as it was when it was listed; one that is
// gone since is left out, for the WAL tells its end (C-16).
func (t *take) copyStretch(ctx context.Context, cut *cutter, s stretch, start lsn.LSN) error {
	old, err := t.known(ctx, s.f, s.first, s.first+s.count)
	if err != nil {
		return err
	}
	p := piece{f: s.f, first: s.first, count: s.count, old: old}
	if s.f.kind == catalog.FileRelation && len(old) > 0 {
		who := t.changes.of(s.d.Name)
		p.suspects = &who
	}
	if t.untouched(p) {
		return nil
	}
	r, err := datadir.OpenFile(s.d)
	if errors.Is(err, datadir.ErrVanished) {
		t.roll.vanish(s.f.n)
		return nil
	}
	if err != nil && s.d.Outside {
		t.roll.vanish(s.f.n)
		t.remark("configuration not copied: " + err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // it was only read
	p.r, p.seek, p.check = r, r.MoveTo, s.f.verifier(start, r.Reread)
	if err := cut.piece(p); err != nil {
		return err
	}
	t.checked(s.f, p.check, s.count*page.Size)
	return nil
}

// untouched takes a stretch over as it is known when nothing of it can have
// changed: its file is not even opened.
func (t *take) untouched(p piece) bool {
	if want := (p.count + catalog.LeafBlocks - 1) / catalog.LeafBlocks; int64(len(p.old)) != want {
		return false
	}
	for i, old := range p.old {
		first := p.first + int64(i)*catalog.LeafBlocks
		blocks := min(p.first+p.count-first, catalog.LeafBlocks)
		want := p.candidates(old)
		if want == nil || want.any(first, blocks) || int64(old.leaf.Blocks) != blocks || slices.Contains(old.renew, true) ||
			min(old.size, (first+blocks)*page.Size) != min(p.f.size, (first+blocks)*page.Size) {
			return false
		}
	}
	for i, old := range p.old {
		t.roll.set(p.f.n, p.first/catalog.LeafBlocks+int64(i), old.place())
	}
	t.passed(int(min(p.f.size, (p.first+p.count)*page.Size) - p.first*page.Size))
	return true
}

// remark notes what the snapshot leaves out.
func (t *take) remark(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.header.Inventory.NotAssessed = append(t.header.Inventory.NotAssessed, what)
}

// copyControl copies pg_control, after everything else and from a read whose
// checksum is right (C-7, C-18).
func (t *take) copyControl(ctx context.Context, dir string) error {
	n := t.roll.control()
	if n < 0 {
		return errors.New("the data directory has no global/pg_control")
	}
	_, data, err := control.ReadFile(filepath.Join(dir, "global/pg_control"))
	if err != nil {
		return err
	}
	cut := t.lane(ctx)
	if err := t.copyBytes(ctx, cut, t.file(n), data); err != nil {
		return err
	}
	return cut.flush()
}

// copyBytes copies a file that is in memory.
func (t *take) copyBytes(ctx context.Context, cut *cutter, f *file, data []byte) error {
	if int64(len(data)) != f.size {
		return fmt.Errorf("%s has %d bytes, it was listed with %d", f.path, len(data), f.size)
	}
	old, err := t.known(ctx, f, 0, f.blocks())
	if err != nil {
		return err
	}
	return cut.piece(piece{f: f, count: f.blocks(), r: bytes.NewReader(data), old: old})
}

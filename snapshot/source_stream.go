package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// fromStream has the server send its files. One goroutine takes the stream apart,
// the workers compress: it is one stream, and one core of the server, at most (C-25).
// A server that cannot say what changed since the base sends everything.
func (t *take) fromStream(ctx context.Context, started func(lsn.LSN)) error {
	since, err := t.prior(ctx)
	if err == nil {
		err = t.stream(ctx, since, started)
	}
	if !errors.Is(err, postgres.ErrNoIncremental) {
		return err
	}
	t.log.Info("the server sends every block", zap.Error(err))
	return t.stream(ctx, nil, started)
}

func (t *take) stream(ctx context.Context, since *postgres.Prior, started func(lsn.LSN)) error {
	conn, err := postgres.Connect(ctx, t.cfg.DSN, postgres.ConnectOptions{Replication: true, AppName: "holdfast snapshot"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // what matters came before
	outer := ctx
	group, ctx := errgroup.WithContext(ctx)
	full := make(chan *chunk)
	empty := make(chan *chunk, t.cfg.Workers+2) // room for all that exist: the sink has one more
	for range t.cfg.Workers + 1 {
		empty <- newChunk()
	}
	for range t.cfg.Workers {
		group.Go(func() error { return t.drain(full, empty) })
	}
	sink := &streamSink{t: t}
	sink.cut = t.cutter(ctx, exchange(ctx, full, empty))
	var result postgres.BaseBackupResult
	group.Go(func() (err error) {
		defer close(full)
		result, err = postgres.BaseBackup(ctx, conn, t.streamOptions(sink, since, started), sink)
		if err = t.serverFound(err); err != nil {
			return err
		}
		return sink.cut.flush()
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if !sink.control {
		return errors.New("the server sent no global/pg_control")
	}
	return t.streamed(outer, result)
}

func (t *take) streamOptions(sink *streamSink, since *postgres.Prior, started func(lsn.LSN)) postgres.BaseBackupOptions {
	return postgres.BaseBackupOptions{
		Label: "holdfast " + t.id, Fast: t.cfg.Fast, Since: since,
		Started: func(at lsn.LSN, timeline uint32) {
			sink.start = at
			t.started(at, timeline)
			t.header.Facts.StartedAt = t.srv.facts.Now.UTC()
			started(at)
		},
		Progress: func(_, estimate int64) {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.total = estimate
		},
	}
}

// exchange gives full chunks to the workers for empty ones.
func exchange(ctx context.Context, full, empty chan *chunk) func(*chunk) (*chunk, error) {
	return func(c *chunk) (*chunk, error) {
		select {
		case full <- c:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		select {
		case c := <-empty:
			return c, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// drain packs chunks until there are no more.
func (t *take) drain(full <-chan *chunk, empty chan<- *chunk) error {
	comp := seal.NewCompressor(t.cfg.Level)
	for c := range full {
		if err := t.frame(comp, c); err != nil {
			return err
		}
		c.reset()
		empty <- c
	}
	return nil
}

// streamSink takes the files of a base backup in the server's order, in which
// pg_control is the last of the data directory's.
type streamSink struct {
	t       *take
	cut     *cutter
	start   lsn.LSN
	control bool
}

// File implements postgres.Sink.
func (s *streamSink) File(ctx context.Context, h postgres.FileHeader, r io.Reader) error {
	if s.t.unnameable(h.Path) {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	d := datadir.File{Path: h.Path, Size: h.Size, Mode: h.Mode, ModTime: h.ModTime, Kind: datadir.Other}
	if rel, ok := datadir.ParseRelation(h.Path); ok {
		d.Kind, d.Name = datadir.Relation, rel
	}
	if h.Path == "global/pg_control" {
		d.Kind = datadir.Control
		data, err := io.ReadAll(io.LimitReader(r, control.FileSize+1))
		if err == nil {
			_, err = control.Parse(data)
		}
		if err != nil {
			return fmt.Errorf("pg_control as the server sent it: %w", err)
		}
		s.control = true
		r = bytes.NewReader(data)
	}
	f := s.t.newFile(d)
	check := f.verifier(s.start, nil)
	old, err := s.t.known(ctx, f, 0, f.blocks())
	if err != nil {
		return err
	}
	if err := s.cut.piece(piece{f: f, count: f.blocks(), r: r, check: check, old: old}); err != nil {
		return err
	}
	s.t.checked(f, check, f.size)
	return nil
}

// serverFound turns pages that the server found bad into reasons: the copy is
// whole and holds them (C-21, C-24).
func (t *take) serverFound(err error) error {
	var bad *postgres.ChecksumError
	if !errors.As(err, &bad) {
		return err
	}
	t.suspect("the server found %d pages with wrong checksums", bad.Failures)
	for _, d := range bad.Details {
		t.suspect("server: %s", d)
	}
	return nil
}

// streamed takes what came beside the files.
func (t *take) streamed(ctx context.Context, r postgres.BaseBackupResult) error {
	label, err := postgres.ParseLabel(r.Label)
	if err != nil {
		return err
	}
	if r.StartTimeline != r.EndTimeline {
		return fmt.Errorf("%w: timeline %d at its start, %d at its end", postgres.ErrChanged, r.StartTimeline, r.EndTimeline)
	}
	t.placed(r)
	t.header.Facts.FromStandby = label.FromStandby
	if err := t.configBeside(ctx); err != nil {
		return err
	}
	now, err := postgres.GetFacts(ctx, t.srv.conn)
	if err != nil {
		return fmt.Errorf("look at the server after the backup: %w", err)
	}
	return t.stopped(ctx, postgres.StopResult{LSN: r.End, Label: r.Label, TablespaceMap: r.TablespaceMap, Time: now.Now, Parsed: label})
}

// placed brings directories and tablespaces into the header. A tablespace in place
// is a directory in the data directory's archive, and in no list (C-14).
func (t *take) placed(r postgres.BaseBackupResult) {
	listed := map[string]bool{}
	for _, s := range r.Tablespaces {
		listed[fmt.Sprintf("pg_tblspc/%d", s.OID)] = true
		space := catalog.Tablespace{OID: s.OID, Path: filepath.Clean(s.Location), InPlace: s.InPlace}
		if s.InPlace {
			space.Path = ""
		}
		t.header.Tablespaces = append(t.header.Tablespaces, space)
	}
	for _, d := range r.Dirs {
		if t.unnameable(d.Path) {
			continue
		}
		t.header.Dirs = append(t.header.Dirs, catalog.Dir{Path: d.Path, Mode: uint32(d.Mode.Perm())})
		parent, name := path.Split(d.Path)
		if oid, err := strconv.ParseUint(name, 10, 32); err == nil && parent == "pg_tblspc/" && !listed[d.Path] {
			t.header.Tablespaces = append(t.header.Tablespaces, catalog.Tablespace{OID: uint32(oid), InPlace: true})
		}
	}
}

// configBeside asks the server for configuration that lies outside its data
// directory, which BASE_BACKUP leaves out (C-15). A role that may not read it
// leaves a remark.
func (t *take) configBeside(ctx context.Context) error {
	cut := t.lane(ctx)
	for _, name := range slices.Sorted(maps.Keys(outside(t.srv.facts))) {
		var data []byte
		var at time.Time
		err := t.srv.conn.Pgx().QueryRow(ctx,
			"SELECT pg_read_binary_file($1), (pg_stat_file($1)).modification", name).Scan(&data, &at)
		if err != nil {
			t.remark(fmt.Sprintf("configuration not copied: %s: %v", name, err))
			continue
		}
		d := datadir.File{Path: name, Size: int64(len(data)), Mode: 0o600, ModTime: at, Kind: datadir.Other, Outside: true}
		if err := t.copyBytes(ctx, cut, t.newFile(d), data); err != nil {
			return err
		}
	}
	return cut.flush()
}

// outside are the configuration files that do not lie in the data directory.
func outside(f postgres.Facts) map[string]bool {
	out := map[string]bool{}
	for _, name := range f.ConfigFiles {
		rel, err := filepath.Rel(f.DataDirectory, name)
		if err != nil || !filepath.IsLocal(rel) {
			out[filepath.Clean(name)] = true
		}
	}
	return out
}

package restore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// controlFile is the file without which nothing starts; it is written last (C-54).
const controlFile = "global/pg_control"

// maxManifest bounds a manifest, opened.
const maxManifest = 8 << 30

// tree is a data directory being filled from a manifest.
type tree struct {
	root string
	man  catalog.Manifest
	own  func(paths ...string) error // gives them to PostgreSQL's user
	// spaces are where the tablespaces' links will point, by OID.
	spaces  map[uint32]string
	control []byte
	outside map[string][]byte // configuration files that lay elsewhere, by path

	mu   sync.Mutex // guards control, outside and done
	done int64
}

// readManifest fetches, opens and reads the manifest of a snapshot.
func readManifest(ctx context.Context, r Repo, s catalog.Snapshot) (catalog.Manifest, error) {
	sealed, err := r.Reader.Get(ctx, s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	if err != nil {
		return catalog.Manifest{}, fmt.Errorf("reading the manifest of snapshot %s: %w", s.ID, err)
	}
	plain, err := seal.NewBlobReader(bytes.NewReader(sealed), r.identities(), maxManifest)
	if err != nil {
		return catalog.Manifest{}, fmt.Errorf("opening the manifest of snapshot %s: %w", s.ID, err)
	}
	defer plain.Close()
	m, err := catalog.DecodeManifest(plain)
	if err != nil {
		return catalog.Manifest{}, fmt.Errorf("reading the manifest of snapshot %s: %w", s.ID, err)
	}
	if m.Header.Snapshot != s.ID || m.Header.Cluster != s.Cluster {
		return catalog.Manifest{}, fmt.Errorf("the manifest of snapshot %s of %s says that it is of %s of %s", s.ID, s.Cluster, m.Header.Snapshot, m.Header.Cluster)
	}
	return m, nil
}

// fill makes directories and files, fetches every pack with workers at a time,
// and checks each file; pg_control stays in memory until the end.
func (t *tree) fill(ctx context.Context, r Repo, workers int, progress func(done, total int64)) error {
	if err := t.directories(); err != nil {
		return err
	}
	if err := t.create(); err != nil {
		return err
	}
	var total int64
	byPack := make([][]target, len(t.man.Packs))
	for i, f := range t.man.Files {
		var at int64
		for _, e := range f.Extents {
			byPack[e.Pack] = append(byPack[e.Pack], target{file: i, at: at, extent: e})
			at += int64(e.Len)
			total += int64(e.Len)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i, p := range t.man.Packs {
		g.Go(func() error {
			n, err := t.unpack(gctx, r, p, byPack[i])
			if err != nil {
				return err
			}
			t.mu.Lock()
			t.done += n
			done := t.done
			t.mu.Unlock()
			if progress != nil {
				progress(done, total)
			}
			return nil
		})
	}
	return g.Wait()
}

// target is where one extent of a pack belongs.
type target struct {
	file   int
	at     int64
	extent catalog.Extent
}

// unpack fetches one pack, checks it and each of its frames, and writes what it
// holds. It keeps the file it wrote last open: extents of a file come together.
func (t *tree) unpack(ctx context.Context, r Repo, p catalog.ManifestPack, targets []target) (n int64, err error) {
	body, err := r.Reader.Get(ctx, p.Ref.Name, p.Ref.Size, p.Ref.SHA256)
	if err != nil {
		return 0, fmt.Errorf("fetching pack %s: %w", p.Ref.Name, err)
	}
	byFrame := make([][]target, len(p.Frames))
	for _, x := range targets {
		byFrame[x.extent.Frame] = append(byFrame[x.extent.Frame], x)
	}
	frames := make([]seal.Frame, len(p.Frames))
	for i, f := range p.Frames {
		frames[i] = seal.Frame(f)
	}
	w := &writer{t: t, file: -1}
	defer func() { _ = w.close() }() // after an error; else it is closed below
	err = seal.DecodePack(body, r.Data, frames, func(i int, raw []byte) error {
		for _, x := range byFrame[i] {
			if err := w.write(x, raw[x.extent.Off:x.extent.Off+x.extent.Len]); err != nil {
				return err
			}
			n += int64(x.extent.Len)
		}
		return ctx.Err()
	})
	if err != nil {
		return n, fmt.Errorf("unpacking %s: %w", p.Ref.Name, err)
	}
	return n, w.close()
}

type writer struct {
	t    *tree
	file int
	f    *os.File
}

func (w *writer) write(x target, data []byte) error {
	m := w.t.man.Files[x.file]
	if m.Path == controlFile || m.Outside {
		return w.t.keep(m, x.at, data)
	}
	if w.file != x.file {
		if err := w.close(); err != nil {
			return err
		}
		path, err := w.t.path(m.Path)
		if err != nil {
			return err
		}
		if w.f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			return err
		}
		w.file = x.file
	}
	_, err := w.f.WriteAt(data, x.at)
	return err
}

func (w *writer) close() error {
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f, w.file = nil, -1
	return err
}

// keep holds a small file in memory.
func (t *tree) keep(m catalog.ManifestFile, at int64, data []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	buf := t.control
	if m.Outside {
		buf = t.outside[m.Path]
	}
	if m.Size > 16<<20 {
		return fmt.Errorf("%s is of %d bytes: too large for a configuration file", m.Path, m.Size)
	}
	if buf == nil {
		buf = make([]byte, m.Size)
	}
	copy(buf[at:], data)
	if m.Outside {
		t.outside[m.Path] = buf
	} else {
		t.control = buf
	}
	return nil
}

// path is where a file of the manifest lies: below the root, or in its
// tablespace's new place.
func (t *tree) path(rel string) (string, error) {
	root := t.root
	if rest, ok := strings.CutPrefix(rel, "pg_tblspc/"); ok {
		oid, below, _ := strings.Cut(rest, "/")
		for id, dir := range t.spaces {
			if fmt.Sprint(id) == oid {
				root, rel = dir, below
			}
		}
		if rel == "" {
			return root, nil
		}
	}
	return durable.SafeJoin(root, rel)
}

func (t *tree) directories() error {
	for _, dir := range t.spaces {
		if err := t.mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	for _, d := range t.man.Header.Dirs {
		path, err := t.path(d.Path)
		if err != nil {
			return err
		}
		if err := t.mkdir(path, fs.FileMode(d.Mode)&0o777); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) mkdir(path string, mode fs.FileMode) error {
	if err := os.Mkdir(path, mode|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making a directory of the restored cluster: %w", err)
	}
	return t.own(path)
}

// create makes every file at its size, so that a disk that is too small is
// found out before anything is fetched.
func (t *tree) create() error {
	for _, m := range t.man.Files {
		if m.Path == controlFile || m.Outside {
			continue
		}
		path, err := t.path(m.Path)
		if err != nil {
			return err
		}
		if err := t.createFile(path, m); err != nil {
			return fmt.Errorf("making %s: %w", path, err)
		}
	}
	return nil
}

func (t *tree) createFile(path string, m catalog.ManifestFile) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(m.Mode)&0o777|0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := reserve(f, m.Size); err != nil {
		return err
	}
	if err := t.own(path); err != nil {
		return err
	}
	return f.Close()
}

// write puts a small file of ours into the root, durably and owned right.
func (t *tree) write(rel string, data []byte, mode fs.FileMode) error {
	path := filepath.Join(t.root, rel)
	if err := durable.WriteFile(path, data, mode); err != nil {
		return err
	}
	return t.own(path)
}

// finish makes everything durable and then writes pg_control, its checkpoint
// poisoned so that the cluster cannot start without backup_label (C-4, C-54).
func (t *tree) finish() error {
	if err := checkKept(t.man, t.control, controlFile); err != nil {
		return err
	}
	poisoned, err := control.Poison(t.control)
	if err != nil {
		return fmt.Errorf("writing pg_control: %w", err)
	}
	for _, root := range append([]string{t.root}, values(t.spaces)...) {
		if err := syncTree(root); err != nil {
			return fmt.Errorf("making the restored files durable: %w", err)
		}
	}
	return t.write(controlFile, poisoned, 0o600)
}

func checkKept(m catalog.Manifest, data []byte, path string) error {
	for _, f := range m.Files {
		if f.Path == path {
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != f.SHA256 {
				return fmt.Errorf("%s has SHA-256 %x, the manifest says %s", path, sum, f.SHA256)
			}
			return nil
		}
	}
	return fmt.Errorf("the manifest names no %s: the snapshot cannot be started", path)
}

func values(m map[uint32]string) []string {
	var out []string
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// syncTree fsyncs every file and directory below root, many at a time: most have
// nothing to write, and the rest is written together.
func syncTree(root string) error {
	var g errgroup.Group
	g.SetLimit(16)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		g.Go(func() error { return durable.SyncDir(path) }) // opens and fsyncs, files as well
		return nil
	})
	return errors.Join(err, g.Wait())
}

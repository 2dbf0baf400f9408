// Package dirzone is a zone in a directory: a mounted disk, an export, a
// laptop's folder.
//
// Objects are files (0600) in directories (0700) under their own names; what is
// not whole yet is in .holdfast-tmp, which no listing shows. Creation is by
// link(2), so it has one winner, and file and directory are fsynced before it
// is acknowledged. It never makes the zone's own directory, for a mount that is
// missing must not look like an empty zone; keeps no versions and no locks; and
// notes no digest, since a file's name and size are all that it can tell
// without reading it. It fails with zone.ErrUnreachable when the directory is
// away or its disk or server gives errors. The file system must order a link
// after its file's fsync, as local ones and NFS do.
package dirzone

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// tempDir holds unfinished files; those older than tempAge belong to nobody.
const (
	tempDir = ".holdfast-tmp"
	tempAge = 24 * time.Hour
)

// Driver is a zone.Driver over one directory.
type Driver struct {
	root  string
	swept sync.Once

	mu sync.Mutex
	// synced are directories whose own names we have seen durable. One that
	// another process made a moment ago may not be.
	synced map[string]bool
}

// maxSynced bounds what we remember; what is forgotten costs an fsync.
const maxSynced = 4096

var (
	_ zone.Driver   = (*Driver)(nil)
	_ zone.Vanisher = (*Driver)(nil)
)

// New is the driver of the directory at an absolute path. The directory may be
// away now.
func New(root string) (*Driver, error) {
	if !filepath.IsAbs(root) || filepath.Clean(root) == "/" {
		return nil, fmt.Errorf("directory zone %q: want an absolute path below /", root)
	}
	return &Driver{root: filepath.Clean(root)}, nil
}

// MayVanish implements zone.Vanisher: an unmounted directory is still one.
func (d *Driver) MayVanish() bool { return true }

// Close implements io.Closer; nothing stays open between calls.
func (d *Driver) Close() error { return nil }

// file is the path of an object.
func (d *Driver) file(name string) (string, error) {
	if name == tempDir || strings.HasPrefix(name, tempDir+"/") {
		return "", fmt.Errorf("object name %q is not free", name)
	}
	return durable.SafeJoin(d.root, name)
}

// Create implements zone.Creator.
func (d *Driver) Create(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	return d.put(ctx, name, body, opt, durable.CreateVia)
}

// Repair implements zone.Repairer.
func (d *Driver) Repair(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	return d.put(ctx, name, body, opt, durable.ReplaceVia)
}

type write func(tmpDir, path string, data []byte, perm fs.FileMode) error

func (d *Driver) put(ctx context.Context, name string, body []byte, opt zone.CreateOptions, by write) error {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	if sha256.Sum256(body) != opt.SHA256 {
		return fmt.Errorf("%w: the body's is %x, and %x was to be written", zone.ErrDigest, sha256.Sum256(body), opt.SHA256)
	}
	if err := opt.Spend(ctx, len(body)); err != nil {
		return err
	}
	// A removal may prune an empty directory between our making and using it.
	for try := 0; ; try++ {
		err := d.putOnce(ctx, name, file, body, by)
		if !errors.Is(err, fs.ErrNotExist) || try == 8 {
			return d.explain(err)
		}
	}
}

func (d *Driver) putOnce(ctx context.Context, name, file string, body []byte, by write) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.mkdirs(tempDir); err != nil {
		return err
	}
	d.swept.Do(func() { _ = d.sweep(time.Now()) }) // tidiness: a failure keeps nothing from being stored
	if err := d.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	if info, err := os.Lstat(file); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is a %s, not an object", file, info.Mode().Type())
	}
	return by(filepath.Join(d.root, tempDir), file, body, 0o600)
}

// mkdirs makes rel below the zone's directory, one level at a time, so that it
// can never make that directory; links are refused, for they lead elsewhere.
func (d *Driver) mkdirs(rel string) error {
	at := d.root
	if err := isDir(at); err != nil {
		return err
	}
	if rel == "." {
		return nil
	}
	for part := range strings.SplitSeq(rel, "/") {
		parent := at
		at = filepath.Join(at, part)
		err := os.Mkdir(at, 0o700)
		if errors.Is(err, fs.ErrExist) {
			if err := isRealDir(at); err != nil {
				return err
			}
			if d.isSynced(at) {
				continue
			}
		} else if err != nil {
			return err
		}
		if err := durable.SyncDir(parent); err != nil {
			return err
		}
		d.setSynced(at, true)
	}
	return nil
}

func (d *Driver) isSynced(dir string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.synced[dir]
}

func (d *Driver) setSynced(dir string, is bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.synced == nil || len(d.synced) >= maxSynced {
		d.synced = map[string]bool{}
	}
	if is {
		d.synced[dir] = true
	} else {
		delete(d.synced, dir)
	}
}

func isDir(p string) error {
	info, err := os.Stat(p)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: p, Err: unix.ENOTDIR}
	}
	return err
}

func isRealDir(p string) error {
	info, err := os.Lstat(p)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: p, Err: unix.ENOTDIR}
	}
	return err
}

// explain tells "the object is not there" from "the zone is not there".
func (d *Driver) explain(err error) error {
	for _, gone := range []error{unix.EIO, unix.ESTALE, unix.ENOTCONN, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.ESHUTDOWN} {
		if errors.Is(err, gone) {
			return fmt.Errorf("%w: %s", zone.ErrUnreachable, err.Error())
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		if derr := isDir(d.root); derr != nil {
			// Its text only: its "no such file" is not the object's.
			return fmt.Errorf("%w: %s; mount it, or make it and run zone add", zone.ErrUnreachable, derr.Error())
		}
	}
	return err
}

// Read implements zone.Reader.
func (d *Driver) Read(ctx context.Context, name, version string, off, length int64) (io.ReadCloser, error) {
	f, _, err := d.open(ctx, name, version)
	if err != nil {
		return nil, err
	}
	if length < 0 {
		length = 1<<63 - 1 - off
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, length), f}, nil
}

// Stat implements zone.Reader. SHA256 stays "".
func (d *Driver) Stat(ctx context.Context, name, version string) (zone.Object, error) {
	f, info, err := d.open(ctx, name, version)
	if err != nil {
		return zone.Object{}, err
	}
	f.Close()
	return object(name, info), nil
}

func object(name string, info fs.FileInfo) zone.Object {
	return zone.Object{Name: name, Size: info.Size(), Latest: true, Modified: info.ModTime()}
}

// open follows no link out of the zone, and opens regular files only.
func (d *Driver) open(ctx context.Context, name, version string) (*os.File, fs.FileInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if _, err := d.file(name); err != nil {
		return nil, nil, err
	}
	if version != "" {
		return nil, nil, fmt.Errorf("version %q of %s: a directory keeps none: %w", version, name, fs.ErrNotExist)
	}
	root, err := os.OpenRoot(d.root)
	if err != nil {
		return nil, nil, d.explain(err)
	}
	defer func() { _ = root.Close() }()                           // it was only read
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not make us wait
	if errors.Is(err, unix.ENOTDIR) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, nil, d.explain(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is a %s, not an object: %w", name, info.Mode().Type(), fs.ErrNotExist)
	}
	if err != nil {
		f.Close()
		return nil, nil, d.explain(err)
	}
	return f, info, nil
}

// ExtendLock implements zone.LockExtender: a directory cannot.
func (d *Driver) ExtendLock(context.Context, string, string, time.Time) error {
	return fmt.Errorf("lock in a directory: %w", errors.ErrUnsupported)
}

// RemoveVersion implements zone.Remover, and takes directories along that
// became empty.
func (d *Driver) RemoveVersion(ctx context.Context, name, version string) error {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	if err := errors.Join(ctx.Err(), d.explain(isDir(d.root))); err != nil {
		return err
	}
	if version != "" {
		return nil // kept no such version, so it is gone
	}
	if info, err := os.Lstat(file); err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err := durable.Remove(file); err != nil && !errors.Is(err, unix.ENOTDIR) {
		return d.explain(err)
	}
	for dir := filepath.Dir(file); dir != d.root; dir = filepath.Dir(dir) {
		d.setSynced(dir, false) // before: another Create may make it again at once
		if unix.Rmdir(dir) != nil {
			break
		}
	}
	return d.explain(isDir(d.root))
}

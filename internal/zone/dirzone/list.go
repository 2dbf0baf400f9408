package dirzone

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// ListVersions implements zone.VersionLister: each object once.
func (d *Driver) ListVersions(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	return d.List(ctx, prefix, yield)
}

// SingleVersion implements zone.SingleVersion.
func (d *Driver) SingleVersion() bool { return true }

// List implements zone.Lister. Links, pipes and the like are no objects.
func (d *Driver) List(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	if err := isDir(d.root); err != nil {
		return d.explain(err)
	}
	dir := ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir = prefix[:i]
		if _, err := durable.SafeJoin(d.root, dir); err != nil {
			return err
		}
	}
	return d.walk(ctx, dir, prefix, yield)
}

// walk lists dir (slash-separated, "" the zone itself) in byte order of full
// names: a directory stands where its name followed by a slash does.
func (d *Driver) walk(ctx context.Context, dir, prefix string, yield func(zone.Object) error) error {
	entries, err := os.ReadDir(filepath.Join(d.root, filepath.FromSlash(dir)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return d.explain(isDir(d.root))
	}
	if err != nil {
		return d.explain(err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(sortKey(a), sortKey(b)) })
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if dir == "" && (name == tempDir || name == "lost+found") || !overlap(name, e.IsDir(), prefix) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.visit(ctx, e, name, prefix, yield); err != nil {
			return err
		}
	}
	return nil
}

func (d *Driver) visit(ctx context.Context, e fs.DirEntry, name, prefix string, yield func(zone.Object) error) error {
	if e.IsDir() {
		return d.walk(ctx, name, prefix, yield)
	}
	if !e.Type().IsRegular() {
		return nil
	}
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return d.explain(isDir(d.root)) // removed while we listed
	}
	if err != nil {
		return d.explain(err)
	}
	return yield(object(name, info))
}

func sortKey(e fs.DirEntry) string {
	if e.IsDir() {
		return e.Name() + "/"
	}
	return e.Name()
}

// overlap says whether an entry is, or may hold, what begins with prefix.
func overlap(name string, dir bool, prefix string) bool {
	if dir {
		name += "/"
		return strings.HasPrefix(name, prefix) || strings.HasPrefix(prefix, name)
	}
	return strings.HasPrefix(name, prefix)
}

// sweep removes what creations that were interrupted long ago left behind.
func (d *Driver) sweep(now time.Time) error {
	entries, err := os.ReadDir(filepath.Join(d.root, tempDir))
	if errors.Is(err, fs.ErrNotExist) {
		return d.explain(isDir(d.root))
	}
	if err != nil {
		return d.explain(err)
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || now.Sub(info.ModTime()) < tempAge {
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(d.root, tempDir, e.Name())))
	}
	return errors.Join(errs...)
}

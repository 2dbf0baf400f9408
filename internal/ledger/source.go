package ledger

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Source reads a repository; names are whole ones, as ledger/db1-0a1b2c3d/tile/0/000.
type Source interface {
	// Fetch tries the copies that the zones hold until accept returns nil for
	// one, and returns it. fs.ErrNotExist where no zone has any.
	Fetch(ctx context.Context, name string, accept func(zone string, body []byte) error) ([]byte, error)
	// List returns the names under prefix that any zone shows, each once. It is an
	// error where so few zones answered that a quorum's object could be missed.
	List(ctx context.Context, prefix string) ([]string, error)
}

// Store is a Source that takes new objects.
type Store interface {
	Source
	// Put returns nil when the write quorum holds exactly body under name, and an
	// error that is fs.ErrExist where a zone holds other bytes there.
	Put(ctx context.Context, name string, body []byte) error
}

// Dir is a repository in a directory: a copy of a zone, an unpacked bundle of
// evidence.
type Dir string

// Fetch implements [Source].
func (d Dir) Fetch(_ context.Context, name string, accept func(string, []byte) error) ([]byte, error) {
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("read %q: %w: not a name inside a repository", name, fs.ErrInvalid)
	}
	body, err := os.ReadFile(filepath.Join(string(d), name))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	if err := accept(string(d), body); err != nil {
		return nil, err
	}
	return body, nil
}

// List implements [Source]. A directory that is missing is an error, not empty.
func (d Dir) List(ctx context.Context, prefix string) ([]string, error) {
	if _, err := os.Stat(string(d)); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	root := filepath.Join(string(d), filepath.FromSlash(prefix[:strings.LastIndexByte(prefix, '/')+1]))
	var names []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil && path == root && os.IsNotExist(err) {
			return filepath.SkipAll
		}
		if err != nil || ctx.Err() != nil {
			return cmpOr(err, ctx.Err())
		}
		rel, err := filepath.Rel(string(d), path)
		if err == nil && e.Type().IsRegular() && strings.HasPrefix(filepath.ToSlash(rel), prefix) {
			names = append(names, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	slices.Sort(names)
	return names, nil
}

func cmpOr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// lay makes every file at its size and lists what must be brought into them:
// nothing for zeros, which are holes, nor for blocks that are there already.
func (t *tree) lay(ctx context.Context, maps *catalog.MapSet, workers int, out *records) error {
	if t.like != nil {
		workers *= 2 // half of them wait for the disk
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i := range t.files {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := t.layFile(gctx, maps, i, out); err != nil {
				return fmt.Errorf("making %s: %w", t.path(i), err)
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}

func (t *tree) layFile(ctx context.Context, maps *catalog.MapSet, i int, out *records) error {
	e := &t.files[i]
	var old *os.File
	if e.kind == held {
		t.hold(i, 0, nil)
	} else {
		f, fresh, err := t.open(i)
		if err != nil {
			return err
		}
		defer f.Close()
		if !fresh && t.like != nil {
			old = f
		}
	}
	rel := catalog.ManifestFile{Path: t.path(i), Size: e.size, Leaves: t.leavesOf(i)}
	if old == nil {
		return maps.Leaves(ctx, rel, func(first int64, l catalog.Leaf) error {
			return out.add(wanted(i, first, e.size, l)...)
		})
	}
	have := t.like.of(rel.Path, e, old)
	defer have.release()
	return maps.Leaves(ctx, rel, func(first int64, l catalog.Leaf) error {
		differ, err := have.differing(i, first, l)
		if err != nil {
			return err
		}
		return out.add(differ...)
	})
}

// open makes file i, or takes the one that is there, and gives it its size.
func (t *tree) open(i int) (f *os.File, fresh bool, err error) {
	path, err := t.place(t.path(i))
	if err != nil {
		return nil, false, err
	}
	mode := fs.FileMode(t.files[i].mode)&0o777 | 0o600
	f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR|unix.O_NOFOLLOW, mode)
	fresh = err == nil
	if errors.Is(err, fs.ErrExist) && t.like != nil {
		f, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, false, err
	}
	if err := t.fit(f, t.files[i].size, mode); err != nil {
		f.Close()
		return nil, false, err
	}
	return f, fresh, nil
}

// fit gives a file its size, mode and owner, and leaves one alone that has them:
// making an inode durable that was touched takes a commit of the file system's
// journal, one that was not takes nothing.
func (t *tree) fit(f *os.File, size int64, mode fs.FileMode) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// The size first: where there is no room for it, nothing is fetched.
	if info.Size() != size {
		if err := f.Truncate(size); err != nil {
			return err
		}
	}
	if info.Mode() != mode {
		if err := f.Chmod(mode); err != nil {
			return err
		}
	}
	return t.own(f.Name())
}

// wanted lists what a leaf's runs bring into file, all of it.
func wanted(file int, first, size int64, l catalog.Leaf) []record {
	var out []record
	for _, r := range l.Runs {
		if r.Frame != catalog.ZeroFrame {
			out = append(out, ofRun(file, first, size, l, r))
		}
	}
	return out
}

// ofRun is the record of one run.
func ofRun(file int, first, size int64, l catalog.Leaf, r catalog.Run) record {
	return record{
		frame: l.Frames[r.Frame], file: uint32(file), from: uint32(r.Off), n: uint32(r.Bytes(first, size)),
		at: (first + int64(r.First)) * catalog.BlockSize, digests: page.Fold(l.Digests[r.First : r.First+r.Count]),
	}
}

package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// controlFile is the file without which nothing starts; it is written last (C-54).
const controlFile = "global/pg_control"

// tree is a data directory being filled.
type tree struct {
	root string
	*layout
	own func(paths ...string) error // gives them to PostgreSQL's user
	// spaces are where the tablespaces' links will point, by OID.
	spaces map[uint32]string
	// digester holds each block that comes against what the page map tells of it; nil
	// where its keys are not to be had.
	digester *page.Digester
	// like tells blocks that are there already; nil where there are none.
	like *likeness

	done atomic.Int64 // bytes written

	mu   sync.Mutex
	held map[int][]byte  // contents of the files that are kept in memory
	ours map[string]bool // files that were written otherwise than the snapshot has them
}

// hold puts a piece of a file that is kept in memory into its place.
func (t *tree) hold(file int, at int64, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held[file] == nil {
		t.held[file] = make([]byte, t.files[file].size)
	}
	copy(t.held[file][at:], data)
}

// outside are the configuration files that lay elsewhere, by path.
func (t *tree) outside() map[string][]byte {
	out := map[string][]byte{}
	for i, data := range t.held {
		if i != t.control {
			out[t.path(i)] = data
		}
	}
	return out
}

// place is where a path of the manifest lies: below the root, or in its
// tablespace's new directory.
func (t *tree) place(rel string) (string, error) {
	root := t.root
	if rest, ok := strings.CutPrefix(rel, "pg_tblspc/"); ok {
		name, below, _ := strings.Cut(rest, "/")
		oid, err := strconv.ParseUint(name, 10, 32)
		if dir, ok := t.spaces[uint32(oid)]; ok && err == nil {
			root, rel = dir, below
		}
		if rel == "" {
			return root, nil
		}
	}
	return durable.SafeJoin(root, rel)
}

// directories makes those of the manifest.
func (t *tree) directories() error {
	for _, dir := range t.spaces {
		if err := t.mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	for _, d := range t.header.Dirs {
		path, err := t.place(d.Path)
		if err != nil {
			return err
		}
		if err := t.mkdir(path, fs.FileMode(d.Mode)&0o777); err != nil {
			return err
		}
		// The data directory's own mode is not told; a server takes 0700, and 0750
		// where its group may read (checkDataDir in postmaster.c).
		if d.Path == "global" && d.Mode&0o050 == 0o050 {
			if err := os.Chmod(t.root, 0o750); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tree) mkdir(path string, mode fs.FileMode) error {
	mode |= 0o700
	err := os.Mkdir(path, mode)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making a directory of the restored cluster: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		return fmt.Errorf("making a directory of the restored cluster: %w", err)
	}
	return t.own(path)
}

// write puts a small file of ours into the root, durably and owned right.
func (t *tree) write(rel string, data []byte, mode fs.FileMode) error {
	if t.ours != nil {
		t.ours[rel] = true
	}
	path := filepath.Join(t.root, rel)
	if err := durable.WriteFile(path, data, mode); err != nil {
		return err
	}
	return t.own(path)
}

// finish makes everything durable and then writes pg_control, its checkpoint
// poisoned so that the cluster cannot start without backup_label (C-4, C-54).
func (t *tree) finish() error {
	poisoned, err := control.Poison(t.held[t.control])
	if err != nil {
		return fmt.Errorf("writing pg_control: %w", err)
	}
	if err := t.describe(poisoned); err != nil {
		return fmt.Errorf("making the restored files durable: %w", err)
	}
	return t.write(controlFile, poisoned, 0o600)
}

func values(m map[uint32]string) []string {
	var out []string
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// syncers are files that are made durable at a time: most have nothing to write,
// and the rest is written together.
const syncers = 16

// syncTree fsyncs every file and directory below root.
func syncTree(root string) error {
	var g errgroup.Group
	g.SetLimit(syncers)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		g.Go(func() error { return syncPath(path) })
		return nil
	})
	return errors.Join(err, g.Wait())
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

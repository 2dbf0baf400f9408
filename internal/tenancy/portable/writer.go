package portable

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

// ErrExists means that the target is there: nothing is replaced.
var ErrExists = errors.New("the target exists, and nothing is replaced")

// Writer makes an export under a temporary name beside its target.
type Writer struct {
	target string
	tmp    string // a directory: the export, or where an archive is made
	file   *os.File
	tar    *tar.Writer // nil: a directory is made
	dirs   []string    // made below tmp
}

// tmpPrefix is how names begin of what was not finished: the target has none of it.
const tmpPrefix = ".holdfast-export-"

// archiveName is the archive while it is made.
const archiveName = "archive"

// Create begins an export into a directory, or where the name ends in .tar into an
// archive. It refuses a target that exists.
func Create(target string) (*Writer, error) {
	target, err := filepath.Abs(target)
	if err != nil {
		return nil, fmt.Errorf("exporting to %s: %w", target, err)
	}
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = ErrExists
		}
		return nil, fmt.Errorf("exporting to %s: %w", target, err)
	}
	w := &Writer{target: target}
	if w.tmp, err = os.MkdirTemp(filepath.Dir(target), tmpPrefix); err != nil {
		return nil, fmt.Errorf("exporting to %s: making a directory beside it: %w", target, err)
	}
	if strings.HasSuffix(target, ".tar") {
		if w.file, err = os.OpenFile(filepath.Join(w.tmp, archiveName), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
			return nil, errors.Join(fmt.Errorf("exporting to %s: %w", target, err), w.Abort())
		}
		w.tar = tar.NewWriter(w.file)
	}
	return w, nil
}

// Add adds a file: write streams its bytes. The name is relative, with slashes.
func (w *Writer) Add(name string, write func(io.Writer) error) (File, error) {
	f, err := w.add(name, write)
	if err != nil {
		return f, fmt.Errorf("writing %s of the export to %s: %w", name, w.target, err)
	}
	return f, nil
}

func (w *Writer) add(name string, write func(io.Writer) error) (File, error) {
	at := name
	if w.tar != nil {
		at = "spool"
	}
	path, err := durable.SafeJoin(w.tmp, filepath.FromSlash(at))
	if err == nil {
		err = w.mkdir(filepath.Dir(path))
	}
	if err != nil {
		return File{}, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	out := File{Name: name}
	if out.Bytes, out.SHA256, err = pour(f, write); err != nil {
		return out, err
	}
	if w.tar == nil {
		return out, errors.Join(f.Sync(), f.Close())
	}
	return out, errors.Join(w.archive(f, name, out.Bytes), os.Remove(path))
}

// pour lets write fill f, and digests what it writes.
func pour(f *os.File, write func(io.Writer) error) (n int64, sum string, err error) {
	digest := sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(f, digest), 256<<10)
	if err = errors.Join(write(buf), buf.Flush()); err != nil {
		return 0, "", err
	}
	n, err = f.Seek(0, io.SeekCurrent)
	return n, hex.EncodeToString(digest.Sum(nil)), err
}

func (w *Writer) mkdir(dir string) error {
	for d := dir; d != w.tmp; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil {
			break
		}
		w.dirs = append(w.dirs, d)
	}
	return os.MkdirAll(dir, 0o700)
}

func (w *Writer) archive(f *os.File, name string, size int64) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := w.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: time.Now().Truncate(time.Second)}); err != nil {
		return err
	}
	_, err := io.Copy(w.tar, f)
	return err
}

// TempDir makes a directory on the export's disk that is no part of it: its caller
// removes it; [Writer.Abort] does, too.
func (w *Writer) TempDir() (string, error) { return os.MkdirTemp(w.tmp, tmpPrefix) }

// AddTree adds the regular files below dir, under a name; links and the like are refused.
func (w *Writer) AddTree(name, dir string) (files []File, err error) {
	files = []File{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is no regular file", path)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := w.Add(name+"/"+filepath.ToSlash(rel), func(to io.Writer) error {
			from, err := os.Open(path)
			if err != nil {
				return err
			}
			defer from.Close()
			_, err = io.Copy(to, from)
			return err
		})
		files = append(files, f)
		return err
	})
	return files, err
}

// Commit makes all durable and gives it its name. [ErrExists] where somebody took
// that meanwhile.
func (w *Writer) Commit() error {
	if err := w.commit(); err != nil {
		return errors.Join(fmt.Errorf("exporting to %s: %w", w.target, err), w.Abort())
	}
	return nil
}

func (w *Writer) commit() error {
	if left, err := filepath.Glob(filepath.Join(w.tmp, tmpPrefix+"*")); err != nil || len(left) > 0 {
		return fmt.Errorf("%d directories were left in it: %w", len(left), err)
	}
	made := w.tmp
	if w.tar != nil {
		if err := errors.Join(w.tar.Close(), w.file.Sync(), w.file.Close()); err != nil {
			return err
		}
		made = filepath.Join(w.tmp, archiveName)
	} else {
		for _, d := range append(w.dirs, w.tmp) {
			if err := durable.SyncDir(d); err != nil {
				return err
			}
		}
	}
	err := unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, w.target, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system without it
		if _, err = os.Lstat(w.target); errors.Is(err, fs.ErrNotExist) {
			err = os.Rename(made, w.target)
		} else if err == nil {
			err = ErrExists
		}
	}
	if errors.Is(err, fs.ErrExist) {
		err = ErrExists
	}
	if err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(filepath.Dir(w.target)), os.RemoveAll(w.tmp))
}

// Abort removes what was written.
func (w *Writer) Abort() error {
	if w.file != nil {
		w.file.Close()
	}
	return os.RemoveAll(w.tmp)
}

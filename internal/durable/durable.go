// Package durable is files that survive a power cut.
//
// Every change follows one order: write a new file, fsync it, give it its name
// in one step, fsync the directory, and only then return nil. A reader sees the
// old file or the new one, whole; after a crash as well.
//
// It never edits in place (the tail of a [Log] excepted, which is framed so that
// a torn one is known), and never reports success that the kernel did not
// confirm. It fails with the system's error and the path; a failed call may
// leave a temporary file (named .tmp-…), never a torn one under the name asked
// for. When SyncDir fails after the name was given, the name may be there: a
// caller takes the error as "not known".
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// TempPrefix begins the name of every temporary file of this package.
const TempPrefix = ".tmp-"

// WriteFile puts data under path, replacing what was there. The directory must
// exist.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return ReplaceVia(filepath.Dir(path), path, data, perm)
}

// Create is [WriteFile] for a path that does not exist: fs.ErrExist when it
// does, which leaves it as it was.
func Create(path string, data []byte, perm fs.FileMode) error {
	return CreateVia(filepath.Dir(path), path, data, perm)
}

// CreateVia is [Create] with the temporary file in tmpDir, which must exist and
// be of the same file system, so that a listing of path's directory never meets
// an unfinished file.
func CreateVia(tmpDir, path string, data []byte, perm fs.FileMode) error {
	tmp, err := writeTemp(tmpDir, data, perm)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	err = publish(tmp, path)
	os.Remove(tmp)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create %s: %w", path, err)
	}
	// Also where it existed: whoever made it may not have fsynced its name yet,
	// and our caller may take "exists" for "kept".
	if serr := SyncDir(filepath.Dir(path)); serr != nil {
		return serr
	}
	return err
}

// ReplaceVia is [WriteFile] with the temporary file in tmpDir, as [CreateVia].
func ReplaceVia(tmpDir, path string, data []byte, perm fs.FileMode) error {
	tmp, err := writeTemp(tmpDir, data, perm)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// publish gives tmp the name path if nothing bears it: link(2), or where the
// file system has no hard links renameat2(2) with RENAME_NOREPLACE.
func publish(tmp, path string) error {
	err := os.Link(tmp, path)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		if err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
			return &fs.PathError{Op: "renameat2", Path: path, Err: err}
		}
		return nil
	}
	return err
}

func writeTemp(dir string, data []byte, perm fs.FileMode) (name string, err error) {
	f, err := os.CreateTemp(dir, TempPrefix+"*")
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := write(f, data); err != nil {
		return "", err
	}
	if err := f.Chmod(perm); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return f.Name(), nil
}

// bulk is how much data is worth writing past the page cache, and block what that is
// done in multiples of.
const bulk, block = 1 << 20, 4 << 10

// write writes data to f, a new file: what is bulk past the page cache, which keeps
// what others have there and costs no copy. A file system that cannot is written to as
// any other; its refusal changes nothing.
func write(f *os.File, data []byte) error {
	if len(data) >= bulk {
		n, err := direct(f, data[:len(data)/block*block])
		if err != nil {
			return err
		}
		data = data[n:]
	}
	_, err := f.Write(data)
	return err
}

// direct writes data by O_DIRECT and says how much of it: all, or nothing where the
// file system, or the place of data in memory, does not allow it.
func direct(f *os.File, data []byte) (n int, err error) {
	fd := f.Fd()
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err != nil {
		return 0, fmt.Errorf("flags of %s: %w", f.Name(), err)
	}
	if _, err := unix.FcntlInt(fd, unix.F_SETFL, flags|unix.O_DIRECT); err != nil {
		return 0, nil //nolint:nilerr // not to be had here
	}
	n, err = f.Write(data)
	if n == 0 && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
		err = nil
	}
	if _, ferr := unix.FcntlInt(fd, unix.F_SETFL, flags); ferr != nil {
		err = errors.Join(err, fmt.Errorf("flags of %s: %w", f.Name(), ferr))
	}
	return n, err
}

// MkdirAll makes path and the parents it lacks, and fsyncs each directory that
// got an entry; path's own parent in any case, since an earlier call may have
// made path and failed, or died, before its fsync.
func MkdirAll(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return fmt.Errorf("make directory %s: %w", path, unix.ENOTDIR)
		}
		if err := SyncDir(filepath.Dir(path)); !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil // a parent that we may not read is not one that we made
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	parent := filepath.Dir(path)
	if err := MkdirAll(parent, perm); err != nil {
		return err
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	return SyncDir(parent)
}

// Remove takes path away for good; what is gone already is success.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	err := SyncDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("fsync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("fsync directory: %w", err)
	}
	return nil
}

// SafeJoin is root/rel for a rel that came from elsewhere: slash-separated,
// relative, clean, without "..", "." or empty elements and without NUL. It
// looks at names only: who fears links opens what it returns below an os.Root.
func SafeJoin(root, rel string) (string, error) {
	if rel == "" || rel == "." || strings.ContainsAny(rel, "\x00\\") || !filepath.IsLocal(rel) || filepath.Clean(rel) != rel {
		return "", fmt.Errorf("path %q below %s: want a clean relative path that stays below", rel, root)
	}
	return filepath.Join(root, rel), nil
}

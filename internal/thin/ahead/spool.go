package ahead

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Spool is the directory beside a standby's WAL into which segments are fetched
// before recovery asks for them. A segment is a file, durable before it has its name:
// the segment's and the stamp by which whoever takes it tells that nobody wrote to it
// since. So it is not read again, and a crash needs no repair. One process fills it at
// a time.
type Spool struct{ Dir string }

// recovering is what PostgreSQL calls the segment that it asks restore_command for.
const recovering = "RECOVERYXLOG"

// isSegment is written out, as are paths here: package regexp is initialised late.
func isSegment(name string) bool {
	return len(name) == 24 && strings.Trim(name, "0123456789ABCDEF") == ""
}

// SpoolFor is the spool of a fetch of name to dest; false where nothing is fetched
// ahead: of a small file, or a fetch that is not recovery's.
func SpoolFor(name, dest string) (Spool, bool) {
	dir, file := ".", dest
	if i := strings.LastIndexByte(dest, '/'); i >= 0 {
		dir, file = dest[:i], dest[i+1:]
	}
	return Spool{dir + "/holdfast-spool"}, isSegment(name) && file == recovering
}

func (s Spool) path(name string) string { return s.Dir + "/" + name }

// entry is a segment in the spool.
type entry struct{ name, stamp, path string }

func (s Spool) entries() (list []entry) {
	files, err := os.ReadDir(s.Dir)
	if err != nil {
		return nil
	}
	for _, f := range files {
		name, stamp, ok := strings.Cut(f.Name(), ".")
		if ok && isSegment(name) {
			list = append(list, entry{name, stamp, s.path(f.Name())})
		}
	}
	return list
}

// Missing are those of the segments that are not there, by one look.
func (s Spool) Missing(names []string) []string {
	there := map[string]bool{}
	for _, e := range s.entries() {
		there[e.name] = true
	}
	var out []string
	for _, name := range names {
		if !there[name] {
			out = append(out, name)
		}
	}
	return out
}

// take moves a segment to dest, if it is there as it was fetched; left is how many that
// follow it are there.
func (s Spool) take(name, dest string) (left int, ok bool) {
	for _, e := range s.entries() {
		switch {
		case e.name == name:
			ok = e.move(dest)
		case e.name[:8] == name[:8] && e.name > name:
			left++
		}
	}
	return left, ok
}

func (e entry) move(dest string) bool {
	if stampOf(e.path) != e.stamp {
		os.Remove(e.path)
		return false
	}
	return os.Rename(e.path, dest) == nil
}

// stampOf tells by what a rename leaves alone and a write does not that a file is the
// one that was written: its inode, size and time of change.
func stampOf(path string) string {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return ""
	}
	return strconv.FormatUint(st.Ino, 10) + "-" + strconv.FormatInt(st.Size, 10) + "-" + strconv.FormatInt(syscall.TimespecToNsec(st.Mtim), 10)
}

// Put keeps a segment that write makes in a file.
func (s Spool) Put(name string, write func(path string) error) error {
	tmp := s.path("tmp-" + name)
	err := write(tmp)
	if err == nil {
		err = sync(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, s.path(name+"."+stampOf(tmp)))
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("fetching %s ahead: %w", name, err)
	}
	return nil
}

// sync makes a file's bytes durable.
func sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return syscall.Fdatasync(int(f.Fd()))
}

// Clear removes all but the segments that keep wants, and what is older than an age.
func (s Spool) Clear(keep func(name string) bool, age time.Duration) error {
	files, err := os.ReadDir(s.Dir)
	if err != nil {
		return fmt.Errorf("clearing the spool: %w", err)
	}
	for _, f := range files {
		name, _, _ := strings.Cut(f.Name(), ".")
		st, err := f.Info()
		if f.Name() == lockName || f.Name() == fillName || err == nil && keep(name) && time.Since(st.ModTime()) < age {
			continue
		}
		if err := os.Remove(s.path(f.Name())); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("clearing the spool: %w", err)
		}
	}
	return nil
}

// lockName is locked by the process that keeps the spool full, fillName by it while it
// brings segments: what is not there then may come.
const (
	lockName = "lock"
	fillName = "filling"
)

// Lock makes the spool, and its caller the one that keeps it full until release, or the
// end of the process; release is nil when another process does.
func (s Spool) Lock() (release func(), err error) {
	if err := os.Mkdir(s.Dir, 0o700); err != nil && !os.IsExist(err) {
		return nil, fmt.Errorf("making the spool: %w", err)
	}
	return s.lock(lockName, syscall.LOCK_EX|syscall.LOCK_NB)
}

// Fill says that segments are being brought, until done. The caller has the Lock.
func (s Spool) Fill() (done func(), err error) {
	return s.lock(fillName, syscall.LOCK_EX) // others only look, for a moment
}

func (s Spool) lock(name string, how int) (release func(), err error) {
	f, err := os.OpenFile(s.path(name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the spool: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), how); errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return nil, nil // another has it
	} else if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking the spool: %w", err)
	}
	return func() { f.Close() }, nil
}

// locked says that a process holds a lock of the spool now.
func (s Spool) locked(name string) bool {
	f, err := os.Open(s.path(name))
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}

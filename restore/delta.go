package restore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

// ErrRunning means that a server holds the target directory.
var ErrRunning = errors.New("a server holds the target directory")

// The states of a marker. A restore that was ended in one of the first five goes
// on from what is there.
const (
	stateSeizing  = "seizing" // a delta is about to take the directory
	stateFetching = "fetching"
	stateFetched  = "fetched" // ready for recovery
	stateReplay   = "replaying"
	statePrepared = "prepared"
	stateStandby  = "standby" // whole, and left in recovery behind live
)

// recognise looks whether the target is one that a delta may go over: stopped, and
// of the plan's system by its pg_control or, without one, by our own marker (C-53).
func (room *Room) recognise() error {
	to := room.opt.To
	if st, err := os.Lstat(to); err != nil || !st.IsDir() {
		return fmt.Errorf("%s is a link or no directory: give the directory itself: %w", to, errors.Join(err, ErrNotEmpty))
	}
	if pid := running(to); pid != 0 {
		return fmt.Errorf("%w: process %d in %s; stop it first", ErrRunning, pid, to)
	}
	m, err := ReadMarker(to)
	switch {
	case err == nil:
		room.before = &m
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	id, err := systemOf(to)
	switch {
	case err == nil && id != room.Plan.SystemID:
		return fmt.Errorf("%w: %s is of system %s, the plan of %s", ErrNotEmpty, to, id, room.Plan.SystemID)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case room.before == nil || room.before.SystemID != room.Plan.SystemID:
		return fmt.Errorf("%w: nothing in %s says that it is of system %s: it has no %s", ErrNotEmpty, to, room.Plan.SystemID, controlFile)
	}
	return nil
}

// systemOf is the system identifier in a directory's pg_control, whatever else of
// the file is damaged: it comes first (pg_control.h).
func systemOf(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, controlFile))
	if err != nil {
		return "", err
	}
	if len(data) < 8 {
		return "", fmt.Errorf("%s in %s has %d bytes: %w", controlFile, dir, len(data), fs.ErrNotExist)
	}
	return strconv.FormatUint(binary.LittleEndian.Uint64(data), 10), nil
}

// whole says whether the directory holds all that the plan needs for recovery. A
// restore writes pg_control when everything else is durable, and one that goes
// further, or over it, says so in the marker before it touches anything.
func (room *Room) whole(t *tree) bool {
	m := room.before
	if !room.opt.Resume || !room.delta || m == nil || m.State != stateFetched || m.Plan != room.Plan.Hash {
		return false
	}
	if _, err := systemOf(room.opt.To); err != nil {
		return false
	}
	for i := range t.files {
		if t.files[i].kind != relation {
			continue // settings became ours
		}
		path, err := t.place(t.path(i))
		if err != nil {
			return false
		}
		if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() || st.Size() != t.files[i].size {
			return false
		}
	}
	return true
}

// ownsSpace says whether a tablespace's directory that holds something is that of
// the cluster which a delta goes over: its link leads there, or its marker names it.
func (room *Room) ownsSpace(oid uint32, dir string) bool {
	if !room.delta {
		return false
	}
	if room.before != nil && slices.Contains(room.before.Tablespaces, dir) {
		return true
	}
	link, err := os.Readlink(filepath.Join(room.opt.To, "pg_tblspc", strconv.Itoa(int(oid))))
	return err == nil && filepath.Clean(link) == dir
}

// seize makes a directory ours: from here on it cannot be started until the
// restore is whole (C-54). Its WAL that nobody may have archived is put aside (C-55).
func (room *Room) seize() error {
	unfinished := room.before != nil && slices.Contains([]string{stateFetching, stateFetched, stateReplay, statePrepared}, room.before.State)
	if room.before != nil {
		room.Result.SavedWAL = room.before.SavedWAL
	}
	if !unfinished {
		if err := room.mark(stateSeizing); err != nil {
			return err
		}
	}
	if err := durable.Remove(filepath.Join(room.opt.To, controlFile)); err != nil {
		return err
	}
	if !unfinished {
		saved, err := saveWAL(room.opt.To, time.Now())
		if err != nil {
			return fmt.Errorf("putting the old WAL aside: %w", err)
		}
		if saved != "" {
			room.Result.SavedWAL = saved
		}
	}
	return room.mark(stateFetching)
}

var walFile = regexp.MustCompile(`^([0-9A-F]{24}(\.partial)?|[0-9A-F]{8}\.history)$`)

// saveWAL moves the WAL of a directory's pg_wal that its server does not say to be
// archived to a directory beside, and says which. What a link leads to stays where it
// is, untouched: in a copy of a data directory, it is the WAL of the living server.
func saveWAL(dir string, now time.Time) (string, error) {
	wal := filepath.Join(dir, "pg_wal")
	info, err := os.Lstat(wal)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		return os.Readlink(wal)
	}
	aside := dir + ".pg_wal.saved-" + now.UTC().Format("20060102T150405Z")
	entries, err := os.ReadDir(wal)
	if err != nil {
		return "", err
	}
	moved := false
	for _, e := range entries {
		_, err := os.Lstat(filepath.Join(wal, "archive_status", e.Name()+".done"))
		if !walFile.MatchString(e.Name()) || err == nil {
			continue
		}
		if err := os.Mkdir(aside, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if err := putAside(filepath.Join(wal, e.Name()), filepath.Join(aside, e.Name())); err != nil {
			return "", err
		}
		moved = true
	}
	if !moved {
		return "", nil
	}
	return aside, errors.Join(durable.SyncDir(aside), durable.SyncDir(filepath.Dir(aside)), durable.SyncDir(wal))
}

// putAside is a rename, or where a file system ends between the two, as around a data
// directory that is a mount point, a durable copy and a removal.
func putAside(from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	if err := durable.SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	return os.Remove(from)
}

// sweep removes what the snapshot does not have, links and what else could lead
// elsewhere included.
func (t *tree) sweep() error {
	dirs := map[string]bool{}
	for _, d := range t.header.Dirs {
		dirs[d.Path] = true
	}
	if err := t.sweepBelow(t.root, "", dirs); err != nil {
		return fmt.Errorf("removing what the snapshot does not have: %w", err)
	}
	for oid, dir := range t.spaces {
		if err := t.sweepBelow(dir, "pg_tblspc/"+strconv.Itoa(int(oid)), dirs); err != nil {
			return fmt.Errorf("removing what the snapshot does not have: %w", err)
		}
	}
	return nil
}

func (t *tree) sweepBelow(root, prefix string, dirs map[string]bool) error {
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	return filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == real {
			return err
		}
		rel := strings.TrimPrefix(prefix+strings.TrimPrefix(path, real), "/")
		switch {
		case rel == marker || d.IsDir() && dirs[rel]:
			return nil
		case d.Type().IsRegular() && t.keeps(rel, d):
			return nil
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

// keeps says whether a file may be compared and written over: it is one of the
// snapshot's, and no other name leads to it.
func (t *tree) keeps(rel string, d fs.DirEntry) bool {
	i, ok := t.find(rel)
	if !ok || t.files[i].kind == held {
		return false
	}
	info, err := d.Info()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 1
}

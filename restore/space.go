package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// checkRoom refuses a target whose file systems have too little room for what
// goes to each of them.
func (room *Room) checkRoom(t *tree) error {
	own := max(0, room.Plan.DiskNeeded-room.Snapshot.RawBytes) // WAL above all
	for _, m := range t.maps {
		own += m.Raw // they lie opened in the room's own directory meanwhile
	}
	need := map[string]int64{room.opt.To: own}
	for i := range t.files {
		need[t.spaceOf(i)] += t.files[i].size
	}
	var live int64 // what is not zeros, where the manifest says so
	for _, p := range t.packs {
		live += p.Live
	}
	type system struct {
		path       string
		need, free int64
	}
	systems := map[uint64]*system{}
	for dir, n := range need {
		if room.delta {
			n -= allocated(dir) // it is written over or removed
		}
		st, dev, err := statfs(dir)
		if err != nil {
			return fmt.Errorf("asking for the free space of %s: %w", dir, err)
		}
		s := systems[dev]
		if s == nil {
			s = &system{path: dir, free: int64(st.Bavail) * st.Bsize}
			systems[dev] = s
		}
		s.need += n
	}
	for _, s := range systems {
		if live > 0 {
			s.need = min(s.need, live+own)
		}
		if s.free < s.need {
			return fmt.Errorf("the file system of %s has %d bytes free and the restore needs up to %d; give another --to or --tablespace", s.path, s.free, s.need)
		}
	}
	return nil
}

// spaceOf is the directory, data directory or tablespace, that file i goes to.
func (t *tree) spaceOf(i int) string {
	path := t.path(i)
	if !strings.HasPrefix(path, "pg_tblspc/") {
		return t.root
	}
	for oid, dir := range t.spaces {
		if strings.HasPrefix(path, fmt.Sprintf("pg_tblspc/%d/", oid)) {
			return dir
		}
	}
	return t.root
}

// statfs asks the file system on which dir is or will be.
func statfs(dir string) (st unix.Statfs_t, dev uint64, err error) {
	for ; ; dir = filepath.Dir(dir) {
		var at unix.Stat_t
		err = errors.Join(unix.Statfs(dir, &st), unix.Stat(dir, &at))
		if errors.Is(err, unix.ENOENT) && dir != "/" {
			continue
		}
		return st, at.Dev, err
	}
}

// allocated is what the files below dir take of its file system.
func allocated(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil { // it is an estimate
			return nil //nolint:nilerr
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return n
}

package durable_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/durable/durabletest"
)

const mib = 1 << 20

// fill takes all but so many bytes of a disk.
func fill(t *testing.T, dir string, but int64) (path string) {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	path = filepath.Join(dir, "junk")
	must(t, os.WriteFile(path, make([]byte, int64(st.Bavail)*st.Bsize-but), 0o600))
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tend(t *testing.T, r *durable.Reserve) durable.ReserveState {
	t.Helper()
	s, err := r.Tend()
	must(t, err)
	return s
}

// P11: what a full disk needs to be un-wedged is there, and comes again.
func TestTheReserveIsGivenUpOnAFullDiskAndMadeAgain(t *testing.T) {
	dir := durabletest.SmallDisk(t, 32*mib)
	path := filepath.Join(dir, "reserve")
	r := durable.NewReserve(path, 8*mib)
	if s := tend(t, r); !s.Held || s.Low() || s.Free > 24*mib {
		t.Fatalf("on an empty disk: %+v", s)
	}
	must(t, r.Room(4*mib, false))
	junk := fill(t, dir, mib/2)
	if s := tend(t, r); s.Held || !s.Low() || s.Free < 8*mib {
		t.Fatalf("on a full disk: %+v", s)
	}
	must(t, durable.WriteFile(filepath.Join(dir, "note"), []byte("what happened"), 0o600))
	if err := r.Room(4*mib, false); !errors.Is(err, durable.ErrNoRoom) {
		t.Errorf("beside others, without a reserve: %v", err)
	}
	must(t, r.Room(4*mib, true))
	if err := r.Room(8*mib, true); !errors.Is(err, durable.ErrNoRoom) {
		t.Errorf("what leaves no margin: %v", err)
	}
	if s := tend(t, r); s.Held {
		t.Errorf("made again on a full disk: %+v", s)
	}
	must(t, os.Remove(junk))
	if s := tend(t, r); !s.Held || s.Low() {
		t.Errorf("with room again: %+v", s)
	}
	must(t, os.Remove(path)) // by hand, as the runbook says
	fill(t, dir, 6*mib)
	if s := tend(t, r); s.Held {
		t.Errorf("removed by hand, and no room for it: %+v", s)
	}
	if s := tend(t, durable.NewReserve(path, 0)); s.Held || s.Low() {
		t.Errorf("a node without a reserve: %+v", s)
	}
}

func TestBulkThatMeetsAFullDiskGivesTheReserveUpItself(t *testing.T) {
	dir := durabletest.SmallDisk(t, 32*mib)
	r := durable.NewReserve(filepath.Join(dir, "reserve"), 8*mib)
	tend(t, r)
	fill(t, dir, 2*mib)
	if err := r.Room(2*mib, false); !errors.Is(err, durable.ErrNoRoom) {
		t.Errorf("got %v", err)
	}
	must(t, r.Room(2*mib, true))
	if s, err := r.State(); err != nil || s.Held {
		t.Errorf("the reserve is still there: %+v, %v", s, err)
	}
}

// A log goes on by itself when its disk has room again, and shows nothing of what failed.
func TestALogOutlivesAFullDisk(t *testing.T) {
	dir := durabletest.SmallDisk(t, 4*mib)
	path := filepath.Join(dir, "log")
	log, err := durable.OpenLog(path, func([]byte) error { return nil })
	must(t, err)
	must(t, log.Append([]byte("one")))
	junk := fill(t, dir, 64<<10)
	if err := log.Append(bytes.Repeat([]byte("x"), mib)); !durable.NoRoom(err) {
		t.Fatalf("on a full disk: %v", err)
	}
	must(t, os.Remove(junk))
	must(t, log.Append([]byte("two")))
	must(t, log.Close())
	var got []string
	log, err = durable.OpenLog(path, func(b []byte) error { got = append(got, string(b)); return nil })
	must(t, err)
	must(t, log.Close())
	if len(got) != 2 || got[0] != "one" || got[1] != "two" {
		t.Errorf("got %q", got)
	}
}

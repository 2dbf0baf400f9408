package restore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
)

// relations lists the files of a data directory's relations, largest first.
func relations(t *testing.T, dir string) []string {
	t.Helper()
	size := map[string]int64{}
	var out []string
	err := filepath.WalkDir(filepath.Join(dir, "base"), func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if r, ok := datadir.ParseRelation(rel); err == nil && ok && r.Fork == datadir.Main {
			info, err := d.Info()
			if err != nil {
				return err
			}
			size[rel], out = info.Size(), append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(out, func(a, b string) int { return int(size[b] - size[a]) })
	return out
}

// damage does to a stopped directory what disks and people do.
func damage(t *testing.T, dir, precious string) {
	t.Helper()
	files := relations(t, dir)
	path := func(i int) string { return filepath.Join(dir, files[i]) }
	data := must[[]byte](t)(os.ReadFile(path(0)))
	copy(data[len(data)/2:], "damage")
	log := filepath.Join(dir, "pg_wal")
	err := errors.Join(
		os.WriteFile(path(0), data, 0o600),
		os.Truncate(path(1), 8192+100),
		os.Remove(path(2)),
		os.Remove(path(3)), os.Symlink(precious, path(3)),
		os.Remove(path(4)), os.Link(precious, path(4)),
		os.Truncate(path(5), 1<<20),
		os.WriteFile(filepath.Join(dir, "base", "stray"), []byte("x"), 0o600),
		os.MkdirAll(filepath.Join(dir, "base", "999999", "deep"), 0o700),
		os.WriteFile(filepath.Join(log, "00000007000000000000000A"), []byte("never archived"), 0o600),
		os.WriteFile(filepath.Join(log, "00000007000000000000000B"), []byte("archived"), 0o600),
		os.WriteFile(filepath.Join(log, "archive_status", "00000007000000000000000B.done"), nil, 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
}

// C-53, C-54, C-55: over a stopped directory that time and damage have changed.
func testDelta(t *testing.T, w *world, o oracle) {
	p := w.plan(restore.Target{Kind: restore.Latest})
	to := w.target()
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, w.options(to)))
	whole := room.Result.Bytes
	if err := room.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(filepath.Dir(to), "precious")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	damage(t, to, precious)
	opt := w.options(to)
	if _, err := restore.Prepare(t.Context(), w.repo(), p, opt); !errors.Is(err, restore.ErrNotEmpty) {
		t.Fatalf("without being told to: %v, want ErrNotEmpty", err)
	}
	// Killed in its midst it cannot be started, and is no less of a delta later.
	w.kill(p, to, "fetch", true)
	w.cannotStart(to)
	opt.Delta = true
	room = must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, opt))
	defer room.Discard(context.Background())
	w.holds(room, o.acked, pgtest.Everything)
	if room.Result.Bytes*2 > whole {
		t.Errorf("fetched %d bytes where the whole has %d", room.Result.Bytes, whole)
	}
	if got := must[[]byte](t)(os.ReadFile(precious)); string(got) != "precious" {
		t.Errorf("a file that a link led to now holds %q", got)
	}
	for _, gone := range []string{"base/stray", "base/999999"} {
		if _, err := os.Lstat(filepath.Join(to, gone)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	saved := must[[]os.DirEntry](t)(os.ReadDir(room.Result.SavedWAL))
	var names []string
	for _, e := range saved {
		names = append(names, e.Name())
	}
	if !slices.Contains(names, "00000007000000000000000A") || slices.Contains(names, "00000007000000000000000B") {
		t.Errorf("put aside were %v", names)
	}
}

// C-53: what is alive, another's or unknown is not touched.
func testDeltaRefused(t *testing.T, w *world, _ oracle) {
	p := w.plan(restore.Target{Kind: restore.Immediate})
	to := w.target()
	opt := w.options(to)
	opt.Delta = true
	refused := func(what string, want error) {
		t.Helper()
		before := listing(t, to)
		if _, err := restore.Prepare(t.Context(), w.repo(), p, opt); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if !slices.Equal(before, listing(t, to)) {
			t.Errorf("%s: the directory was changed", what)
		}
	}
	if out, err := exec.Command("cp", "-a", w.pg.DataDir, to).CombinedOutput(); err != nil && !strings.Contains(string(out), "No such file") {
		t.Fatalf("%v: %s", err, out)
	}
	refused("a server that runs", restore.ErrRunning)
	if err := os.Remove(filepath.Join(to, "postmaster.pid")); err != nil {
		t.Fatal(err)
	}
	other := p
	other.SystemID = "7"
	theirs := p
	p = other
	refused("another system", restore.ErrNotEmpty)
	p = theirs
	control := filepath.Join(to, "global/pg_control")
	kept := must[[]byte](t)(os.ReadFile(control))
	if err := os.Remove(control); err != nil {
		t.Fatal(err)
	}
	refused("a directory that nobody knows", restore.ErrNotEmpty)
	// Damaged behind its identifier it is known all the same.
	kept[200] ^= 1
	if err := os.WriteFile(control, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if id := binary.LittleEndian.Uint64(kept); id == 0 {
		t.Fatal("no system identifier")
	}
	opt.Tablespaces = map[string]string{"side": filepath.Dir(to)}
	refused("a tablespace's directory that is not its own", restore.ErrNotEmpty)
	opt.Tablespaces = nil
	result := must[restore.Result](t)(restore.Fetch(t.Context(), w.repo(), p, opt))
	if result.SavedWAL == "" {
		t.Error("the WAL of a server that archived nothing was not put aside")
	}
	verified(t, w, to)
	if err := errors.Join(restore.Discard(to), os.RemoveAll(result.SavedWAL)); err != nil {
		t.Error(err)
	}
}

func listing(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			info, err := d.Info()
			if err != nil {
				return err
			}
			out = append(out, path, info.ModTime().String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// T-1: kill -9 of a restore; what was written is not fetched again.
func testResume(t *testing.T, w *world, o oracle) {
	p := w.plan(restore.Target{Kind: restore.Latest})
	fresh := w.target()
	whole := must[restore.Result](t)(restore.Fetch(t.Context(), w.repo(), p, w.options(fresh)))
	for _, phase := range []string{"fetch", "replay"} {
		to := w.target()
		w.kill(p, to, phase, false)
		w.cannotStart(to)
		opt := w.options(to)
		opt.Delta = true
		again := must[restore.Result](t)(restore.Fetch(t.Context(), w.repo(), p, opt))
		if again.Bytes >= whole.Bytes || again.SavedWAL != "" {
			t.Errorf("killed in %s: fetched %d bytes again of %d; WAL saved: %q", phase, again.Bytes, whole.Bytes, again.SavedWAL)
		}
		verified(t, w, to)
		alike(t, fresh, to)
		room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, opt))
		w.holds(room, o.acked, pgtest.Everything)
		if room.Result.Bytes*4 > whole.Bytes { // pg_control and settings, and what lies near them
			t.Errorf("all was there, and %d bytes of %d were fetched", room.Result.Bytes, whole.Bytes)
		}
		if err := room.Discard(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// Files that were brought whole and durably are not read again, unless they are
// not what they were; and over a restore that went on to replay, all is compared.
func testResumeFetched(t *testing.T, w *world, o oracle) {
	p := w.plan(restore.Target{Kind: restore.Latest})
	opt := w.options(w.target())
	opt.Delta, opt.Resume = true, true
	fetch := func() restore.Result {
		return must[restore.Result](t)(restore.Fetch(t.Context(), w.repo(), p, opt))
	}
	whole := fetch().Bytes
	if again := fetch().Bytes; again != 0 {
		t.Errorf("all was there, and %d bytes were fetched", again)
	}
	short := filepath.Join(opt.To, relations(t, opt.To)[0])
	if err := os.Truncate(short, 8192); err != nil {
		t.Fatal(err)
	}
	if again := fetch().Bytes; again == 0 || again >= whole {
		t.Errorf("a file was cut short, and %d bytes of %d were fetched", again, whole)
	}
	if err := os.Remove(filepath.Join(opt.To, "global/pg_control")); err != nil {
		t.Fatal(err)
	}
	if fetch().Bytes == 0 {
		t.Error("without pg_control, which is written last, the directory was taken for whole")
	}
	verified(t, w, opt.To)
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, opt))
	w.holds(room, o.acked, pgtest.Everything)
	if room.Result.Bytes != 0 {
		t.Errorf("all was there, and %d bytes were fetched", room.Result.Bytes)
	}
	if err := room.Discard(t.Context()); err != nil {
		t.Error(err)
	}
}

// alike wants the relations of two directories to be the same but for their holes.
func alike(t *testing.T, a, b string) {
	t.Helper()
	files := relations(t, a)
	if other := relations(t, b); len(files) != len(other) {
		t.Errorf("%d relations and %d", len(files), len(other))
	}
	for _, rel := range files {
		x, y := must[[]byte](t)(os.ReadFile(filepath.Join(a, rel))), must[[]byte](t)(os.ReadFile(filepath.Join(b, rel)))
		r, _ := datadir.ParseRelation(rel)
		for _, data := range [][]byte{x, y} {
			for at := 0; at+page.Size <= len(data); at += page.Size {
				page.Normalise(data[at:at+page.Size], r.Segment*page.SegmentBlocks+uint32(at/page.Size), true)
			}
		}
		if !bytes.Equal(x, y) {
			t.Errorf("%s differs", rel)
		}
	}
}

// C-26: every file as it was restored, in a manifest of the server's own format.
func testVerifyBackup(t *testing.T, w *world, _ oracle) {
	to := w.target()
	if _, err := restore.Fetch(t.Context(), w.repo(), w.plan(restore.Target{Kind: restore.Latest}), w.options(to)); err != nil {
		t.Fatal(err)
	}
	if m := must[restore.Marker](t)(restore.ReadMarker(to)); m.State != "fetched" {
		t.Errorf("the marker says %s", m.State)
	}
	w.cannotStart(to)
	if err := os.Remove(filepath.Join(to, "start.log")); err != nil {
		t.Fatal(err)
	}
	verified(t, w, to)
	file := filepath.Join(to, relations(t, to)[0])
	data := must[[]byte](t)(os.ReadFile(file))
	data[len(data)-1] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(t, w, to); err == nil || !strings.Contains(out, "checksum mismatch") {
		t.Errorf("one bit changed, and: %v: %s", err, out)
	}
	if err := restore.Discard(to); err != nil {
		t.Error(err)
	}
}

func verified(t *testing.T, w *world, dir string) {
	t.Helper()
	if out, err := verify(t, w, dir); err != nil {
		t.Errorf("pg_verifybackup: %v: %s", err, out)
	}
}

func verify(t *testing.T, w *world, dir string) (string, error) {
	t.Helper()
	args := append([]string{"-n"}, readable(t, w, dir)...)
	out, err := exec.CommandContext(t.Context(), w.pg.Bin("pg_verifybackup"), append(args, dir)...).CombinedOutput()
	return string(out), err
}

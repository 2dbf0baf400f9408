package restore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/thin"
	"github.com/holdfast-dr/holdfast/restore"
)

// afterFetch does something when the files are there and before any WAL is.
func (w *world) afterFetch(do func()) {
	done := false
	w.progress = func(p restore.Progress) {
		if p.Phase == "fetch" && p.Done == p.Total && !done {
			done = true
			do()
		}
	}
}

// neverPromoted fails the test if a server's log tells of a promotion.
func neverPromoted(t *testing.T, log string) {
	t.Helper()
	for _, sign := range []string{"promote request", "selected new timeline", "archive recovery complete"} {
		if strings.Contains(log, sign) {
			t.Errorf("the server promoted:\n%s", log)
		}
	}
}

// Promise 5, C-62, pgbackrest#2549: unreachable is never taken for the end.
func testT15ZonesStayAway(t *testing.T, w *world, _ oracle) {
	f := w.fork(t)
	p := f.plan(restore.Target{Kind: restore.Latest})
	f.afterFetch(func() { f.hide(0, 1, 2) })
	log := &watched{}
	f.log, f.quiet = log, 2*time.Second
	to := f.target()
	_, err := restore.Prepare(t.Context(), f.repo(), p, f.options(to))
	if !errors.Is(err, restore.ErrIncomplete) {
		t.Fatalf("%v, want ErrIncomplete", err)
	}
	neverPromoted(t, log.String())
	f.cannotStart(to)
	if _, err := restore.Open(t.Context(), to, restore.OpenOptions{}); err == nil {
		t.Error("an incomplete restore was opened")
	}
	if err := restore.Discard(to); err != nil {
		t.Error(err)
	}
}

func testZonesComeBack(t *testing.T, w *world, o oracle) {
	f := w.fork(t)
	p := f.plan(restore.Target{Kind: restore.Latest})
	f.afterFetch(func() { f.hide(0, 1, 2) })
	log := &watched{on: map[string]func(){"could not restore file": func() { f.show(0, 1, 2) }}}
	f.log, f.quiet = log, 6*time.Second
	room := f.prepare(p)
	f.holds(room, o.acked, pgtest.Everything)
	before, _, _ := strings.Cut(log.String(), "could not restore file")
	neverPromoted(t, before)
}

// holds compares a copy with the oracle.
func (w *world) holds(room *restore.Room, acked []pgtest.Commit, want func(pgtest.Commit) bool) {
	w.t.Helper()
	conn, err := room.Server.Conn(w.t.Context(), "postgres")
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(w.t.Context())
	if err := pgtest.CheckOracle(w.t.Context(), conn, acked, want); err != nil {
		w.t.Error(err)
	}
}

// C-62: none of these is the end of the log.
func testMisbehavingFetch(t *testing.T, w *world, o oracle) {
	log := &watched{}
	w.log, w.quiet = log, 30*time.Second
	p := w.plan(restore.Target{Kind: restore.Latest})
	to := w.target()
	w.afterFetch(func() {
		if err := os.WriteFile(filepath.Join(to+".room", "misbehave"), []byte("panic\nflags\nkill"), 0o644); err != nil {
			t.Error(err)
		}
	})
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, w.options(to)))
	defer room.Discard(context.Background())
	w.holds(room, o.acked, pgtest.Everything)
	parts := strings.Split(log.String(), "could not restore file")
	if len(parts) != 4 {
		t.Errorf("recovery failed %d times for want of a file, want 3:\n%s", len(parts)-1, log)
	}
	for _, before := range parts[:len(parts)-1] {
		neverPromoted(t, before)
	}
}

// C-62: only 0 and 1 pass.
func TestTheRestoreCommandPassesOnFetchedAndAbsentOnly(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 1": 1, "exit 2": 254, "exit 3": 254, "exit 125": 254, "exit 254": 254, "kill -9 $$": 254, "kill -15 $$": 254} {
		program := filepath.Join(t.TempDir(), "it's 100% odd")
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		// PostgreSQL replaces %f, %p and %% (BuildRestoreCommand).
		command := strings.NewReplacer("%f", "F", "%p", "P", "%%", "%").Replace(restore.RestoreCommand(program, "/a socket"))
		cmd := exec.Command("sh", "-c", command)
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%s: %d, want %d", script, got, want)
		}
	}
	command := strings.ReplaceAll(restore.RestoreCommand("/nowhere/holdfast", "/s"), "%f", "F")
	cmd := exec.Command("sh", "-c", command)
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != 254 {
		t.Errorf("a missing program: %d, want 254", got)
	}
}

// A name inside the plan is never absent, one outside is without asking anyone.
func testServedFiles(t *testing.T, w *world, _ oracle) {
	f := w.fork(t)
	p := f.plan(restore.Target{Kind: restore.Latest})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := must[string](t)(os.MkdirTemp("/tmp", "hfs"))
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := must[string](t)(restore.Serve(ctx, f.repo(), p, dir))
	dest := filepath.Join(dir, "dest")
	ask := func(name string, want int) {
		t.Helper()
		os.Remove(dest)
		code, err := thin.Fetch(socket, name, dest)
		if code != want || (err != nil) != (want == restore.ExitDoubt) {
			t.Errorf("%s: %d and %v, want %d", name, code, err, want)
		}
		if _, err := os.Stat(dest); (err == nil) != (want == restore.ExitFetched) {
			t.Errorf("%s: code %d, and the file: %v", name, code, err)
		}
	}
	ask(p.Files[0].Name, restore.ExitFetched)
	ask(p.Files[0].Name, restore.ExitFetched) // as often as recovery likes
	f.hide(0, 1, 2)
	ask("0000000100000000000000FF", restore.ExitAbsent)
	ask("00000002.history", restore.ExitAbsent)
	ask(p.Files[0].Name, restore.ExitDoubt)
	f.show(0, 1, 2)
	ask(p.Files[0].Name, restore.ExitFetched)
	cancel()
	if code, _ := thin.Fetch(filepath.Join(dir, "no.sock"), p.Files[0].Name, dest); code != restore.ExitDoubt {
		t.Errorf("without a restore: %d", code)
	}
}

// DESIGN section 6: without a plan absence is proven by a fresh listing.
func testFetchByName(t *testing.T, w *world, _ oracle) {
	f := w.fork(t)
	p := f.plan(restore.Target{Kind: restore.Latest})
	dest := filepath.Join(t.TempDir(), "dest")
	ask := func(name string, want int) {
		t.Helper()
		os.Remove(dest)
		code, err := restore.FetchByName(t.Context(), f.repo(), "cms", name, dest)
		if code != want || (err != nil) != (want == restore.ExitDoubt) {
			t.Errorf("%s: %d and %v, want %d", name, code, err, want)
		}
		if st, err := os.Stat(dest); want == restore.ExitFetched && (err != nil || st.Size() != w.segSize) {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	first, last := p.Files[0], p.Files[len(p.Files)-1]
	ask(first.Name, restore.ExitFetched)
	ask(last.Name, restore.ExitFetched) // archived in part: zeros behind
	future := lsn.SegmentName(1, (last.From + 16<<20).Segment(w.segSize), w.segSize)
	ask(future, restore.ExitAbsent)
	ask("00000002.history", restore.ExitAbsent)
	ask("../../etc/passwd", restore.ExitDoubt)
	f.hide(0)
	ask(future, restore.ExitAbsent) // two of three prove it
	ask(first.Name, restore.ExitFetched)
	f.hide(1)
	ask(future, restore.ExitDoubt)
	ask("00000002.history", restore.ExitDoubt)
	ask(first.Name, restore.ExitFetched)
	f.show(0, 1)
	for _, dir := range f.dirs { // a hole is no end
		gone := must[[]string](t)(filepath.Glob(filepath.Join(dir, "clusters/cms/wal/*/*", fmt.Sprintf("%016X-*.note", uint64(p.Files[1].From)))))
		for _, g := range append(gone, must[[]string](t)(filepath.Glob(filepath.Join(dir, "clusters/cms/wal/*/*", fmt.Sprintf("*-%016X-*.note", uint64(p.Files[1].From+16<<20)))))...) {
			os.Remove(g)
		}
	}
	ask(p.Files[1].Name, restore.ExitDoubt)
	f.open("")
	if _, err := f.gather(restore.Target{Kind: restore.Latest}); !errors.Is(err, restore.ErrUnreachable) || !strings.Contains(err.Error(), "lacks what lies behind") {
		t.Errorf("latest, with a hole before it: %v", err)
	}
}

// C-54, promise 5: whatever was cut off where.
func testKilled(t *testing.T, w *world, o oracle) {
	p := w.plan(restore.Target{Kind: restore.Latest})
	for _, phase := range []string{"fetch", "replay", "promoted"} {
		to := w.target()
		w.kill(p, to, phase, false)
		w.cannotStart(to)
		if _, err := restore.Open(t.Context(), to, restore.OpenOptions{}); err == nil {
			t.Errorf("%s: a killed restore was opened", phase)
		}
		if _, err := restore.Prepare(t.Context(), w.repo(), p, w.options(to)); !errors.Is(err, restore.ErrNotEmpty) {
			t.Errorf("%s: %v, want ErrNotEmpty", phase, err)
		}
		if err := restore.Discard(to); err != nil {
			t.Errorf("%s: %v", phase, err)
		}
		if phase == "replay" {
			room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, w.options(to)))
			w.holds(room, o.acked, pgtest.Everything)
			if err := room.Discard(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if left := must[[]string](t)(filepath.Glob(to + "*")); len(left) > 0 {
			t.Errorf("%s: %v are left", phase, left)
		}
	}
}

// victim is a process that restores and is killed in a phase; with none it closes the
// room and ends well.
func (w *world) victim(p restore.Plan, to, phase string, delta bool) *exec.Cmd {
	w.t.Helper()
	spec := must[[]byte](w.t)(json.Marshal(map[string]any{
		"Dirs": w.dirs, "VKey": w.vkey, "Binaries": w.pg.BinDir(), "Data": w.data.(*age.X25519Identity).String(), "Keys": w.keys.Key,
		"Program": w.program, "To": to, "Phase": phase, "Plan": p, "Delta": delta,
	}))
	cmd := exec.CommandContext(w.t.Context(), must[string](w.t)(os.Executable()))
	cmd.Env = append(os.Environ(), "HOLDFAST_TEST_RESTORE="+string(spec))
	return cmd
}

func (w *world) kill(p restore.Plan, to, phase string, delta bool) {
	w.t.Helper()
	cmd := w.victim(p, to, phase, delta)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != -1 {
		w.t.Fatalf("%s: %v: %s", phase, err, out)
	}
	w.gone(to)
}

// gone waits until the server of a killed restore has followed it.
func (w *world) gone(dir string) {
	w.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(pgtest.Patience)
	for {
		pid, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
		if err != nil {
			return
		}
		first, _, _ := strings.Cut(string(pid), "\n")
		if _, err := os.Stat("/proc/" + first); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("server %s outlives its restore", first)
		}
	}
}

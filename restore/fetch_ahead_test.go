package restore_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/thin/ahead"
	"github.com/holdfast-dr/holdfast/restore"
)

// What is fetched ahead is whole segments, no more than were asked for; they are
// given without a zone, and only if they are what was fetched.
func testFetchAhead(t *testing.T, w *world, _ oracle) {
	f := w.fork(t)
	p := f.plan(restore.Target{Kind: restore.Latest})
	if len(p.Files) < 3 {
		t.Fatalf("the plan has %d segments, want 3 at least", len(p.Files))
	}
	first := p.Files[0].Name
	dest := filepath.Join(t.TempDir(), "RECOVERYXLOG")
	spool, ok := ahead.SpoolFor(first, dest)
	if !ok {
		t.Fatal("nothing is fetched ahead of recovery")
	}
	fill := func(n int) {
		t.Helper()
		if err := restore.FetchAhead(t.Context(), f.repo(), "cms", first, spool, n); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(want ...string) {
		t.Helper()
		for i, file := range p.Files {
			wanted := false
			for _, n := range want {
				wanted = wanted || n == file.Name
			}
			if has(spool, file.Name) != wanted {
				t.Errorf("segment %d, %s: in the spool %v", i, file.Name, !wanted)
			}
		}
	}
	defer restore.SetAheadIdle(20 * time.Millisecond)()
	stale := filepath.Join(spool.Dir, "tmp-of-a-crash")
	if err := os.MkdirAll(spool.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	fill(1)
	holds(p.Files[1].Name)
	if _, err := os.Stat(stale); err == nil {
		t.Error("what a crash left is still there")
	}
	var whole []string
	for _, file := range p.Files[1 : len(p.Files)-1] {
		whole = append(whole, file.Name)
	}
	fill(2 * len(p.Files))
	holds(whole...) // the last one is archived in part: it may grow

	if code, err := restore.FetchByName(t.Context(), f.repo(), "cms", whole[0], dest); code != restore.ExitFetched {
		t.Fatal(code, err)
	}
	want := must[[]byte](t)(os.ReadFile(dest))
	f.hide(0, 1, 2)
	release, err := spool.Lock() // as if it were being filled
	if err != nil || release == nil {
		t.Fatal("the spool is locked", err)
	}
	args := []string{"wal", "fetch", "--prefetch", "1", whole[0], dest}
	if code, done := ahead.Main(args); code != 0 || !done || !bytes.Equal(must[[]byte](t)(os.ReadFile(dest)), want) {
		t.Errorf("%s from the spool: %d, %v", whole[0], code, done)
	}
	f.show(0, 1, 2)
	fill(1) // another does
	holds(whole[1:]...)
	release()
	follows(t, f, p.Files, spool, dest)
	fill(1)
	paths := must[[]string](t)(filepath.Glob(filepath.Join(spool.Dir, whole[0]+".*")))
	bad := bytes.Clone(want)
	bad[100] ^= 1
	if err := os.WriteFile(paths[0], bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, done := ahead.Main(args); done || code != 0 {
		t.Errorf("a damaged file in the spool: %d, %v", code, done)
	}
}

// follows: a run brings the next segment when recovery has taken one, by the listing that
// it began with.
func follows(t *testing.T, f *world, files []restore.File, spool ahead.Spool, dest string) {
	t.Helper()
	defer restore.SetAheadIdle(time.Hour)()
	size := files[0].Size
	timeline, at, err := lsn.ParseSegmentName(files[0].Name, size)
	if err != nil {
		t.Fatal(err)
	}
	before := lsn.SegmentName(timeline, (at - lsn.LSN(size)).Segment(size), size)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- restore.FetchAhead(ctx, f.repo(), "cms", before, spool, 1) }()
	await(t, "the first segment", func() bool { return has(spool, files[0].Name) })
	if code, done := ahead.Main([]string{"wal", "fetch", "--prefetch", "1", files[0].Name, dest}); code != 0 || !done {
		t.Errorf("%s was not taken: %d, %v", files[0].Name, code, done)
	}
	await(t, "the one behind it", func() bool { return has(spool, files[1].Name) })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func has(spool ahead.Spool, name string) bool { return len(spool.Missing([]string{name})) == 0 }

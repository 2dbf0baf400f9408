package restore_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

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
			if spool.Has(file.Name) != wanted {
				t.Errorf("segment %d, %s: in the spool %v", i, file.Name, !wanted)
			}
		}
	}
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

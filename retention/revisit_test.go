package retention

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A zone that comes back as it was before a removal shows again what went; no journal
// knows of it.
func TestWhatAZoneShowsAgainIsRemovedAgain(t *testing.T) {
	r := newRig(t, keepTwo)
	r.takeAll(9, 8, 1, 0)
	old := filepath.Join(t.TempDir(), "old")
	copyOf := func(from, to string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	copyOf(r.dirs[2], old)
	mark := r.apply()
	r.settle()
	r.now = noon.Add(day)
	if swept := r.sweep(); len(swept) != 1 || !swept[0].Done {
		t.Fatalf("%+v", swept)
	}
	if again, err := r.keeper.Revisit(t.Context()); err != nil || len(again) != 0 {
		t.Errorf("nothing is there again: %q, %v", again, err)
	}
	noErr(t, os.RemoveAll(r.dirs[2]))
	copyOf(old, r.dirs[2])
	if len(r.names(2, ago(9*day).ID)) == 0 {
		t.Fatal("the old state shows nothing of what went")
	}
	if swept := r.sweep(); len(swept) != 0 {
		t.Errorf("a mark that is done is not looked at without a reason: %+v", swept)
	}
	again, err := r.keeper.Revisit(t.Context())
	if err != nil || len(again) != 1 || again[0] != mark.ID {
		t.Fatalf("revisited: %q, %v; want %s", again, err, mark.ID)
	}
	if swept := r.sweep(); len(swept) != 1 || !swept[0].Done {
		t.Errorf("%+v", swept)
	}
	for _, id := range mark.Snapshots {
		if left := r.names(2, id); len(left) > 0 {
			t.Errorf("it kept %v", left)
		}
	}
	for _, s := range []string{ago(day).ID, ago(0).ID} {
		if len(r.names(2, s)) == 0 {
			t.Errorf("snapshot %s suffered", s)
		}
	}
}

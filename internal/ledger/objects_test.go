package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestObjectsAreKnownFromTheEntriesWhateverOneZoneHolds(t *testing.T) {
	b := newBench(t)
	l := b.open()
	for _, n := range []int{3, 300} {
		b.append(l, n)
		b.anchor(l)
	}
	want := map[string]Object{}
	names, err := Dir(b.zones.dirs[1]).List(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		body, err := os.ReadFile(filepath.Join(b.zones.dirs[1], name))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(body)
		want[name] = Object{name, int64(len(body)), hex.EncodeToString(sum[:])}
	}
	check := func(when string) {
		t.Helper()
		got, faults, err := Objects(t.Context(), b.zones, b.trust, "repo1")
		if err != nil || len(faults) > 0 || len(got) != len(want) {
			t.Fatalf("%s: %d of %d objects, faults %v, %v", when, len(got), len(want), faults, err)
		}
		for _, o := range got {
			if want[o.Name] != o {
				t.Errorf("%s: %+v, want %+v", when, o, want[o.Name])
			}
		}
	}
	check("with good copies")
	for _, name := range names {
		flip(t, filepath.Join(b.zones.dirs[0], name), 5)
	}
	check("with every copy of a zone wrong")
	c, err := Latest(t.Context(), b.zones, b.trust, "repo1", l.Origin())
	if err == nil {
		_, err = Read(t.Context(), b.zones, c, 0, -1)
	}
	if err != nil {
		t.Errorf("reading past wrong copies: %v", err)
	}
	for _, d := range b.zones.dirs[1:] {
		i := slices.IndexFunc(names, func(n string) bool { return filepath.Base(filepath.Dir(n)) == "checkpoint" })
		flip(t, filepath.Join(d, names[i]), 5)
	}
	if _, faults, err := Objects(t.Context(), b.zones, b.trust, "repo1"); err != nil || len(faults) != 1 {
		t.Errorf("a checkpoint that no zone has: %v, %v", faults, err)
	}
}

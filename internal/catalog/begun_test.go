package catalog

import (
	"testing"
	"time"
)

func TestNamesOfPacksAndMapsTellWhenTheirSnapshotBegan(t *testing.T) {
	want := time.Date(2026, 3, 15, 12, 30, 1, 0, time.UTC)
	id := "20260315T123001Z-abc234"
	for _, name := range []string{PackName("main", id, 3, [32]byte{}), MapName("main", id, 0, [32]byte{1}), ManifestName("main", id)} {
		if at, ok := BegunAt(name); !ok || !at.Equal(want) {
			t.Errorf("%s: %s, %v", name, at, ok)
		}
	}
	for _, name := range []string{
		"", "holdfast.json", PackName("main", "0315-1200", 0, [32]byte{}), "clusters/main/wal/00000001/00000001/20260315T123001Z-x.age",
		"snapshots/" + id + "/packs/x", "clusters/main/snapshots/" + id, "clusters/main/snapshots/20261315T123001Z-abc234/packs/0-x.age",
	} {
		if at, ok := BegunAt(name); ok {
			t.Errorf("%q began at %s", name, at)
		}
	}
}

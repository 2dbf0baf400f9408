package snapshot

import (
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// A1: what the spool gives back is what was sealed, or nothing.
func TestTheSpoolGivesBackTheSealedBytesOrNothing(t *testing.T) {
	dir := t.TempDir()
	s, err := openSpool(dir, 1, newQuota(0, nil))
	okay(t, err)
	e := &entry{object: []byte("sealed"), index: []byte("index")}
	e.WAL = catalog.WAL{Epoch: 1, File: "f", Object: refOf("o", e.object), Index: refOf("i", e.index)}
	okay(t, s.keep(e, nil))
	again, err := openSpool(dir, 1, newQuota(0, nil))
	okay(t, err)
	got, err := again.find("o")
	okay(t, err)
	if string(got.object) != "sealed" || string(got.index) != "index" {
		t.Errorf("got %q and %q", got.object, got.index)
	}
	other, err := openSpool(dir, 2, newQuota(0, nil))
	okay(t, err)
	if len(other.left()) != 0 {
		t.Error("a new epoch sends what the old one left")
	}
}

func FuzzSpoolEntry(f *testing.F) {
	f.Add([]byte(`{"wal":{"object":{"name":"o","size":1,"sha256":""}}}` + "\nx"))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decodeEntry(data)
		if err == nil && e.WAL.Object.Name != "" && refOf(e.WAL.Object.Name, e.object) != e.WAL.Object {
			t.Error("bytes that the entry does not bind were accepted")
		}
	})
}

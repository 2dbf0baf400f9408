package catalog

import (
	"bytes"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

var (
	sumA = strings.Repeat("a1", 32)
	sumB = strings.Repeat("b2", 32)
)

func sampleManifest() Manifest {
	at := time.Date(2026, 11, 22, 18, 5, 1, 0, time.UTC)
	return Manifest{
		Header: ManifestHeader{
			Format: 1, Cluster: "main", Snapshot: "20261122T180501Z-abcdef",
			Label:       []byte("START WAL LOCATION: 0/2000028\n"),
			Tablespaces: []Tablespace{{OID: 16400, Path: "/srv/fast"}, {OID: 16401, InPlace: true}},
			Dirs:        []Dir{{Path: "pg_wal", Mode: 0o700}},
			Facts:       ServerFacts{SystemID: "72", Major: 15, StartLSN: 0x2000028, Architecture: "x86_64", WordBits: 64, ByteOrder: "little", OS: "linux-gnu", HotStandby: map[string]string{"max_connections": "100"}},
			Inventory:   Inventory{Databases: []Database{{OID: 5, Name: "postgres", CollationVersion: "2.36", Relations: []Relation{{"public", "t", "r", "p"}}}}},
		},
		Packs: []ManifestPack{{Ref: Ref{Name: "clusters/main/snapshots/x/packs/0-aa.age", Size: 99, SHA256: sumA}, Raw: 8292, Live: 8292}},
		Maps:  []ManifestMap{{Ref: Ref{Name: "clusters/main/snapshots/x/maps/0-aa.age", Size: 99, SHA256: sumB}, Raw: 300, Live: 300}},
		Files: []ManifestFile{
			{Path: "/etc/postgresql/postgresql.conf", Size: 50, Mode: 0o644, MTime: at, Kind: FileOther, Leaves: []LeafRef{{0, 0, 100, 1}}, Outside: true},
			{Path: "PG_VERSION", Mode: 0o600, MTime: at, Kind: FileOther},
			{Path: "base/5/1259", Size: 8242, Mode: 0o600, MTime: at, Kind: FileRelation, Leaves: []LeafRef{{0, 100, 200, 1}}, Bad: []int64{0}},
		},
	}
}

func encode(t *testing.T, m Manifest) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := EncodeManifest(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestManifestComesBackAsItWasWritten(t *testing.T) {
	want := sampleManifest()
	got, err := DecodeManifest(bytes.NewReader(encode(t, want)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestManifestCutAnywhereIsRefused(t *testing.T) {
	whole := encode(t, sampleManifest())
	for n := range len(whole) - 1 { // without its last newline it is still whole
		if _, err := DecodeManifest(bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("the first %d of %d bytes passed for a manifest", n, len(whole))
		}
	}
}

// C-73
func TestManifestThatLiesIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"file above the data directory": func(m *Manifest) { m.Files[1].Path = "../PG_VERSION" },
		"file in the middle going up":   func(m *Manifest) { m.Files[1].Path = "PG/../../x" },
		"absolute path not outside":     func(m *Manifest) { m.Files[0].Outside = false },
		"outside but relative":          func(m *Manifest) { m.Files[1].Outside = true },
		"NUL in a path":                 func(m *Manifest) { m.Files[1].Path = "PG\x00" },
		"same path twice":               func(m *Manifest) { m.Files[2].Path = "PG_VERSION" },
		"unknown kind":                  func(m *Manifest) { m.Files[2].Kind = "pipe" },
		"pack out of turn":              func(m *Manifest) { m.Packs[0].N = 3 },
		"pack whose name leaves":        func(m *Manifest) { m.Packs[0].Ref.Name = "../x" },
	} {
		m := sampleManifest()
		spoil(&m)
		if err := EncodeManifest(io.Discard, m); err == nil {
			t.Errorf("%s: was written", name)
		}
	}
	for _, h := range []string{
		`{"format":1,"dirs":[{"path":"../up","mode":448}]}`,
		`{"format":1,"tablespaces":[{"oid":1,"path":"../up"}]}`,
		`{"format":1,"tablespaces":[{"oid":1,"path":"/a","in_place":true}]}`,
		`{"format":2}`, `{"format":0}`, `[]`, ``,
	} {
		if _, err := NewManifestReader(strings.NewReader(h + "\n")); err == nil {
			t.Errorf("header %s passed", h)
		}
	}
}

func TestObjectsComeBackSortedAndOnce(t *testing.T) {
	a, b := Ref{"a/b", 3, sumA}, Ref{"a/c", 0, sumB}
	data, err := EncodeObjects([]Ref{b, a, b})
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeObjects(bytes.NewReader(data))
	if err != nil || !reflect.DeepEqual(got, []Ref{a, b}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := EncodeObjects([]Ref{a, {"a/b", 4, sumA}}); err == nil {
		t.Error("one name with two contents was written")
	}
}

func TestObjectsThatLieAreRefused(t *testing.T) {
	for _, lines := range []string{
		"", "holdfast objects v2\n", "\n",
		sumA + " 3 ../a\n",
		sumA + " -3 a\n",
		sumA + " 03 a\n",
		sumA[1:] + " 3 a\n",
		sumA + " 3 b\n" + sumA + " 3 a\n",
		sumA + " 3 a\n" + sumA + " 3 a\n",
		sumA + " 3 " + strings.Repeat("x", 5000) + "\n",
	} {
		if refs, err := DecodeObjects(strings.NewReader(lines)); err == nil {
			t.Errorf("%.100q passed as %v", lines, refs)
		}
	}
}

func FuzzDecodeManifest(f *testing.F) {
	var b bytes.Buffer
	if err := EncodeManifest(&b, sampleManifest()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`{"format":1}` + "\n" + `{"end":{"packs":0,"files":0}}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := EncodeManifest(&again, m); err != nil {
			t.Fatalf("read but not writable: %v", err)
		}
		if _, err := DecodeManifest(&again); err != nil {
			t.Fatalf("written but not readable: %v", err)
		}
	})
}

func FuzzDecodeObjects(f *testing.F) {
	f.Add([]byte(sumA + " 3 a/b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		refs, err := DecodeObjects(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := EncodeObjects(refs)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeObjects(bytes.NewReader(again)); err != nil || len(back) != len(refs) {
			t.Fatalf("%d became %d: %v", len(refs), len(back), err)
		}
	})
}

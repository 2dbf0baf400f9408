package catalog

import (
	"bytes"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

// mappedManifest is of an incremental snapshot: a pack and a map are an older one's.
func mappedManifest() Manifest {
	at := time.Date(2026, 11, 22, 18, 5, 1, 0, time.UTC)
	file := func(path string, size int64, leaves ...LeafRef) ManifestFile {
		return ManifestFile{Path: path, Size: size, Mode: 0o600, MTime: at, Kind: FileRelation, Leaves: leaves}
	}
	return Manifest{
		Header: ManifestHeader{Format: 1, Cluster: "main", Snapshot: "b", Base: "a", DigestEpoch: 1, Dirs: []Dir{{Path: "pg_wal", Mode: 0o700}}},
		Packs: []ManifestPack{
			{N: 0, Ref: Ref{Name: "clusters/main/snapshots/a/packs/0-aa.age", Size: 99, SHA256: sumA}, Raw: 1 << 20, Live: 8192},
			{N: 1, Ref: Ref{Name: "clusters/main/snapshots/b/packs/0-bb.age", Size: 99, SHA256: sumB}, Raw: 8192, Live: 8192},
		},
		Maps: []ManifestMap{
			{N: 0, Ref: Ref{Name: "clusters/main/snapshots/a/maps/0-aa.age", Size: 9, SHA256: sumA}, Raw: 1000, Live: 100},
			{N: 1, Ref: Ref{Name: "clusters/main/snapshots/b/maps/0-bb.age", Size: 9, SHA256: sumB}, Raw: 200, Live: 200},
		},
		Files: []ManifestFile{
			file("base/5/1259", LeafBlocks*BlockSize+1, LeafRef{0, 900, 100, 1}, LeafRef{1, 0, 100, 1}),
			file("base/5/1260", 0),
			file("base/5/1261", BlockSize, LeafRef{1, 100, 100, 1}),
		},
	}
}

func TestManifestWithPageMapsComesBackAsItWasWritten(t *testing.T) {
	want := mappedManifest()
	whole := encode(t, want)
	got, err := DecodeManifest(bytes.NewReader(whole))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	for n := range len(whole) - 1 {
		if _, err := DecodeManifest(bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("the first %d of %d bytes passed for a manifest", n, len(whole))
		}
	}
}

func TestManifestWhosePageMapsCannotBeIsRefused(t *testing.T) {
	leaf := func(m *Manifest) *LeafRef { return &m.Files[0].Leaves[1] }
	for name, spoil := range map[string]func(*Manifest){
		"leaves in no map":               func(m *Manifest) { leaf(m).Map = 2 },
		"leaves in a negative map":       func(m *Manifest) { leaf(m).Map = -1 },
		"leaves before their map":        func(m *Manifest) { leaf(m).Off = -1 },
		"leaves beyond their map":        func(m *Manifest) { leaf(m).Off = 101 },
		"leaves that are too many bytes": func(m *Manifest) { leaf(m).Len = 1<<63 - 1 },
		"leaves of too few bytes":        func(m *Manifest) { leaf(m).Len = int64(leafHead) - 1 },
		"no leaf where bytes are given":  func(m *Manifest) { leaf(m).Count = 0 },
		"a leaf too many":                func(m *Manifest) { leaf(m).Count = 2 },
		"a leaf too few":                 func(m *Manifest) { m.Files[0].Leaves = m.Files[0].Leaves[:1] },
		"leaves of an empty file":        func(m *Manifest) { m.Files[1].Leaves = m.Files[2].Leaves },
		"bytes without leaves":           func(m *Manifest) { m.Files[1].Size = 1 },
		"a map out of turn":              func(m *Manifest) { m.Maps[1].N = 0 },
		"a map whose name leaves":        func(m *Manifest) { m.Maps[0].Ref.Name = "../x" },
		"a map without a digest":         func(m *Manifest) { m.Maps[0].Ref.SHA256 = "" },
		"a map over 32 MiB":              func(m *Manifest) { m.Maps[0].Raw = maxMap + 1 },
		"a map that nobody needs":        func(m *Manifest) { m.Maps[0].Live = 0 },
		"a map of which too much is used": func(m *Manifest) {
			m.Maps[0].Live = m.Maps[0].Raw + 1
		},
		"a pack of which too much is used": func(m *Manifest) { m.Packs[1].Live++ },
		"a pack of negative bytes":         func(m *Manifest) { m.Packs[0].Raw = -1 },
	} {
		m := mappedManifest()
		spoil(&m)
		if err := EncodeManifest(io.Discard, m); err == nil {
			t.Errorf("%s: was written", name)
		}
	}
}

func TestManifestLinesStandInTheirOrder(t *testing.T) {
	lines := strings.SplitAfter(string(encode(t, mappedManifest())), "\n")
	if n := len(lines); n != 10 || lines[9] != "" {
		t.Fatalf("%d lines", n)
	}
	for name, order := range map[string][]int{
		"a map before its packs":   {0, 3, 1, 2, 4, 5, 6, 7, 8},
		"a file before its maps":   {0, 1, 2, 5, 3, 4, 6, 7, 8},
		"a map after a file":       {0, 1, 2, 3, 5, 4, 6, 7, 8},
		"files unsorted":           {0, 1, 2, 3, 4, 6, 5, 7, 8},
		"a line after the end":     {0, 1, 2, 3, 4, 5, 6, 8, 7},
		"a map left out":           {0, 1, 2, 3, 5, 6, 7, 8},
		"a file left out":          {0, 1, 2, 3, 4, 5, 6, 8},
		"the same pack once more":  {0, 1, 2, 2, 3, 4, 5, 6, 7, 8},
		"no header":                {1, 2, 3, 4, 5, 6, 7, 8},
		"the header a second time": {0, 0, 1, 2, 3, 4, 5, 6, 7, 8},
	} {
		var b strings.Builder
		for _, i := range order {
			b.WriteString(lines[i])
		}
		if m, err := DecodeManifest(strings.NewReader(b.String())); err == nil {
			t.Errorf("%s: passed as %+v", name, m)
		}
	}
}

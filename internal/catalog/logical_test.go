package catalog

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func aLogical() LogicalManifest {
	sum := strings.Repeat("ab", 32)
	frames := make([]PackFrame, maxLogicalFrames+3)
	for i := range frames {
		frames[i] = PackFrame{Pack: i % 2, Off: int64(i), Len: 7, Raw: 10, SHA256: sum}
	}
	return LogicalManifest{
		Header: LogicalHeader{Format: ManifestFormat, Kind: Logical, Cluster: "cms", Snapshot: "x"},
		Packs: []ManifestPack{
			{N: 0, Ref: Ref{Name: "clusters/cms/snapshots/x/packs/0-a.age", Size: 9, SHA256: sum}, Raw: 4, Live: 4},
			{N: 1, Ref: Ref{Name: "clusters/cms/snapshots/x/packs/1-b.age", Size: 9, SHA256: sum}, Raw: 4, Live: 4},
		},
		Files: []LogicalFile{
			{Path: "databases/0001/data/0001.copy", Size: int64(10 * len(frames)), SHA256: sum, Frames: frames},
			{Path: "databases/0001/data/0002.copy", SHA256: sum},
			{Path: "manifest.json", Size: 10, SHA256: sum, Frames: frames[:1]},
		},
	}
}

func encodeLogical(t *testing.T, m LogicalManifest) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := EncodeLogical(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestALogicalManifestIsReadAsItWasWritten(t *testing.T) {
	m := aLogical()
	got, err := DecodeLogical(bytes.NewReader(encodeLogical(t, m)))
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Fatalf("read %v, %v", got.Files, err)
	}
}

func TestALogicalManifestThatCannotBeIsRefused(t *testing.T) {
	text := string(encodeLogical(t, aLogical()))
	for name, change := range map[string]func(string) string{
		"a newer format":          func(s string) string { return strings.Replace(s, `"format":1`, `"format":2`, 1) },
		"another kind":            func(s string) string { return strings.Replace(s, `"kind":"logical"`, `"kind":"physical"`, 1) },
		"a path outside":          func(s string) string { return strings.Replace(s, `"path":"manifest.json"`, `"path":"z/../../x"`, 1) },
		"paths out of order":      func(s string) string { return strings.Replace(s, `"path":"manifest.json"`, `"path":"a"`, 1) },
		"a pack that is not":      func(s string) string { return strings.Replace(s, `[[0,0,7,10`, `[[2,0,7,10`, 1) },
		"too many bytes":          func(s string) string { return strings.Replace(s, `[[0,0,7,10`, `[[0,0,7,11`, 1) },
		"too few bytes":           func(s string) string { return strings.Replace(s, `[[0,0,7,10`, `[[0,0,7,9`, 1) },
		"an empty frame":          func(s string) string { return strings.Replace(s, `[[0,0,7,10`, `[[0,0,7,0`, 1) },
		"a short frame":           func(s string) string { return strings.Replace(s, `[[0,0,7,10,`, `[[0,0,7,`, 1) },
		"no end":                  func(s string) string { return s[:strings.LastIndex(s, `{"end"`)] },
		"a wrong end":             func(s string) string { return strings.Replace(s, `"packs":2`, `"packs":1`, 1) },
		"more after the end":      func(s string) string { return s + "{}\n" },
		"an unknown kind of line": func(s string) string { return strings.Replace(s, `{"file"`, `{"fil"`, 1) },
	} {
		if changed := change(text); changed == text {
			t.Errorf("%s: nothing was changed", name)
		} else if _, err := DecodeLogical(strings.NewReader(changed)); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func FuzzDecodeLogical(f *testing.F) {
	var b bytes.Buffer
	m := aLogical()
	m.Files[0].Frames, m.Files[0].Size = m.Files[0].Frames[:2], 20
	if err := EncodeLogical(&b, m); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`{"format":1,"kind":"project"}` + "\n" + `{"end":{"packs":0,"files":0,"frames":0}}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeLogical(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := EncodeLogical(&again, m); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeLogical(&again)
		m.Header.Format = ManifestFormat
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%+v was read again as %+v, %v", m, got, err)
		}
	})
}

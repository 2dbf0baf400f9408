package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// sampleLeaf is of three blocks: two in a frame behind others' bytes, one zero.
func sampleLeaf() Leaf {
	return Leaf{
		Blocks:  3,
		Frames:  []LeafFrame{{Pack: 7, Off: 1 << 33, Len: 900, Raw: 3 * BlockSize, SHA256: [32]byte{0: 0xA1, 31: 0xB2}}},
		Runs:    []Run{{First: 0, Count: 2, Frame: 0, Off: BlockSize}, {First: 2, Count: 1, Frame: ZeroFrame}},
		Digests: []uint64{1, 1<<64 - 1, 3},
	}
}

// randomLeaf is a leaf as a writer could make one.
func randomLeaf(r *rand.Rand) Leaf {
	l := Leaf{Blocks: 1 + r.IntN(LeafBlocks)}
	for range r.IntN(4) {
		l.Frames = append(l.Frames, LeafFrame{Pack: r.Uint32(), Off: r.Int64N(1 << 40), Len: 1 + r.IntN(1<<20), Raw: maxFrameRaw})
	}
	for next := 0; next < l.Blocks; {
		run := Run{First: next, Count: 1 + r.IntN(min(32, l.Blocks-next)), Frame: ZeroFrame}
		if len(l.Frames) > 0 && r.IntN(3) > 0 {
			run.Frame, run.Off = r.IntN(len(l.Frames)), r.IntN(maxFrameRaw-run.Count*BlockSize+1)
		}
		l.Runs = append(l.Runs, run)
		next += run.Count
	}
	for range l.Blocks {
		l.Digests = append(l.Digests, r.Uint64())
	}
	return l
}

func appended(t testing.TB, dst []byte, l Leaf) []byte {
	t.Helper()
	b, err := AppendLeaf(dst, l)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLeavesComeBackOneAfterTheOther(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	want := []Leaf{sampleLeaf(), {Blocks: 1}, {Blocks: LeafBlocks}}
	for range 200 {
		want = append(want, randomLeaf(r))
	}
	var all []byte
	for _, l := range want {
		all = appended(t, all, l)
	}
	for i, w := range want {
		n, err := leafSize(all)
		if err != nil {
			t.Fatal(err)
		}
		got, rest, err := ParseLeaf(all)
		if err != nil || !reflect.DeepEqual(got, w) {
			t.Fatalf("leaf %d: got %+v, %v\nwant %+v", i, got, err, w)
		}
		if len(rest) != len(all)-n {
			t.Fatalf("leaf %d: %d bytes by its head, %d by reading it", i, n, len(all)-len(rest))
		}
		all = rest
	}
	if len(all) != 0 {
		t.Errorf("%d bytes are left", len(all))
	}
}

func TestALeafCutAnywhereIsRefused(t *testing.T) {
	whole := appended(t, nil, sampleLeaf())
	for n := range whole {
		if _, _, err := ParseLeaf(whole[:n]); err == nil {
			t.Errorf("the first %d of %d bytes passed for a leaf", n, len(whole))
		}
		if _, err := leafSize(whole[:n]); err == nil {
			t.Errorf("the first %d of %d bytes have a length", n, len(whole))
		}
	}
}

func TestALeafThatNoReaderTakesIsNotWritten(t *testing.T) {
	for name, spoil := range map[string]func(*Leaf){
		"no blocks":                         func(l *Leaf) { *l = Leaf{} },
		"too many blocks":                   func(l *Leaf) { *l = Leaf{Blocks: LeafBlocks + 1} },
		"zeros with frames":                 func(l *Leaf) { l.Runs, l.Digests = nil, nil },
		"zeros with digests":                func(l *Leaf) { l.Runs, l.Frames = nil, nil },
		"a digest too few":                  func(l *Leaf) { l.Digests = l.Digests[:2] },
		"a hole between runs":               func(l *Leaf) { l.Runs[0].Count = 1 },
		"runs that overlap":                 func(l *Leaf) { l.Runs[1].First = 1 },
		"runs that do not begin at 0":       func(l *Leaf) { l.Runs = l.Runs[1:] },
		"runs that end early":               func(l *Leaf) { l.Runs = l.Runs[:1] },
		"runs that end late":                func(l *Leaf) { l.Runs[1].Count = 2 },
		"an empty run":                      func(l *Leaf) { l.Runs = append(l.Runs, Run{First: 3, Frame: ZeroFrame}) },
		"a run in no frame":                 func(l *Leaf) { l.Runs[0].Frame = 1 },
		"a run in a negative frame":         func(l *Leaf) { l.Runs[0].Frame = -1 },
		"a run beyond its frame":            func(l *Leaf) { l.Runs[0].Off = BlockSize + 1 },
		"a run before its frame":            func(l *Leaf) { l.Runs[0].Off = -1 },
		"zeros with a place":                func(l *Leaf) { l.Runs[1].Off = 1 },
		"a frame without raw bytes":         func(l *Leaf) { l.Frames[0].Raw = 0 },
		"a frame over 1 MiB":                func(l *Leaf) { l.Frames[0].Raw = maxFrameRaw + 1 },
		"a frame without compressed bytes":  func(l *Leaf) { l.Frames[0].Len = 0 },
		"a frame of far too many":           func(l *Leaf) { l.Frames[0].Len = 2*maxFrameRaw + 1 },
		"a frame before its pack":           func(l *Leaf) { l.Frames[0].Off = -1 },
		"a frame where no pack reaches":     func(l *Leaf) { l.Frames[0].Off = 1<<40 + 1 },
		"more frames than blocks can be in": func(l *Leaf) { l.Frames = make([]LeafFrame, LeafBlocks+1) },
	} {
		l := sampleLeaf()
		spoil(&l)
		if b, err := AppendLeaf([]byte("x"), l); err == nil || string(b) != "x" {
			t.Errorf("%s: %d bytes were written, error %v", name, len(b), err)
		}
	}
}

// The same lies as bytes, as someone else could have written them.
func TestALeafThatLiesIsRefused(t *testing.T) {
	frame, run := leafHead, leafHead+leafFrameSize
	second := run + leafRunSize
	for name, lie := range map[string]struct{ at, size, value int }{
		"no blocks":                   {0, 2, 0},
		"more blocks than digests":    {0, 2, 4},
		"65,535 blocks":               {0, 2, 0xFFFF},
		"65,535 frames":               {2, 2, 0xFFFF},
		"no frames":                   {2, 2, 0},
		"65,535 runs":                 {4, 2, 0xFFFF},
		"no runs, but frames":         {4, 2, 0},
		"a frame of 4 GiB compressed": {frame + 12, 4, 0xFFFFFFFF},
		"a frame of 4 GiB raw":        {frame + 16, 4, 0xFFFFFFFF},
		"a frame at 2^63":             {frame + 4, 8, -1 << 63},
		"a run that begins late":      {run, 2, 1},
		"a run of 65,535 blocks":      {run + 2, 2, 0xFFFF},
		"a run in the next frame":     {run + 4, 2, 1},
		"a run at 4 GiB":              {run + 6, 4, 0xFFFFFFFF},
		"zeros that lie somewhere":    {second + 6, 4, BlockSize},
	} {
		b := appended(t, nil, sampleLeaf())
		value := binary.LittleEndian.AppendUint64(nil, uint64(lie.value))
		copy(b[lie.at:], value[:lie.size])
		b = append(b, make([]byte, 64)...)
		if l, _, err := ParseLeaf(b); err == nil {
			t.Errorf("%s: passed as %+v", name, l)
		}
	}
}

func TestARunEndsWithItsFile(t *testing.T) {
	for _, c := range []struct {
		r           Run
		first, size int64
		want        int
	}{
		{Run{First: 0, Count: 1}, 0, 3, 3},
		{Run{First: 0, Count: 2}, 0, 2 * BlockSize, 2 * BlockSize},
		{Run{First: 1, Count: 2}, 0, 2*BlockSize + 1, BlockSize + 1},
		{Run{First: 0, Count: 1}, 1 << 40, 1<<53 + 5, 5},
		{Run{First: 3, Count: 4}, 1024, 1 << 40, 4 * BlockSize},
	} {
		if got := c.r.Bytes(c.first, c.size); got != c.want {
			t.Errorf("%+v at block %d of %d bytes: %d bytes, want %d", c.r, c.first, c.size, got, c.want)
		}
	}
}

func TestALeafRefIsFourIntegersInJSON(t *testing.T) {
	want := LeafRef{Map: 3, Off: 1 << 24, Len: 99, Count: 2}
	b, err := json.Marshal(want)
	if err != nil || string(b) != "[3,16777216,99,2]" {
		t.Fatalf("%s, %v", b, err)
	}
	var got LeafRef
	if err := json.Unmarshal(b, &got); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{`{"map":1}`, `"3"`, `[1,2,3,"4"]`, `[1.5,2,3,4]`, `[9223372036854775808,0,0,0]`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s passed as %+v", bad, got)
		}
	}
}

func TestAMapObjectCutOrOfAnotherFormatIsRefused(t *testing.T) {
	b := NewMapBuilder()
	if _, _, err := b.Add(sampleLeaf(), func(uint32) string { return "clusters/main/snapshots/x/packs/0-aa.age" }); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	names, leaves, err := parseMapTable(whole)
	if err != nil || len(names) != 1 || len(whole) != b.Size() {
		t.Fatalf("%q, %d leaves' bytes, %v", names, len(leaves), err)
	}
	for n := range len(whole) - len(leaves) {
		if _, _, err := parseMapTable(whole[:n]); err == nil {
			t.Errorf("a table cut to %d bytes passed", n)
		}
	}
	table := func(names ...string) []byte {
		out := binary.LittleEndian.AppendUint32([]byte(mapMagic), uint32(len(names)))
		for _, n := range names {
			out = append(binary.LittleEndian.AppendUint16(out, uint16(len(n))), n...)
		}
		return out
	}
	for what, b := range map[string][]byte{
		"a newer format":             bytes.Replace(whole, []byte("HOLDFMP1"), []byte("HOLDFMP2"), 1),
		"4 billion packs":            append([]byte(mapMagic), 0xFF, 0xFF, 0xFF, 0xFF, 0, 0),
		"a pack whose name leaves":   table("../x"),
		"a pack without a name":      table(""),
		"a pack at an absolute path": table("/etc/passwd"),
		"more than 32 MiB":           append(table("a"), make([]byte, maxMap)...),
	} {
		if _, _, err := parseMapTable(b); err == nil {
			t.Errorf("%s passed", what)
		}
	}
	b.Reset()
	if _, leaves, err := parseMapTable(b.Bytes()); err != nil || len(leaves) != 0 {
		t.Errorf("an emptied builder gives %d bytes of leaves, %v", len(leaves), err)
	}
}

func FuzzParseLeaf(f *testing.F) {
	f.Add(appended(f, nil, sampleLeaf()))
	f.Add(appended(f, nil, Leaf{Blocks: LeafBlocks}))
	f.Add(appended(f, appended(f, nil, Leaf{Blocks: 1}), sampleLeaf()))
	f.Add([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, rest, err := ParseLeaf(b)
		if err != nil {
			return
		}
		again := appended(t, nil, l)
		if !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Errorf("read and written again, % x became % x", b, again)
		}
		for _, r := range l.Runs {
			if r.Frame != ZeroFrame && r.Off+(r.Count-1)*BlockSize >= l.Frames[r.Frame].Raw {
				t.Errorf("run %+v begins its last block outside its frame", r)
			}
		}
	})
}

func FuzzLeafRef(f *testing.F) {
	f.Add("[0,0,6,1]")
	f.Add("[1,-1,9223372036854775807,0]")
	f.Add("[]")
	f.Add("null")
	f.Fuzz(func(t *testing.T, refs string) {
		if strings.ContainsAny(refs, "\n\r") {
			return
		}
		lines := `{"format":1,"dirs":null}` + "\n" +
			`{"map":{"n":0,"ref":{"name":"m","size":1,"sha256":"` + sumA + `"},"raw":100,"live":100}}` + "\n" +
			`{"file":{"path":"a","size":8193,"mode":384,"kind":"other","mtime":"2026-01-01T00:00:00Z","leaves":[` + refs + `]}}` + "\n" +
			`{"end":{"packs":0,"maps":1,"files":1}}` + "\n"
		m, err := DecodeManifest(strings.NewReader(lines))
		if err != nil {
			return
		}
		count := 0
		for _, r := range m.Files[0].Leaves {
			if r.Map != 0 || r.Off < 0 || r.Len < leafHead || r.Off+r.Len > 100 {
				t.Errorf("leaves %+v of a map of 100 bytes passed", r)
			}
			count += r.Count
		}
		if count != 1 {
			t.Errorf("%d leaves for two blocks passed", count)
		}
	})
}

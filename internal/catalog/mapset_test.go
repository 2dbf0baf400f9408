package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// maps is a small repository of page maps: sealed objects by name.
type maps struct {
	t       testing.TB
	id      *age.X25519Identity
	objects map[string][]byte
	refs    []ManifestMap

	mu      sync.Mutex
	fetched map[string]int
}

func newMaps(t testing.TB) *maps {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return &maps{t: t, id: id, objects: map[string][]byte{}, fetched: map[string]int{}}
}

// add seals a map object's plaintext and names it.
func (m *maps) add(plain []byte) int {
	m.t.Helper()
	sealed, err := seal.SealBlob(plain, []age.Recipient{m.id.Recipient()})
	if err != nil {
		m.t.Fatal(err)
	}
	sum := sha256.Sum256(sealed)
	n := len(m.refs)
	r := Ref{Name: MapName("main", "s", n, sum), Size: int64(len(sealed)), SHA256: hex.EncodeToString(sum[:])}
	m.objects[r.Name] = sealed
	m.refs = append(m.refs, ManifestMap{N: n, Ref: r, Raw: int64(len(plain)), Live: 1})
	return n
}

// of puts leaves into a map object and returns where they lie.
func (m *maps) of(leaves ...Leaf) LeafRef {
	m.t.Helper()
	b := NewMapBuilder()
	ref := LeafRef{Count: len(leaves)}
	for _, l := range leaves {
		_, n, err := b.Add(l, packName)
		if err != nil {
			m.t.Fatal(err)
		}
		ref.Len += int64(n)
	}
	ref.Map = m.add(b.Bytes())
	return ref
}

func packName(n uint32) string { return fmt.Sprintf("clusters/main/snapshots/s/packs/%d-x.age", n) }

func packsNamed(numbers ...uint32) []ManifestPack {
	var out []ManifestPack
	for i, n := range numbers {
		out = append(out, ManifestPack{N: i, Ref: Ref{Name: packName(n), SHA256: sumA}})
	}
	return out
}

func (m *maps) fetch(_ context.Context, r Ref) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fetched[r.Name]++
	if b := m.objects[r.Name]; b != nil {
		return b, nil
	}
	return nil, errors.New("no zone has it")
}

func (m *maps) set(dir string, packs []ManifestPack) *MapSet {
	s := NewMapSet(dir, m.refs, packs, m.fetch, []age.Identity{m.id})
	m.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			m.t.Error(err)
		}
	})
	return s
}

// in is a leaf of full blocks that all lie in pack n.
func in(n uint32, blocks int) Leaf {
	l := Leaf{Blocks: blocks, Digests: make([]uint64, blocks)}
	for at := 0; at < blocks; at += 128 {
		count := min(128, blocks-at)
		l.Runs = append(l.Runs, Run{First: at, Count: count, Frame: len(l.Frames)})
		l.Frames = append(l.Frames, LeafFrame{Pack: n, Off: int64(at), Len: 10, Raw: count * BlockSize})
	}
	return l
}

func collect(s *MapSet, f ManifestFile) (firsts []int64, packs []uint32, err error) {
	err = s.Leaves(context.Background(), f, func(first int64, l Leaf) error {
		firsts = append(firsts, first)
		for _, fr := range l.Frames[:min(1, len(l.Frames))] {
			packs = append(packs, fr.Pack)
		}
		return nil
	})
	return firsts, packs, err
}

func TestMapSetGivesEachFileItsLeavesWithTheManifestsPacks(t *testing.T) {
	m := newMaps(t)
	old := m.of(in(40, LeafBlocks), in(50, LeafBlocks)) // of an older snapshot
	own := m.of(in(60, 3))
	f := ManifestFile{Path: "base/5/1", Size: (2*LeafBlocks+3)*BlockSize - 100, Leaves: []LeafRef{old, own}}
	packs := packsNamed(60, 50, 40) // the manifest counts its own way
	dir := t.TempDir()
	s := m.set(dir, packs)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			firsts, at, err := collect(s, f)
			if want := []int64{0, LeafBlocks, 2 * LeafBlocks}; err != nil || !reflect.DeepEqual(firsts, want) || !reflect.DeepEqual(at, []uint32{2, 1, 0}) {
				t.Errorf("leaves at %v of packs %v, %v", firsts, at, err)
			}
		})
	}
	wg.Wait()
	for name, n := range m.fetched {
		if n != 1 {
			t.Errorf("%s was fetched %d times", name, n)
		}
	}
	rotten := keptMap(dir, m.refs[own.Map].Ref)
	kept, err := os.ReadFile(rotten)
	if err != nil {
		t.Fatal(err)
	}
	kept[len(kept)/2] ^= 1
	if err := os.WriteFile(rotten, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, at, err := collect(m.set(dir, packs), f); err != nil || !reflect.DeepEqual(at, []uint32{2, 1, 0}) || m.fetched[m.refs[own.Map].Ref.Name] != 2 {
		t.Errorf("a map that rotted in the directory: packs %v, %v, fetched %v", at, err, m.fetched)
	}
	m.objects = nil // what was opened once serves the next set
	if firsts, _, err := collect(m.set(dir, packs), f); err != nil || len(firsts) != 3 {
		t.Errorf("from the directory: leaves at %v, %v", firsts, err)
	}
}

func TestMapsThatWereLoadedNeedNoZone(t *testing.T) {
	m := newMaps(t)
	f := ManifestFile{Path: "base/5/1", Size: (LeafBlocks + 3) * BlockSize, Leaves: []LeafRef{m.of(in(0, LeafBlocks)), m.of(in(0, 3))}}
	s := m.set(t.TempDir(), packsNamed(0))
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.objects = nil
	if firsts, _, err := collect(s, f); err != nil || len(firsts) != 2 {
		t.Errorf("leaves at %v, %v", firsts, err)
	}
	if err := m.set(t.TempDir(), nil).Load(t.Context()); err == nil {
		t.Error("maps that no zone has were loaded")
	}
}

func TestPlacesGivesTheLeavesOfAStretchAndWhereEachLies(t *testing.T) {
	m := newMaps(t)
	f := ManifestFile{Path: "base/5/1", Size: (4*LeafBlocks + 1) * BlockSize}
	f.Leaves = []LeafRef{m.of(in(0, LeafBlocks), in(0, LeafBlocks)), m.of(in(0, LeafBlocks), Leaf{Blocks: LeafBlocks}, in(0, 1))}
	s := m.set(t.TempDir(), packsNamed(0))
	for _, c := range []struct{ from, to, first, count int64 }{
		{0, 4*LeafBlocks + 1, 0, 5}, {LeafBlocks, 2 * LeafBlocks, LeafBlocks, 1}, {2 * LeafBlocks, 4*LeafBlocks + 1, 2 * LeafBlocks, 3}, {4 * LeafBlocks, 1 << 40, 4 * LeafBlocks, 1},
	} {
		var got []int64
		err := s.Places(t.Context(), f, c.from, c.to, func(first int64, l Leaf, at LeafRef) error {
			got = append(got, first)
			if again, err := s.Leaf(t.Context(), at); err != nil || !reflect.DeepEqual(l, again) {
				t.Errorf("the leaf at block %d is another than the one at %+v: %v", first, at, err)
			}
			at.Len++
			if _, err := s.Leaf(t.Context(), at); err == nil {
				t.Errorf("a leaf with a byte behind it, at %+v, passed", at)
			}
			return nil
		})
		if err != nil || int64(len(got)) != c.count || got[0] != c.first {
			t.Errorf("blocks %d to %d: leaves at %v, %v", c.from, c.to, got, err)
		}
	}
}

func TestLeavesThatAreNotTheFilesAreRefused(t *testing.T) {
	m := newMaps(t)
	full, short := m.of(in(0, LeafBlocks), in(0, 2)), m.of(in(0, 2))
	tight := in(0, 2)
	tight.Frames[0].Raw -= 100 // its last block is short
	end := m.of(tight)
	two := int64(2 * BlockSize)
	with := func(r LeafRef, off, n int64, count int) LeafRef {
		return LeafRef{r.Map, r.Off + off, r.Len + n, r.Count + count}
	}
	for name, f := range map[string]ManifestFile{
		"of a smaller file":                     {Size: BlockSize, Leaves: []LeafRef{short}},
		"of a larger file":                      {Size: two + 1, Leaves: []LeafRef{short}},
		"a short one in the midst":              {Size: 2 * two, Leaves: []LeafRef{short, short}},
		"one too few":                           {Size: (LeafBlocks + 2) * BlockSize, Leaves: []LeafRef{with(full, 0, -full.Len+int64(leafHead), -1)}},
		"bytes that follow":                     {Size: LeafBlocks * BlockSize, Leaves: []LeafRef{with(full, 0, 0, -1)}},
		"cut off":                               {Size: two, Leaves: []LeafRef{with(short, 0, -1, 0)}},
		"from the middle of one":                {Size: two, Leaves: []LeafRef{with(short, 2, -2, 0)}},
		"beyond their map":                      {Size: two, Leaves: []LeafRef{with(short, 1, 0, 0)}},
		"far beyond their map":                  {Size: two, Leaves: []LeafRef{with(short, 1<<62, 0, 0)}},
		"before their map":                      {Size: two, Leaves: []LeafRef{with(short, -1, 0, 0)}},
		"of no bytes":                           {Size: two, Leaves: []LeafRef{with(short, 0, -short.Len, 0)}},
		"of a map that is not there":            {Size: two, Leaves: []LeafRef{{Map: 9, Len: 10, Count: 1}}},
		"of a negative map":                     {Size: two, Leaves: []LeafRef{{Map: -1, Len: 10, Count: 1}}},
		"none for a file with bytes":            {Size: 1},
		"whose frame ends before the file":      {Size: two, Leaves: []LeafRef{end}},
		"whose frame ends one byte before it":   {Size: two - 99, Leaves: []LeafRef{end}},
		"of another pack than the manifest has": {Size: two, Leaves: []LeafRef{m.of(in(7, 2))}},
	} {
		f.Path = "base/5/1"
		if _, _, err := collect(m.set(t.TempDir(), packsNamed(0)), f); err == nil || !strings.Contains(err.Error(), f.Path) {
			t.Errorf("leaves %s: %v", name, err)
		}
	}
	if _, _, err := collect(m.set(t.TempDir(), packsNamed(0)), ManifestFile{Size: two - 100, Leaves: []LeafRef{end}}); err != nil {
		t.Errorf("a frame that ends with the file: %v", err)
	}
}

// An older map names packs that only dead leaves need: they are gone, and it serves.
func TestAMapMayNamePacksThatTheManifestNoLongerHas(t *testing.T) {
	m := newMaps(t)
	both := m.of(in(1, 2), in(2, 2))
	live := LeafRef{Map: both.Map, Off: both.Len / 2, Len: both.Len / 2, Count: 1}
	f := ManifestFile{Path: "base/5/1", Size: 2 * BlockSize, Leaves: []LeafRef{live}}
	if _, packs, err := collect(m.set(t.TempDir(), packsNamed(2)), f); err != nil || !reflect.DeepEqual(packs, []uint32{0}) {
		t.Errorf("packs %v, %v", packs, err)
	}
	f.Leaves[0].Off = 0
	if _, _, err := collect(m.set(t.TempDir(), packsNamed(2)), f); err == nil {
		t.Error("a leaf of a pack that the manifest does not name passed")
	}
}

func TestAMapObjectThatDoesNotOpenIsAnErrorThatNamesIt(t *testing.T) {
	m := newMaps(t)
	good := m.of(in(0, 1))
	name := m.refs[good.Map].Ref.Name
	stranger := newMaps(t)
	stranger.of(in(0, 1))
	for what, body := range map[string][]byte{
		"missing":                    nil,
		"cut off":                    m.objects[name][:len(m.objects[name])-1],
		"sealed to somebody else":    stranger.objects[stranger.refs[0].Ref.Name],
		"no map":                     m.objects[m.refs[m.add([]byte("HOLDFMP2\x00\x00\x00\x00"))].Ref.Name],
		"more than a reader's bound": m.objects[m.refs[m.add(make([]byte, maxMap+1))].Ref.Name],
	} {
		bad := &maps{t: t, id: m.id, refs: m.refs[:1], objects: map[string][]byte{name: body}, fetched: map[string]int{}}
		_, _, err := collect(bad.set(t.TempDir(), packsNamed(0)), ManifestFile{Path: "base/5/1", Size: BlockSize, Leaves: []LeafRef{good}})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Whatever a map object says, its leaves are refused or add up to the file.
func FuzzMapSet(f *testing.F) {
	b := NewMapBuilder()
	for _, l := range []Leaf{in(0, LeafBlocks), sampleLeaf()} {
		if _, _, err := b.Add(l, packName); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(b.Bytes(), int64(LeafBlocks+3)*BlockSize, int64(0), int64(len(b.leaves)), 2)
	f.Add(b.Bytes(), int64(5), int64(7), int64(9), 1)
	f.Add([]byte(mapMagic+"\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00"), int64(1), int64(0), int64(6), 1)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, plain []byte, size, off, n int64, count int) {
		if err := KeepMap(dir, Ref{SHA256: sumA}, plain); err != nil {
			t.Fatal(err)
		}
		refuse := func(context.Context, Ref) ([]byte, error) { return nil, errors.New("not asked for") }
		s := NewMapSet(dir, []ManifestMap{{Ref: Ref{SHA256: sumA}}}, packsNamed(0, 7), refuse, nil)
		defer s.Close()
		if size < 0 || count < 1 || count > 4096 || n > 32<<20 { // ManifestReader refuses these
			return
		}
		file := ManifestFile{Path: "a", Size: size, Leaves: []LeafRef{{Off: off, Len: n, Count: count}}}
		var bytes int64
		err := s.Leaves(t.Context(), file, func(first int64, l Leaf) error {
			for _, r := range l.Runs {
				part := r.Bytes(first, size)
				if part < 1 || r.Frame != ZeroFrame && (r.Off+part > l.Frames[r.Frame].Raw || l.Frames[r.Frame].Pack > 1) {
					t.Errorf("run %+v of the leaf at %d passed", r, first)
				}
				bytes += int64(part)
			}
			if l.Zero() {
				bytes += min(int64(l.Blocks)*BlockSize, size-first*BlockSize)
			}
			return nil
		})
		if err == nil && bytes != size {
			t.Errorf("leaves of %d bytes passed for a file of %d", bytes, size)
		}
	})
}

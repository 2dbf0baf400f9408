package catalog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// MapSet gives out the leaves of one manifest's files. Map objects are fetched
// when they are first asked for and lie, opened, in a directory under the SHA-256
// of their sealed bytes: they tell sizes and keyed digests, never data. Memory
// holds the names of packs alone. Several goroutines may use it.
type MapSet struct {
	dir   string
	fetch func(ctx context.Context, r Ref) ([]byte, error)
	ids   []age.Identity
	maps  []ManifestMap
	packs map[string]uint32 // the manifest's, by name

	mu   sync.Mutex
	open map[int]*openMap
}

type openMap struct {
	once   sync.Once
	err    error
	file   *os.File
	leaves int64    // where they begin
	size   int64    // of the leaves
	packs  []uint32 // places in the manifest, by place in the map's table
}

// NewMapSet reads the maps of a manifest. dir exists and may hold maps of earlier
// sets; fetch returns an object's bytes, checked against r; ids open maps.
func NewMapSet(dir string, maps []ManifestMap, packs []ManifestPack, fetch func(ctx context.Context, r Ref) ([]byte, error), ids []age.Identity) *MapSet {
	s := &MapSet{dir: dir, fetch: fetch, ids: ids, maps: maps, packs: make(map[string]uint32, len(packs)), open: map[int]*openMap{}}
	for i, p := range packs {
		s.packs[p.Ref.Name] = uint32(i)
	}
	return s
}

// Close closes the maps; their files stay.
func (s *MapSet) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, m := range s.open {
		if m.file != nil {
			errs = append(errs, m.file.Close())
		}
	}
	s.open = map[int]*openMap{}
	return errors.Join(errs...)
}

// Leaves calls fn with each leaf of f in order and the file's block at which it
// begins. Frames name packs by their place in the manifest. Each run was checked
// to lie in its frame, and the blocks to be those of the file's size.
func (s *MapSet) Leaves(ctx context.Context, f ManifestFile, fn func(first int64, l Leaf) error) error {
	return s.Places(ctx, f, 0, blocksOf(f.Size), func(first int64, l Leaf, _ LeafRef) error { return fn(first, l) })
}

// Places is [MapSet.Leaves] for the leaves that begin at the blocks from..to-1 of
// f, each with its own place in its map.
func (s *MapSet) Places(ctx context.Context, f ManifestFile, from, to int64, fn func(first int64, l Leaf, at LeafRef) error) error {
	var first int64
	for _, r := range f.Leaves {
		if end := first + int64(r.Count)*LeafBlocks; end <= from || first >= to {
			first = min(end, blocksOf(f.Size))
			continue
		}
		b, err := s.read(ctx, r)
		if err != nil {
			return fmt.Errorf("page map of %s: %w", f.Path, err)
		}
		for range r.Count {
			n, err := leafSize(b)
			if err != nil {
				return fmt.Errorf("page map of %s at block %d: %w", f.Path, first, err)
			}
			if first >= from && first < to {
				at := LeafRef{Map: r.Map, Off: r.Off + r.Len - int64(len(b)), Len: int64(n), Count: 1}
				if err := s.place(f, first, b[:n], at, fn); err != nil {
					return err
				}
			}
			b = b[n:]
			first = min(first+LeafBlocks, blocksOf(f.Size))
		}
		if len(b) != 0 {
			return fmt.Errorf("page map of %s: %d bytes follow %d leaves", f.Path, len(b), r.Count)
		}
	}
	if want := blocksOf(f.Size); first != want {
		return fmt.Errorf("page map of %s: %d blocks of %d", f.Path, first, want)
	}
	return nil
}

func (s *MapSet) place(f ManifestFile, first int64, b []byte, at LeafRef, fn func(first int64, l Leaf, at LeafRef) error) error {
	l, _, err := s.leaf(at.Map, b)
	if err == nil {
		err = checkLeafOf(f, first, l)
	}
	if err != nil {
		return fmt.Errorf("page map of %s at block %d: %w", f.Path, first, err)
	}
	return fn(first, l, at)
}

func blocksOf(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// checkLeafOf wants every leaf but a file's last to be full, and the bytes that
// the file's size demands to be there.
func checkLeafOf(f ManifestFile, first int64, l Leaf) error {
	total := blocksOf(f.Size)
	if end := first + int64(l.Blocks); end > total || end < total && l.Blocks != LeafBlocks {
		return fmt.Errorf("a leaf of %d blocks in a file of %d", l.Blocks, total)
	}
	for _, r := range l.Runs {
		if r.Frame == ZeroFrame {
			continue
		}
		if n := r.Bytes(first, f.Size); r.Off+n > l.Frames[r.Frame].Raw {
			return fmt.Errorf("%d bytes at %d of a frame of %d", n, r.Off, l.Frames[r.Frame].Raw)
		}
	}
	return nil
}

func (s *MapSet) leaf(m int, b []byte) (Leaf, []byte, error) {
	l, rest, err := ParseLeaf(b)
	if err != nil {
		return l, rest, err
	}
	table := s.at(m).packs
	for i, f := range l.Frames {
		if int(f.Pack) >= len(table) || table[f.Pack] == noPack {
			return l, rest, fmt.Errorf("page map: a leaf names pack %d, which its map or the manifest does not", f.Pack)
		}
		l.Frames[i].Pack = table[f.Pack]
	}
	return l, rest, nil
}

// Load brings every map here: what comes later needs no zone.
func (s *MapSet) Load(ctx context.Context) error {
	for i := range s.maps {
		if _, err := s.opened(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// Leaf reads the one leaf at a place that [MapSet.Places] gave.
func (s *MapSet) Leaf(ctx context.Context, at LeafRef) (Leaf, error) {
	b, err := s.read(ctx, at)
	if err != nil {
		return Leaf{}, err
	}
	l, rest, err := s.leaf(at.Map, b)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("page map: %d bytes follow a leaf at %d of map %d", len(rest), at.Off, at.Map)
	}
	return l, err
}

// noPack stands for a pack that a map names and the manifest does not.
const noPack = 1<<32 - 1

// read returns the bytes of r's leaves, from the file that holds the open map.
func (s *MapSet) read(ctx context.Context, r LeafRef) ([]byte, error) {
	if r.Map < 0 || r.Map >= len(s.maps) {
		return nil, fmt.Errorf("the manifest has no map %d", r.Map)
	}
	m, err := s.opened(ctx, r.Map)
	if err != nil {
		return nil, err
	}
	if r.Off < 0 || r.Len < 1 || r.Off > m.size-r.Len {
		return nil, fmt.Errorf("map %d has %d bytes of leaves, not %d at %d", r.Map, m.size, r.Len, r.Off)
	}
	b := make([]byte, r.Len)
	_, err = m.file.ReadAt(b, m.leaves+r.Off)
	return b, err
}

func (s *MapSet) opened(ctx context.Context, n int) (*openMap, error) {
	m := s.at(n)
	m.once.Do(func() { m.err = s.load(ctx, m, s.maps[n].Ref) })
	return m, m.err
}

func (s *MapSet) at(m int) *openMap {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[m]
	if o == nil {
		o = &openMap{}
		s.open[m] = o
	}
	return o
}

func (s *MapSet) load(ctx context.Context, m *openMap, r Ref) error {
	path := keptMap(s.dir, r)
	plain, ok := readKept(path)
	if !ok {
		var err error
		if plain, err = s.bring(ctx, r); err != nil {
			return err
		}
	}
	names, leaves, err := parseMapTable(plain)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	m.packs = make([]uint32, len(names))
	for i, name := range names {
		// A pack that no leaf of this manifest refers to any more has no place; a
		// leaf that names it all the same fails the check in leaf.
		at, ok := s.packs[name]
		if !ok {
			at = noPack
		}
		m.packs[i] = at
	}
	m.leaves, m.size = int64(len(plain)-len(leaves)), int64(len(leaves))
	m.file, err = os.Open(path)
	return err
}

func keptMap(dir string, r Ref) string { return filepath.Join(dir, r.SHA256+".map") }

// KeepMap leaves the plaintext of the map object r in dir for the sets to come, its
// SHA-256 behind it: what rots there must not get into the next snapshot's maps.
func KeepMap(dir string, r Ref, plain []byte) error {
	sum := sha256.Sum256(plain)
	return durable.WriteFile(keptMap(dir, r), slices.Concat(plain, sum[:]), 0o600)
}

// readKept reads what KeepMap wrote; anything else is as good as not there.
func readKept(path string) (plain []byte, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil || len(b) < sha256.Size {
		return nil, false
	}
	plain = b[:len(b)-sha256.Size]
	return plain, sha256.Sum256(plain) == [sha256.Size]byte(b[len(plain):])
}

// bring fetches and opens a map object and leaves it for the next set.
func (s *MapSet) bring(ctx context.Context, r Ref) ([]byte, error) {
	sealed, err := s.fetch(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("fetch the page map %s: %w", r.Name, err)
	}
	plain, err := seal.OpenBlob(sealed, s.ids, maxMap)
	if err != nil {
		return nil, fmt.Errorf("open the page map %s: %w", r.Name, err)
	}
	if err := KeepMap(s.dir, r, plain); err != nil {
		return nil, fmt.Errorf("keep the page map %s: %w", r.Name, err)
	}
	return plain, nil
}

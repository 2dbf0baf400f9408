package snapshot

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// mapper writes the leaves of all files, in the order of their paths, into map
// objects, and counts what of each pack is in use.
type mapper struct {
	t       *take
	ctx     context.Context //nolint:containedctx // one call's own
	order   []int32         // the files of the snapshot, by path
	builder *catalog.MapBuilder
	leaves  int64                 // bytes of leaves in the builder
	maps    []catalog.ManifestMap // this snapshot's own
	live    map[uint32]int64      // by pack, marked with basePack where it is the base's
}

// putMaps brings the page maps of all files into the quorum. All packs are there.
func (t *take) putMaps(ctx context.Context) (*mapper, error) {
	m := &mapper{t: t, ctx: ctx, order: t.roll.kept(), builder: catalog.NewMapBuilder(), live: map[uint32]int64{}}
	if err := m.dropped(); err != nil {
		return nil, err
	}
	for _, n := range m.order {
		f := t.file(int(n))
		if err := m.file(f); err != nil {
			return nil, fmt.Errorf("write the page map of %s: %w", f.path, err)
		}
	}
	if m.leaves == 0 {
		return m, nil
	}
	return m, m.flush()
}

// dropped counts what the base has in use, but for the files that are gone.
func (m *mapper) dropped() error {
	b := m.t.base
	if b == nil {
		return nil
	}
	for i, p := range b.manifest.Packs {
		m.live[uint32(i)|basePack] = p.Live
	}
	taken := make([]bool, b.files.list.Len())
	for _, n := range m.order {
		if at := m.t.roll.base[n]; at >= 0 {
			taken[at] = true
		}
	}
	for i, is := range taken {
		if is {
			continue
		}
		if err := m.drop(b.file(i), func(int64) bool { return true }); err != nil {
			return err
		}
	}
	return nil
}

// drop takes the leaves that are gone out of what the base has in use.
func (m *mapper) drop(f *catalog.ManifestFile, gone func(n int64) bool) error {
	blocks := (f.Size + catalog.BlockSize - 1) / catalog.BlockSize
	return m.t.base.maps.Places(m.ctx, *f, 0, blocks, func(first int64, l catalog.Leaf, _ catalog.LeafRef) error {
		if gone(first / catalog.LeafBlocks) {
			live(l, first, f.Size, func(pack uint32, n int64) { m.live[pack|basePack] -= n })
		}
		return nil
	})
}

// file gives f's leaves their places in map objects. Those of the base that stay
// where they are keep the base's numbers until the manifest numbers all.
func (m *mapper) file(f *file) error {
	leaves := m.t.roll.of(f.n)
	fresh := func(p leafPlace) bool { return p.home == 0 }
	if f.base != nil && (f.base.Size != f.size || slices.ContainsFunc(leaves, fresh)) {
		gone := func(n int64) bool { return n >= int64(len(leaves)) || fresh(leaves[n]) }
		if err := m.drop(f.base, gone); err != nil {
			return err
		}
	}
	for i, p := range leaves {
		if fresh(p) || m.t.base.compact[p.home-1] {
			var err error
			if leaves[i], err = m.move(f, int64(i)*catalog.LeafBlocks, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// move brings one leaf into the map object in the making.
func (m *mapper) move(f *file, first int64, p leafPlace) (leafPlace, error) {
	var l catalog.Leaf
	var err error
	if p.home == 0 {
		if l, err = m.t.making.spool.leaf(p); err == nil {
			live(l, first, f.size, func(pack uint32, n int64) { m.live[pack] += n })
		}
	} else {
		l, err = m.t.base.leafAt(m.ctx, p) // counted in the base's live bytes already
	}
	if err != nil {
		return p, err
	}
	if m.builder.Full() {
		if err := m.flush(); err != nil {
			return p, err
		}
	}
	off, n, err := m.builder.Add(l, m.t.packName)
	m.leaves += int64(n)
	return leafPlace{off: int64(off), len: int32(n), home: -int32(len(m.maps)) - 1}, err
}

// packName is the full name of a pack of a leaf that is in no map object yet.
func (t *take) packName(pack uint32) string {
	if pack&basePack != 0 {
		return t.base.manifest.Packs[pack&^basePack].Ref.Name
	}
	return t.pack.packs[pack].Ref.Name
}

// flush seals the map object in the making to whoever reads the manifest.
func (m *mapper) flush() error {
	t := m.t
	plain := m.builder.Bytes()
	sealed, err := seal.SealBlob(plain, t.cfg.readers())
	if err != nil {
		return err
	}
	n := len(m.maps)
	ref, err := t.put(m.ctx, catalog.MapName(t.cfg.Cluster, t.id, n, sha256.Sum256(sealed)), sealed)
	if err != nil {
		return fmt.Errorf("send map %d: %w", n, err)
	}
	m.maps = append(m.maps, catalog.ManifestMap{N: n, Ref: ref, Raw: m.leaves, Live: m.leaves})
	m.builder.Reset()
	m.leaves = 0
	return t.cache(ref, plain)
}

// packs are those that the leaves refer to, the base's behind the snapshot's own.
func (m *mapper) packs() (out []catalog.ManifestPack) {
	for i, p := range m.t.pack.packs {
		if p.Ref.Name != "" { // else a process that was interrupted did not send it
			out = append(out, catalog.ManifestPack{N: len(out), Ref: p.Ref, Raw: p.Raw, Live: m.live[uint32(i)]})
		}
	}
	if m.t.base == nil {
		return out
	}
	for i, p := range m.t.base.manifest.Packs {
		if n := m.live[uint32(i)|basePack]; n > 0 {
			p.N, p.Live = len(out), n
			out = append(out, p)
		}
	}
	return out
}

// number gives the maps of the base that are still in use their numbers, behind
// the snapshot's own, and counts what of them is. The numbers are by leafPlace.home.
func (m *mapper) number() ([]catalog.ManifestMap, map[int32]int) {
	maps, number := slices.Clone(m.maps), map[int32]int{}
	for _, f := range m.order {
		for _, p := range m.t.roll.of(int(f)) {
			if p.home <= 0 {
				continue
			}
			n, ok := number[p.home]
			if !ok {
				n = len(maps)
				number[p.home] = n
				was := m.t.base.manifest.Maps[p.home-1]
				maps = append(maps, catalog.ManifestMap{N: n, Ref: was.Ref, Raw: was.Raw})
			}
			maps[n].Live += int64(p.len)
		}
	}
	return maps, number
}

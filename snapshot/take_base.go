package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// base is the older snapshot that a new one is compared with. It tells which blocks
// are known; nothing is ever read of its data. nil is none: every block is new.
type base struct {
	snap     catalog.Snapshot
	manifest catalog.Manifest // without its files
	files    baseFiles
	maps     *catalog.MapSet
	renew    []bool // by pack: what lies there is copied afresh
	compact  []bool // by map: its leaves move into new map objects
}

// fits says why s cannot be the base of a snapshot of the server as it is; "" when
// it can. What is compared must mean the same: one history, one key, one reader.
func (t *take) fits(s catalog.Snapshot) string {
	f := t.header.Facts
	switch {
	case s.Kind != "physical":
		return "it is " + s.Kind
	case s.Suspect:
		return "it is suspect"
	case s.SystemID != f.SystemID || s.Epoch != t.cfg.Epoch || s.Timeline != f.Timeline || s.Major != f.Major:
		return "it is of another system, lineage, timeline or version"
	case s.SegSize != f.WALSegSize:
		return "WAL segments were of another size"
	case !slices.Equal(s.Recipients, t.cfg.Fingerprints):
		return "others can open it"
	}
	return ""
}

// matches is fits for what the manifest says.
func (t *take) matches(h catalog.ManifestHeader) string {
	f := t.header.Facts
	switch {
	case h.DigestEpoch != t.cfg.Keys.Epoch:
		return "its digests are under other keys"
	case h.Facts.ChecksumsStop != f.ChecksumsStart || h.Facts.ChecksumsStart != f.ChecksumsStart:
		return "the state of data checksums was another" // C-20
	case h.Facts.BlockSize != f.BlockSize || h.Facts.RelSegBlocks != f.RelSegBlocks:
		return "pages or segments of relations were of another size"
	}
	return ""
}

// openBase finds the newest snapshot that fits. That none can be read is no reason
// to take none: then this one begins afresh.
func (t *take) openBase(ctx context.Context) error {
	var err error
	if t.snapshots, err = t.cfg.Catalog.Snapshots(ctx, t.cfg.Cluster); err != nil {
		return fmt.Errorf("look for the snapshot before: %w", err)
	}
	if t.cfg.Full || len(t.cfg.Identities) == 0 || t.cfg.Keys.Epoch == 0 {
		return nil
	}
	for _, s := range slices.Backward(t.snapshots.List) {
		if why := t.fits(s.Body); why != "" {
			t.log.Info("not compared with an older snapshot", zap.String("older", s.Body.ID), zap.String("why", why))
			continue
		}
		b, err := t.readBase(ctx, s.Body)
		if err != nil && ctx.Err() == nil {
			t.log.Warn("an older snapshot cannot be compared with: every block is new", zap.String("older", s.Body.ID), zap.Error(err))
			return nil
		}
		t.base, t.header.Base = b, s.Body.ID
		return err
	}
	return nil
}

func (t *take) readBase(ctx context.Context, s catalog.Snapshot) (*base, error) {
	sealed, err := t.cfg.Store.Get(ctx, s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	if err != nil {
		return nil, err
	}
	r, err := seal.NewBlobReader(bytes.NewReader(sealed), t.cfg.Identities, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("open its manifest: %w", err)
	}
	defer r.Close()
	m, files, err := readManifest(r)
	if err != nil {
		return nil, err
	}
	if why := t.matches(m.Header); why != "" {
		return nil, errors.New(why)
	}
	dir, err := t.mapDir()
	if err != nil {
		return nil, err
	}
	fetch := func(ctx context.Context, r catalog.Ref) ([]byte, error) {
		return t.cfg.Store.Get(ctx, r.Name, r.Size, r.SHA256)
	}
	b := &base{snap: s, manifest: m, files: files}
	b.maps = catalog.NewMapSet(dir, m.Maps, m.Packs, fetch, t.cfg.Identities)
	now := t.cfg.Now()
	b.renew = renewPacks(m.Packs, now, s.StartedAt, t.cfg.RenewAfter)
	b.compact = compactMaps(m.Maps, now, t.cfg.RenewAfter)
	if err := b.maps.Load(ctx); err != nil {
		return nil, errors.Join(err, b.maps.Close())
	}
	return b, nil
}

// mapDir is where opened maps lie: beyond one snapshot where there is a state.
func (t *take) mapDir() (string, error) {
	dir := filepath.Join(t.making.dir, "maps")
	if t.cfg.State != "" {
		dir = filepath.Join(t.cfg.State, "maps")
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a directory for page maps: %w", err)
	}
	return dir, nil
}

// cache leaves a map object's plaintext for the next snapshot, which else fetches
// it. It tells sizes and keyed digests, never data.
func (t *take) cache(r catalog.Ref, plain []byte) error {
	if t.cfg.State == "" {
		return nil
	}
	dir, err := t.mapDir()
	if err == nil {
		err = catalog.KeepMap(dir, r, plain)
	}
	if err != nil {
		return fmt.Errorf("keep a page map for the next snapshot: %w", err)
	}
	return nil
}

// prune removes the maps that the newest snapshot does not refer to.
func (t *take) prune(maps []catalog.ManifestMap) {
	if t.cfg.State == "" {
		return
	}
	used := map[string]bool{}
	for _, m := range maps {
		used[m.Ref.SHA256+".map"] = true
	}
	dir := filepath.Join(t.cfg.State, "maps")
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if !used[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		t.log.Warn("page maps of older snapshots stay behind", zap.Error(err))
	}
}

func (t *take) closeBase() {
	if t.base != nil {
		_ = t.base.maps.Close() // they were only read
	}
}

// leaves are what the base knows of the blocks from..to-1 of a file, one a leaf.
func (b *base) leaves(ctx context.Context, f *catalog.ManifestFile, from, to int64) (out []*oldLeaf, err error) {
	if f == nil {
		return nil, nil
	}
	err = b.maps.Places(ctx, *f, from, to, func(_ int64, l catalog.Leaf, at catalog.LeafRef) error {
		for i := range l.Frames {
			l.Frames[i].Pack |= basePack
		}
		out = append(out, &oldLeaf{leaf: l, at: at, size: f.Size, renew: b.renewed(l)})
		return nil
	})
	return out, err
}

// renewed says of each frame of a leaf whether its blocks must be copied afresh.
func (b *base) renewed(l catalog.Leaf) []bool {
	renew := make([]bool, len(l.Frames))
	for i, f := range l.Frames {
		renew[i] = f.Pack&basePack != 0 && b.renew[f.Pack&^basePack]
	}
	return renew
}

// leafAt reads one leaf of the base's maps.
func (b *base) leafAt(ctx context.Context, p leafPlace) (catalog.Leaf, error) {
	l, err := b.maps.Leaf(ctx, catalog.LeafRef{Map: int(p.home) - 1, Off: p.off, Len: int64(p.len), Count: 1})
	for i := range l.Frames {
		l.Frames[i].Pack |= basePack
	}
	return l, err
}

// kept wants that nobody marked for removal what the snapshot refers to: the base,
// and its own packs when an earlier process sent them (W5).
func (t *take) kept(ctx context.Context) error {
	if t.base == nil && !t.making.resumed {
		return nil
	}
	marks, err := t.cfg.Catalog.Forgotten(ctx, t.cfg.Cluster)
	if err == nil {
		err = marks.Require()
	}
	for _, m := range marks.List {
		for _, id := range m.Body.Snapshots {
			if id == t.id || id == t.header.Base {
				err = errors.Join(err, fmt.Errorf("snapshot %s was marked for removal by %s: take another", id, m.Body.ID))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("look again at the older snapshot that this one refers to: %w", err)
	}
	return nil
}

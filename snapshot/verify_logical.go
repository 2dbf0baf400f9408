package snapshot

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// openedLogical looks at all objects of a logical snapshot, and opens every frame that
// its files are made of.
func (v *verification) openedLogical(ctx context.Context, s catalog.Snapshot, refs []catalog.Ref) error {
	sealed, err := v.cfg.Reader.Get(ctx, s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	if err != nil {
		return err
	}
	m, err := catalog.OpenLogical(sealed, v.cfg.Identities)
	if err != nil {
		return err
	}
	rep := &DeepReport{Faults: []ObjectFault{}}
	v.report.Deep = rep
	var mu sync.Mutex
	fault := func(name, what string) {
		mu.Lock()
		defer mu.Unlock()
		if len(rep.Faults) < maxFaults {
			rep.Faults = append(rep.Faults, ObjectFault{name, what})
		}
	}
	said := framesByPack(m)
	for _, p := range m.Packs {
		if !slices.Contains(refs, p.Ref) {
			fault(p.Ref.Name, "the manifest names it and objects.list does not: a sweep could remove it")
		}
	}
	return v.each(ctx, refs, func(r catalog.Ref, body []byte) {
		frames, is := said[r.Name]
		if !is || body == nil { // no zone has a good copy: that is told by zone
			return
		}
		err := seal.DecodePack(body, v.cfg.Identities, frames, func(int, []byte) error { return nil })
		if err != nil {
			fault(r.Name, err.Error())
		}
		mu.Lock()
		defer mu.Unlock()
		rep.Packs, rep.Frames = rep.Packs+1, rep.Frames+len(frames)
	})
}

// framesByPack are the frames of all files, as they lie in the packs by name.
func framesByPack(m catalog.LogicalManifest) map[string][]seal.Frame {
	out := map[string][]seal.Frame{}
	for _, f := range m.Files {
		for _, x := range f.Frames {
			name := m.Packs[x.Pack].Ref.Name
			out[name] = append(out[name], seal.Frame{Off: x.Off, Len: x.Len, Raw: x.Raw, SHA256: x.SHA256})
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b seal.Frame) int { return cmp.Compare(a.Off, b.Off) })
	}
	return out
}

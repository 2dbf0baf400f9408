package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// maxManifest bounds a manifest's plaintext.
const maxManifest = 4 << 30

// DeepReport is what the opened packs showed.
type DeepReport struct {
	Packs  int           `json:"packs"`
	Maps   int           `json:"maps"`
	Frames int           `json:"frames"` // that the snapshot refers to
	Blocks int64         `json:"blocks"` // that were held against the digests of the maps; 0 without their keys
	Pages  catalog.Pages `json:"pages"`
	// Faults are what the note did not tell: maps and frames that do not open or do
	// not agree, blocks that are not those of the maps' digests, objects that the list
	// forgot, pages that are bad beyond those that were bad when they were taken.
	Faults []ObjectFault `json:"faults"` // the first thousand
}

// deep checks what is inside the maps and the packs. What the leaves say is laid
// on a shelf by pack first, so that each pack is read once and memory holds a
// line for each file, never one for each page.
type deep struct {
	cfg    VerifyConfig
	snap   catalog.Snapshot
	header catalog.ManifestHeader
	// digester is nil where blocks are not held against the digests of the maps.
	digester *page.Digester
	packs    []catalog.ManifestPack
	maps     []catalog.ManifestMap
	files    []checkedFile
	places   map[string]int // of packs, by object name
	dir      string
	shelf    *shelf

	mu     sync.Mutex
	report DeepReport
}

// checkedFile is what of a file its pages are judged by.
type checkedFile struct {
	path  string
	first uint32 // block of the relation at which the file begins
	pages bool   // its pages have checksums
	bad   []int64
}

// openDeep reads the manifest and the maps of a snapshot whose list names refs.
func openDeep(ctx context.Context, cfg VerifyConfig, s catalog.Snapshot, refs []catalog.Ref) (_ *deep, err error) {
	d := &deep{cfg: cfg, snap: s, places: map[string]int{}}
	if d.dir, err = os.MkdirTemp(cfg.Scratch, "holdfast-verify-"); err != nil {
		return nil, fmt.Errorf("make room for what the page maps say: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	sealed, err := cfg.Reader.Get(ctx, s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	if err != nil {
		return nil, err
	}
	r, err := seal.NewBlobReader(bytes.NewReader(sealed), cfg.Identities, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("open the manifest: %w", err)
	}
	defer r.Close()
	m, err := catalog.NewManifestReader(r)
	if err != nil {
		return nil, err
	}
	d.header = m.Header
	if epoch := d.header.DigestEpoch; epoch > 0 && cfg.Digests != nil {
		keys, err := cfg.Digests(ctx, epoch)
		if err != nil {
			return nil, fmt.Errorf("open the digest keys of the snapshot: %w", err)
		}
		d.digester = page.NewDigester(keys.Key)
	}
	if err := d.manifest(ctx, m); err != nil {
		return nil, err
	}
	d.listed(refs)
	return d, nil
}

func (d *deep) close() error {
	var err error
	if d.shelf != nil {
		err = d.shelf.close()
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// manifest reads the lines after the header: packs, then maps, then files.
func (d *deep) manifest(ctx context.Context, m *catalog.ManifestReader) error {
	var maps *catalog.MapSet
	defer func() {
		if maps != nil {
			_ = maps.Close()
		}
	}()
	for {
		e, err := m.Next()
		switch {
		case errors.Is(err, io.EOF):
			return d.ready()
		case err != nil:
			return err
		case e.Pack != nil:
			d.places[e.Pack.Ref.Name] = len(d.packs)
			d.packs = append(d.packs, *e.Pack)
			continue
		case e.Map != nil:
			d.maps = append(d.maps, *e.Map)
			continue
		}
		if maps == nil {
			if err := d.ready(); err != nil {
				return err
			}
			maps = catalog.NewMapSet(d.dir, d.maps, d.packs, d.fetch, d.cfg.Identities)
		}
		if err := d.file(ctx, maps, e.File); err != nil {
			return err
		}
	}
}

// ready makes the shelf once all packs are known.
func (d *deep) ready() (err error) {
	if d.shelf == nil {
		d.report.Maps = len(d.maps)
		d.shelf, err = newShelf(d.dir, len(d.packs))
	}
	return err
}

func (d *deep) fetch(ctx context.Context, r catalog.Ref) ([]byte, error) {
	return d.cfg.Reader.Get(ctx, r.Name, r.Size, r.SHA256)
}

// file lays what is told of one file on the shelf. A map that cannot be read is
// a fault of the snapshot; the error is one of this node.
func (d *deep) file(ctx context.Context, maps *catalog.MapSet, f *catalog.ManifestFile) error {
	sums := d.header.Facts.ChecksumsStart == 1 && d.header.Facts.ChecksumsStop == 1
	name, _ := datadir.ParseRelation(f.Path)
	place := uint32(len(d.files))
	d.files = append(d.files, checkedFile{f.Path, name.Segment * page.SegmentBlocks, sums && f.Kind == catalog.FileRelation, f.Bad})
	var local error
	err := maps.Leaves(ctx, *f, func(first int64, l catalog.Leaf) error {
		local = d.leaf(f, place, first, l)
		return local
	})
	if local != nil || ctx.Err() != nil {
		return errors.Join(local, context.Cause(ctx))
	}
	if err != nil {
		d.fault(ObjectFault{f.Path, err.Error()})
	}
	return nil
}

func (d *deep) leaf(f *catalog.ManifestFile, place uint32, first int64, l catalog.Leaf) error {
	if l.Zero() {
		d.zeros(place, int64(l.Blocks))
	}
	for _, r := range l.Runs {
		if r.Frame == catalog.ZeroFrame {
			d.zeros(place, int64(r.Count))
			continue
		}
		x := l.Frames[r.Frame]
		err := d.shelf.put(fragment{
			pack: x.Pack, off: x.Off, len: uint32(x.Len), raw: uint32(x.Raw), sum: x.SHA256,
			file: place, at: (first + int64(r.First)) * catalog.BlockSize, n: uint32(r.Bytes(first, f.Size)), in: uint32(r.Off), digests: page.Fold(l.Digests[r.First : r.First+r.Count]),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// zeros counts pages that are not stored: those that were never written are good.
func (d *deep) zeros(place uint32, blocks int64) {
	if d.files[place].pages {
		d.report.Pages.Checked += blocks
	}
}

// listed wants every object that the manifest names on the list, by which alone
// retention knows what must stay.
func (d *deep) listed(refs []catalog.Ref) {
	known := make(map[catalog.Ref]bool, len(refs))
	for _, r := range refs {
		known[r] = true
	}
	check := func(r catalog.Ref) {
		if !known[r] {
			d.fault(ObjectFault{r.Name, "the manifest names it and objects.list does not: a sweep could remove it"})
		}
	}
	for _, p := range d.packs {
		check(p.Ref)
	}
	for _, m := range d.maps {
		check(m.Ref)
	}
}

func (d *deep) fault(list ...ObjectFault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if room := maxFaults - len(d.report.Faults); room > 0 {
		d.report.Faults = append(d.report.Faults, list[:min(room, len(list))]...)
	}
}

// each calls fn with the packs of every drawer of the shelf, and what leaves say
// of them.
func (d *deep) each(fn func(refs []catalog.Ref, said map[string][]fragment) error) error {
	for i := range d.shelf.drawers {
		list, err := d.shelf.take(i)
		if err != nil {
			return err
		}
		said := map[string][]fragment{}
		for group := range grouped(list, func(x fragment) int64 { return int64(x.pack) }) {
			said[d.packs[group[0].pack].Ref.Name] = group
		}
		var refs []catalog.Ref
		for n := range d.packs {
			if d.shelf.drawer(uint32(n)) == i {
				refs = append(refs, d.packs[n].Ref)
			}
		}
		if err := fn(refs, said); err != nil {
			return err
		}
	}
	return nil
}

// pack opens one pack; body is nil when no zone had a good copy, which is told
// elsewhere.
func (d *deep) pack(ref catalog.Ref, body []byte, said []fragment) {
	if body == nil {
		return
	}
	frames, groups, faults := framesOf(ref.Name, said)
	var pages catalog.Pages
	err := seal.DecodePack(body, d.cfg.Identities, frames, func(i int, raw []byte) error {
		if frames == nil {
			return nil
		}
		for _, x := range groups[i] {
			faults = append(faults, d.check(x, raw, &pages)...)
		}
		return nil
	})
	if err != nil {
		faults = append(faults, ObjectFault{ref.Name, err.Error()})
	}
	d.fault(faults...)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report.Packs++
	d.report.Frames += len(frames)
	if d.digester != nil {
		for _, x := range said {
			d.report.Blocks += (int64(x.n) + page.Size - 1) / page.Size
		}
	}
	d.report.Pages.Checked += pages.Checked
	d.report.Pages.Skipped += pages.Skipped
	d.report.Pages.Bad += pages.Bad
}

// framesOf gathers the frames that sorted fragments of one pack lie in; none
// gives nil: then the pack's own index is all there is to check it by.
func framesOf(name string, said []fragment) (frames []seal.Frame, groups [][]fragment, faults []ObjectFault) {
	for group := range grouped(said, func(x fragment) int64 { return x.off }) {
		frames, groups = append(frames, group[0].frame()), append(groups, group)
		if i := slices.IndexFunc(group, func(x fragment) bool { return x.frame() != group[0].frame() }); i > 0 {
			faults = append(faults, ObjectFault{name, fmt.Sprintf("two leaves disagree about the frame at %d", group[0].off)})
		}
	}
	return frames, groups, faults
}

// check holds a piece against its blocks' digests, and judges its pages as they were
// judged when they were taken.
func (d *deep) check(x fragment, raw []byte, sum *catalog.Pages) (faults []ObjectFault) {
	f := d.files[x.file]
	if int(x.in)+int(x.n) > len(raw) {
		return []ObjectFault{{f.path, fmt.Sprintf("%d bytes at %d of a frame of %d", x.n, x.in, len(raw))}}
	}
	data := raw[x.in : x.in+x.n]
	if d.digester != nil && d.digester.SumAll(data) != x.digests {
		first := x.at / page.Size
		faults = append(faults, ObjectFault{f.path, fmt.Sprintf("blocks %d to %d: the page map refers to other bytes than it tells the digests of; take a full snapshot and report this", first, first+int64(len(data)-1)/page.Size)})
	}
	if !f.pages {
		return faults
	}
	for block := x.at / page.Size; len(data) >= page.Size; block++ {
		p := data[:page.Size]
		data = data[page.Size:]
		verdict := page.Judge(p, f.first+uint32(block), d.snap.StartLSN)
		switch {
		case verdict == page.Recent && page.LSN(p) <= d.snap.StopLSN:
			sum.Skipped++
		case verdict == page.Recent, verdict == page.Bad:
			sum.Checked++
			sum.Bad++
			if !f.known(block) {
				faults = append(faults, ObjectFault{f.path, fmt.Sprintf("block %d has a wrong checksum", block)})
			}
		default:
			sum.Checked++
		}
	}
	return faults
}

// known says that the manifest tells of the bad page: it lists the first hundred
// of a file, and a suspect snapshot's note counts them all.
func (f checkedFile) known(block int64) bool {
	return slices.Contains(f.bad, block) || len(f.bad) > 0 && block > f.bad[len(f.bad)-1]
}

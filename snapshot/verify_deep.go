package snapshot

import (
	"bytes"
	"context"
	"fmt"
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
	Frames int           `json:"frames"`
	Pages  catalog.Pages `json:"pages"`
	// Faults are what the note did not tell: frames that do not open, pages that
	// are bad beyond those that were bad when they were taken.
	Faults []ObjectFault `json:"faults"`
}

// deep checks what is inside the packs.
type deep struct {
	cfg    VerifyConfig
	snap   catalog.Snapshot
	header catalog.ManifestHeader
	packs  map[string]catalog.ManifestPack // by object name
	pieces map[[2]int][]piece              // by pack and frame

	mu     sync.Mutex
	report DeepReport
}

// piece is a stretch of a relation's file inside a frame.
type piece struct {
	file     *catalog.ManifestFile
	at       int64 // in the file
	off, len int   // in the frame
}

func openDeep(ctx context.Context, cfg VerifyConfig, s catalog.Snapshot) (*deep, error) {
	sealed, err := cfg.Reader.Get(ctx, s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	if err != nil {
		return nil, err
	}
	r, err := seal.NewBlobReader(bytes.NewReader(sealed), cfg.Identities, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("open the manifest: %w", err)
	}
	defer r.Close()
	m, err := catalog.DecodeManifest(r)
	if err != nil {
		return nil, err
	}
	d := &deep{cfg: cfg, snap: s, header: m.Header, packs: map[string]catalog.ManifestPack{}, pieces: map[[2]int][]piece{}}
	for _, p := range m.Packs {
		d.packs[p.Ref.Name] = p
	}
	if m.Header.Facts.ChecksumsStart == 1 && m.Header.Facts.ChecksumsStop == 1 {
		for i := range m.Files {
			d.index(&m.Files[i])
		}
	}
	return d, nil
}

func (d *deep) index(f *catalog.ManifestFile) {
	if f.Kind != catalog.FileRelation {
		return
	}
	var at int64
	for _, e := range f.Extents {
		key := [2]int{e.Pack, e.Frame}
		d.pieces[key] = append(d.pieces[key], piece{f, at, e.Off, e.Len})
		at += int64(e.Len)
	}
}

// pack opens one object if it is a pack; body is nil when no zone had a good copy,
// which is told elsewhere.
func (d *deep) pack(ref catalog.Ref, body []byte) {
	p, ok := d.packs[ref.Name]
	if !ok || body == nil {
		return
	}
	frames := make([]seal.Frame, len(p.Frames))
	for i, f := range p.Frames {
		frames[i] = seal.Frame(f)
	}
	var pages catalog.Pages
	var faults []ObjectFault
	err := seal.DecodePack(body, d.cfg.Identities, frames, func(i int, raw []byte) error {
		for _, x := range d.pieces[[2]int{p.N, i}] {
			faults = append(faults, d.check(x, raw, &pages)...)
		}
		return nil
	})
	if err != nil {
		faults = append(faults, ObjectFault{ref.Name, err.Error()})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report.Packs++
	d.report.Frames += len(frames)
	d.report.Pages.Checked += pages.Checked
	d.report.Pages.Skipped += pages.Skipped
	d.report.Pages.Bad += pages.Bad
	if room := maxFaults - len(d.report.Faults); room > 0 {
		d.report.Faults = append(d.report.Faults, faults[:min(room, len(faults))]...)
	}
}

// check judges the pages of a piece as they were judged when they were taken.
func (d *deep) check(x piece, raw []byte, sum *catalog.Pages) (faults []ObjectFault) {
	name, _ := datadir.ParseRelation(x.file.Path)
	for off := 0; off+page.Size <= x.len; off += page.Size {
		p := raw[x.off+off : x.off+off+page.Size]
		block := (x.at + int64(off)) / page.Size
		verdict := page.Judge(p, name.Segment*page.SegmentBlocks+uint32(block), d.snap.StartLSN)
		switch {
		case verdict == page.Recent && page.LSN(p) <= d.snap.StopLSN:
			sum.Skipped++
		case verdict == page.Recent, verdict == page.Bad:
			sum.Checked++
			sum.Bad++
			if !d.known(x.file, block) {
				faults = append(faults, ObjectFault{x.file.Path, fmt.Sprintf("block %d has a wrong checksum", block)})
			}
		default:
			sum.Checked++
		}
	}
	return faults
}

// known says that the manifest tells of the bad page: it lists the first hundred
// of a file, and a suspect snapshot's note counts them all.
func (d *deep) known(f *catalog.ManifestFile, block int64) bool {
	for _, b := range f.Bad {
		if b == block {
			return true
		}
	}
	return len(f.Bad) > 0 && block > f.Bad[len(f.Bad)-1]
}

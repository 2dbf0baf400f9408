package snapshot

import (
	"errors"
	"io"
	"io/fs"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
)

// baseFiles are the files of the base's manifest, by path, in some seventy bytes each.
type baseFiles struct {
	list  datadir.Files
	first []uint32 // by file: its first reference
	refs  []baseRef
}

// baseRef is a catalog.LeafRef: a map has 32 MiB at most.
type baseRef struct{ m, off, len, count uint32 }

// readManifest reads a manifest and keeps of each file what a new snapshot asks for.
func readManifest(r io.Reader) (m catalog.Manifest, files baseFiles, err error) {
	in, err := catalog.NewManifestReader(r)
	if err != nil {
		return m, files, err
	}
	m.Header = in.Header
	for {
		e, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return m, files, nil
		case err != nil:
			return m, files, err
		case e.Pack != nil:
			m.Packs = append(m.Packs, *e.Pack)
		case e.Map != nil:
			m.Maps = append(m.Maps, *e.Map)
		default:
			files.add(*e.File)
		}
	}
}

func (b *baseFiles) add(f catalog.ManifestFile) {
	b.list.Add(datadir.File{
		Path: f.Path, Size: f.Size, Mode: fs.FileMode(f.Mode), ModTime: f.MTime, Kind: datadir.Kind(f.Kind), Outside: f.Outside,
	})
	b.first = append(b.first, uint32(len(b.refs)))
	for _, r := range f.Leaves {
		b.refs = append(b.refs, baseRef{uint32(r.Map), uint32(r.Off), uint32(r.Len), uint32(r.Count)})
	}
}

// file is file n as the base's manifest tells it, but for the blocks that were bad.
func (b *base) file(n int) *catalog.ManifestFile {
	d := b.files.list.At(n)
	f := &catalog.ManifestFile{
		Path: d.Path, Size: d.Size, Mode: uint32(d.Mode), MTime: d.ModTime.UTC(), Kind: kindOf(d.Kind), Outside: d.Outside,
	}
	end := len(b.files.refs)
	if n+1 < len(b.files.first) {
		end = int(b.files.first[n+1])
	}
	for _, r := range b.files.refs[b.files.first[n]:end] {
		f.Leaves = append(f.Leaves, catalog.LeafRef{Map: int(r.m), Off: int64(r.off), Len: int64(r.len), Count: int(r.count)})
	}
	return f
}

// find is a path's place among the base's files; -1: it has none.
func (b *base) find(path string) int {
	if b == nil {
		return -1
	}
	if n, ok := b.files.list.Find(path); ok {
		return n
	}
	return -1
}

package catalog

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

var hex64 = regexp.MustCompile(`^[0-9a-f]{64}$`)

// manifestCheck holds what the lines so far allow the next one to say.
type manifestCheck struct {
	seen   manifestEnd
	frames [][]int32 // raw sizes by pack and frame
	maps   []int64   // bytes of leaves
	last   string    // path of the file before
}

func (c *manifestCheck) pack(p ManifestPack) error {
	switch {
	case c.seen.Files > 0 || c.seen.Maps > 0:
		return errors.New("a pack after the first map or file")
	case p.Raw < 0 || p.Live < 0 || p.Live > p.Raw && p.Raw > 0:
		return fmt.Errorf("pack %d has %d raw bytes, %d of them in use", p.N, p.Raw, p.Live)
	case p.N != c.seen.Packs:
		return fmt.Errorf("pack %d where %d is due", p.N, c.seen.Packs)
	case len(p.Frames) > MaxPackFrames:
		return fmt.Errorf("pack %d has %d frames, at most %d are allowed", p.N, len(p.Frames), MaxPackFrames)
	}
	if err := checkRef(p.Ref); err != nil {
		return fmt.Errorf("pack %d: %w", p.N, err)
	}
	raw, end := make([]int32, len(p.Frames)), int64(0)
	for i, f := range p.Frames {
		if f.Raw < 1 || f.Raw > maxFrameRaw || f.Off != end || f.Len < 1 || f.Len > 2*maxFrameRaw || !hex64.MatchString(f.SHA256) {
			return fmt.Errorf("pack %d, frame %d: offset %d, length %d, %d raw bytes or digest %q cannot be", p.N, i, f.Off, f.Len, f.Raw, f.SHA256)
		}
		raw[i], end = int32(f.Raw), f.Off+f.Len
	}
	c.frames = append(c.frames, raw)
	c.seen.Packs++
	return nil
}

func (c *manifestCheck) mapObject(m ManifestMap) error {
	switch {
	case c.seen.Files > 0:
		return errors.New("a map after the first file")
	case m.N != c.seen.Maps:
		return fmt.Errorf("map %d where %d is due", m.N, c.seen.Maps)
	case m.Raw < 1 || m.Raw > maxMap || m.Live < 1 || m.Live > m.Raw:
		return fmt.Errorf("map %d has %d bytes of leaves, %d of them in use", m.N, m.Raw, m.Live)
	}
	if err := checkRef(m.Ref); err != nil {
		return fmt.Errorf("map %d: %w", m.N, err)
	}
	c.maps = append(c.maps, m.Raw)
	c.seen.Maps++
	return nil
}

func (c *manifestCheck) file(f ManifestFile) error {
	check := checkRelPath
	if f.Outside {
		check = checkOutside
	}
	if err := check(f.Path); err != nil {
		return err
	}
	if f.Path <= c.last {
		return fmt.Errorf("file %q after %q: want them sorted by path, each once", f.Path, c.last)
	}
	if f.Kind != FileRelation && f.Kind != FileOther && f.Kind != FileControl {
		return fmt.Errorf("file %q is of unknown kind %q", f.Path, f.Kind)
	}
	if f.Size < 0 || f.Mode&^0o7777 != 0 {
		return fmt.Errorf("file %q: size %d or mode %o cannot be", f.Path, f.Size, f.Mode)
	}
	places := c.leaves
	if f.SHA256 != "" {
		places = c.extents
	}
	if err := places(f); err != nil {
		return err
	}
	c.last = f.Path
	c.seen.Files++
	return nil
}

// leaves wants a file's page map to lie in the maps, with as many leaves as its
// blocks need; what the leaves say is checked when they are read.
func (c *manifestCheck) leaves(f ManifestFile) error {
	var count int64
	for i, r := range f.Leaves {
		if r.Map < 0 || r.Map >= len(c.maps) || r.Count < 1 || r.Off < 0 || r.Len < int64(r.Count)*leafHead || r.Len > c.maps[r.Map]-r.Off {
			return fmt.Errorf("file %q: leaves %d: %d of %d bytes at %d of map %d cannot be", f.Path, i, r.Count, r.Len, r.Off, r.Map)
		}
		count += int64(r.Count)
	}
	if want := (blocksOf(f.Size) + LeafBlocks - 1) / LeafBlocks; count != want {
		return fmt.Errorf("file %q of %d bytes: its page map has %d leaves, want %d", f.Path, f.Size, count, want)
	}
	return nil
}

func (c *manifestCheck) extents(f ManifestFile) error {
	if !hex64.MatchString(f.SHA256) {
		return fmt.Errorf("file %q: digest %q cannot be", f.Path, f.SHA256)
	}
	var sum int64
	for i, e := range f.Extents {
		if e.Pack < 0 || e.Pack >= len(c.frames) || e.Frame < 0 || e.Frame >= len(c.frames[e.Pack]) {
			return fmt.Errorf("file %q, extent %d: there is no frame %d in pack %d", f.Path, i, e.Frame, e.Pack)
		}
		raw := int(c.frames[e.Pack][e.Frame])
		if e.Off < 0 || e.Len < 1 || e.Off > raw || e.Len > raw-e.Off {
			return fmt.Errorf("file %q, extent %d: bytes %d+%d of a frame of %d", f.Path, i, e.Off, e.Len, raw)
		}
		sum += int64(e.Len)
	}
	if sum != f.Size {
		return fmt.Errorf("file %q: its extents hold %d bytes of %d", f.Path, sum, f.Size)
	}
	return nil
}

// checkRelPath wants a path that stays below the data directory (C-73).
func checkRelPath(p string) error {
	if p == "" || p == "." || path.Clean(p) != p || path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") || strings.ContainsRune(p, 0) || !utf8.ValidString(p) {
		return fmt.Errorf("path %q: want a clean one in UTF-8 below the data directory", p)
	}
	return nil
}

func checkOutside(p string) error {
	if !cleanAbs(p) {
		return fmt.Errorf("path %q: want a clean, absolute one", p)
	}
	return nil
}

func cleanAbs(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && p != "/" && !strings.ContainsRune(p, 0) && utf8.ValidString(p)
}

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
	seen manifestEnd
	maps []int64 // bytes of leaves
	last string  // path of the file before
}

func (c *manifestCheck) pack(p ManifestPack) error {
	switch {
	case c.seen.Files > 0 || c.seen.Maps > 0:
		return errors.New("a pack after the first map or file")
	case p.Raw < 0 || p.Live < 0 || p.Live > p.Raw:
		return fmt.Errorf("pack %d has %d raw bytes, %d of them in use", p.N, p.Raw, p.Live)
	case p.N != c.seen.Packs:
		return fmt.Errorf("pack %d where %d is due", p.N, c.seen.Packs)
	}
	if err := checkRef(p.Ref); err != nil {
		return fmt.Errorf("pack %d: %w", p.N, err)
	}
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
	if err := c.leaves(f); err != nil {
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

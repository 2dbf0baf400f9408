package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// placeSpaces decides where the tablespaces go: directories that must not hold
// anything (C-53), or are those of the cluster that a delta goes over.
func (room *Room) placeSpaces() (map[uint32]string, error) {
	spaces, taken := map[uint32]string{}, map[string]bool{}
	for _, s := range room.Header.Tablespaces {
		if s.InPlace {
			continue
		}
		dir := room.mapped(s, taken)
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("tablespace %d: %s: want an absolute path", s.OID, dir)
		}
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("tablespace %d: %w", s.OID, err)
		}
		if len(entries) > 0 && !room.ownsSpace(s.OID, dir) {
			return nil, fmt.Errorf("%w: tablespace %d: %s holds %s and more; give another with --tablespace", ErrNotEmpty, s.OID, dir, entries[0].Name())
		}
		spaces[s.OID] = dir
	}
	for name := range room.opt.Tablespaces {
		if !taken[name] {
			return nil, fmt.Errorf("the snapshot has no tablespace %q outside the data directory", name)
		}
	}
	return spaces, nil
}

// mapped is where a tablespace goes.
func (room *Room) mapped(s catalog.Tablespace, taken map[string]bool) string {
	oid := strconv.Itoa(int(s.OID))
	for _, name := range []string{oid, s.Path, s.Name} {
		if dir, ok := room.opt.Tablespaces[name]; ok && name != "" {
			taken[name] = true
			return filepath.Clean(dir)
		}
	}
	return filepath.Join(room.opt.To+".tablespaces", oid)
}

// linkSpaces points the tablespaces' links at their new places, and says so in
// tablespace_map, from which recovery makes the links again.
func (t *tree) linkSpaces() error {
	var b strings.Builder
	for _, oid := range sortedKeys(t.spaces) {
		dir := t.spaces[oid]
		link := filepath.Join(t.root, "pg_tblspc", fmt.Sprint(oid))
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("linking tablespace %d: %w", oid, err)
		}
		if err := os.Symlink(dir, link); err != nil {
			return fmt.Errorf("linking tablespace %d: %w", oid, err)
		}
		if err := t.own(link); err != nil {
			return err
		}
		// do_pg_backup_start escapes newlines and backslashes (xlog.c).
		fmt.Fprintf(&b, "%d %s\n", oid, strings.NewReplacer("\\", "\\\\", "\n", "\\\n").Replace(dir))
	}
	if b.Len() == 0 {
		return nil
	}
	return t.write("tablespace_map", []byte(b.String()), 0o600)
}

func sortedKeys(m map[uint32]string) []uint32 {
	var keys []uint32
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// empty removes what is in a directory, and leaves it.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

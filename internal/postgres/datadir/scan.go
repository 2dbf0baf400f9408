package datadir

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/postgres/control"
)

const controlPath = "global/pg_control"

// ScanOptions adds what the directory itself does not say.
type ScanOptions struct {
	// ConfigFiles are the absolute paths of the configuration in use
	// (config_file, hba_file, ident_file and what they include). Those
	// outside the data directory join the layout (C-15).
	ConfigFiles []string
	// StatsTemp is stats_temp_directory where the server has one (before 15),
	// relative to the data directory. Its contents are not copied.
	StatsTemp string
}

// Scan lists what a base backup of the data directory at root copies. The server
// may be running: what vanishes while Scan looks is left out, because the WAL
// tells its end (C-16). Call it after the backup was started.
func Scan(root string, opt ScanOptions) (Layout, error) {
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return Layout{}, fmt.Errorf("scan data directory: %w", err)
	}
	s := scan{root: real, opt: opt, within: map[string]bool{}, out: Layout{Root: real, Files: &Files{}}}
	version, err := s.versionDir()
	if err != nil {
		return Layout{}, fmt.Errorf("scan data directory %s: %w", root, err)
	}
	links, err := s.links()
	if err != nil {
		return Layout{}, fmt.Errorf("scan tablespaces of %s: %w", root, err)
	}
	if err := s.dir("", s.root); err != nil {
		return Layout{}, fmt.Errorf("scan data directory %s: %w", root, err)
	}
	for _, l := range links {
		if err := s.tablespace(l, version); err != nil {
			return Layout{}, fmt.Errorf("scan tablespace %d at %s: %w", l.OID, l.Target, err)
		}
	}
	if err := s.outside(); err != nil {
		return Layout{}, fmt.Errorf("scan configuration outside %s: %w", root, err)
	}
	s.out.Links = links
	s.out.Files.sort()
	slices.SortFunc(s.out.Dirs, func(a, b Dir) int { return cmp.Compare(a.Path, b.Path) })
	return s.out, nil
}

type scan struct {
	root   string
	opt    ScanOptions
	within map[string]bool // absolute places inside root that tablespaces occupy
	out    Layout
}

// versionDir is the one directory of a tablespace that belongs to this cluster:
// a server of another version may own another beside it
// (TABLESPACE_VERSION_DIRECTORY).
func (s *scan) versionDir() (string, error) {
	major, err := os.ReadFile(filepath.Join(s.root, "PG_VERSION"))
	if err != nil {
		return "", fmt.Errorf("it has no PG_VERSION: %w", err)
	}
	c, _, err := control.ReadFile(filepath.Join(s.root, controlPath))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("PG_%s_%d", strings.TrimSpace(string(major)), c.CatalogVersion), nil
}

// links reads pg_tblspc: links, or real directories since 15 (C-14).
func (s *scan) links() ([]Link, error) {
	dir := filepath.Join(s.root, "pg_tblspc")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, e := range entries {
		oid, ok := number(e.Name())
		if !ok {
			if !skipName(e.Name()) {
				s.refuse(path.Join("pg_tblspc", e.Name()), "its name is not the number of a tablespace")
			}
			continue
		}
		at := filepath.Join(dir, e.Name())
		if e.IsDir() {
			out = append(out, Link{OID: oid, Target: at, InPlace: true})
			continue
		}
		target, err := os.Readlink(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		out = append(out, Link{OID: oid, Target: filepath.Clean(target)})
		if real, err := filepath.EvalSymlinks(target); err == nil {
			s.within[real] = true
		}
	}
	return out, nil
}

// tablespace lists a tablespace under pg_tblspc/<oid>.
func (s *scan) tablespace(l Link, version string) error {
	rel := path.Join("pg_tblspc", fmt.Sprint(l.OID))
	info, err := os.Stat(l.Target)
	if err != nil {
		return ignoreVanished(err)
	}
	s.addDir(rel, info)
	rel, at := path.Join(rel, version), filepath.Join(l.Target, version)
	if info, err = os.Lstat(at); err != nil {
		return ignoreVanished(err)
	}
	s.addDir(rel, info)
	return s.dir(rel, at)
}

// dir lists the directory at, which the layout calls rel.
func (s *scan) dir(rel, at string) error {
	entries, err := os.ReadDir(at)
	if err != nil {
		if rel == "" {
			return err
		}
		return ignoreVanished(err)
	}
	_, _, relations := relationDir(rel)
	unlogged := initForks(entries, relations)
	for _, e := range entries {
		name := e.Name()
		if skipName(name) || relations && (temporary(name) || reset(name, unlogged)) {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.entry(path.Join(rel, name), filepath.Join(at, name), info); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) entry(rel, at string, info fs.FileInfo) error {
	switch {
	case s.empty(rel):
		return s.emptied(rel, at)
	case info.IsDir() && rel == "pg_tblspc":
		s.addDir(rel, info)
	case info.IsDir() && s.within[at]:
	case info.IsDir():
		s.addDir(rel, info)
		return s.dir(rel, at)
	case info.Mode().IsRegular():
		s.addFile(rel, at, info)
	case info.Mode()&fs.ModeSymlink != 0:
		s.refuse(rel, "a symbolic link: PostgreSQL allows links in pg_tblspc and for pg_wal only, and does not copy others")
	default:
		s.refuse(rel, "a special file ("+info.Mode().Type().String()+")")
	}
	return nil
}

// empty says that a directory is kept and its contents are not (C-11).
func (s *scan) empty(rel string) bool {
	return emptied[rel] || s.opt.StatsTemp != "" && rel == path.Clean(s.opt.StatsTemp)
}

// emptied adds the directory, followed if it is a link (pg_wal often is), and what
// must exist in pg_wal.
func (s *scan) emptied(rel, at string) error {
	info, err := os.Stat(at)
	if err != nil {
		return ignoreVanished(err)
	}
	if !info.IsDir() {
		s.refuse(rel, "not a directory")
		return nil
	}
	s.addDir(rel, info)
	if rel != "pg_wal" {
		return nil
	}
	for name := range walDirs {
		if info, err := os.Lstat(filepath.Join(at, name)); err == nil && info.IsDir() {
			s.addDir(path.Join(rel, name), info)
		}
	}
	return nil
}

func (s *scan) addDir(rel string, info fs.FileInfo) {
	s.out.Dirs = append(s.out.Dirs, Dir{Path: rel, Mode: info.Mode().Perm(), ModTime: info.ModTime()})
}

func (s *scan) addFile(rel, at string, info fs.FileInfo) {
	f := File{Path: rel, Source: at, Size: info.Size(), Mode: info.Mode().Perm(), ModTime: info.ModTime(), Kind: Other}
	if _, ok := ParseRelation(rel); ok {
		f.Kind = Relation
	}
	if rel == controlPath {
		f.Kind = Control
	}
	s.out.Files.Add(f)
}

func (s *scan) refuse(rel, why string) {
	s.out.Refused = append(s.out.Refused, Refused{rel, why})
}

// outside adds the configuration that does not lie in the data directory. Links
// are followed here: the administrator made them.
func (s *scan) outside() error {
	for _, p := range slices.Compact(slices.Sorted(slices.Values(s.opt.ConfigFiles))) {
		p = filepath.Clean(p)
		if s.inside(p) {
			continue
		}
		info, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			s.refuse(p, "the server names it and it does not exist")
			continue
		}
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			s.refuse(p, "the server names it as configuration and it is not a file")
			continue
		}
		s.out.Files.Add(File{
			Path: p, Source: p, Size: info.Size(), Mode: info.Mode().Perm(),
			ModTime: info.ModTime(), Kind: Other, Outside: true,
		})
	}
	return nil
}

// inside says that a path lies in the data directory, by its name or in truth.
func (s *scan) inside(p string) bool {
	if real, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil {
		p = filepath.Join(real, filepath.Base(p))
	}
	rel, err := filepath.Rel(s.root, p)
	return err == nil && filepath.IsLocal(rel)
}

// initForks are the nodes in a directory of relations that are unlogged: they have
// an init fork.
func initForks(entries []fs.DirEntry, relations bool) map[uint32]bool {
	out := map[uint32]bool{}
	for _, e := range entries {
		if r, ok := parseName(e.Name()); ok && relations && r.Fork == Init {
			out[r.Node] = true
		}
	}
	return out
}

// reset says that recovery will make the file anew from its init fork (C-13).
func reset(name string, unlogged map[uint32]bool) bool {
	r, ok := parseName(name)
	return ok && r.Fork != Init && unlogged[r.Node]
}

func ignoreVanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

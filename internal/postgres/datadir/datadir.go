// Package datadir lists and reads what a base backup copies of a PostgreSQL data
// directory, by the rules of PostgreSQL's own src/backend/backup/basebackup.c. It
// never writes, never follows a link it does not know, and never leaves the page
// cache fuller than it found it. What it does not copy and has no rule for, it
// names in Layout.Refused; a file that vanished since it was listed is
// [ErrVanished], which a backup survives.
package datadir

import (
	"io/fs"
	"time"
)

// Kind is what a file is to a backup.
type Kind string

const (
	Relation Kind = "relation" // pages, with checksums where the cluster has them
	Control  Kind = "control"  // global/pg_control: copied last (C-7, C-18)
	Other    Kind = "other"
)

// Forks of a relation, as they stand in file names.
const (
	Main = "main"
	FSM  = "fsm"
	VM   = "vm"
	Init = "init"
)

// OIDs of the tablespaces that live in the data directory
// (src/include/catalog/pg_tablespace.dat).
const (
	DefaultTablespace = 1663
	GlobalTablespace  = 1664
)

// File is one file to copy.
type File struct {
	// Path is relative to the data directory, with slashes; files of a
	// tablespace are under pg_tblspc/<oid>/ wherever it lies. Outside the
	// data directory it is the absolute path.
	Path string
	// Source is where to read it.
	Source  string
	Size    int64 // bytes when it was listed: what is to be copied (C-16)
	Mode    fs.FileMode
	ModTime time.Time
	Kind    Kind
	Outside bool // configuration that lies elsewhere (C-15)
	Name    RelationFile
}

// Dir is a directory to make; Path as in [File].
type Dir struct {
	Path    string
	Mode    fs.FileMode
	ModTime time.Time
}

// Link is a tablespace.
type Link struct {
	OID     uint32
	Target  string // absolute; what the link points at
	InPlace bool   // a real directory inside pg_tblspc (allow_in_place_tablespaces)
}

// Refused is something in the data directory that is not copied and that no rule
// of PostgreSQL's excludes: somebody should look.
type Refused struct {
	Path, Why string
}

// Layout is what a scan found. Files are in the order of their paths but that
// global/pg_control is the last of those in the data directory, and configuration
// outside follows it.
type Layout struct {
	Root    string
	Files   *Files
	Dirs    []Dir
	Links   []Link
	Refused []Refused
}

// Bytes is the sum of the sizes of all files.
func (l Layout) Bytes() (sum int64) {
	for _, f := range l.Files.entries {
		sum += f.size
	}
	return sum
}

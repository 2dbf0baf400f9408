// Package portable is the form in which a project leaves a database: files of
// rows, the DDL of their tables, and a manifest that names and digests them all, in
// a directory or a tar archive. Anybody reads it with psql and a JSON parser.
//
// It knows no database and decides nothing about what belongs to a project: who
// calls it streams rows into it. What it writes exists under its name when it is
// whole and durable, or not at all; it replaces nothing, and holds no more in
// memory than a buffer. An error on the way leaves nothing behind.
package portable

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// Format names the form of a manifest.
const Format = "holdfast-project-1"

// ManifestName is the manifest's file.
const ManifestName = "manifest.json"

// Manifest says what was exported of a project, from where and when, and what was not.
type Manifest struct {
	Format     string      `json:"format"`
	Cluster    string      `json:"cluster"`
	Project    Project     `json:"project,omitzero"`
	Database   string      `json:"database,omitempty"` // that all of it is, in place of a project
	Layout     Layout      `json:"layout,omitzero"`
	Moment     any         `json:"moment"` // of the one snapshot that everything was read in
	Software   string      `json:"software"`
	MadeAt     time.Time   `json:"made_at"`
	Form       string      `json:"form"`   // of the files of rows: copy | jsonl
	Masked     []string    `json:"masked"` // columns that an expression stands for
	Tables     []Table     `json:"tables"`
	Sequences  any         `json:"sequences"`
	DDL        *DDL        `json:"ddl,omitempty"`
	References any         `json:"references"` // by which rows refer to what is not here
	NotCovered []string    `json:"not_covered"`
	Media      *MediaFiles `json:"media,omitempty"`
}

// Project names it.
type Project struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Layout is where projects are in the cluster.
type Layout struct {
	Kind     string `json:"kind"`
	Database string `json:"database"`
	Root     string `json:"root,omitempty"`
	Key      string `json:"key,omitempty"`
}

// Column is a column of a table, in the order of the file.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// Table is the rows of one table.
type Table struct {
	Schema  string   `json:"schema"`
	Table   string   `json:"table"`
	Name    string   `json:"name"` // both, as SQL writes them
	Columns []Column `json:"columns"`
	Rows    int64    `json:"rows"`
	Shared  bool     `json:"shared,omitempty"` // no project's, but referred to
	File
}

// File is a file of an export; its name is relative to the manifest.
type File struct {
	Name   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// DDL is the file that makes the tables.
type DDL struct {
	By string `json:"by"` // the program and its version
	File
}

// MediaFiles are what a hook fetched from outside PostgreSQL.
type MediaFiles struct {
	Command string `json:"command"`
	Files   []File `json:"files"`
}

// Index is the manifest of an export of several projects.
type Index struct {
	Format   string       `json:"format"`
	Cluster  string       `json:"cluster"`
	Moment   any          `json:"moment"` // null where each project has its own
	Software string       `json:"software"`
	MadeAt   time.Time    `json:"made_at"`
	DDL      *DDL         `json:"ddl,omitempty"`
	Projects []IndexEntry `json:"projects"`
}

// IndexEntry is one project of several.
type IndexEntry struct {
	Project
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"` // of its rows
	File        // its manifest
}

// FormatDatabases names the form of the index of a cluster's databases.
const FormatDatabases = "holdfast-databases-1"

// Databases is the manifest of a logical snapshot of a cluster.
type Databases struct {
	Format     string          `json:"format"`
	Cluster    string          `json:"cluster"`
	Software   string          `json:"software"`
	MadeAt     time.Time       `json:"made_at"`
	Databases  []DatabaseEntry `json:"databases"` // by name
	NotCovered []string        `json:"not_covered"`
}

// DatabaseEntry is one database. No snapshot of PostgreSQL is of two, so each has a
// moment of its own.
type DatabaseEntry struct {
	Name   string `json:"name"`
	OID    uint32 `json:"oid"`
	Moment any    `json:"moment"`
	// Schemas are the OIDs of its schemas, by which a renamed one is known.
	Schemas map[string]uint32 `json:"schemas"`
	Rows    int64             `json:"rows"`
	Bytes   int64             `json:"bytes"` // of its rows
	File                      // its manifest
}

// Rows counts all rows, and their bytes.
func (m Manifest) Rows() (rows, bytes int64) {
	for _, t := range m.Tables {
		rows, bytes = rows+t.Rows, bytes+t.Bytes
	}
	return rows, bytes
}

// Adder takes files: a [Writer] does.
type Adder interface {
	Add(name string, write func(io.Writer) error) (File, error)
}

// AddJSON adds a document.
func AddJSON(w Adder, name string, doc any) (File, error) {
	return w.Add(name, func(to io.Writer) error {
		enc := json.NewEncoder(to)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(doc)
	})
}

// loadHead begins the script that loads rows with psql.
const loadHead = `-- Loads these rows with psql into a database that has the tables (schema.sql makes
-- them), as a superuser:  psql -X -1 -v ON_ERROR_STOP=1 -d NEW -f load.sql
SET client_encoding = %s;
SET session_replication_role = replica; -- the order of the tables does not matter, and no trigger fires
SET DateStyle = 'ISO, YMD'; SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET search_path = pg_catalog;
`

// LoadScript writes a psql script that loads the tables of a manifest in form copy.
// Shared rows that are there already stay as they are. advance are the statements
// that set sequences.
func (m Manifest) LoadScript(to io.Writer, encoding string, advance []string) error {
	var b strings.Builder
	fmt.Fprintf(&b, loadHead, literal(encoding))
	for i, t := range m.Tables {
		cols := make([]string, len(t.Columns))
		for j, c := range t.Columns {
			cols[j] = `"` + strings.ReplaceAll(c.Name, `"`, `""`) + `"`
		}
		list := strings.Join(cols, ", ")
		switch {
		case t.Rows == 0:
		case strings.ContainsAny(t.Name+list, "\r\n"): // \copy is one line
			fmt.Fprintf(&b, "\\warn load %s by hand: its name, or a column's, has a line break\n\\quit 3\n", t.File.Name)
		case t.Shared:
			tmp := fmt.Sprintf("pg_temp.holdfast_%d", i)
			fmt.Fprintf(&b, "CREATE TEMPORARY TABLE holdfast_%d AS SELECT %s FROM %s WITH NO DATA;\n\\copy %s (%s) FROM %s\n", i, list, t.Name, tmp, list, literal(t.File.Name))
			fmt.Fprintf(&b, "INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s ON CONFLICT DO NOTHING;\n", t.Name, list, list, tmp)
		default:
			fmt.Fprintf(&b, "\\copy %s (%s) FROM %s\n", t.Name, list, literal(t.File.Name))
		}
	}
	for _, sql := range advance {
		fmt.Fprintf(&b, "%s;\n", sql)
	}
	_, err := io.WriteString(to, b.String())
	return err
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

package main

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
)

const cmsProjects = `    retention: {window: 7d, daily: 7, keep_at_least: 7d, keep_at_most: 30d}
    projects:
      layout: rows
      registry: "SELECT id::text, name FROM cms.project ORDER BY id"
      rows: {database: cms, root: cms.project, key: id}
      mask: [{column: cms.member.email, as: "'m' || id || '@example.org'"}]
      media: {command: [/bin/sh, -c, 'printf "file of %s" "$HOLDFAST_PROJECT" >"$HOLDFAST_MEDIA/one"']}
`

// Hundreds of projects leave in one run, each whole, as lines of JSON in an archive
// or as directories, masked and with their files outside PostgreSQL.
func TestHundredsOfProjectsAreExportedInOneRun(t *testing.T) {
	pg := pgtest.Start(t)
	pg.Exec("CREATE DATABASE cms")
	text, err := os.ReadFile("../../bench/cms.sql")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, pg, false)
	script := r.write("cms.sql", string(text))
	if err := os.Chmod(script, 0o644); err != nil {
		t.Fatal(err)
	}
	pg.Run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "mb=8", "-v", "projects=300", "-d", pg.DSN("cms"), "-f", script)
	r.cluster = cmsProjects
	r.configure()
	dir := r.path("all")
	doc := ask[exportDoc](r, "db", "project", "export", "cms", "--all", "--out", dir, "--binaries", pg.BinDir())
	if len(doc.Projects) != 300 {
		t.Fatalf("exported %d projects", len(doc.Projects))
	}
	t.Logf("300 projects in %.1f s", doc.Seconds)
	members := 0
	for _, p := range doc.Projects {
		m := readJSON[portable.Manifest](t, filepath.Join(dir, p.File.Name))
		checkFiles(t, filepath.Join(dir, "projects", p.ID), m)
		for _, table := range m.Tables {
			if table.Name == "cms.member" {
				members += int(table.Rows)
			}
		}
		if file, err := os.ReadFile(filepath.Join(dir, "projects", p.ID, "media/one")); err != nil || string(file) != "file of "+p.ID || m.Media == nil || len(m.Media.Files) != 1 {
			t.Errorf("project %s: its file is %q, %v; %+v", p.ID, file, err, m.Media)
		}
	}
	conn := pg.Conn("cms")
	var want int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM cms.member").Scan(&want); err != nil || members != want {
		t.Errorf("all projects together have %d members, the database %d: %v", members, want, err)
	}
	rows := map[string]int64{}
	for _, p := range ask[projectsDoc](r, "db", "project", "list", "cms", "--sizes").Projects {
		rows[p.ID] = *p.Rows
		if *p.Bytes < 20**p.Rows {
			t.Errorf("project %s has %d rows in %d bytes", p.ID, *p.Rows, *p.Bytes)
		}
	}
	for _, p := range doc.Projects {
		if rows[p.ID] != p.Rows {
			t.Errorf("project %s is listed with %d rows and exported with %d", p.ID, rows[p.ID], p.Rows)
		}
	}
	if one := ask[projectDoc](r, "db", "project", "show", "cms", "7"); one.Bytes == 0 || len(one.Sizes) != 8 {
		t.Errorf("shown: %+v", one)
	}
	r.hold("db", 0, "project", "export", "cms", "7", "9", "--out", r.path("two.tar"), "--format", "jsonl")
	r.linesOf(r.path("two.tar"))
}

// linesOf reads an archive: its rows are JSON, one a line, its index comes last.
func (r *rig) linesOf(path string) {
	r.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	in := tar.NewReader(f)
	last, members := "", 0
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.t.Fatal(err)
		}
		last = h.Name
		if !strings.HasSuffix(h.Name, ".jsonl") {
			continue
		}
		lines := bufio.NewScanner(in)
		lines.Buffer(nil, 1<<26)
		for lines.Scan() {
			var row map[string]any
			if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
				r.t.Fatalf("%s: %v: %.200s", h.Name, err, lines.Text())
			}
			if mail, is := row["email"].(string); is {
				if members++; !strings.HasSuffix(mail, "@example.org") {
					r.t.Errorf("an address is not masked: %s", mail)
				}
			}
		}
	}
	if last != portable.ManifestName || members == 0 {
		r.t.Errorf("the archive ends with %s and has %d members", last, members)
	}
}

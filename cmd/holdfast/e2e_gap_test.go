package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// C-38b, C-48: what a zone lost comes back from another, what all lost from the
// server, and what nobody has closes the window, tells, and has a snapshot taken.
func TestLostWALIsFoundAndMendedOrClosesTheWindowAndTells(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	path := r.path("db/holdfast.yaml")
	conf, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r.write("db/holdfast.yaml", strings.Replace(string(conf), "max_lag: 500ms", "max_lag: 500ms, check_every: 1s", 1))
	r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	pg.Exec("SELECT pg_create_physical_replication_slot('keep', true)")
	segment := func() string { // one that is full, and in every zone
		name := pgtest.Value[string](pg, "SELECT pg_walfile_name(pg_current_wal_lsn())")
		pg.Exec("CREATE TABLE IF NOT EXISTS junk (b text)")
		pg.Exec("INSERT INTO junk SELECT repeat(md5(i::text), 30) FROM generate_series(1, 2000) i")
		pg.SwitchWAL()
		r.archived(zoneLetters...)
		return name
	}
	first, second, third := segment(), segment(), segment()
	segment()
	status := func() walCluster { return ask[walDoc](r, "db", "wal", "status", "cms").Clusters[0] }
	whole := func() bool {
		c := status()
		for _, z := range c.Zones {
			for _, run := range z.Runs {
				if run.State != catalog.WALFound {
					return false
				}
			}
		}
		return len(c.Gaps) == 0 && len(c.Zones) == len(zoneLetters)
	}
	await(t, "every zone to hold everything", whole)

	r.lose(first, "b")
	if whole() {
		t.Error("wal status does not see that zone b lost a segment")
	}
	await(t, "the segment's return to zone b", whole)

	r.lose(second, zoneLetters...)
	if len(status().Gaps) == 0 {
		t.Error("wal status does not see that every zone lost a segment")
	}
	await(t, "the segment's return from the server", whole)

	pg.Exec("SELECT pg_drop_replication_slot('keep')")
	pg.Exec("CHECKPOINT")
	await(t, "the server to forget the segment", func() bool {
		pg.Exec("CHECKPOINT")
		_, err := os.Stat(filepath.Join(pg.DataDir, "pg_wal", third))
		return os.IsNotExist(err)
	})
	snapshots := func() int { return len(ask[snapshotsDoc](r, "db", "snapshot", "list", "cms").Snapshots) }
	before := snapshots()
	r.lose(third, zoneLetters...)
	key := ""
	await(t, "an incident", func() bool {
		for _, i := range ask[incidentsDoc](r, "db", "incident", "list").Incidents {
			if strings.HasPrefix(i.Key, "wal-gap/cms/") {
				key = i.Key
			}
		}
		return key != ""
	})
	await(t, "a snapshot behind the gap, and the incident's end by it", func() bool {
		for _, i := range ask[incidentsDoc](r, "db", "incident", "list").Incidents {
			if i.Key == key && i.Open() {
				return false
			}
		}
		return snapshots() > before
	})
	c := status()
	if len(c.Gaps) != 1 || key != "wal-gap/cms/"+c.Gaps[0].From.String() {
		t.Errorf("gaps %+v, the incident was %s", c.Gaps, key)
	}
	if list := ask[snapshotsDoc](r, "db", "snapshot", "list", "cms").Snapshots; !c.Window.From.Equal(list[len(list)-1].FinishedAt) {
		t.Errorf("the window begins at %s, the snapshot behind the gap is %+v", c.Window.From, list[len(list)-1])
	}
}

// lose removes everything that zones hold of a segment.
func (r *rig) lose(segment string, zones ...string) {
	r.t.Helper()
	timeline, from, err := lsn.ParseSegmentName(segment, 16<<20)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, z := range zones {
		err := filepath.WalkDir(r.path("zones/"+z), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(r.path("zones/"+z), path)
			if err != nil {
				return err
			}
			e, note := catalog.ParseWALNote(filepath.ToSlash(rel))
			if strings.HasPrefix(d.Name(), segment) || note && e.Timeline == timeline && e.From >= from && e.To <= from+16<<20 {
				return os.Remove(path)
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

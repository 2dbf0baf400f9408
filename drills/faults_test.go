package drills_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/restore"
)

// programsWithout is a directory of PostgreSQL's programs that lacks one.
func programsWithout(t *testing.T, bin, missing string) string {
	dir := sharedDir(t)
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(bin)) {
		if e.Name() != missing {
			if err := os.Symlink(filepath.Join(bin, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestEachFaultIsToldForWhatItIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.flush()
	for name, c := range map[string]struct {
		change                func(*drills.Definition, *drills.Deps)
		outcome, class, level string
		reason                string
		incident              bool
	}{
		"the wrong identity": {func(_ *drills.Definition, d *drills.Deps) {
			d.Repo.Data = []age.Identity{must[*age.X25519Identity](t)(age.GenerateX25519Identity())}
		}, drills.Fail, drills.ClassKey, "L1", "identity", true},
		"no programs": {func(d *drills.Definition, _ *drills.Deps) {
			d.Environment.Binaries = "/nonexistent/{major}/bin"
		}, drills.Inconclusive, drills.ClassHarness, "L2", "/nonexistent", true},
		"no pg_amcheck": {func(d *drills.Definition, _ *drills.Deps) {
			d.Environment.Binaries = programsWithout(t, d.Environment.Binaries, "pg_amcheck")
		}, drills.PassWithGaps, "", "L5", "L6", false},
		"no pg_checksums": {func(d *drills.Definition, _ *drills.Deps) {
			d.Environment.Binaries = programsWithout(t, d.Environment.Binaries, "pg_checksums")
		}, drills.PassWithGaps, "", "L4", "L5", false},
		"checks that do not hold": {func(d *drills.Definition, _ *drills.Deps) {
			d.Checks = append(
				d.Checks,
				drills.Question{Name: "wrong", Database: "postgres", SQL: "SELECT count(*) FROM page", Expect: "7"},
				drills.Question{Name: "gone", Database: "postgres", SQL: "SELECT 1 FROM gone", Expect: "1"},
				drills.Question{Name: "twice", Database: "postgres", SQL: "VALUES (1), (1)", Expect: "1"},
				drills.Question{Name: "writes", Database: "postgres", SQL: "WITH x AS (DELETE FROM page RETURNING 1) SELECT 1", Expect: "1"},
				drills.Question{Name: "null", Database: "postgres", SQL: "SELECT NULL", Expect: ""},
			)
		}, drills.Fail, drills.ClassBackup, "L7", "2000", true},
		"too little time": {func(d *drills.Definition, _ *drills.Deps) {
			d.Limits.Time = 400 * time.Millisecond
		}, drills.TimedOut, drills.ClassPolicy, "-", "time limit", true},
		"too little disk": {func(d *drills.Definition, _ *drills.Deps) {
			d.Limits.Disk = 1 << 20
		}, drills.Inconclusive, drills.ClassPolicy, "L2", "limits.disk", true},
		"an objective that was missed": {func(d *drills.Definition, _ *drills.Deps) {
			d.Objectives.RTO = time.Millisecond
		}, drills.Fail, drills.ClassPolicy, "L8", "recovery time objective", true},
		"a recovery point that is old": {func(d *drills.Definition, _ *drills.Deps) {
			d.Objectives.RPO = time.Nanosecond
		}, drills.PassWithGaps, "", "L8", "recovery point objective", false},
		"no such cluster": {func(d *drills.Definition, _ *drills.Deps) {
			d.Cluster = "elsewhere"
		}, drills.Fail, drills.ClassBackup, "", "nothing that could be restored", true},
		"a low level": {func(d *drills.Definition, _ *drills.Deps) {
			d.Level = "L2"
		}, drills.PassWithGaps, "", "L2", "nothing was restored", false},
		"a low level and the wrong identity": {func(d *drills.Definition, deps *drills.Deps) {
			d.Level, deps.Repo.Data = "L2", []age.Identity{must[*age.X25519Identity](t)(age.GenerateX25519Identity())}
		}, drills.Fail, drills.ClassKey, "L1", "L2", true},
		"no checks": {func(d *drills.Definition, _ *drills.Deps) { d.Checks = nil }, drills.Pass, "", "L7", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			def, deps := w.definition(drills.Latest), w.deps()
			c.change(&def, &deps)
			rec := must[drills.Record](t)(drills.Run(t.Context(), deps, def, slot()))
			w.sound(rec)
			expect(t, rec, c.outcome, c.class, c.level)
			if !strings.Contains(rec.Reason, c.reason) {
				t.Errorf("reason %q does not tell of %q", rec.Reason, c.reason)
			}
			if open := must[bool](t)(w.alarm()); open != c.incident {
				t.Errorf("incident open: %v, want %v", open, c.incident)
			}
			for id, saw := range map[string]string{"wrong": "2000", "gone": "does not exist", "twice": "one row", "writes": "read-only", "null": "NULL"} {
				if c := verdict(rec, "L8:"+id); name == "checks that do not hold" && (c.Verdict != "fail" || !strings.Contains(c.Observed, saw) || c.Input == "") {
					t.Errorf("%s: %+v", id, c)
				}
			}
			// A passing drill closes what this one opened.
			if _, err := w.alarms.Close(drills.IncidentKey("weekly"), "test", time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOnlyAPassingDrillClosesTheIncident(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.flush()
	def := w.definition(drills.Latest)
	def.Checks[0].Expect = "f"
	expect(t, w.run(def), drills.Fail, drills.ClassBackup, "L7")
	skipped := must[drills.Record](t)(drills.Skip(t.Context(), w.deps(), def, slot(), "maintenance"))
	expect(t, skipped, drills.Skipped, drills.ClassPolicy, "")
	if !must[bool](t)(w.alarm()) {
		t.Error("a skipped drill closed the incident")
	}
	def.Checks[0].Expect = "t"
	expect(t, w.run(def), drills.Pass, "", "L8")
	if must[bool](t)(w.alarm()) {
		t.Error("the incident is open after a drill that passed")
	}
}

func TestADrillOfOneZoneTellsOfThatZone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	s := w.take()
	w.flush()
	def := w.definition(drills.Latest)
	for i, name := range zoneNames {
		def.Zone = name
		if i == 1 {
			w.rot(s, i)
		}
		if i == 2 {
			if err := os.Rename(w.keys.Dirs[i], w.keys.Dirs[i]+".away"); err != nil {
				t.Fatal(err)
			}
		}
		want := []struct{ outcome, class string }{{drills.Pass, ""}, {drills.Fail, drills.ClassBackup}, {drills.Fail, drills.ClassZone}}[i]
		rec := w.run(def)
		expect(t, rec, want.outcome, want.class, "-")
		if rec.Zone != name {
			t.Errorf("zone %q", rec.Zone)
		}
	}
}

// Promise 1: a drill never waits for a zone. What it says stands on this machine
// and goes to the zones when they return.
func TestWithoutZonesADrillIsInconclusiveAndRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.flush()
	for _, dir := range w.keys.Dirs {
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
	}
	deps := w.deps()
	deps.AnchorWait = 2 * time.Second
	rec := must[drills.Record](t)(drills.Run(t.Context(), deps, w.definition(drills.Latest), slot()))
	w.sound(rec)
	expect(t, rec, drills.Inconclusive, drills.ClassZone, "")
	if rec.Selection.Anchored || rec.Ledger.Checkpoint != "" {
		t.Errorf("no zone was there, and the record says it was: %+v, %+v", rec.Selection, rec.Ledger)
	}
	for _, dir := range w.keys.Dirs {
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.log.Anchor(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep := must[ledger.Report](t)(ledger.Verify(t.Context(), ledger.FromReader(w.vault.Reader()), w.trust, ledger.VerifyOptions{Repository: "test", Now: time.Now().Add(24 * time.Hour)}))
	if len(rep.Faults) > 0 || rep.Slots.Outcomes[drills.Inconclusive] != 1 {
		t.Errorf("ledger: %+v", rep)
	}
}

// A page that is bad in the source is bad in the copy, and two levels see it.
func TestABadPageFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	path := filepath.Join(w.pg.DataDir, pgtest.Value[string](w.pg, "SELECT pg_relation_filepath('page')"))
	w.pg.Exec("CHECKPOINT")
	f := must[*os.File](t)(os.OpenFile(path, os.O_WRONLY, 0))
	if _, err := f.WriteAt([]byte("not what was written"), 8192+4000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	w.take()
	w.flush()
	rec := w.run(w.definition(drills.Latest))
	expect(t, rec, drills.Fail, drills.ClassBackup, "L4")
	if c := verdict(rec, "L5"); c.Verdict != "fail" || !strings.Contains(c.Observed, "Bad checksums: 1") {
		t.Errorf("L5: %+v", c)
	}
	if c := verdict(rec, "L6"); c.Verdict != "fail" {
		t.Errorf("L6: %+v", c)
	}
}

func TestAClusterWithoutChecksumsLeavesAGap(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pgtest.WithoutChecksums())
	w.fill()
	w.take()
	w.flush()
	rec := w.run(w.definition(drills.Latest))
	expect(t, rec, drills.PassWithGaps, "", "L4")
	if c := verdict(rec, "L8"); c.Verdict != "pass" {
		t.Errorf("L8: %+v", c)
	}
}

// What WAL dropped after the snapshot began is told as a gap, not as a loss.
func TestWhatWasDroppedSinceIsExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.pg.Exec("CREATE TABLE old(x int)")
	w.take()
	w.pg.Exec("DROP TABLE old")
	w.pg.Exec("CREATE TABLE new(x int)")
	w.flush()
	rec := w.run(w.definition(drills.Latest))
	expect(t, rec, drills.PassWithGaps, "", "L6")
	if c := verdict(rec, "L7"); c.Verdict != "gap" || !strings.Contains(c.Observed, "public.old") {
		t.Errorf("L7: %+v", c)
	}
	rec = w.run(w.definition(drills.Oldest))
	expect(t, rec, drills.Pass, "", "L8")
}

// tombstone writes that project key of page is deleted.
func (w *world) tombstone(key string) {
	w.bury("t"+key, tenancy.Layout{Kind: "rows", Database: "postgres", Root: "public.page", Key: "id"}, key)
}

// bury writes that a project is deleted.
func (w *world) bury(id string, l tenancy.Layout, key string) {
	t := w.t
	tomb := catalog.Tombstone{
		ID: id, Cluster: "cms", Layout: l.Kind, Database: l.Database, Root: l.Root, Key: l.Key,
		KeyMAC:      tenancy.MAC(w.digests, "cms", l, key),
		DigestEpoch: w.digests.Epoch, SystemID: w.lineage.SystemID, Epoch: w.lineage.Epoch, Timeline: 1, RequestedAt: time.Now().UTC(),
	}
	body := must[[]byte](t)(seal.SignNote(catalog.KindTombstone, tomb, w.signer))
	must[vault.Stored](t)(w.vault.Writer().Put(t.Context(), catalog.TombstoneName(tomb.ID), body, vault.PutOptions{}))
}

func (w *world) replayer() restore.Replayer {
	return func(ctx context.Context, connect func(context.Context, string) (*pgx.Conn, error), tombs []catalog.Tombstone) ([]restore.AppliedTombstone, error) {
		done, err := tenancy.Replay(ctx, connect, tombs, func(int) (seal.DigestKeys, error) { return w.digests, nil })
		var out []restore.AppliedTombstone
		for _, d := range done {
			out = append(out, restore.AppliedTombstone(d))
		}
		return out, err
	}
}

// Promise 7: what a tombstone names is gone from the copy, and looked for again.
func TestADeletedProjectIsLookedForAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.flush()
	w.tombstone("42")
	def := w.definition(drills.Latest)
	def.Checks = append(def.Checks, drills.Question{Name: "purged", Database: "postgres", SQL: "SELECT count(*) FROM page WHERE id = 42", Expect: "0"})
	deps := w.deps()
	deps.Replay = w.replayer()
	rec := must[drills.Record](t)(drills.Run(t.Context(), deps, def, slot()))
	w.sound(rec)
	expect(t, rec, drills.Pass, "", "L8")
	if p := rec.Tombstones; p == nil || p.Applied != 1 || p.Found != 1 || p.Residual != 0 {
		t.Errorf("purge: %+v", p)
	}
	// One that claims to have removed what it left is found out.
	deps.Replay = func(_ context.Context, _ func(context.Context, string) (*pgx.Conn, error), tombs []catalog.Tombstone) ([]restore.AppliedTombstone, error) {
		return []restore.AppliedTombstone{{ID: tombs[0].ID, Found: true}}, nil
	}
	rec = must[drills.Record](t)(drills.Run(t.Context(), deps, def, slot()))
	expect(t, rec, drills.Fail, drills.ClassPolicy, "L7")
	if c := verdict(rec, "purge"); c.Verdict != "fail" {
		t.Errorf("purge: %+v", c)
	}
	deps.Replay = noTombstones
	rec = must[drills.Record](t)(drills.Run(t.Context(), deps, def, slot()))
	expect(t, rec, drills.Fail, drills.ClassPolicy, "-")
}

// A schema and a database that tombstones took out of the copy are no gap in it, and in
// no record.
func TestProjectsThatWereDroppedAreMissedByNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.pg.Exec("CREATE SCHEMA leaver; CREATE TABLE leaver.page (id int); CREATE SCHEMA stayer; CREATE TABLE stayer.page (id int)")
	w.pg.Exec("CREATE DATABASE goner")
	w.take()
	w.flush()
	w.bury("t1", tenancy.Layout{Kind: tenancy.Schema, Database: "postgres"}, "leaver")
	w.bury("t2", tenancy.Layout{Kind: tenancy.Database}, "goner")
	def := w.definition(drills.Latest)
	def.Checks = append(def.Checks, drills.Question{Name: "gone", Database: "postgres", SQL: "SELECT to_regnamespace('leaver') IS NULL AND to_regnamespace('stayer') IS NOT NULL", Expect: "t"})
	deps := w.deps()
	deps.Replay = w.replayer()
	rec := must[drills.Record](t)(drills.Run(t.Context(), deps, def, slot()))
	expect(t, rec, drills.Pass, "", "L8")
	if p := rec.Tombstones; p == nil || p.Applied != 2 || p.Found != 2 || p.Residual != 0 {
		t.Errorf("purge: %+v", p)
	}
	text := string(must[[]byte](t)(json.Marshal(rec)))
	if strings.Contains(text, "leaver") || strings.Contains(text, "goner") {
		t.Errorf("the record names a deleted project: %s", text)
	}
}

var errTest = errors.New("as the test says")

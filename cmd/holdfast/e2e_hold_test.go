package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/retention"
)

// What is on hold stays in every zone and can be restored, whatever the policy says:
// a snapshot, and a moment whose window is long past. Released, it goes.
func TestWhatIsOnHoldStaysAndIsRestoredUntilItIsReleased(t *testing.T) { // section 7, D7
	pg := pgtest.Start(t)
	pg.Exec(tenants)
	r := newRig(t, pg, false)
	r.cluster = shortLived
	r.configure()
	r.daemon("db")
	first := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	pg.Exec("CREATE TABLE moment AS SELECT 1 AS one")
	at := time.Now().UTC()
	r.archived("a", "b", "c")
	await(t, "WAL that is later", func() bool {
		pg.Exec("INSERT INTO moment VALUES (2)")
		return time.Since(at) > 2*time.Second
	})
	place := func(args ...string) holdDoc {
		t.Helper()
		return ask[holdDoc](r, "db", append([]string{"hold", "add", "cms", "--reason", "case 7", "--by", "legal", "--review-by", "90d"}, args...)...)
	}
	r.hold("db", 3, "hold", "add", "cms", "--snapshot", "none", "--reason", "case 7", "--by", "legal", "--review-by", "90d")
	span := place("--from", at.Format(time.RFC3339Nano), "--to", at.Add(time.Second).Format(time.RFC3339Nano))
	second := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	held := place("--snapshot", second)
	third := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	pg.Exec("SELECT pg_switch_wal()")
	last := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	dir := func(id string) string { return r.path("zones/a/clusters/cms/snapshots/" + id) }
	await(t, "the end of the snapshot that no hold keeps", func() bool {
		r.hold("db", 0, "retention", "apply", "cms", "--force")
		_, err := os.Stat(filepath.Join(dir(third), "snapshot.note"))
		return os.IsNotExist(err)
	})
	r.onHold(first, second, last, span.ID, held.ID)
	r.stillShown(held.ID, second)

	copied := r.restore("copy", "--time", at.Format(time.RFC3339Nano), "--start")
	conn := r.connect(*copied.Opened, "postgres")
	var rows, tables int
	if err := conn.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM moment), (SELECT count(*) FROM cms.record)").Scan(&rows, &tables); err != nil || rows != 1 || tables != 1000 {
		t.Errorf("at the moment on hold: %d rows, %d records: %v", rows, tables, err)
	}

	for _, id := range []string{span.ID, held.ID} {
		r.hold("db", 0, "hold", "release", id, "--reason", "closed", "--by", "legal")
	}
	await(t, "the end of what was on hold", func() bool {
		r.hold("db", 0, "retention", "apply", "cms", "--force")
		return files(dir(first)) == 0 || !slices.ContainsFunc(ask[snapshotsDoc](r, "db", "snapshot", "list").Snapshots, func(s snapshotDoc) bool { return s.ID == first })
	})
	all := ask[holdsDoc](r, "db", "hold", "list", "--all")
	if len(all.Holds) != 2 || all.Holds[0].Released == nil || all.Holds[0].Released.By != "legal" || len(ask[holdsDoc](r, "db", "hold", "list").Holds) != 0 {
		t.Errorf("the record of released holds: %+v", all)
	}
	r.hold("db", 2, "hold", "release", held.ID, "--reason", "again", "--by", "legal")
}

// onHold says what every command tells of two holds: on a span that begins at first,
// and on second.
func (r *rig) onHold(first, second, last, span, held string) {
	t := r.t
	t.Helper()
	holds := map[string][]string{}
	for _, s := range ask[snapshotsDoc](r, "db", "snapshot", "list", "cms").Snapshots {
		holds[s.ID] = s.Holds
	}
	if len(holds) != 3 || !slices.Equal(holds[first], []string{span}) || !slices.Equal(holds[second], []string{held}) || len(holds[last]) != 0 {
		t.Errorf("snapshots and their holds: %v", holds)
	}
	p := ask[retention.Plan](r, "db", "retention", "plan", "cms")
	for i, want := range []string{"hold " + span + ": case 7", "hold " + held + ": case 7"} {
		if !slices.Contains(p.Snapshots[i].Reasons, want) {
			t.Errorf("the plan's reasons: %v, want %q among them", p.Snapshots[i].Reasons, want)
		}
	}
	if !slices.ContainsFunc(p.WAL, func(d retention.WALDecision) bool { return slices.Contains(d.Reasons, "hold "+span+": case 7") }) {
		t.Errorf("no WAL stays for the span: %+v", p.WAL)
	}
	if _, text, _ := r.try("db", "status"); !strings.Contains(text, "by hold "+span) {
		t.Errorf("status does not tell of the hold:\n%s", text)
	}
	r.hold("db", 0, "ledger", "verify")
	for _, z := range zoneLetters {
		name := catalog.HoldName("cms", held)
		if _, err := os.Stat(r.path("zones/" + z + "/" + name)); err != nil {
			t.Error(err)
		}
	}
}

// stillShown says that snapshots are shown where what keeps them cannot be told: here
// what a node remembers of retention is damaged.
func (r *rig) stillShown(hold, snapshot string) {
	r.t.Helper()
	r.mkdir("drill/state")
	r.write("drill/state/retention-cms.json", "{")
	doc := ask[snapshotsDoc](r, "drill", "snapshot", "list")
	if len(doc.Snapshots) != 3 || len(doc.Faults) != 1 || !strings.Contains(doc.Faults[0], "on hold is not known") {
		r.t.Errorf("snapshots whose holds cannot be told: %+v", doc)
	}
	if text := r.hold("drill", 0, "snapshot", "show", snapshot); !strings.Contains(text, "on hold is not known") {
		r.t.Errorf("a snapshot whose holds cannot be told:\n%s", text)
	}
	must(r.t, os.Remove(r.path("drill/state/retention-cms.json")))
	if text := r.hold("drill", 0, "snapshot", "show", snapshot); !strings.Contains(text, hold) {
		r.t.Errorf("a snapshot on hold:\n%s", text)
	}
}

// A hold on a project suspends its purge, in writing; neither its notes nor the ledger
// names the project.
func TestAProjectOnHoldIsNotPurged(t *testing.T) { // R7 of the anchors
	pg := pgtest.Start(t)
	pg.Exec(tenants)
	r := newRig(t, pg, false)
	r.cluster = shortLived
	r.configure()
	r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	why := []string{"--reason", "case 7", "--by", "legal", "--review-by", "1s"}
	r.hold("db", 3, append([]string{"hold", "add", "cms", "--project", "7"}, "--reason", "of project 7", "--by", "legal", "--review-by", "1s")...)
	h := ask[holdDoc](r, "db", append([]string{"hold", "add", "cms", "--project", "7"}, why...)...)
	if code, _, errs := r.try("db", "project", "delete", "cms", "7", "--in-live", "--yes"); code != 3 || !strings.Contains(errs, h.ID) {
		t.Errorf("deleted in live: exit %d, %s", code, errs)
	}
	doc := ask[purgesDoc](r, "db", "purge", "list")
	if len(doc.Purges) != 1 {
		t.Fatalf("purges: %+v", doc)
	}
	one := ask[retention.Purge](r, "db", "purge", "show", doc.Purges[0].Project)
	if len(one.SuspendedBy) != 1 || len(one.Zones) != 3 || !slices.Contains(one.Zones[0].BlockedBy, "hold "+h.ID+": case 7") {
		t.Errorf("purge show: %+v", one)
	}
	await(t, "the incident of a hold past its review", func() bool {
		r.hold("db", 0, "retention", "apply", "cms", "--force")
		_, text, _ := r.try("db", "incident", "list")
		return strings.Contains(text, holdKey(h.ID))
	})
	if _, text, _ := r.try("db", "check"); !strings.Contains(text, "past their review: "+h.ID) {
		t.Errorf("check does not tell of the review:\n%s", text)
	}
	note, err := os.ReadFile(r.path("zones/a/" + catalog.HoldName("cms", h.ID)))
	if err != nil || strings.Contains(string(note), "project 7") {
		t.Errorf("%v: %s", err, note)
	}
	r.hold("db", 0, "hold", "release", h.ID, "--reason", "closed", "--by", "legal")
	if one := ask[retention.Purge](r, "db", "purge", "show", one.Project); len(one.SuspendedBy) != 0 {
		t.Errorf("released, and suspended by %v", one.SuspendedBy)
	}
	r.hold("db", 0, "project", "delete", "cms", "7", "--in-live", "--yes")
}

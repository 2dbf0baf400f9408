package main

import (
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/retention"
)

const shortGrace = "    retention: {window: 7d, daily: 7, keep_at_least: 7d, keep_at_most: 30d, removal_grace: 1s}\n"

// Two people approve the end of a cluster whose WAL is being archived. A zone dies while
// all of it goes, and comes back; the oracle is each bucket's own listing.
func TestARetiredClusterGoesFromEveryZoneAndIsTakenNoMore(t *testing.T) { // promise 6
	pg := pgtest.Start(t)
	r := newRig(t, pg, true)
	r.cluster = shortGrace
	r.approvers("ann", "bob")
	r.configure()
	first := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	plan := ask[retention.Retirement](r, "db", "cluster", "retire", "cms", "--dry-run")
	if len(plan.Snapshots) != 2 || plan.WALFiles == 0 || plan.Approved || len(plan.Plan.Lineages) != 1 {
		t.Fatalf("the plan: %+v", plan)
	}
	if code, _, errs := r.try("db", "cluster", "retire", "cms", "--confirm", "cms"); code != exitRefused || !strings.Contains(errs, "holdfast approve "+plan.Hash) {
		t.Fatalf("by one person's word: exit %d, %s", code, errs)
	}
	for i, name := range []string{"ann", "bob"} {
		doc := r.approve(name, plan.Hash)
		if !strings.Contains(strings.Join(doc.Does, "\n"), "ALL snapshots and WAL of cluster cms") || doc.Enough != (i == 1) {
			t.Errorf("approved by %s: %+v", name, doc)
		}
	}
	hold := ask[holdDoc](r, "db", "hold", "add", "cms", "--snapshot", first, "--reason", "case 7", "--by", "legal", "--review-by", "90d").ID
	if code, _, errs := r.try("db", "cluster", "retire", "cms"); code != exitRefused || !strings.Contains(errs, "hold "+hold+": case 7") {
		t.Errorf("with a hold: exit %d, %s", code, errs)
	}
	r.hold("db", 0, "hold", "release", hold, "--reason", "over", "--by", "legal")
	text := r.hold("db", 0, "cluster", "retire", "cms")
	if !strings.Contains(text, "is retired since") {
		t.Errorf("retired:\n%s", text)
	}
	r.hold("db", 0, "cluster", "retire", "cms") // again it does nothing
	r.takenNoMore()
	r.goes(plan)
}

// takenNoMore looks at what a daemon says that archived a cluster when it was retired.
func (r *rig) takenNoMore() {
	r.t.Helper()
	if code, _, errs := r.try("db", "snapshot", "take", "cms"); code != exitRefused || !strings.Contains(errs, "is retired") {
		r.t.Errorf("a snapshot: exit %d, %s", code, errs)
	}
	status := r.hold("db", 0, "status", "cms")
	if !strings.Contains(status, "RETIRED") || strings.Contains(status, "INCIDENT") || strings.Contains(status, "MISSED") {
		r.t.Errorf("the status:\n%s", status)
	}
	await(r.t, "the slot to be left", func() bool {
		return !pgtest.Value[bool](r.pg, "SELECT bool_or(active) FROM pg_replication_slots WHERE slot_name = 'holdfast_cms'")
	})
}

// goes lets the grace pass with a zone away.
func (r *rig) goes(plan retention.Retirement) {
	r.t.Helper()
	lost := r.s3[2]
	lost.Kill()
	held := func(i int) int {
		r.try("db", "retention", "apply", "cms")
		return len(versionsIn(r.t, r.s3[i], "/clusters/cms/snapshots/")) + len(versionsIn(r.t, r.s3[i], "/clusters/cms/wal/"))
	}
	for i := range 2 {
		await(r.t, "nothing of it left in zone "+zoneLetters[i], func() bool { return held(i) == 0 })
	}
	lost.Start()
	await(r.t, "nothing of it left in zone c", func() bool { return held(2) == 0 })
	for i, s := range r.s3 {
		if len(versionsIn(r.t, s, "/clusters/cms/lineages/")) == 0 || len(versionsIn(r.t, s, "/retired/cms.note")) == 0 {
			r.t.Errorf("zone %s lost what stays", zoneLetters[i])
		}
	}
	told := r.hold("db", 0, "--output", "json", "ledger", "show", "--type", "cluster.retired")
	if strings.Count(told, plan.Hash) != 1 || !strings.Contains(told, `"key": "ann+`) || !strings.Contains(told, `"key": "bob+`) {
		r.t.Errorf("the ledger tells of the end:\n%s", told)
	}
	r.hold("db", 0, "ledger", "verify")
	if report := r.hold("db", 0, "retention", "report", "cms"); !strings.Contains(report, "RETIRED") {
		r.t.Errorf("the report:\n%s", report)
	}
}

// Without approvers and without a daemon the name is typed; a daemon that starts later
// takes nothing.
func TestWithoutApproversTheNameOfARetiredClusterIsTyped(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.cluster = shortGrace
	r.configure()
	r.hold("db", 0, "snapshot", "take", "cms")
	for _, confirm := range [][]string{nil, {"--confirm", "Cms"}} {
		if code, _, errs := r.try("db", append([]string{"cluster", "retire", "cms"}, confirm...)...); code != exitRefused || !strings.Contains(errs, "is not the name") {
			t.Errorf("with %q: exit %d, %s", confirm, code, errs)
		}
	}
	if status := ask[statusDoc](r, "db", "status"); !status.Clusters[0].RetiredAt.IsZero() {
		t.Fatalf("retired by no name: %+v", status.Clusters[0])
	}
	doc := ask[retiredRun](r, "db", "cluster", "retire", "cms", "--confirm", "cms")
	if doc.Retirement.RetiredAt.IsZero() || !strings.Contains(string(doc.Applied), doc.Retirement.Snapshots[0]) {
		t.Errorf("retired: %+v", doc)
	}
	at := r.pg.LSN()
	d := r.daemon("db")
	await(t, "the daemon to see that the cluster is retired", func() bool { return strings.Contains(d.read(), "archiving ends") })
	pg.Exec("CREATE TABLE later AS SELECT 1 AS a; SELECT pg_switch_wal()")
	await(t, "nothing of it left in the zones", func() bool {
		r.try("db", "retention", "apply", "cms")
		left := 0
		for _, z := range zoneLetters {
			left += files(r.path("zones/"+z+"/clusters/cms/snapshots")) + files(r.path("zones/"+z+"/clusters/cms/wal"))
		}
		return left == 0
	})
	if pgtest.Value[bool](pg, "SELECT restart_lsn > $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = 'holdfast_cms'", at) {
		t.Error("WAL of a retired cluster was taken")
	}
}

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// A policy keeps snapshots for a month, and a deleted project is to be gone within the
// hour: the daemon takes the full snapshot without which nothing could go, two people
// approve the plan that the purge shows, and the certificate follows at once.
func TestADeletedProjectGoesBeforeRetentionWhenTwoApprove(t *testing.T) { // promises 6, 7
	pg := pgtest.Start(t)
	pg.Exec(tenants)
	r := newRig(t, pg, false)
	r.cluster = "    retention: {window: 7d, daily: 7, keep_at_least: 7d, keep_at_most: 30d, removal_grace: 1s}\n" + tenantProjects + "      purge: {within: 1h, grace: 1s, early: true}\n"
	r.approvers("ann", "bob")
	r.configure()
	with := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	again := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID // needs packs of the first
	r.daemon("db")
	tomb := ask[deletedDoc](r, "db", "project", "delete", "cms", "7", "--in-live", "--yes").Tombstone
	await(t, "live without the project", func() bool {
		pg.Exec("VACUUM")
		return r.advance(tomb).State == retention.PurgeAgeing
	})
	var e *retention.EarlyPurge
	await(t, "a full snapshot after the deletion, which nobody asked for", func() bool {
		r.hold("db", 0, "retention", "apply", "cms")
		e = ask[retention.Purge](r, "db", "purge", "show", tomb).Early
		return e != nil && slices.Contains(e.Plan.Snapshots, again)
	})
	if !slices.Contains(e.Plan.Snapshots, with) || len(e.Plan.WAL) == 0 || len(e.Plan.Stays) != 0 || e.Approved {
		t.Fatalf("the plan: %+v", e)
	}
	text := r.hold("db", 0, "purge", "show", tomb)
	for _, said := range []string{"goes: snapshot " + with, "goes: WAL", "afterwards the window begins", "0 of 2 approvals", "holdfast approve " + e.Hash} {
		if !strings.Contains(text, said) {
			t.Errorf("the purge does not say %q:\n%s", said, text)
		}
	}
	r.hold("db", 0, "retention", "apply", "cms", "--approve", e.Hash) // nobody's word alone
	if got := r.approve("ann", e.Hash); !slices.Contains(got.Does, "goes: snapshot "+with) || got.Enough {
		t.Errorf("one of two: %+v", got)
	}
	if doc := ask[applied](r, "db", "retention", "apply", "cms"); doc.Mark != "" {
		t.Fatalf("marked %v with one of two approvals", doc.Marked)
	}
	if got := r.approve("bob", e.Hash); !got.Enough {
		t.Errorf("two of two: %+v", got)
	}
	var one retention.Purge
	await(t, "the certificate", func() bool {
		r.hold("db", 0, "retention", "apply", "cms")
		one = r.advance(tomb)
		return one.Certificate != nil
	})
	for _, z := range zoneLetters {
		for _, id := range []string{with, again} {
			if n := files(r.path("zones/" + z + "/clusters/cms/snapshots/" + id)); n != 0 {
				t.Errorf("zone %s still has %d files of snapshot %s", z, n, id)
			}
		}
	}
	if told := r.hold("db", 0, "--output", "json", "ledger", "show", "--type", "removal.intent"); !strings.Contains(told, e.Hash) || !strings.Contains(told, `"key": "bob+`) {
		t.Errorf("the ledger tells of removals:\n%s", told)
	}
	if cert := ask[catalog.Certificate](r, "db", "purge", "certificate", tomb); cert.Phase != catalog.PhaseFinal {
		t.Errorf("the certificate: %+v", cert)
	}
	if report := r.hold("db", 0, "retention", "report", "cms"); strings.Contains(report, with) && strings.Contains(report, "is not there") {
		t.Errorf("what was approved is told as a loss:\n%s", report)
	}
	r.restore("after")
}

// What holds a deleted project and is the newest proven waits for a drill of the newest:
// the node's own drills of that are made, once for each newest snapshot.
func TestADrillIsMadeForWhatIsTheNewestProven(t *testing.T) {
	ctx := t.Context()
	queue, err := scheduler.OpenSQLite(ctx, t.TempDir()+"/jobs.db", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer queue.Close()
	cfg := &configs.Config{Drills: []configs.Drill{
		{Name: "newest", Cluster: "cms", Environment: "beside", Select: "latest"},
		{Name: "any", Cluster: "cms", Environment: "beside", Select: "random"},
		{Name: "another", Cluster: "crm", Environment: "beside", Select: "latest"},
	}}
	n := &node{world: &world{cfg: cfg, log: zap.NewNop()}, runner: &scheduler.Runner{Queue: queue}}
	plan := retention.Plan{Cluster: "cms", Snapshots: []retention.Decision{{ID: "old"}, {ID: "new"}}, Early: &retention.EarlyPurge{
		Waits: []retention.OverRetained{{ID: "old", Needs: []string{"drill"}}},
	}}
	made := func() (out []string) {
		n.helpEarly(ctx, plan)
		n.helpEarly(ctx, plan)
		jobs, err := queue.List(ctx, scheduler.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			out = append(out, j.Kind+" "+string(j.Payload))
		}
		slices.Sort(out)
		return out
	}
	if got := made(); !slices.Equal(got, []string{`drill {"drill":"newest"}`}) {
		t.Errorf("made %q", got)
	}
	plan.Early.Waits[0].Needs = []string{"snapshot"}
	if got := made(); !slices.Equal(got, []string{`drill {"drill":"newest"}`, `snapshot {"cluster":"cms","full":true}`}) {
		t.Errorf("made %q", got)
	}
}

package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/retention"
)

// An edit of the policy that keeps less is shown, removes nothing before a person has
// given its hash, and stands in the ledger.
func TestAPolicyThatKeepsLessWaitsForAPerson(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.cluster = "    retention: {window: 1s, hourly: 0, daily: 0, keep_at_least: 1h, keep_at_most: 30d, removal_grace: 1s, approve_shorter: true}\n"
	r.configure()
	for range 3 {
		r.hold("db", 0, "snapshot", "take", "cms")
	}
	r.hold("db", 0, "retention", "apply", "cms")
	r.cluster = strings.Replace(r.cluster, "keep_at_least: 1h", "keep_at_least: 1s", 1)
	r.host("db", pg.DSN("postgres"))

	var p retention.Plan
	await(t, "snapshots beyond the new floor", func() bool {
		p = ask[retention.Plan](r, "db", "retention", "plan", "cms")
		return p.Change != nil && len(p.Change.Goes) > 0
	})
	c := p.Change
	if !slices.Equal(c.Shorter, []string{"keep_at_least 1s instead of 1h0m0s"}) || p.Err() == nil {
		t.Fatalf("the change %+v, refused %v", c, p.Refused)
	}
	if code, _, errs := r.try("db", "retention", "apply", "cms", "--force"); code != exitRefused || !strings.Contains(errs, "--approve "+c.Hash) {
		t.Errorf("without an approval: exit %d, %s", code, errs)
	}
	for _, id := range c.Goes {
		if _, err := os.Stat(r.path("zones/a/clusters/cms/snapshots/" + id + "/snapshot.note")); err != nil {
			t.Error(err)
		}
	}
	doc := ask[applied](r, "db", "retention", "apply", "cms", "--force", "--approve", c.Hash)
	if !slices.Contains(doc.Marked, c.Goes[0]) {
		t.Errorf("approved, and marked %v, want %v", doc.Marked, c.Goes)
	}
	if told := r.hold("db", 0, "--output", "json", "ledger", "show", "--type", "retention.policy"); !strings.Contains(told, c.Hash) || !strings.Contains(told, `"approved": true`) {
		t.Errorf("the ledger tells of the policy:\n%s", told)
	}
	if p := ask[retention.Plan](r, "db", "retention", "plan", "cms"); p.Change != nil || p.Err() != nil {
		t.Errorf("once applied: %+v, %v", p.Change, p.Err())
	}
}

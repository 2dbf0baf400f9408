package main

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/retention"
)

type reports struct {
	Reports []retentionReport `json:"reports"`
}

// The report is what each zone's own listing shows: one object in one zone that is
// older than the ceiling, or one snapshot that is gone before its floor, fails it.
func TestTheReportFailsOnWhatIsTooOldAndOnWhatIsGoneTooSoon(t *testing.T) { // promise 6
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.cluster = "    retention: {window: 1s, keep_at_least: 1s, keep_at_most: 30d, removal_grace: 1s}\n    residency: {copies: 3}\n"
	r.configure()
	daemon := r.daemon("db")
	for range 3 {
		r.hold("db", 0, "snapshot", "take", "cms")
	}
	r.archived("a", "b", "c")
	await(t, "a mark that is done", func() bool {
		r.hold("db", 0, "retention", "apply", "cms", "--force")
		d := ask[reports](r, "db", "retention", "report", "cms").Reports[0].Deletions
		return slices.ContainsFunc(d, func(x deletionDoc) bool {
			return len(x.Snapshots) > 0 && !x.DoneAt.IsZero() && x.Removed > 0 && len(x.Zones) == 3
		})
	})
	await(t, "a report without a failure", func() bool { return ask[reports](r, "db", "retention", "report").Reports[0].OK })
	doc := ask[reports](r, "db", "retention", "report", "cms").Reports[0]
	for _, z := range zoneLetters {
		for _, class := range []string{"physical", retention.ClassWAL} {
			if !slices.ContainsFunc(doc.Inventory, func(h holdingDoc) bool {
				return h.Zone == z && h.Class == class && h.Bytes > 0 && !h.Oldest.IsZero() && !h.Newest.Before(h.Oldest)
			}) {
				t.Errorf("zone %s, class %s: %+v", z, class, doc.Inventory)
			}
		}
	}
	page := r.hold("db", 0, "retention", "report", "--format", "html")
	if !strings.Contains(page, "Retention of cms") || strings.Contains(page, "http://") || strings.Contains(page, "https://") || strings.Contains(page, "<script") {
		t.Errorf("the page:\n%s", page)
	}
	lines, err := csv.NewReader(strings.NewReader(r.hold("db", 0, "retention", "report", "--format", "csv"))).ReadAll()
	if err != nil || len(lines) < 30 {
		t.Errorf("%d lines of CSV: %v", len(lines), err)
	}
	r.hold("db", 2, "retention", "report", "--format", "pdf")

	snaps := ask[snapshotsDoc](r, "db", "snapshot", "list").Snapshots
	last := snaps[len(snaps)-1].ID
	packs, _ := filepath.Glob(r.path("zones/b/clusters/cms/snapshots/" + last + "/manifest.age"))
	old := time.Now().Add(-31 * 24 * time.Hour)
	if len(packs) != 1 || os.Chtimes(packs[0], old, old) != nil {
		t.Fatalf("%v", packs)
	}
	r.hold("db", 4, "retention", "report", "cms")
	doc = ask[reports](r, "db", "retention", "report", "cms").Reports[0]
	if len(doc.Failures) != 1 || doc.Failures[0].Kind != "over-retained" || doc.Failures[0].Zone != "b" || !strings.Contains(doc.Failures[0].What, "manifest.age") {
		t.Errorf("with an old object in one zone: %+v", doc.Failures)
	}
	h := ask[holdDoc](r, "db", "hold", "add", "cms", "--snapshot", last, "--reason", "case 7", "--by", "legal", "--review-by", "90d")
	doc = ask[reports](r, "db", "retention", "report", "cms").Reports[0]
	if !doc.OK || len(doc.Holds) != 1 || doc.Holds[0].ID != h.ID || len(doc.HoldEvents) != 1 {
		t.Errorf("an old object on hold: %+v, holds %+v", doc.Failures, doc.Holds)
	}

	daemon.stop()
	if err := os.RemoveAll(r.path("zones/c/clusters/cms/snapshots/" + last)); err != nil {
		t.Fatal(err)
	}
	doc = ask[reports](r, "db", "retention", "report", "cms").Reports[0]
	if !slices.ContainsFunc(doc.Failures, func(f failureDoc) bool { return f.Kind == "under-retained" && strings.Contains(f.What, last) }) {
		t.Errorf("a copy is gone from a zone: %+v", doc.Failures)
	}
}

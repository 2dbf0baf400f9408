package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// A page that is bad on the server's disk is an incident until a snapshot finds none,
// and the snapshot that holds it takes nobody's place.
func TestABadPageIsAnIncidentAndTheGoodSnapshotStaysUntilItIsMended(t *testing.T) { // C-21
	for _, source := range []string{snapshot.SourceStream, snapshot.SourceFiles} {
		t.Run(source, func(t *testing.T) { aBadPage(t, source) })
	}
}

func aBadPage(t *testing.T, source string) {
	pg := pgtest.Start(t)
	pg.Exec("CREATE TABLE hurt AS SELECT g FROM generate_series(1, 9999) g")
	r := newRig(t, pg, false)
	if source == snapshot.SourceFiles {
		r.cluster += fmt.Sprintf("    data_directory: %q\n", pg.DataDir)
	}
	r.configure()
	r.daemon("db")
	take := func() snapshotDoc {
		t.Helper()
		return ask[snapshotDoc](r, "db", "snapshot", "take", "cms")
	}
	reasons := func(id string) []string {
		t.Helper()
		for _, d := range ask[retention.Plan](r, "db", "retention", "plan", "cms").Snapshots {
			if d.ID == id && d.Keep {
				return d.Reasons
			}
		}
		t.Fatalf("the plan does not keep %s", id)
		return nil
	}
	bad := func() *incident.Incident {
		t.Helper()
		for _, i := range ask[incidentsDoc](r, "db", "incident", "list").Incidents {
			if i.Key == "bad-pages/cms" {
				return &i
			}
		}
		return nil
	}
	good := take()
	if good.Source != source || good.Suspect || good.Pages.Bad != 0 || bad() != nil {
		t.Fatalf("before the damage: %+v, incident %+v", good, bad())
	}

	// Nothing is left that a later look at the page would write back over the damage.
	pg.Exec("VACUUM FREEZE hurt")
	pg.Exec("CHECKPOINT")
	path := pgtest.Value[string](pg, "SELECT pg_relation_filepath('hurt')")
	flip(t, filepath.Join(pg.DataDir, path), 2*page.Size+4000)
	hurt := take()
	if !hurt.Suspect || hurt.Pages.Bad != 1 || hurt.Pages.Checked < good.Pages.Checked {
		t.Errorf("with a bad page: %+v", hurt)
	}
	open := bad()
	if open == nil || open.Severity != "critical" || !strings.Contains(open.Title, "1 pages") || !strings.Contains(open.Detail, path) {
		t.Errorf("the incident: %+v, want one of %s", open, path)
	}
	if list := r.hold("db", 0, "snapshot", "list"); !strings.Contains(list, "SUSPECT") {
		t.Errorf("the list does not say it:\n%s", list)
	}
	if why := reasons(good.ID); !slices.Contains(why, "newest") || !hasPrefix(why, "daily: ") {
		t.Errorf("the good snapshot stays because of %q", why)
	}
	if why := reasons(hurt.ID); !slices.Contains(why, "newest, though suspect") || slices.Contains(why, "newest") || hasPrefix(why, "daily: ") {
		t.Errorf("the suspect one stays because of %q", why)
	}

	pg.Exec("TRUNCATE hurt")
	mended := take()
	if mended.Suspect || mended.Pages.Bad != 0 {
		t.Errorf("mended: %+v", mended)
	}
	if open := bad(); open != nil {
		t.Errorf("the incident is still open: %+v", open)
	}
	if why := reasons(mended.ID); !slices.Contains(why, "newest") {
		t.Errorf("the mended snapshot stays because of %q", why)
	}
}

func hasPrefix(list []string, prefix string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.HasPrefix(s, prefix) })
}

// flip flips a bit of a file.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := []byte{0}
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

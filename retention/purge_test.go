package retention

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

const cms = `
CREATE SCHEMA cms;
CREATE TABLE cms.project (id int PRIMARY KEY, name text NOT NULL, created_at timestamptz NOT NULL DEFAULT '2026-01-02 03:04:05Z');
CREATE TABLE cms.record (id int PRIMARY KEY, project_id int NOT NULL REFERENCES cms.project, body text);
CREATE TABLE cms.audit (project_id int, what text);
INSERT INTO cms.project VALUES (1, 'Acme'), (2, 'Bolt');
INSERT INTO cms.record SELECT i, 1 + i % 2, repeat('x', 100) FROM generate_series(1, 100) i;`

// purger is a rig with a real server as live, under lineage 2.
func purger(t *testing.T, pg *pgtest.Cluster) (*rig, *Purger, *pgx.Conn) {
	r := newRig(t, Policy{Daily: 1, KeepAtMost: 30 * day, RemovalGrace: day})
	keys, err := seal.NewDigestKeys(4)
	noErr(t, err)
	p := &Purger{
		Keeper: r.keeper, Layout: tenancy.Layout{Kind: tenancy.Rows, Database: "postgres", Root: "cms.project", Key: "id"},
		Registry: `SELECT id::text, name FROM cms.project`, Epoch: 4, Origin: "node-1", Memory: filepath.Join(t.TempDir(), "purges.json"),
		Keys: func(epoch int) (seal.DigestKeys, error) {
			if epoch != 4 {
				return seal.DigestKeys{}, errors.New("no such epoch")
			}
			return keys, nil
		},
	}
	conn := pg.Conn("postgres")
	_, err = conn.Exec(t.Context(), cms)
	noErr(t, err)
	return r, p, conn
}

func advanceOne(t *testing.T, p *Purger, conn *pgx.Conn) Purge {
	t.Helper()
	list, err := p.Advance(t.Context(), conn)
	noErr(t, err)
	if len(list) != 1 {
		t.Fatalf("%d purges", len(list))
	}
	return list[0]
}

// live is where the database of conn is, whose server took over from the rig's in lineage
// 2; ours makes a snapshot one of it, that begins at a place.
func (r *rig) live(conn *pgx.Conn) (at tenancy.Seen, ours func(lsn.LSN) func(*catalog.Snapshot)) {
	r.t.Helper()
	at, err := tenancy.Where(r.t.Context(), conn)
	noErr(r.t, err)
	r.note(catalog.LineageName("main", 2), catalog.KindLineage, catalog.Lineage{Cluster: "main", Epoch: 2, SystemID: at.SystemID, Timeline: 1, Parent: 1, ClaimedAt: noon.Add(-5 * day)})
	return at, func(from lsn.LSN) func(*catalog.Snapshot) {
		return func(s *catalog.Snapshot) {
			s.Epoch, s.SystemID, s.StartLSN, s.StopLSN = 2, at.SystemID, from, from+1000
		}
	}
}

func TestAPurgeEndsWithACertificateThatNamesEveryZone(t *testing.T) { // promise 7
	pg := pgtest.Start(t)
	r, p, conn := purger(t, pg)
	live, ours := r.live(conn)
	r.take(ago(6 * day))                 // of the system before
	r.take(ago(day, ours(live.LSN-100))) // with the project

	v, err := p.Preview(t.Context(), conn, "1")
	noErr(t, err)
	if v.Name != "Acme" || !v.LastActivity.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) || !slices.Equal(v.NotCovered, []string{"table cms.audit"}) ||
		!slices.Contains(v.Counts, catalog.Count{Table: "cms.record", Rows: 50}) || !v.Deadline.Equal(noon.Add(38*day)) {
		t.Errorf("preview %+v", v)
	}
	for key, typed := range map[string]string{"1": "Bolt", "3": "3", "2": ""} {
		if _, err := p.Request(t.Context(), conn, key, typed); err == nil {
			t.Errorf("project %s was requested by typing %q", key, typed)
		}
	}
	tomb, err := p.Request(t.Context(), conn, "1", "Acme")
	noErr(t, err)
	if again, err := p.Request(t.Context(), conn, "1", "1"); err != nil || again.ID != tomb.ID {
		t.Errorf("a second request: %v, %v", again.ID, err)
	}
	if one := advanceOne(t, p, conn); one.State != PurgeRequested || len(one.Zones) != 3 || one.Zones[0].Copies == 0 || one.LastCopyEnds.Before(noon.Add(29*day)) {
		t.Errorf("with rows in live: %+v", one)
	}
	emptyLive(t, p, conn)
	absent, err := p.Catalog.Absences(t.Context())
	noErr(t, err)
	clean := absent[tomb.ID].LSN
	if clean == 0 || absent[tomb.ID].Epoch != 2 {
		t.Fatalf("absent %+v", absent)
	}
	ageOut(t, r, p, ago(-time.Hour, ours(clean.SegmentStart(int64(seg))+seg+40)))
	want := []string{"tombstone main", "purge.absent main", "purge.statement main", "removal.intent main", "removal.result main", "certificate main"}
	if !slices.Equal(r.book.entries, want) {
		t.Errorf("ledger %v, want %v", r.book.entries, want)
	}
	reuse(t, p, conn)
}

// emptyLive deletes in live and vacuums, and looks at each step.
func emptyLive(t *testing.T, p *Purger, conn *pgx.Conn) {
	stop := errors.New("stop")
	if _, err := p.DeleteInLive(t.Context(), conn, "1", "Acme", func(Preview) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("the counts were not asked about: %v", err)
	}
	counts, err := p.DeleteInLive(t.Context(), conn, "1", "Acme", nil)
	noErr(t, err)
	if len(counts) != 2 {
		t.Errorf("deleted %v", counts)
	}
	for range 2 {
		if one := advanceOne(t, p, conn); one.State != PurgeResidue || len(one.Waiting) != 2 || one.Certificate != nil {
			t.Fatalf("before a vacuum: %+v", one)
		}
	}
	one := vacuumUntilAbsent(t, p, conn)
	if one.State != PurgeAgeing || !slices.ContainsFunc(one.Zones, func(z PurgeZone) bool { return z.Copies > 0 }) {
		t.Fatalf("after it: %+v", one)
	}
}

// vacuumUntilAbsent vacuums until the server's books have it: the statistics of what was
// deleted may reach them behind those of the vacuum, and then say until the next one
// that there are dead rows.
func vacuumUntilAbsent(t *testing.T, p *Purger, conn *pgx.Conn) Purge {
	t.Helper()
	one := advanceOne(t, p, conn)
	for until := time.Now().Add(time.Minute); one.State == PurgeResidue && time.Now().Before(until); one = advanceOne(t, p, conn) {
		_, err := conn.Exec(t.Context(), `VACUUM`)
		noErr(t, err)
	}
	return one
}

// ageOut lets the policy remove what holds the project, with a zone away for a while.
func ageOut(t *testing.T, r *rig, p *Purger, fresh catalog.Snapshot) {
	r.take(fresh)
	r.now = noon.Add(2 * time.Hour)
	r.apply()
	r.settle()
	r.now = r.now.Add(2 * day)
	noErr(t, os.Rename(r.dirs[1], r.dirs[1]+".away"))
	r.sweep()
	one := advanceOne(t, p, nil)
	if one.State != PurgeAgeing || one.Certificate != nil {
		t.Fatalf("with a zone away: %+v", one)
	}
	if s := one.Statement; s == nil || s.Phase != catalog.PhaseLogical || s.LedgerIndex == 0 || len(s.Zones) != 3 || s.Zones[0].Remaining == 0 || s.LastCopyEnds.IsZero() || len(s.Controls) == 0 {
		t.Errorf("the first phase: %+v", s)
	}
	if z := one.Zones[1]; z.Name != "z1" || len(z.BlockedBy) != 1 || !strings.Contains(z.BlockedBy[0], "did not answer") {
		t.Errorf("the zone that is away: %+v", z)
	}
	noErr(t, os.Rename(r.dirs[1]+".away", r.dirs[1]))
	r.run()
	r.settle()
	r.sweep()
	if shown, err := p.Show(t.Context(), one.Project, false); err != nil || shown[0].State != PurgeAgeing {
		t.Errorf("showing certifies: %+v, %v", shown, err)
	}
	one = advanceOne(t, p, nil)
	if one.State != PurgeDone || one.Certificate == nil || len(one.Certificate.Zones) != 3 || one.Certificate.LedgerIndex != 5 || one.Certificate.Supersedes != fmt.Sprint("node-1/", one.Statement.LedgerIndex) {
		t.Fatalf("at the end: %+v", one)
	}
	if again := advanceOne(t, p, nil); again.Certificate == nil || again.Certificate.IssuedAt != one.Certificate.IssuedAt {
		t.Errorf("certified again: %+v", again)
	}
}

// reuse creates a project under the deleted one's key: it is another one, and can
// be purged anew.
func reuse(t *testing.T, p *Purger, conn *pgx.Conn) {
	_, err := conn.Exec(t.Context(), `INSERT INTO cms.project VALUES (1, 'Acme again')`)
	noErr(t, err)
	if _, err := p.Request(t.Context(), conn, "1", "Acme again"); err != nil {
		t.Error(err)
	}
	if list, err := p.Advance(t.Context(), conn); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAKeyInUseAgainIsTold(t *testing.T) {
	pg := pgtest.Start(t)
	r, p, conn := purger(t, pg)
	r.take(ago(day))
	for _, set := range []*error{&r.book.before, &r.book.after} { // P1
		*set = errors.New("no quorum")
		if _, err := p.Request(t.Context(), conn, "1", "1"); err == nil {
			t.Fatal("requested without the ledger")
		}
		*set = nil
	}
	tombs, err := p.Catalog.Tombstones(t.Context(), "main")
	if noErr(t, err); len(tombs.List) > 0 {
		t.Fatal("a tombstone without the ledger")
	}
	_, err = p.Request(t.Context(), conn, "1", "1")
	noErr(t, err)
	if one := advanceOne(t, p, pg.Conn("template1")); one.State != PurgeRequested || !strings.Contains(fmt.Sprint(one.Waiting), "another database") {
		t.Errorf("looked for in a database that the configuration names by now: %+v", one)
	}
	emptyLive(t, p, conn)
	_, err = conn.Exec(t.Context(), `INSERT INTO cms.project VALUES (1, 'Acme again')`)
	noErr(t, err)
	if one := advanceOne(t, p, conn); !one.Reappeared || one.State != PurgeAgeing {
		t.Errorf("%+v", one)
	}
	r.now = noon.Add(60 * day)
	if one := advanceOne(t, p, nil); !one.Overdue {
		t.Errorf("%+v", one)
	}
}

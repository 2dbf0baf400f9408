package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func TestADatabaseHostHoldsNoKeyThatOpensDataOrItsCheckFails(t *testing.T) { // promise 3
	r := newRig(t, pgtest.Start(t), false)
	r.configure()
	r.daemon("db")
	if out := r.hold("db", 0, "check"); !strings.Contains(out, "nothing on this node opens data") {
		t.Errorf("check of a host without one:\n%s", out)
	}
	data := r.path("drill/data.key")
	r.mkdir("db/state/kept/deep")
	for _, place := range []string{"db/forgotten.txt", "db/state/kept/deep/key", "keys/old"} {
		for how, put := range map[string]func(string, string) error{"copied": copyKey, "linked": os.Symlink} {
			if err := put(data, r.path(place)); err != nil {
				t.Fatal(err)
			}
			if out := r.hold("db", 4, "check"); !strings.Contains(out, r.path(place)) {
				t.Errorf("check of a host with an identity %s to %s:\n%s", how, place, out)
			}
			if err := os.Remove(r.path(place)); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.hold("db", 0, "check")

	text := r.repository("db", "db") + "clusters:\n  - {name: cms, connection: \"" + r.pg.DSN("postgres") + "\"}\n"
	r.write("db/holdfast.yaml", strings.Replace(text, "index_identity: {file: "+r.path("keys/index"), "index_identity: {file: "+data, 1))
	if out := r.hold("db", 4, "check"); !strings.Contains(out, "repository.index_identity") {
		t.Errorf("check of a host whose index identity opens data:\n%s", out)
	}
	room := "environments:\n  - {name: here, directory: " + r.mkdir("rooms") + ", binaries: " + r.pg.BinDir() + ", identity: {file: " + data + "}}\n"
	r.write("db/holdfast.yaml", text+room)
	if out := r.hold("db", 4, "check"); !strings.Contains(out, "environments[0].identity") {
		t.Errorf("check of a host that is configured with one:\n%s", out)
	}
	r.write("db/holdfast.yaml", strings.Replace(text+room, "node: {", "node: {allow_identity: true, ", 1))
	if out := r.hold("db", 0, "check"); !strings.Contains(out, "allow_identity") {
		t.Errorf("check of a host that may have one:\n%s", out)
	}
}

func copyKey(from, to string) error {
	data, err := os.ReadFile(from)
	return errors.Join(err, os.WriteFile(to, append([]byte("# moved here for now\n"), data...), 0o600))
}

func TestTwoDaemonsAndACopyOfTheServerAreRefusedByTheLineage(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	r.daemon("db")
	oracle := pg.StartOracle(20 * time.Millisecond)
	r.hold("db", 0, "snapshot", "take", "cms")

	r.host("db2", pg.DSN("postgres"))
	r.refused("db2")

	r.host("db3", r.copied().DSN("postgres"))
	r.refused("db3")
	r.hold("db", 0, "snapshot", "take", "cms")
	r.untouched(oracle)
}

func TestACloneOfTheWholeHostArchivesNothingAndForksNoLedger(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	first := r.daemon("db")
	oracle := pg.StartOracle(20 * time.Millisecond)
	r.hold("db", 0, "snapshot", "take", "cms")
	first.stop()
	text, err := os.ReadFile(r.host("clone", r.copied().DSN("postgres")))
	err = errors.Join(err, os.CopyFS(r.path("clone/state"), os.DirFS(r.path("db/state"))))
	if err != nil {
		t.Fatal(err)
	}
	r.write("clone/holdfast.yaml", strings.Replace(string(text), "name: clone,", "name: db,", 1))
	r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	r.daemon("clone")
	if code, _, errs := r.try("clone", "snapshot", "take", "cms"); code != 1 || !strings.Contains(errs, "older than what was archived") {
		t.Errorf("a snapshot by the clone: exit %d\n%s", code, errs)
	}
	if list := ask[snapshotsDoc](r, "db", "snapshot", "list").Snapshots; len(list) != 2 {
		t.Errorf("%d snapshots, want the two of the host: %+v", len(list), list)
	}
	r.hold("db", 0, "snapshot", "take", "cms")
	r.untouched(oracle)
	r.hold("drill", 0, "ledger", "verify")
}

// copied runs a copy of the server, which goes its own way.
func (r *rig) copied() *pgtest.Cluster {
	r.t.Helper()
	dir := filepath.Join(r.pg.Mkdir("copy"), "data")
	r.pg.Backup(dir)
	c := r.pg.Adopt(dir)
	c.Start()
	c.Exec("CREATE TABLE only_in_the_copy (i int)")
	if r.pg.Port == c.Port || pgtest.Value[string](r.pg, systemID) != pgtest.Value[string](c, systemID) {
		r.t.Fatal("the copy is no copy")
	}
	return c
}

// untouched restores the end of the archive: what the server committed, nothing of
// who was refused.
func (r *rig) untouched(oracle *pgtest.Oracle) {
	t := r.t
	t.Helper()
	oracle.AwaitMore(5)
	acked := oracle.Stop()
	r.archived(zoneLetters...)
	r.soleWriter()
	r.restore("after")
	conn := r.connect(r.open("after"), "postgres")
	var strange bool
	err := conn.QueryRow(t.Context(), "SELECT to_regclass('only_in_the_copy') IS NOT NULL").Scan(&strange)
	if err := errors.Join(err, pgtest.CheckOracle(t.Context(), conn, acked, pgtest.Everything)); err != nil || strange {
		t.Errorf("what the refused ones wrote came back: %t, %v", strange, err)
	}
}

const systemID = "SELECT system_identifier::text FROM pg_control_system()"

// refused starts a daemon that must not write the cluster, and sees that it says so
// to who asks, and by itself.
func (r *rig) refused(node string) {
	r.t.Helper()
	before := r.written()
	d := r.daemon(node)
	const why = "showed life"
	if code, _, errs := r.try(node, "snapshot", "take", "cms"); code != 1 || !strings.Contains(errs, why) || !strings.Contains(errs, "node db ") {
		r.t.Errorf("a snapshot by %s: exit %d\n%s", node, code, errs)
	}
	await(r.t, "the incident of "+node, func() bool {
		return slices.ContainsFunc(ask[incidentsDoc](r, node, "incident", "list").Incidents, func(i incident.Incident) bool {
			return i.Key == "archiving/cms" && i.ClosedAt.IsZero() && strings.Contains(i.Detail, why)
		})
	})
	d.stop()
	if code, _, errs := r.try(node, "snapshot", "take", "cms"); code != 1 || !strings.Contains(errs, why) {
		r.t.Errorf("a snapshot by %s without its daemon: exit %d\n%s", node, code, errs)
	}
	if n := r.written(); n != before {
		r.t.Errorf("%s wrote: %d snapshots and claims, before %d", node, n, before)
	}
}

// written counts what only the holder of the lineage may write, but for WAL.
func (r *rig) written() int {
	return files(r.path("zones/a/clusters/cms/snapshots")) + files(r.path("zones/a/clusters/cms/lineages"))
}

// soleWriter sees that all WAL is of the first lineage and by its node.
func (r *rig) soleWriter() {
	r.t.Helper()
	for _, z := range zoneLetters {
		epochs, err := os.ReadDir(r.path("zones/" + z + "/clusters/cms/wal"))
		if err != nil || len(epochs) != 1 {
			r.t.Errorf("zone %s has WAL of %d lineages (%v)", z, len(epochs), err)
		}
	}
	list := ask[struct {
		Lineages []catalog.Lineage `json:"lineages"`
	}](r, "db", "lineage", "list", "cms").Lineages
	if len(list) != 1 || list[0].Node != "db" {
		r.t.Errorf("lineages: %+v", list)
	}
}

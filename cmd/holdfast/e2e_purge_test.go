package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/retention"
)

const tenants = `
CREATE SCHEMA cms;
CREATE TABLE cms.project (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE cms.record (id int PRIMARY KEY, project_id int NOT NULL REFERENCES cms.project, body text);
CREATE TABLE cms.comment (id int PRIMARY KEY, record_id int NOT NULL REFERENCES cms.record, body text);
INSERT INTO cms.project SELECT i, 'project ' || i FROM generate_series(1, 10) i;
INSERT INTO cms.record SELECT i, 1 + i % 10, repeat('x', 100) FROM generate_series(1, 1000) i;
INSERT INTO cms.comment SELECT i, 1 + i % 1000, repeat('y', 100) FROM generate_series(1, 3000) i;`

// shortLived lets a snapshot go as soon as there is a newer one, and its packs when
// no newer one may refer to them any more.
const shortLived = `    retention: {window: 1s, daily: 1, keep_at_least: 1s, keep_at_most: 2m, renew_after: 40s, removal_grace: 1s}
` + tenantProjects + `      purge: {within: 1h, grace: 1s}
`

// tenantProjects says where the projects of tenants are.
const tenantProjects = `    projects:
      layout: rows
      registry: "SELECT id::text, name FROM cms.project"
      rows: {database: postgres, root: cms.project, key: id}
`

func TestProjectsAreMeasuredWhileRetentionRuns(t *testing.T) {
	pg := pgtest.Start(t)
	pg.Exec(tenants)
	r := newRig(t, pg, false)
	r.cluster = shortLived
	r.configure()
	n := r.node()
	n.keeping.Lock()
	defer n.keeping.Unlock()
	measured := make(chan string, 1)
	go func() {
		list, err := n.projectList(t.Context(), projectsIn{Cluster: "cms", Sizes: true})
		one, oneErr := n.projectShow(t.Context(), projectIn{"cms", "7"})
		measured <- fmt.Sprintf("%d %v %s %v", len(list.Projects), err, one.Name, oneErr)
	}()
	select {
	case got := <-measured:
		if got != "10 <nil> project 7 <nil>" {
			t.Errorf("measured %s", got)
		}
	case <-time.After(patience):
		t.Error("measuring projects waits for retention")
	}
}

func TestADeletedProjectComesBackInNoRestoreAndIsCertifiedOnceItsLastCopyIsGone(t *testing.T) { // promise 7
	pg := pgtest.Start(t)
	pg.Exec(tenants)
	r := newRig(t, pg, false)
	r.cluster = shortLived
	r.configure()
	r.daemon("db")
	with := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	r.copies(with)
	deleted := ask[deletedDoc](r, "db", "project", "delete", "cms", "7", "--in-live", "--yes")
	if len(deleted.InLive) != 3 || deleted.State != retention.PurgeResidue {
		t.Fatalf("deleted: %+v", deleted)
	}
	r.hold("db", 4, "purge", "certificate", deleted.Tombstone)

	r.absent(deleted.Tombstone, with)
	var one retention.Purge
	await(t, "a vacuum that the server's books say left no dead rows", func() bool {
		pg.Exec("VACUUM")
		one = r.advance(deleted.Tombstone)
		return one.State != retention.PurgeResidue
	})
	if one.State != retention.PurgeAgeing || one.Certificate != nil {
		t.Fatalf("after a vacuum: %+v", one)
	}
	r.stated(deleted.Tombstone)
	without := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	r.ageing(deleted.Tombstone, with, without)
	await(t, "the certificate", func() bool {
		without = ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
		r.hold("db", 0, "retention", "apply", "cms", "--force")
		one = r.advance(deleted.Tombstone)
		return one.Certificate != nil
	})
	r.certified(one, with, without)
}

// ageing lets retention forget the snapshot that has the project, while a newer one
// still needs packs of it: pages of the project lie in those, dead to everybody.
func (r *rig) ageing(tombstone, with, without string) {
	r.t.Helper()
	dir := r.path("zones/a/clusters/cms/snapshots/")
	await(r.t, "the end of the forgotten snapshot", func() bool {
		r.hold("db", 0, "retention", "apply", "cms", "--force")
		_, err := os.Stat(filepath.Join(dir, with, "manifest.age"))
		return os.IsNotExist(err)
	})
	list, err := os.ReadFile(filepath.Join(dir, without, "objects.list"))
	if err != nil {
		r.t.Fatal(err)
	}
	if n := files(filepath.Join(dir, with, "packs")); n == 0 || !strings.Contains(string(list), "/"+with+"/packs/") {
		r.t.Errorf("zone a has %d packs of snapshot %s, which snapshot %s needs: there is nothing to wait for", n, with, without)
	}
	if one := r.advance(tombstone); one.Certificate != nil || !slices.Contains(one.Zones[0].BlockedBy, "snapshot "+with) {
		r.t.Errorf("with packs of the project in zone a: %+v", one)
	}
	r.restore("needs-both", "--snapshot", without, "--immediate")
}

// absent restores the snapshot that has the project, watching who may connect
// meanwhile, and looks for the project.
func (r *rig) absent(tombstone, snapshot string) {
	r.t.Helper()
	to := r.path("with")
	stop := r.watchSockets(to)
	got := r.restore("with", "--snapshot", snapshot, "--immediate")
	stop()
	at := r.open("with")
	i := slices.IndexFunc(got.Tombstones, func(a restore.AppliedTombstone) bool { return a.ID == tombstone })
	if i < 0 || !got.Tombstones[i].Found {
		r.t.Errorf("the restore says of tombstones %+v", got.Tombstones)
	}
	var gone, others, records, comments int
	err := r.connect(at, "postgres").QueryRow(r.t.Context(), `SELECT (SELECT count(*) FROM cms.project WHERE id = 7), (SELECT count(*) FROM cms.project),
		(SELECT count(*) FROM cms.record), (SELECT count(*) FROM cms.comment)`).Scan(&gone, &others, &records, &comments)
	if err != nil || gone != 0 || others != 9 || records != 900 || comments != 2700 {
		r.t.Errorf("the restored copy has %d of the deleted project, %d projects, %d records, %d comments (%v)", gone, others, records, comments, err)
	}
}

// copies are made before the deletion: one is left, one is removed, one leaves.
func (r *rig) copies(snapshot string) {
	r.t.Helper()
	for _, name := range []string{"left", "removed"} {
		r.restore(name, "--snapshot", snapshot, "--immediate")
	}
	r.hold("drill", 0, "restore", "discard", r.path("removed"))
	r.hold("db", 0, "project", "export", "cms", "7", "--out", r.path("export"))
	r.hold("db", 0, "project", "export", "cms", "8", "--out", r.path("another's"))
}

// stated looks at the first phase of the certificate, in each of its forms.
func (r *rig) stated(tombstone string) {
	r.t.Helper()
	first := ask[catalog.Certificate](r, "db", "purge", "certificate", tombstone, "--phase", "1")
	if first.Phase != catalog.PhaseLogical || len(first.Zones) != 3 || first.Zones[0].Remaining == 0 || first.LastCopyEnds.IsZero() || first.Subject.KeyMAC == "" {
		r.t.Errorf("the first phase: %+v", first)
	}
	r.lists(first)
	page := r.hold("db", 0, "purge", "certificate", tombstone, "--phase", "1", "--format", "html")
	text := r.hold("db", 0, "purge", "certificate", tombstone, "--phase", "1")
	for _, said := range []string{"phase 1 of 2", "out of reach", "project.exported", "by its tombstone"} {
		if !strings.Contains(page, said) || !strings.Contains(text, said) {
			r.t.Errorf("%q is not in the page, or not in the text:\n%s\n%s", said, page, text)
		}
	}
	if _, _, errs := r.try("db", "purge", "certificate", tombstone); !strings.Contains(errs, "--phase 1") {
		r.t.Errorf("the final phase before its time: %s", errs)
	}
}

// lists wants each copy that was made, and no other project's.
func (r *rig) lists(c catalog.Certificate) {
	r.t.Helper()
	var got []string
	for _, m := range c.Copies {
		got = append(got, m.What+" "+m.State)
	}
	if want := []string{"project.exported out of reach", "restore.finished cleared", "restore.finished out of reach", "restore.finished removed"}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		r.t.Errorf("copies %q, want %q", got, want)
	}
}

// advance moves every purge on, as the daemon does once a minute: a request for
// another project that was requested already does nothing else.
func (r *rig) advance(tombstone string) retention.Purge {
	r.t.Helper()
	r.hold("db", 0, "project", "delete", "cms", "8", "--yes")
	return ask[retention.Purge](r, "db", "purge", "show", tombstone)
}

func (r *rig) certified(one retention.Purge, with, without string) {
	r.t.Helper()
	cert := ask[catalog.Certificate](r, "db", "purge", "certificate", one.Project)
	var named []string
	for _, z := range cert.Zones {
		named = append(named, z.Name)
		if z.Remaining != 0 || z.ListedAt.IsZero() || z.Versions == 0 {
			r.t.Errorf("the certificate says of zone %+v", z)
		}
	}
	if cert.Phase != catalog.PhaseFinal || !strings.Contains(cert.Supersedes, "/") || len(cert.Copies) < 4 {
		r.t.Errorf("the final phase: %+v", cert)
	}
	if page := r.hold("db", 0, "purge", "certificate", one.Project, "--format", "html"); !strings.Contains(page, "none is left") {
		r.t.Errorf("the page:\n%s", page)
	}
	if slices.Sort(named); !slices.Equal(named, zoneLetters) || cert.Tombstone != one.Project {
		r.t.Errorf("the certificate names zones %v: %+v", named, cert)
	}
	for _, z := range zoneLetters {
		dir := r.path("zones/" + z + "/clusters/cms/snapshots/")
		if n := files(filepath.Join(dir, with)); n != 0 {
			r.t.Errorf("zone %s still has %d files of snapshot %s", z, n, with)
		}
		if files(filepath.Join(dir, without)) == 0 {
			r.t.Errorf("zone %s has nothing of snapshot %s", z, without)
		}
	}
}

// watchSockets looks, until stop, at what the server over a data directory listens
// on while it is restored: only a Unix socket in a directory of its user alone.
func (r *rig) watchSockets(dataDir string) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	private, faults := map[string]bool{}, map[string]bool{}
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, s := range listening(dataDir) {
				info, err := os.Stat(filepath.Dir(s))
				switch {
				case strings.HasPrefix(s, "tcp"):
					faults[s] = true
				case err == nil && info.Mode().Perm()&0o077 != 0:
					faults[fmt.Sprintf("%s (%v)", s, info.Mode())] = true
				default:
					private[s] = true
				}
			}
			select {
			case <-quit:
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		r.t.Helper()
		close(quit)
		<-done
		if len(faults) > 0 || len(private) != 1 {
			r.t.Errorf("during the restore the server listened on %v, and on %v", private, faults)
		}
	}
}

// acceptsConnections is __SO_ACCEPTCON of Linux (include/uapi/linux/net.h).
const acceptsConnections = 1 << 16

// listening are the sockets on which processes over a data directory listen, in
// the processes' own network namespace: a path, or tcp with a port.
func listening(dataDir string) (out []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range dirs {
		if cwd, err := os.Readlink(p + "/cwd"); err != nil || cwd != dataDir {
			continue
		}
		held := map[string]bool{}
		fds, _ := filepath.Glob(p + "/fd/*")
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
				held[strings.Trim(to, "socket:[]")] = true
			}
		}
		table := func(name string) [][]string {
			text, _ := os.ReadFile(p + "/net/" + name)
			var rows [][]string
			for line := range strings.Lines(string(text)) {
				rows = append(rows, strings.Fields(line))
			}
			return rows
		}
		for _, row := range append(table("tcp"), table("tcp6")...) {
			if len(row) > 9 && row[3] == "0A" && held[row[9]] {
				out = append(out, "tcp "+row[1])
			}
		}
		for _, row := range table("unix") {
			if len(row) < 8 || !held[row[6]] {
				continue
			}
			if flags, err := strconv.ParseUint(row[3], 16, 32); err == nil && flags&acceptsConnections != 0 {
				out = append(out, row[7])
			}
		}
	}
	return out
}

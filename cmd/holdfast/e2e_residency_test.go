package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func TestWhatResidencyForbidsIsKeptOutOfZonesRestoresAndDrills(t *testing.T) {
	pg := pgtest.Start(t)
	pg.Exec(tenants)
	r := newRig(t, pg, false)
	for z, where := range map[string]string{"a": "EU", "b": "EU", "c": "US"} {
		r.zones = strings.Replace(r.zones, "{name: "+z+",", "{name: "+z+", jurisdiction: "+where+",", 1)
	}
	r.zones += "  accept_stop_on_zone_loss: true\n"
	r.cluster += "    residency: {forbid: [US]}\n" + tenantProjects
	r.configure()
	for _, env := range []string{"us", "eu"} {
		r.mkdir(env)
	}
	// The restore node's configuration says nothing of residency: the signed record does.
	drill := r.repository("drill", "drill") + "clusters:\n  - {name: cms}\nenvironments:\n" +
		"  - {name: overseas, jurisdiction: US, directory: " + r.path("us") + ", identity: {file: " + r.path("drill/data.key") + "}}\n" +
		"  - {name: home, jurisdiction: EU, directory: " + r.path("eu") + "}\n" +
		"drills:\n  - {name: weekly, cluster: cms, environment: overseas, level: L1}\n"
	r.write("drill/holdfast.yaml", drill)
	daemon := r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	r.archived("a", "b")

	doc := ask[placementsDoc](r, "db", "zone", "placement")
	if !doc.OK || len(doc.Clusters) != 1 || doc.Clusters[0].Record == nil || doc.Clusters[0].Record.Forbid[0] != "US" {
		t.Fatalf("placement %+v", doc)
	}
	for _, z := range doc.Clusters[0].Zones {
		if kept := z.Name == "c"; kept != (z.Versions == 0) || kept != (z.Refused != "") {
			t.Errorf("zone %s in %s holds %d versions, refused %q", z.Name, z.Jurisdiction, z.Versions, z.Refused)
		}
	}
	if n := files(filepath.Join(r.path("zones/c"), "clusters")); n > 0 {
		t.Errorf("zone c holds %d objects of the cluster", n)
	}
	refusedIn := func(node, place string, args ...string) {
		t.Helper()
		code, out, errs := r.try(node, args...)
		if code != exitRefused || !strings.Contains(errs, "cms") || !strings.Contains(errs, place) {
			t.Errorf("%s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
		}
	}
	how := []string{"--identity", r.path("drill/data.key"), "--binaries", r.pg.BinDir()}
	run := func(to string) []string { return append([]string{"restore", "run", "cms", "--to", to}, how...) }
	refusedIn("drill", "overseas (US)", run(r.path("us/copy"))...)
	refusedIn("drill", "its jurisdiction is not said", run(r.path("elsewhere"))...)
	refusedIn("drill", "overseas of drill weekly (US)", "drill", "run", "weekly")
	refusedIn("db", "its jurisdiction is not said", append([]string{"project", "restore", "cms", "7", "--into", "live", "--dry-run", "--to", r.path("beside")}, how...)...)
	r.restore("eu/copy")
	r.hold("drill", 0, append(run(r.path("eu/half")), "--fetch-only")...)
	r.write("drill/holdfast.yaml", strings.Replace(drill, "home, jurisdiction: EU", "home, jurisdiction: US", 1))
	refusedIn("drill", "home (US)", append([]string{"restore", "resume", r.path("eu/half")}, how...)...)
	r.hold("drill", 0, "restore", "discard", r.path("eu/half"))
	daemon.stop()

	bad := r.path("db/bad.yaml")
	r.write("db/bad.yaml", strings.Replace(r.repository("db", "db"), "node: {", "node: {jurisdiction: US, ", 1)+
		"clusters:\n  - name: cms\n    connection: host=x\n"+r.cluster)
	code, out, errs := r.try("", "--config", bad, "config", "validate")
	if code != exitUsage || !strings.Contains(out+errs, "node.jurisdiction") || !strings.Contains(out+errs, "residency") {
		t.Errorf("a node where the cluster must not be: exit %d\n%s%s", code, out, errs)
	}
}

func TestComplianceIsConfirmedOnceByTypingTheZonesName(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, true)
	r.zones += "  object_lock: {mode: compliance}\n"
	r.cluster = "    retention: {window: 10s, daily: 0, keep_at_least: 10s, keep_at_most: 10m, removal_grace: 1s, renew_after: 1m}\n"
	r.host("db", r.pg.DSN("postgres"))
	told := func(want int, part string, args ...string) {
		t.Helper()
		code, out, errs := r.try("db", args...)
		if code != want || !strings.Contains(out+errs, part) {
			t.Fatalf("%s: exit %d, want %d with %q\n%s%s", strings.Join(args, " "), code, want, part, out, errs)
		}
	}
	told(exitRefused, "zone confirm a", "init")
	if n := len(versionsIn(t, r.s3[0], "")); n > 0 {
		t.Errorf("%d objects were written before it was confirmed", n)
	}
	told(exitRefused, "type the zone's name", "zone", "confirm", "a", "--typed", "b")
	for _, z := range zoneLetters {
		r.hold("db", 0, "zone", "confirm", z, "--typed", z)
	}
	r.hold("db", 0, "init")
	r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	if out := r.hold("db", 0, "ledger", "show", "--type", "zone.compliance"); strings.Count(out, "zone.compliance") < len(zoneLetters) {
		t.Errorf("the ledger does not tell of it:\n%s", out)
	}
}

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

// Buckets with locks of seconds, one of which dies in the middle of a removal and comes
// back, and then comes back once more as it was before. The oracle is each bucket's own
// listing of versions and delete markers.
func TestARemovalReachesEveryVersionInEveryZoneAndAZoneBackFromTheDead(t *testing.T) { // promises 2, 6
	pg := pgtest.Start(t)
	r := newRig(t, pg, true)
	r.zones += "  object_lock: {mode: governance}\n"
	r.cluster = "    retention: {window: 8s, daily: 0, keep_at_least: 8s, keep_at_most: 10m, removal_grace: 1s, renew_after: 1m}\n"
	r.configure()
	r.daemon("db")
	first := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	for _, s := range r.s3 {
		for _, key := range versionsIn(t, s, first+"/packs/") {
			zonetest.Vandalise(t, s, key)
		}
		if len(versionsIn(t, s, first+"/snapshot.note")) == 0 {
			await(t, "the first snapshot in every zone", func() bool { return len(versionsIn(t, s, first+"/snapshot.note")) > 0 })
		}
	}
	lost := r.s3[2]
	lost.Kill()
	old := r.image(lost)
	lost.Start()
	r.zonesUp()
	second := ask[snapshotDoc](r, "db", "snapshot", "take", "--full", "cms").ID

	var marked bool
	await(t, "the first snapshot to be let go", func() bool {
		for _, id := range ask[applied](r, "db", "retention", "apply", "--force", "cms").Marked {
			marked = marked || id == first
		}
		return marked
	})
	held := len(versionsIn(t, lost, first))
	if held == 0 {
		t.Fatal("zone c held nothing of the first snapshot")
	}
	begun, swept := make(chan bool), make(chan bool)
	go func() { // a sweep that comes before the locks have ended removes nothing
		defer close(swept)
		for {
			select {
			case <-begun:
				return
			case <-t.Context().Done():
				return
			default:
				r.try("db", "retention", "apply", "--force", "cms")
			}
		}
	}()
	await(t, "the removal to begin", func() bool { return len(versionsIn(t, r.s3[0], first)) < held })
	close(begun)
	lost.Kill()
	<-swept
	gone := func(s *zonetest.S3Server) bool {
		r.try("db", "retention", "apply", "--force", "cms")
		return len(versionsIn(t, s, first)) == 0
	}
	await(t, "all versions and markers gone from zone a", func() bool { return gone(r.s3[0]) })
	await(t, "all versions and markers gone from zone b", func() bool { return gone(r.s3[1]) })
	lost.Start()
	await(t, "the removal to be driven on in zone c", func() bool { return gone(lost) })

	away := func() bool { return strings.Contains(r.hold("db", 0, "incident", "list"), "zone c does not answer") }
	await(t, "the daemon to see that zone c is back", func() bool { return !away() })
	lost.Kill() // and back from the dead, as it was before all of this
	await(t, "the daemon to see that zone c is away", away)
	r.swap(lost, old)
	if len(filesWith(filepath.Join(lost.DataDir, lost.Bucket), first)) == 0 {
		t.Fatal("the old image shows nothing of the first snapshot")
	}
	lost.Start()
	await(t, "the marks in zone c", func() bool { return len(versionsIn(t, lost, "/forgotten/")) > 0 })
	await(t, "zone c without what was removed while it was dead", func() bool { return gone(lost) })
	for _, s := range r.s3 {
		await(t, "the second snapshot in every zone", func() bool { return len(versionsIn(t, s, second+"/snapshot.note")) > 0 })
	}
	if list := r.hold("db", 0, "snapshot", "list"); strings.Contains(list, first) || !strings.Contains(list, second) {
		t.Errorf("listed:\n%s", list)
	}
	r.hold("db", 0, "ledger", "show", "--type", "removal.result")
	r.restore("second", "--snapshot", second)
}

// zonesUp waits until the daemon sees every zone, and owes none anything.
func (r *rig) zonesUp() {
	r.t.Helper()
	await(r.t, "all zones whole", func() bool {
		for _, z := range ask[statusDoc](r, "db", "status").Zones {
			if z.State != "up" || z.Behind > 0 {
				return false
			}
		}
		return true
	})
}

// image is a copy of all that a stopped server holds.
func (r *rig) image(s *zonetest.S3Server) string {
	r.t.Helper()
	to := r.path("image")
	if out, err := exec.CommandContext(r.t.Context(), "cp", "-a", filepath.Dir(s.DataDir), to).CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	return to
}

// swap puts an image in the place of what a stopped server holds.
func (r *rig) swap(s *zonetest.S3Server, image string) {
	r.t.Helper()
	for _, dir := range []string{"data", "versions"} {
		now := filepath.Join(filepath.Dir(s.DataDir), dir)
		if err := os.RemoveAll(now); err != nil {
			r.t.Fatal(err)
		}
		if out, err := exec.CommandContext(r.t.Context(), "cp", "-a", filepath.Join(image, dir), now).CombinedOutput(); err != nil {
			r.t.Fatalf("%v: %s", err, out)
		}
	}
}

// filesWith are the files below a directory whose path has a part.
func filesWith(dir, part string) (out []string) {
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.Contains(path, part) {
			out = append(out, path)
		}
		return nil
	})
	return out
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// notesOfProbes are the signed results in zone a, by the zone that was tried.
func (r *rig) notesOfProbes(zone string) int {
	r.t.Helper()
	list, err := filepath.Glob(r.path("zones/a/proofs/*/probe-" + zone + "-*.note"))
	must(r.t, err)
	return len(list)
}

func TestZonesAreTriedAgainByThemselvesAndByOrder(t *testing.T) {
	r := newRig(t, pgtest.Start(t), false)
	r.configure()
	func() {
		n := r.node()
		next, err := n.probeDue(t.Context(), 7*24*time.Hour)
		must(t, err)
		if next > firstProbe || r.notesOfProbes("a") > 0 {
			t.Errorf("a new node: the next probe in %s, and %d were made", next, r.notesOfProbes("a"))
		}
		if _, err = n.probeDue(t.Context(), time.Nanosecond); err != nil { // their turn came within the hour
			t.Fatal(err)
		}
		for _, z := range zoneLetters {
			if got := r.notesOfProbes(z); got != 1 {
				t.Errorf("zone %s was tried %d times", z, got)
			}
		}
		if next, err = n.probeDue(t.Context(), time.Hour); err != nil || next < 59*time.Minute || r.notesOfProbes("a") != 1 {
			t.Errorf("just tried: the next in %s, %d made, %v", next, r.notesOfProbes("a"), err)
		}
		must(t, os.WriteFile(n.state("probes.json"), []byte("{"), 0o600))
		if _, err = n.probeDue(t.Context(), time.Hour); err == nil || !strings.Contains(err.Error(), "probes.json") {
			t.Errorf("of a torn file: %v", err)
		}
		must(t, os.Remove(n.state("probes.json")))
		must(t, n.close())
	}()
	r.daemon("db")
	if text := r.hold("db", 0, "zone", "probe", "b"); !strings.Contains(text, "zone b (recorded in proofs/") || strings.Contains(text, "zone a") {
		t.Errorf("beside the daemon:\n%s", text)
	}
	if a, b := r.notesOfProbes("a"), r.notesOfProbes("b"); a != 1 || b != 2 {
		t.Errorf("beside the daemon a was tried %d times, b %d", a, b)
	}
}

func TestAZoneThatDoesNotDoWhatItMustIsToldAndClosedAgain(t *testing.T) {
	_, tending := tend(t, time.Hour)
	n := tending.n
	c := configs.Zone{Name: "a", ObjectLock: "governance"}
	seen := zone.ProbeResult{Zone: "a", ConditionalCreate: true, ListAfterWrite: true, RangeRead: true, ChecksumRefused: true, Lock: "governance", ShorteningRefused: true}
	worse := seen
	worse.Lock, worse.ConditionalCreate = "none", false
	for range 2 {
		n.tellProbe(t.Context(), probeDocument{ProbeResult: worse, Findings: judgeProbe(c, worse)})
		told := tending.open(t)["zone-behaviour/a"]
		if !strings.Contains(told, "conditional create: ") || !strings.Contains(told, "object lock: governance is configured, and the store was seen to do: none") {
			t.Errorf("told: %q", told)
		}
		n.tellProbe(t.Context(), probeDocument{ProbeResult: seen, Findings: judgeProbe(c, seen)})
		slow := seen
		slow.Lock, slow.NotAssessed = zone.LockUnknown, []string{"locks: the zone answered too slowly to try within the lock"}
		n.tellProbe(t.Context(), probeDocument{ProbeResult: slow, Findings: judgeProbe(c, slow)})
		if open := tending.open(t); len(open) > 0 {
			t.Errorf("a zone that does what it must: %v", open)
		}
	}
}

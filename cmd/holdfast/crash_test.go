package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// The named points, each a place that a real run comes by: "N REGEXP" as in
// crash_points.go. Each write is one in each of three zones, two of which make it
// count.
var (
	takePoints = []crashAtPoint{
		{"before a snapshot's intent", "1 ^before create .*/intent\\.note$"},
		{"after the first pack in one zone", "1 ^after create .*/packs/"},
		{"before the manifest", "1 ^before create .*/manifest\\.age$"},
		{"before the note that commits a snapshot", "1 ^before create .*/snapshot\\.note$"},
		{"after that note in one zone", "1 ^after create .*/snapshot\\.note$"},
		{"after a snapshot, before its job is settled", "1 ^after snapshot$"},
	}
	walPoints = []crashAtPoint{
		{"after spooling WAL, before its object", "1 ^before create .*/wal/.*-[0-9a-f]{32}\\.age$"},
		{"after a WAL object in one zone", "1 ^after create .*/wal/.*-[0-9a-f]{32}\\.age$"},
		{"after a WAL index in one zone", "1 ^after create .*/wal/.*\\.idx\\.age$"},
		{"after a WAL note in a quorum", "2 ^after create .*/wal/.*\\.note$"},
		{"after the ledger's entries, before their checkpoint", "1 ^before create ledger/.*/checkpoint/"},
	}
	keepPoints = []crashAtPoint{
		{"after the forgotten mark in one zone", "1 ^after create forgotten/"},
		{"in the midst of removal", "5 ^after remove .*/snapshots/"},
		{"before WAL's note is removed", "1 ^before remove .*/wal/.*\\.note$"},
	}
	drillPoints = []crashAtPoint{
		{"while a drill fetches", "1 ^during drill .*fetch"},
		{"while a drill replays", "1 ^during drill .*replay"},
		{"after a drill's outcome, before its proof", "1 ^before create proofs/"},
		{"after a drill, before its job is settled", "1 ^after drill$"},
	}
)

type crashAtPoint struct{ name, at string }

// seeded is how many kills a seed gives: each at the k-th event of all of those.
const seeded = 10

func TestKilledAnywhereItLosesNothing(t *testing.T) { // promises 1, 8
	w := newCrashWorld(t)
	w.start("")
	w.recovered("nothing")
	w.stopped()
	all := []func() error{w.takeSnapshot, w.retention, w.runDrill}
	for _, group := range []struct {
		name    string
		points  []crashAtPoint
		provoke []func() error
	}{
		{"take", takePoints, []func() error{w.takeSnapshot}},
		{"wal", walPoints, nil},
		{"drill", drillPoints, []func() error{w.runDrill}},
		{"keep", keepPoints, []func() error{w.takeSnapshot, w.retention}},
		{"seed", seededPoints(t), all},
	} {
		began := time.Now()
		for _, p := range group.points {
			w.start(p.at)
			at := w.killed(p.name, group.provoke...)
			w.start("")
			w.recovered(p.name)
			w.stopped()
			t.Logf("%s (%s): %.1f s", p.name, at, time.Since(began).Seconds())
			began = time.Now()
		}
		w.start("")
		w.recovered(group.name)
		w.proven(group.name)
		w.stopped()
		t.Logf("%s proven: %.1f s", group.name, time.Since(began).Seconds())
	}
	w.stopsInTheMidst()
}

// What runs longer than a stop may take is left for the next start.
func (w *crashWorld) stopsInTheMidst() {
	w.settle("limits: {upload: 200KiB/s}, ", "SELECT pg_sleep(60) IS NOT NULL")
	w.start("")
	w.busy()
	w.stopped()
	w.nothingLeft("a stop")
	w.settle("", "SELECT count(*) > 0 FROM oracle")
	w.start("")
	w.recovered("a stop")
	w.proven("stop")
	w.stopped()
}

// seededPoints kills at events that a seed chooses.
func seededPoints(t *testing.T) (out []crashAtPoint) {
	random := rand.New(rand.NewPCG(seedOf(t), 0))
	for range seeded {
		n := 1 + random.IntN(250)
		out = append(out, crashAtPoint{fmt.Sprintf("event %d", n), fmt.Sprintf("%d ^(before|after) ", n)})
	}
	return out
}

// seedOf is a seed of the moment, said aloud; HOLDFAST_SEED repeats one.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("HOLDFAST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("HOLDFAST_SEED: %v", err)
		}
	}
	t.Logf("HOLDFAST_SEED=%d", seed)
	return seed
}

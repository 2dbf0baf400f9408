package main

import (
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// What the soak promises for commits that nobody waited for: each that was
// acknowledged more than soakLag and soakWrite before the host was gone comes
// back. soakWrite allows for one write to the quorum while a zone is ill and the
// machine is shared.
const (
	soakLag   = 500 * time.Millisecond // wal.max_lag
	soakWrite = 3 * time.Second
)

// Promises 1, 2 and 5: pgbench and writers run on while server, daemon and zones
// are killed, hung, cut off and made to answer nonsense in an order that a seed
// chooses. Then the host is gone with all its files, one zone with it, and what the
// others hold is restored and held against what was acknowledged. HOLDFAST_SOAK is
// how long both modes take together.
func TestSoakOfKillsLosesNoCommitThatWasPromised(t *testing.T) {
	total := time.Minute
	if text := os.Getenv("HOLDFAST_SOAK"); text != "" {
		var err error
		if total, err = time.ParseDuration(text); err != nil {
			t.Fatalf("HOLDFAST_SOAK: %v", err)
		}
	}
	seed := seedOf(t)
	for i, mode := range []string{"commits older than max_lag", "every commit, with the daemon as synchronous standby"} {
		t.Run(mode, func(t *testing.T) {
			w := newSoakWorld(t, rand.New(rand.NewPCG(seed, uint64(i))), i == 1)
			w.soak(total / 2)
			w.settled()
			w.recovered(w.disaster())
		})
	}
}

// soak draws from a deck of troubles until the time is up. Timers are the clock of
// this workload: they say when the next trouble comes, and no answer waits for them.
func (w *soakWorld) soak(during time.Duration) {
	ctx, cancel := context.WithTimeout(w.t.Context(), during)
	defer cancel()
	var deck []trouble
	for ctx.Err() == nil {
		if len(deck) == 0 {
			deck = w.troubles()
			w.random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		next := deck[0]
		deck = deck[1:]
		began := time.Now()
		next.do()
		w.t.Logf("%s: %.1f s; %d commits acknowledged", next.name, time.Since(began).Seconds(), w.writers.count())
		w.alive()
		pause(ctx, time.Duration(w.random.Int64N(int64(1500*time.Millisecond))))
	}
}

type trouble struct {
	name string
	do   func()
}

// troubles is a deck; what is in it twice comes twice as often.
func (w *soakWorld) troubles() []trouble {
	zone := trouble{"a zone falls ill, or is well again", w.oneZone}
	server := trouble{"the server is killed", w.killServer}
	daemon := trouble{"the daemon is killed", w.killDaemon}
	return []trouble{
		zone, zone, zone, zone, zone, zone, server, server, daemon, daemon,
		{"server and daemon are killed", func() { w.killDaemonDuring(w.killServer) }},
		{"the standby is killed", func() { w.standby.Kill(); w.standby.Start() }},
		{"a switchover", w.switchOver},
		{"two zones are ill at once", w.twoZones},
		{"the daemon is killed, and the server recycles WAL", func() { w.killDaemonDuring(w.recycle) }},
		{"a snapshot is ordered", func() { _, _ = callDaemon(w.rig, opSnapshotTake, takeIn{Cluster: "cms"}) }},
	}
}

func (w *soakWorld) killServer() {
	w.pg.Kill()
	w.pg.Start()
}

func (w *soakWorld) killDaemon() { w.killDaemonDuring(func() {}) }

// killDaemonDuring does something between the daemon's death and its next life.
func (w *soakWorld) killDaemonDuring(f func()) {
	w.kill()
	f()
	w.run = w.launch()
}

// recycle has the server remove the WAL that its standby has and no slot holds. It
// commits nothing: nobody is there to wait for.
func (w *soakWorld) recycle() {
	for range 4 {
		w.pg.SwitchWAL()
	}
	w.standby.AwaitReplay(w.pg.LSN())
	w.pg.Exec("CHECKPOINT")
}

func (w *soakWorld) kill() {
	w.t.Helper()
	w.alive()
	_ = w.run.cmd.Process.Kill()
	<-w.run.done
}

// alive wants the daemon to live, whatever happens around it.
func (w *soakWorld) alive() {
	w.t.Helper()
	if w.run.ended() {
		w.t.Fatalf("the daemon ended by itself: %v", w.run.err)
	}
}

// oneZone cures the zone that is ill, if one is, and more often than not makes
// another so: the quorum holds.
func (w *soakWorld) oneZone() {
	if w.cure(); w.random.IntN(4) > 0 {
		w.ail(w.random.IntN(len(w.zones)), false)
	}
}

// twoZones takes the quorum away. A server that waits for it acknowledges nothing
// once what was on its way has come; one that does not goes on.
func (w *soakWorld) twoZones() {
	w.t.Helper()
	w.cure()
	w.progress("before two zones are ill")
	well := w.random.IntN(len(w.zones))
	for i := range w.zones {
		if i != well {
			w.ail(i, true)
		}
	}
	pause(w.t.Context(), time.Second) // for what was under way
	before := w.writers.count()
	pause(w.t.Context(), 2*time.Second)
	if n := w.writers.count() - before; w.sync && n > 0 {
		w.t.Errorf("%d commits were acknowledged while one zone of three could hold them", n)
	} else if !w.sync && n == 0 {
		w.t.Error("a server that waits for no zone stopped")
	}
	w.cure()
	w.progress("after two zones were ill")
}

// progress waits until commits are acknowledged again.
func (w *soakWorld) progress(when string) {
	w.t.Helper()
	before := w.writers.count()
	await(w.t, "a commit "+when, func() bool { w.alive(); return w.writers.count() > before })
}

// settled waits until all zones are well, the daemon archives what is written, and
// the zones hold what they owe; there may be no gap and nothing that is lost.
func (w *soakWorld) settled() {
	w.t.Helper()
	w.cure()
	want, err := lsn.Parse(w.pg.LSN())
	if err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "the archive's "+want.String()+" in every zone", func() bool {
		w.alive()
		doc, err := callDaemon(w.rig, opWALStatus, clusterQuery{"cms"})
		if err != nil || len(doc.Clusters) != 1 || doc.Clusters[0].Archiving == nil {
			return false
		}
		c := doc.Clusters[0]
		done := c.Archiving.Connected && c.Archiving.Durable >= want && nothingLost(c)
		for _, z := range c.Zones {
			done = done && z.Err == "" && z.Newest >= want
		}
		return done
	})
	for _, i := range ask[incidentsDoc](w.rig, "db", "incident", "list").Incidents {
		if strings.HasPrefix(i.Key, "wal-gap/") {
			w.t.Errorf("incident %s", i.Key)
		}
	}
}

// nothingLost says that no zone lacks what no other can give it, and that there is
// no gap.
func nothingLost(c walCluster) bool {
	for _, z := range c.Zones {
		for _, run := range z.Runs {
			if run.State == catalog.WALLost {
				return false
			}
		}
	}
	return len(c.Gaps) == 0
}

// disaster takes the host away, at some moment while a zone is ill, and returns
// when.
func (w *soakWorld) disaster() time.Time {
	w.t.Helper()
	w.ail(w.random.IntN(len(w.zones)), true)
	w.progress("before the end")
	pause(w.t.Context(), soakLag+soakWrite+time.Duration(w.random.Int64N(int64(2*time.Second))))
	w.alive()
	end := time.Now()
	w.pg.Kill()
	w.kill()
	w.standby.Kill()
	w.writers.stop()
	for _, dir := range []string{w.pg.DataDir, w.standby.DataDir, w.path("db/state")} {
		if err := os.RemoveAll(dir); err != nil {
			w.t.Fatal(err)
		}
	}
	return end
}

// recovered restores the end of the archive from what is left, and holds it against
// what was acknowledged.
func (w *soakWorld) recovered(end time.Time) {
	w.t.Helper()
	floor := end.Add(-soakLag - soakWrite)
	if w.sync {
		floor = time.Now()
	}
	w.restore("copy")
	opened := w.open("copy")
	conn := w.connect(opened, "postgres")
	w.writers.check(conn, end, floor)
	w.consistent(conn, opened)
	if c := ask[walDoc](w.rig, "drill", "wal", "status", "cms").Clusters; len(c) != 1 || !nothingLost(c[0]) {
		w.t.Errorf("what is left of the WAL: %+v", c)
	}
}

// pause lets the workload run for a while, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

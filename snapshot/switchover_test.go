package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// primaryOf is a connection string of several servers, of which the primary is meant.
func primaryOf(list ...*pgtest.Cluster) string {
	var hosts, ports []string
	for _, c := range list {
		hosts, ports = append(hosts, c.SocketDir), append(ports, fmt.Sprint(c.Port))
	}
	return fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres sslmode=disable target_session_attrs=primary", strings.Join(hosts, ","), strings.Join(ports, ","))
}

func among(list ...*pgtest.Cluster) func(*ArchiveConfig, *WALWriter) {
	return func(c *ArchiveConfig, _ *WALWriter) { c.DSN, c.SlotEvery = primaryOf(list...), 50*time.Millisecond }
}

// demote starts a former primary again as a standby of its successor, as Patroni does.
func demote(t *testing.T, old, successor *pgtest.Cluster) {
	t.Helper()
	signal := filepath.Join(old.DataDir, "standby.signal")
	okay(t, os.WriteFile(signal, nil, 0o600))
	okay(t, pgtest.Own(signal))
	old.Configure(fmt.Sprintf("primary_conninfo = 'host=%s port=%d user=postgres'", successor.SocketDir, successor.Port), quick[0])
	old.Start()
}

// awaitSlot waits until a server's slot has come to a place.
func awaitSlot(t *testing.T, pg *pgtest.Cluster, at lsn.LSN) {
	t.Helper()
	await(t, "the slot of the standby follows the archive", func() bool { return flushedOnServer(t, pg) >= at })
}

// P5, C-51: a switchover as Patroni does it, then a failover back to the first
// server while no zone can be reached: the slots that were kept on the standbys hold
// what the archive lacks, although both servers recycle all that they may.
func TestASwitchoverAndAFailoverBackLoseNoWAL(t *testing.T) {
	r := newMoodyRepo(t)
	one := walServer(t)
	two := one.Standby(t, quick[0], "wal_keep_size = 0")
	d := r.archive(one, "s", among(one, two))
	writeWAL(one, 3)
	at := currentLSN(t, one)
	waitFor(t, d, at)
	two.AwaitReplay(one.LSN())
	awaitSlot(t, two, at)

	one.Stop()
	two.Promote()
	demote(t, one, two)
	writeWAL(two, 2)
	at = reaches(t, d, 2, two)
	one.AwaitReplay(two.LSN())
	awaitSlot(t, one, at)

	r.zones[0].set(errZoneDown, nil)
	r.zones[1].set(errZoneDown, nil)
	for range 4 {
		writeWAL(two, 2)
		two.SwitchWAL()
		two.Exec("CHECKPOINT")
		one.AwaitReplay(two.LSN())
		one.Exec("CHECKPOINT")
	}
	two.Kill()
	one.Promote()
	writeWAL(one, 1)
	one.Exec("CHECKPOINT")
	if durable := d.Position().Durable; currentLSN(t, one)-durable < 6*walSeg {
		t.Fatalf("durable to %s: nothing waits on the standby, this proves nothing", durable)
	}
	r.zones[0].set(nil, nil)
	r.zones[1].set(nil, nil)
	to := reaches(t, d, 3, one)
	if l := d.w.c.Lineage; l.Epoch != 1 || d.Position().Gaps != 0 {
		t.Errorf("epoch %d, %d gaps", l.Epoch, d.Position().Gaps)
	}
	r.historiesFirst(d, one, 2, 3)
	r.wholeWay(d, one, to)
	r.checkChainOf(d.v, 1)
}

// P9: the standby that is promoted lacks what the dead primary had archived. That
// stays in the archive as a dead branch; archiving goes on where the histories part,
// and is told durable to the new primary no further than it is.
func TestAfterALossyFailoverTheArchiveFollowsTheNewBranch(t *testing.T) {
	r := newMoodyRepo(t)
	one := walServer(t)
	two := one.Standby(t, quick...)
	d := r.archive(one, "s", among(one, two))
	waitFor(t, d, currentLSN(t, one))
	two.Stop()
	writeWAL(one, 3)
	dead := currentLSN(t, one)
	waitFor(t, d, dead)
	one.Kill()
	two.Start()
	two.Promote()
	two.Exec("CREATE TABLE after_it (a int)")
	if fork := serverOf(t, two).History[0].LSN; fork >= dead {
		t.Fatalf("the fork at %s lost nothing of %s: this proves nothing", fork, dead)
	}
	to := reaches(t, d, 2, two)
	if to >= dead || d.Position().Gaps != 0 {
		t.Errorf("at %s (dead branch: %s), %d gaps", to, dead, d.Position().Gaps)
	}
	await(t, "the slot is where the new branch is durable", func() bool { at := flushedOnServer(t, two); return at > 0 && at <= currentLSN(t, two) })
	r.historiesFirst(d, two, 2)
	r.wholeWay(d, two, to)

	// The old primary comes back as one, and is the first in the connection string.
	one.Start()
	two.Exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'holdfast' AND active")
	two.Exec("CREATE TABLE behind_it (a int)")
	to = reaches(t, d, 2, two)
	r.wholeWay(d, two, to)
	if at := flushedOnServer(t, one); at > dead {
		t.Errorf("the slot of the old primary went to %s, its history to %s", at, dead)
	}
}

func TestTheForecastOfASlotIsItsGrowthOverTheLastMinutes(t *testing.T) {
	start := time.Unix(1000, 0)
	var samples []slotSample
	var rate float64
	for i := range 30 { // an hour ago much, of late a MiB each minute
		behind := int64(1<<40) / int64(i+1)
		if i >= 15 {
			behind = int64(i) << 20
		}
		samples, rate = growth(append(samples, slotSample{start.Add(time.Duration(i) * time.Minute), behind}))
	}
	if want := float64(1<<20) / 60; rate < want*0.99 || rate > want*1.01 || len(samples) > 12 {
		t.Errorf("%f bytes a second of %d samples, want %f", rate, len(samples), want)
	}
	v := SlotView{Growth: rate}
	if in, ok := v.FullIn(60 << 20); !ok || in.Round(time.Minute) != time.Hour {
		t.Errorf("full in %s, %v", in, ok)
	}
	for _, v := range []SlotView{{}, {Growth: -5}, {Growth: 1e-9}} {
		if in, ok := v.FullIn(1 << 40); ok {
			t.Errorf("growth of %g: full in %s", v.Growth, in)
		}
	}
}

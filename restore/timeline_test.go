package restore_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// C-50, C-61, C-63, C-67: a standby with larger settings takes over; what it
// wrote, and what was before, can be restored from a snapshot of before.
func TestARestoreCrossesAPromotion(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	w := newWorld(t, pg)
	first := pg.StartOracle(2 * time.Millisecond)
	first.AwaitMore(10)
	w.take(snapshot.SourceFiles)
	first.AwaitMore(20)
	mid := first.AwaitMore(1)
	first.AwaitMore(20)
	acked := first.Stop()
	w.flush()
	standby := pg.Standby(t, "wal_keep_size = '1GB'", "max_connections = 300", "max_worker_processes = 32")
	standby.AwaitReplay(pg.LSN())
	w.stop()
	pg.Stop()
	standby.Promote()
	w.pg = standby
	w.archive()
	second := standby.StartOracle(2 * time.Millisecond)
	second.AwaitMore(30)
	acked = append(acked, second.Stop()...)
	w.flush()

	latest := w.plan(restore.Target{Kind: restore.Latest})
	if latest.Timeline != 2 || !hasFile(latest, "00000002.history") {
		t.Fatalf("the plan ends on timeline %d: %+v", latest.Timeline, latest.Files)
	}
	blind := w.repo() // the daemon that plans holds no data identity
	blind.Data = nil
	same := false
	for range 10 { // the server goes on, and what it writes by itself is archived meanwhile
		latest = w.plan(restore.Target{Kind: restore.Latest})
		in := must[restore.Inputs](t)(restore.Gather(t.Context(), blind, "cms", restore.Target{Kind: restore.Latest}, latest.MadeAt))
		if same = must[restore.Plan](t)(restore.MakePlan(in)).Hash == latest.Hash; same {
			break
		}
	}
	if !same {
		t.Error("with the index identity alone the plan is never the same")
	}
	room := w.prepare(latest)
	w.holds(room, acked, pgtest.Everything)
	if room.Result.Timeline != 3 {
		t.Errorf("the copy is on timeline %d, want 3", room.Result.Timeline)
	}

	until := func(c pgtest.Commit) bool { return !c.Time.After(mid.Time) }
	for _, timeline := range []uint32{0, 1} {
		room := w.prepare(w.plan(restore.Target{Kind: restore.AtTime, Time: mid.Time, Timeline: timeline}))
		w.holds(room, acked, until)
		// Timeline 2 exists: a copy that took its number could be mistaken for it.
		if room.Result.Timeline != 3 {
			t.Errorf("restored along timeline %d, the copy is on timeline %d, want 3", timeline, room.Result.Timeline)
		}
	}
	room = w.prepare(w.plan(restore.Target{Kind: restore.Latest, Timeline: 1}))
	w.holds(room, acked, func(c pgtest.Commit) bool { return isFirst(first, c) })

	dest := filepath.Join(t.TempDir(), "dest")
	if code, err := restore.FetchByName(t.Context(), w.repo(), "cms", "00000002.history", dest); code != restore.ExitFetched {
		t.Fatalf("the history by name: %d, %v", code, err)
	}
	if data := must[[]byte](t)(os.ReadFile(dest)); !strings.HasPrefix(string(data), "1\t") {
		t.Errorf("the history says %q", data)
	}
	for _, f := range latest.Files {
		if strings.HasPrefix(f.Name, "00000002") && !strings.HasSuffix(f.Name, ".history") {
			if code, err := restore.FetchByName(t.Context(), w.repo(), "cms", f.Name, dest); code != restore.ExitFetched {
				t.Errorf("%s by name: %d, %v", f.Name, code, err)
			}
		}
	}
	stranger := blind
	stranger.Index = []age.Identity{must[*age.X25519Identity](t)(age.GenerateX25519Identity())}
	if _, err := restore.Gather(t.Context(), stranger, "cms", restore.Target{Kind: restore.Latest}, latest.MadeAt); err == nil || !strings.Contains(err.Error(), "--identity") {
		t.Errorf("with a key that opens nothing: %v", err)
	}
}

// C-61, C-67: two standbys take over one after the other, as with a switchover and
// one back; from a snapshot of before both, the end comes back, and moments on each
// of the three timelines.
func TestARestoreCrossesTwoSwitches(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	w := newWorld(t, pg)
	var acked []pgtest.Commit
	var moments []time.Time
	writes := func(pg *pgtest.Cluster) {
		o := pg.StartOracle(2 * time.Millisecond)
		o.AwaitMore(20)
		moments = append(moments, o.AwaitMore(1).Time)
		o.AwaitMore(20)
		acked = append(acked, o.Stop()...)
		w.flush()
	}
	w.take(snapshot.SourceFiles)
	writes(pg)
	for range 2 {
		next := w.pg.Standby(t, "wal_keep_size = '1GB'")
		next.AwaitReplay(w.pg.LSN())
		w.stop()
		w.pg.Stop()
		next.Promote()
		w.pg = next
		w.archive()
		writes(next)
	}
	latest := w.plan(restore.Target{Kind: restore.Latest})
	if latest.Timeline != 3 || !hasFile(latest, "00000002.history") || !hasFile(latest, "00000003.history") {
		t.Errorf("the plan ends on timeline %d: %+v", latest.Timeline, latest.Files)
	}
	room := w.prepare(latest)
	w.holds(room, acked, pgtest.Everything)
	if room.Result.Timeline != 4 {
		t.Errorf("the copy is on timeline %d, want 4", room.Result.Timeline)
	}
	for _, at := range moments {
		room := w.prepare(w.plan(restore.Target{Kind: restore.AtTime, Time: at}))
		w.holds(room, acked, func(c pgtest.Commit) bool { return !c.Time.After(at) })
	}
}

func isFirst(o *pgtest.Oracle, c pgtest.Commit) bool {
	for _, k := range o.Acked() {
		if k.ID == c.ID {
			return true
		}
	}
	return false
}

func hasFile(p restore.Plan, name string) bool {
	for _, f := range p.Files {
		if f.Name == name {
			return true
		}
	}
	return false
}

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
	"github.com/holdfast-dr/holdfast/restore"
)

// soakWorld is a host with a primary (rig.pg) and a standby of it, over two S3
// servers behind proxies and a directory.
type soakWorld struct {
	*rig
	random  *rand.Rand
	sync    bool
	standby *pgtest.Cluster
	zones   []soakZone
	heal    []func() // of the zones that are ill
	run     *crashRun
	writers *soakWriters
}

// soakZone is a zone and what can befall it.
type soakZone struct {
	name     string
	ailments []ailment
}

type ailment struct {
	name  string
	total bool // nothing gets through, from the first moment on
	begin func() (end func())
}

func newSoakWorld(t *testing.T, random *rand.Rand, sync bool) *soakWorld {
	pg := pgtest.Start(t, pgtest.WithSetting("wal_keep_size", "32MB"))
	pg.Run("pgbench", "-i", "-q", "-s", "1", "-h", pg.SocketDir, "-p", strconv.Itoa(pg.Port), "-U", "postgres", "postgres")
	w := &soakWorld{rig: newRig(t, pg, false), random: random, sync: sync}
	w.makeZones()
	w.standby = pg.Standby(t, "wal_retrieve_retry_interval = '100ms'")
	both := fmt.Sprintf("host=%s,%s port=%d,%d user=postgres dbname=postgres sslmode=disable target_session_attrs=primary",
		pg.SocketDir, w.standby.SocketDir, pg.Port, w.standby.Port)
	w.configure()
	w.lag(w.host("db", both))
	w.run = w.launch()
	t.Cleanup(func() {
		_ = w.run.cmd.Process.Kill()
		<-w.run.done
		if t.Failed() {
			data, _ := os.ReadFile(w.path("db/daemon.log"))
			t.Logf("the end of the daemon's log:\n%s", data[max(0, len(data)-12000):])
		}
	})
	await(t, "the daemon", func() bool { w.alive(); _, err := callDaemon(w.rig, opIncidents, none{}); return err == nil })
	w.hold("db", 0, "snapshot", "take", "cms")
	pg.Exec("CREATE TABLE soak (writer int, seq bigint, PRIMARY KEY (writer, seq))")
	if sync {
		w.wait()
	}
	w.writers = startWriters(t, pg, both, 6)
	w.progress("as the soak begins")
	return w
}

// lag shortens max_lag where each commit waits for it.
func (w *soakWorld) lag(path string) {
	w.t.Helper()
	conf, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	lag := soakLag
	if w.sync {
		lag /= 5
	}
	w.write("db/holdfast.yaml", strings.Replace(string(conf), "max_lag: 500ms", "max_lag: "+lag.String(), 1))
}

// wait makes commits wait for the daemon, on whichever server is the primary.
func (w *soakWorld) wait() {
	w.t.Helper()
	for _, c := range []*pgtest.Cluster{w.pg, w.standby} {
		c.Configure("synchronous_standby_names = 'holdfast'")
		c.Exec("SELECT pg_reload_conf()")
	}
	await(w.t, "the daemon to be the synchronous standby", func() bool {
		return pgtest.Value[int64](w.pg, "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'holdfast' AND sync_state = 'sync'") == 1
	})
}

// makeZones puts two S3 servers in the place of zones a and b.
func (w *soakWorld) makeZones() {
	third := w.rig.zones[strings.Index(w.rig.zones, "    - {name: c,"):]
	w.rig.zones = ""
	for i, s := range zonetest.StartS3(w.t, 2) {
		name, p := zoneLetters[i], zonetest.NewProxy(w.t, s.Endpoint)
		w.rig.zones += w.s3Zone(name, s, p.Endpoint())
		w.zones = append(w.zones, soakZone{name, w.ofS3(s, p)})
	}
	w.rig.zones += third
	w.zones = append(w.zones, soakZone{"c", w.ofDirectory(w.path("zones/c"))})
}

// ofS3 is what befalls a server, the way to it, and its bucket.
func (w *soakWorld) ofS3(s *zonetest.S3Server, p *zonetest.Proxy) []ailment {
	way := func(f zonetest.Fault) func() func() {
		return func() func() {
			p.Set(f)
			return func() { p.Set(zonetest.Fault{}) }
		}
	}
	return []ailment{
		{"is killed", true, func() func() { s.Kill(); return s.Start }},
		{"hangs", true, func() func() { s.Pause(); return s.Resume }},
		{"is a black hole", true, way(zonetest.Fault{BlackHole: true})},
		{"resets connections", true, way(zonetest.Fault{Reset: true})},
		{"answers errors: its bucket is gone", true, w.missing(s.Path(""), false)},
		{"cuts answers off", false, func() func() {
			return way(zonetest.Fault{Cut: true, CutAfter: w.random.Int64N(200 << 10)})()
		}},
		{"loses an answer", false, way(zonetest.Fault{CutNext: true})},
		{"drips", false, way(zonetest.Fault{Latency: 200 * time.Millisecond, Rate: 20 << 10})},
	}
}

// ofDirectory is what befalls a mounted disk.
func (w *soakWorld) ofDirectory(dir string) []ailment {
	return []ailment{
		{"is gone", true, w.missing(dir, false)},
		{"is not mounted: its directory is empty", true, w.missing(dir, true)},
	}
}

// missing moves a directory aside, and leaves an empty one in its place or nothing.
func (w *soakWorld) missing(dir string, empty bool) func() func() {
	dir = filepath.Clean(dir)
	must := func(err error) {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return func() func() {
		must(os.Rename(dir, dir+".away"))
		if empty {
			must(os.Mkdir(dir, 0o755))
		}
		return func() {
			must(os.RemoveAll(dir))
			must(os.Rename(dir+".away", dir))
		}
	}
}

// ail makes a zone ill until cure.
func (w *soakWorld) ail(i int, total bool) {
	z := w.zones[i]
	a := z.ailments[w.random.IntN(len(z.ailments))]
	for total && !a.total {
		a = z.ailments[w.random.IntN(len(z.ailments))]
	}
	w.t.Logf("zone %s %s", z.name, a.name)
	w.heal = append(w.heal, a.begin())
}

// cure makes all zones well.
func (w *soakWorld) cure() {
	for _, f := range w.heal {
		f()
	}
	w.heal = nil
}

// switchOver makes the standby the primary and the primary its standby, as Patroni
// does: it stops the primary and promotes only a standby that has everything.
func (w *soakWorld) switchOver() {
	w.t.Helper()
	old, next := w.pg, w.standby
	old.Stop()
	c, _, err := control.ReadFile(filepath.Join(old.DataDir, "global/pg_control"))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	for pgtest.Value[bool](next, "SELECT coalesce(pg_last_wal_replay_lsn() <= $1::text::pg_lsn, true)", c.Checkpoint.String()) {
		if pause(ctx, 20*time.Millisecond); ctx.Err() != nil {
			w.t.Log("the standby lacks the end of the primary's WAL: no switchover")
			old.Start()
			return
		}
	}
	next.Promote()
	signal := filepath.Join(old.DataDir, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := pgtest.Own(signal); err != nil {
		w.t.Fatal(err)
	}
	old.Configure(fmt.Sprintf("primary_conninfo = 'host=%s port=%d user=postgres'", next.SocketDir, next.Port), "wal_retrieve_retry_interval = '100ms'")
	old.Start()
	w.pg, w.standby = next, old
}

// consistent holds pgbench's own books and every index against each other.
func (w *soakWorld) consistent(conn *pgx.Conn, o restore.Opened) {
	w.t.Helper()
	var history, accounts, tellers, branches, n int64
	err := conn.QueryRow(w.t.Context(), `SELECT (SELECT coalesce(sum(delta), 0) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts),
		(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches), (SELECT count(*) FROM pgbench_history)`).
		Scan(&history, &accounts, &tellers, &branches, &n)
	if err != nil || history != accounts || history != tellers || history != branches || n == 0 {
		w.t.Errorf("pgbench's books after %d transactions: history %d, accounts %d, tellers %d, branches %d: %v", n, history, accounts, tellers, branches, err)
	}
	w.pg.Run("pg_amcheck", "--install-missing", "--heapallindexed", "-h", o.Socket, "-p", strconv.Itoa(o.Port), "-U", "postgres", "-d", "postgres")
}

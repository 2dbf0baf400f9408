package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// replica is a standby that a restore left, run as its owner does: by pg_ctl.
type replica struct {
	r        *rig
	dir      string
	programs sandbox.Programs
}

func (r *rig) replica(name string) *replica {
	s := &replica{r, r.path(name), sandbox.Programs{Bin: r.pg.BinDir()}}
	r.t.Cleanup(func() { r.stopCopy(s.dir) })
	return s
}

// restored restores a standby; its port and socket are its own then, as they must be
// on a host that has live's already.
func (s *replica) restored(args ...string) restoreDoc {
	t := s.r.t
	t.Helper()
	all := []string{"restore", "run", "cms", "--standby", "--to", s.dir, "--identity", s.r.path("drill/data.key"), "--binaries", s.r.pg.BinDir()}
	doc := ask[restoreDoc](s.r, "drill", append(all, args...)...)
	if !doc.Complete || doc.Standby == nil {
		t.Fatalf("restored: %+v", doc)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	_, err = fmt.Fprintf(f, "\nlisten_addresses = ''\nunix_socket_directories = '%s'\nwal_retrieve_retry_interval = 200ms\n", s.dir)
	must(t, errors.Join(err, f.Close()))
	return doc
}

func (s *replica) start() {
	s.r.t.Helper()
	must(s.r.t, s.programs.StartDaemon(s.r.t.Context(), s.dir, filepath.Join(s.dir, "log.txt")))
}

func (s *replica) stop() {
	s.r.t.Helper()
	must(s.r.t, s.programs.StopDaemon(s.r.t.Context(), s.dir))
}

func (s *replica) try(sql string, into ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=5432 user=postgres dbname=postgres sslmode=disable", s.dir))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if len(into) == 0 {
		_, err := conn.Exec(ctx, sql)
		return err
	}
	return conn.QueryRow(ctx, sql).Scan(into...)
}

// says is what one value is.
func (s *replica) says(sql string) (v string) {
	s.r.t.Helper()
	must(s.r.t, s.try("SELECT ("+sql+")::text", &v))
	return v
}

// awaits polls the standby until a condition holds.
func (s *replica) awaits(sql string) {
	s.r.t.Helper()
	await(s.r.t, sql, func() bool {
		ok := false
		return s.try("SELECT coalesce("+sql+", false)", &ok) == nil && ok
	})
}

// A replica is rebuilt from the repository: it streams from live, replays from the
// archive alone while live is away, and writes nothing into the archive, promoted or not.
func TestAStandbyRestoredFromTheRepositoryFollowsLive(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("archive_mode", "on"), pgtest.WithSetting("archive_command", "true"))
	r := newRig(t, pg, true)
	r.configure()
	pg.Exec("ALTER SYSTEM SET work_mem = '7MB'")
	pg.Exec("ALTER SYSTEM SET synchronous_commit = 'local'")
	r.daemon("db")
	pg.Exec("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
	r.hold("db", 0, "snapshot", "take", "cms")
	pg.Configure("max_connections = 130", "max_prepared_transactions = 7") // after the snapshot
	pg.Restart()
	pg.Exec("INSERT INTO kept VALUES (1001)")
	r.archived(zoneLetters...)
	r.asksForAStandby(t)
	must(t, pgtest.Own(r.path("drill"))) // PostgreSQL's user runs the restore_command
	must(t, pgtest.Own(r.path("keys")))
	must(t, pgtest.Own(r.path("zones")))

	r.goesOnWithAStandby(t)
	s := r.replica("replica")
	doc := s.restored("--primary", pg.DSN("postgres"))
	if f := doc.Standby; f == nil || !f.Readers || f.Replayed < doc.Expected.LSN || len(doc.Tombstones) != 0 || doc.Timeline != 1 {
		t.Fatalf("restored: %+v", doc.Standby)
	}
	if shown := r.hold("drill", 0, "restore", "show", s.dir); !strings.Contains(shown, "it is standby since") || !strings.Contains(shown, "readers    admitted") || !strings.Contains(shown, "restore discard") || strings.Contains(shown, "restore open") {
		t.Errorf("shown:\n%s", shown)
	}
	s.start()
	pg.Await("SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name <> 'holdfast' AND state = 'streaming'")
	pg.Exec("INSERT INTO kept VALUES (1002)")
	s.awaits("(SELECT count(*) = 1002 FROM kept)")
	if err := s.try("INSERT INTO kept VALUES (0)"); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("the standby takes writes: %v", err)
	}
	for setting, want := range map[string]string{
		"work_mem": "7MB", "synchronous_commit": "local", "archive_mode": "off", "max_connections": "130", "max_prepared_transactions": "7",
		"max_logical_replication_workers": "4", "recovery_target_timeline": "latest", "fsync": "on",
	} {
		if got := s.says("SELECT current_setting('" + setting + "')"); got != want {
			t.Errorf("the standby has %s = %s, want %s", setting, got, want)
		}
	}
	r.hold("drill", 3, "restore", "discard", s.dir) // it runs
	r.claimsNothing(t, s)
	s.stop()
	r.hold("drill", 3, "restore", "discard", s.dir) // it was started: a replica in use
	r.hold("drill", 1, "restore", "open", "/nowhere")

	pg.Exec("INSERT INTO kept VALUES (1003)")
	r.archived(zoneLetters...)
	pg.Stop()
	s.start()
	s.awaits("(SELECT count(*) = 1003 FROM kept)")
	pg.Start()
	r.promotedArchivesNothing(t, s)
	s.stop()
	s.restored("--primary", pg.DSN("postgres"), "--delta") // what it wrote by itself goes
	s.start()
	s.awaits("(SELECT count(*) = 1004 AND min(n) = 1 FROM kept)")
	s.stop()
	r.hold("drill", 0, "restore", "discard", s.dir, "--confirm", "cms")
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("discarded, it is there: %v", err)
	}
}

// goesOnWithAStandby ends a restore half-way, goes on with it, and removes it unstarted.
func (r *rig) goesOnWithAStandby(t *testing.T) {
	t.Helper()
	to := r.path("resumed")
	r.hold("drill", 0, "restore", "run", "cms", "--standby", "--stream-only", "--primary", "host=live", "--fetch-only", "--to", to, "--identity", r.path("drill/data.key"), "--binaries", r.pg.BinDir())
	doc := ask[restoreDoc](r, "drill", "restore", "resume", to, "--identity", r.path("drill/data.key"), "--binaries", r.pg.BinDir())
	if f := doc.Standby; !doc.BySize || f == nil || f.Primary != "host=live" || f.RestoreCommand != "" {
		t.Errorf("gone on with: %+v", doc.Result)
	}
	if list := r.hold("drill", 0, "restore", "list"); !strings.Contains(list, "as a standby of live") {
		t.Errorf("listed:\n%s", list)
	}
	r.hold("drill", 0, "restore", "discard", to)
}

// asksForAStandby looks at what is refused before anything is written, and at the plan.
func (r *rig) asksForAStandby(t *testing.T) {
	t.Helper()
	to := r.path("refused")
	for _, wrong := range [][]string{
		{"--time", "2026-01-31T12:00:00Z"},
		{"--lsn", "0/1"},
		{"--xid", "7"},
		{"--name", "x"},
		{"--immediate"},
		{"--timeline", "1"},
		{"--start"},
		{"--quarantine"},
		{"--in-place"},
		{"--primary", "host=a password=b"},
		{"--primary", "postgres://u:p@h/d"},
		{"--stream-only"},
		{"--slot", "x"},
	} {
		r.hold("drill", 2, append([]string{"restore", "run", "cms", "--standby", "--to", to, "--identity", r.path("drill/data.key")}, wrong...)...)
	}
	r.hold("drill", 2, "restore", "run", "cms", "--slot", "x", "--to", to)
	plain := ask[restore.Plan](r, "drill", "restore", "plan", "cms")
	plan := ask[restore.Plan](r, "drill", "restore", "plan", "cms", "--standby", "--primary", "host=live")
	if plan.Target.Standby == nil || plan.Target.Standby.Primary != "host=live" || plain.Hash == plan.Hash || plan.Snapshot != plain.Snapshot {
		t.Errorf("planned %+v", plan.Target)
	}
	r.hold("drill", 2, "restore", "run", plan.Hash, "--to", to, "--start", "--identity", r.path("drill/data.key"))
	if text := r.hold("drill", 0, "restore", "plan", "cms", "--standby"); !strings.Contains(text, "follows the archive alone") || !strings.Contains(text, "admits no reader before") {
		t.Errorf("the plan:\n%s", text)
	}
	if os.Geteuid() == 0 { // the identity is root's alone yet
		code, _, errs := r.try("drill", "restore", "run", "cms", "--standby", "--to", to, "--identity", r.path("drill/data.key"), "--binaries", r.pg.BinDir())
		if _, err := os.Stat(to); code != 1 || !strings.Contains(errs, "as PostgreSQL's user") || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("exit %d, %v: %s", code, err, errs)
		}
	}
}

// claimsNothing looks whether a daemon that takes the standby for live is let in.
func (r *rig) claimsNothing(t *testing.T, s *replica) {
	t.Helper()
	r.host("other", fmt.Sprintf("host=%s port=5432 user=postgres dbname=postgres sslmode=disable", s.dir))
	if code, out, errs := r.try("other", "lineage", "open", "cms"); code == 0 {
		t.Errorf("a second node claimed the cluster by its standby: %s%s", out, errs)
	}
}

// promotedArchivesNothing promotes the standby beside live, which must not be, and looks
// at the archive: it stays live's.
func (r *rig) promotedArchivesNothing(t *testing.T, s *replica) {
	t.Helper()
	before := r.hold("db", 0, "--output", "json", "lineage", "list", "cms")
	must(t, s.try("SELECT pg_promote(true, 60)"))
	must(t, s.try("INSERT INTO kept VALUES (0)"))
	must(t, s.try("SELECT pg_switch_wal()"))
	must(t, s.try("CHECKPOINT"))
	if got := s.says("SELECT archived_count + failed_count FROM pg_stat_archiver"); got != "0" {
		t.Errorf("the promoted standby's archiver was busy %s times", got)
	}
	r.pg.Exec("INSERT INTO kept VALUES (1004)")
	r.archived(zoneLetters...)
	if after := r.hold("db", 0, "--output", "json", "lineage", "list", "cms"); after != before {
		t.Errorf("the lineages were %s and are %s", before, after)
	}
	type stretch struct {
		Timeline int `json:"timeline"`
	}
	type cluster struct {
		WAL []stretch `json:"wal"`
	}
	held := ask[struct {
		Clusters []cluster `json:"clusters"`
	}](r, "drill", "catalog", "rebuild")
	if len(held.Clusters) != 1 || len(held.Clusters[0].WAL) == 0 || slices.ContainsFunc(held.Clusters[0].WAL, func(s stretch) bool { return s.Timeline != 1 }) {
		t.Errorf("the archive has %+v", held)
	}
}

// Promise 7: a standby that has not replayed a deletion admits nobody, says why, and
// opens when it has; the ledger's reader sees when.
func TestAStandbyAdmitsNoReaderBeforeItHasReplayedADeletion(t *testing.T) {
	pg := pgtest.Start(t)
	pg.Exec(tenants)
	r := newRig(t, pg, true)
	r.cluster = "    retention: {window: 7d, daily: 7, keep_at_least: 7d, keep_at_most: 30d}\n" + tenantProjects + "      purge: {within: 40d, grace: 1s}\n"
	r.configure()
	daemon := r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	r.archived(zoneLetters...)
	daemon.stop() // what follows is in live alone
	deleted := ask[deletedDoc](r, "db", "project", "delete", "cms", "7", "--in-live", "--yes")
	for _, d := range []string{"drill", "keys", "zones"} {
		must(t, pgtest.Own(r.path(d)))
	}
	early := r.replica("early")
	doc := early.restored()
	if f := doc.Standby; f.Readers || len(f.Waits) != 1 || f.Waits[0].Tombstone != deleted.Tombstone || f.Waits[0].LSN != 0 {
		t.Errorf("before live is seen without the project: %+v", f)
	}
	r.hold("drill", 3, "restore", "open", early.dir)
	r.hold("drill", 0, "restore", "discard", early.dir)

	n := r.node() // what the daemon does once a minute, without its archiving
	await(t, "a vacuum that the server's books say left no dead rows", func() bool {
		pg.Exec("VACUUM")
		done, err := n.doPurge(t.Context(), scheduler.Job{}, order{Cluster: "cms"}, nil)
		must(t, err)
		return done.(purgesDoc).Purges[0].State == retention.PurgeAgeing
	})
	pg.Exec("SELECT pg_create_physical_replication_slot('rebuilt', true)")
	s := r.replica("replica")
	doc = s.restored("--primary", pg.DSN("postgres"), "--slot", "rebuilt")
	f := doc.Standby
	if f.Readers || len(f.Waits) != 1 || f.Waits[0].LSN <= f.Replayed {
		t.Fatalf("left as %+v", f)
	}
	if code, _, errs := r.try("drill", "restore", "open", s.dir); code != 3 || !strings.Contains(errs, f.Waits[0].LSN.String()) {
		t.Errorf("opened too early: exit %d: %s", code, errs)
	}
	s.start()
	pg.Await("SELECT active FROM pg_replication_slots WHERE slot_name = 'rebuilt'")
	if err := s.try("SELECT 1"); err == nil || !strings.Contains(err.Error(), "not accepting connections") {
		t.Errorf("a reader got in: %v", err)
	}
	pg.Await("SELECT coalesce(bool_or(replay_lsn >= $1::text::pg_lsn), false) FROM pg_stat_replication WHERE application_name <> 'holdfast'", pg.LSN())
	s.stop()
	r.hold("drill", 3, "restore", "discard", s.dir)
	r.hold("drill", 0, "restore", "open", s.dir)
	s.start()
	if got := s.says("SELECT count(*) FROM cms.project WHERE id = 7"); got != "0" {
		t.Errorf("the standby has %s of the deleted project", got)
	}
	if got := s.says("SELECT pg_is_in_recovery()"); got != "true" {
		t.Errorf("in recovery: %s", got)
	}
}

// A certificate tells of a standby as of a copy out of reach until it has replayed the
// deletion, and as of one copy all the time.
func TestACertificateCountsAStandbyOnceItHasReplayedTheDeletion(t *testing.T) {
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	tomb := catalog.Tombstone{ID: "t", Cluster: "cms", RequestedAt: at}
	entry := func(i int64, typ string, body any) ledger.Record {
		raw, err := json.Marshal(body)
		must(t, err)
		env := ledger.Envelope{Type: typ, Subject: map[string]string{"cluster": "cms"}, Body: raw, Time: ledger.Clock{Wall: at.Add(time.Duration(i) * time.Minute)}}
		return ledger.Record{Origin: "o", Index: i, Envelope: env}
	}
	left := func(passed ...string) restoreDoc {
		return restoreDoc{Result: restore.Result{RestoredTo: "/s", Plan: "p", Complete: true, Standby: &restore.Following{Passed: passed}}}
	}
	list := []ledger.Record{entry(1, ledger.TypeRestoreStarted, restore.Plan{Hash: "p"}), entry(2, ledger.TypeRestoreEnded, left())}
	states := func() (out []string) {
		for _, m := range madeBy(list, tomb) {
			out = append(out, m.State)
		}
		return out
	}
	if got := states(); !slices.Equal(got, []string{catalog.MadeBeyond}) {
		t.Errorf("left, it is %q", got)
	}
	list = append(list, entry(3, ledger.TypeRestoreEnded, left("other", "t")))
	if got := states(); !slices.Equal(got, []string{catalog.MadeCleared}) {
		t.Errorf("with its readers, it is %q", got)
	}
	list = append(list, entry(4, ledger.TypeRestoreGone, map[string]string{"restored_to": "/s"}))
	if got := states(); !slices.Equal(got, []string{catalog.MadeRemoved}) {
		t.Errorf("discarded, it is %q", got)
	}
}

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
)

// A plan is approved by its hash, fetched, checked by PostgreSQL's own program,
// gone on with, and later gone over: each by a command of its own.
func TestAPlanIsFetchedCheckedResumedAndGoneOverByItsHash(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"), pgtest.WithTablespace())
	pg.Exec("CREATE TABLE aside TABLESPACE side AS SELECT g, repeat('x', 200) AS t FROM generate_series(1, 5000) g")
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	oracle := pg.StartOracle(10 * time.Millisecond)
	oracle.AwaitMore(20)
	r.hold("db", 0, "snapshot", "take", "cms")
	oracle.AwaitMore(20)
	acked := oracle.Stop()
	r.archived("a", "b", "c")
	daemon.stop()

	with := []string{"--identity", r.path("drill/data.key"), "--binaries", pg.BinDir()}
	p := ask[restore.Plan](r, "drill", append([]string{"restore", "plan", "cms"}, with[:2]...)...)
	to, side := r.path("copy"), r.path("side")
	run := append([]string{"restore", "run", p.Hash, "--to", to, "--tablespace", "side=" + side}, with...)
	fetched := ask[restoreDoc](r, "drill", append(run, "--fetch-only")...)
	if fetched.Complete || fetched.Plan != p.Hash || fetched.Bytes == 0 {
		t.Errorf("fetched: %+v", fetched.Result)
	}
	if out, err := exec.CommandContext(t.Context(), pg.Bin("pg_verifybackup"), "-n", to).CombinedOutput(); err != nil {
		t.Errorf("pg_verifybackup: %v: %s", err, out)
	}
	r.hold("drill", exitRefused, run...) // it holds something
	resumed := ask[restoreDoc](r, "drill", append([]string{"restore", "resume", to}, with...)...)
	if !resumed.Complete || resumed.Plan != p.Hash || resumed.Bytes >= fetched.Bytes || !resumed.BySize || fetched.BySize {
		t.Errorf("resumed: %+v after %d bytes", resumed.Result, fetched.Bytes)
	}
	r.hold("drill", exitRefused, append([]string{"restore", "resume", to}, with...)...) // it is whole
	opened := ask[restore.Opened](r, "drill", "restore", "open", to, "--binaries", pg.BinDir())
	conn := r.connect(opened, "postgres")
	if err := pgtest.CheckOracle(t.Context(), conn, acked, pgtest.Everything); err != nil {
		t.Error(err)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE aside SET t = 'a mistake'; CHECKPOINT"); err != nil {
		t.Error(err)
	}
	conn.Close(t.Context())
	r.hold("drill", exitRefused, append(run, "--delta")...) // it runs
	r.stopCopy(to)
	over := ask[restoreDoc](r, "drill", append(run, "--delta", "--start")...)
	if over.SavedWAL == "" || filepath.Dir(over.SavedWAL) != filepath.Dir(to) || over.Bytes >= fetched.Bytes {
		t.Errorf("gone over: %+v", over.Result)
	}
	conn = r.connect(*over.Opened, "postgres")
	var mistakes int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM aside WHERE t = 'a mistake'").Scan(&mistakes); err != nil || mistakes > 0 {
		t.Errorf("%d mistakes are left: %v", mistakes, err)
	}
	conn.Close(t.Context())
	r.discard(to)
	r.hold("drill", exitFailed, append([]string{"restore", "run", strings.Repeat("0", 64), "--to", to}, with...)...)
}

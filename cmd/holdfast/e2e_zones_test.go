package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func TestZonesOverTLSLoseOneGetItBackAndEachSideRestoresExactlyWhatWasCommitted(t *testing.T) { // promises 1, 2, 5
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	pg.Run("pgbench", "-i", "-q", "-s", "1", "-h", pg.SocketDir, "-p", strconv.Itoa(pg.Port), "-U", "postgres", "postgres")
	r := newRig(t, pg, true)
	r.configure()
	r.daemon("db")
	r.load()
	oracle := pg.StartOracle(20 * time.Millisecond)
	r.hold("db", 0, "snapshot", "take", "cms")

	lost := r.s3[2]
	snapshots := func() int { return files(filepath.Join(lost.Path("hf"), "clusters/cms/snapshots")) }
	before := snapshots()
	taken := make(chan string, 1)
	go func() {
		code, out, errs := r.try("db", "--output", "json", "snapshot", "take", "cms")
		taken <- fmt.Sprintf("%d %s%s", code, out, errs)
	}()
	await(t, "the second snapshot's first object in zone c", func() bool { return snapshots() > before })
	lost.Kill()
	if end := <-taken; !strings.HasPrefix(end, "0 ") {
		t.Fatalf("a snapshot while a zone dies: %s", end)
	}
	first := r.moment(oracle, "a", "b")
	r.exactly("without-c", first, oracle, "--time", first.Format(time.RFC3339Nano))

	lost.Start()
	await(t, "the back-fill of zone c", func() bool {
		for _, z := range ask[statusDoc](r, "db", "status").Zones {
			if z.State != "up" || z.Behind > 0 {
				return false
			}
		}
		return true
	})
	second := r.moment(oracle, "c")
	fromC := []string{"--zone", "c", "--time", second.Format(time.RFC3339Nano)}
	r.exactly("from-c", second, oracle, fromC...)
	r.s3[0].Kill()
	r.s3[1].Kill()
	// One zone alone cannot know that no project was deleted.
	r.exactly("only-c", second, oracle, append(fromC, "--quarantine")...)
}

// load has pgbench write until the test's end.
func (r *rig) load() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, r.pg.Bin("pgbench"), "-n", "-c", "2", "-R", "60", "-T", "600", "-h", r.pg.SocketDir, "-p", strconv.Itoa(r.pg.Port), "-U", "postgres", "postgres")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
}

// moment is the time of a commit with others before and after it, all of them in
// the archive.
func (r *rig) moment(o *pgtest.Oracle, zones ...string) time.Time {
	r.t.Helper()
	c := o.AwaitMore(20)
	if c.Time.IsZero() {
		r.t.Fatalf("the oracle ended: %v", o.Err())
	}
	o.AwaitMore(20)
	r.archived(zones...)
	return c.Time
}

// exactly restores to a moment and holds the copy against the oracle and amcheck.
func (r *rig) exactly(name string, at time.Time, o *pgtest.Oracle, args ...string) {
	r.t.Helper()
	r.restore(name, args...)
	got := r.open(name)
	conn := r.connect(got, "postgres")
	acked := o.Acked()
	if err := pgtest.CheckOracle(r.t.Context(), conn, acked, func(c pgtest.Commit) bool { return !c.Time.After(at) }); err != nil {
		r.t.Errorf("%s, at %s: %v", name, at.Format(time.RFC3339Nano), err)
	}
	r.pg.Run("pg_amcheck", "--install-missing", "--heapallindexed", "-h", got.Socket, "-p", strconv.Itoa(got.Port), "-U", "postgres", "-d", "postgres")
	conn.Close(r.t.Context())
	r.discard(r.path(name))
}

// files counts the files below a directory.
func files(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return nil
	})
	return n
}

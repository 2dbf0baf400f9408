package main

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
	"github.com/holdfast-dr/holdfast/restore"
)

// slowed has the drill node reach the zones through proxies, and says how fast.
func (r *rig) slowed() (set func(zonetest.Fault)) {
	r.t.Helper()
	data, err := os.ReadFile(r.path("drill/holdfast.yaml"))
	if err != nil {
		r.t.Fatal(err)
	}
	text := string(data)
	var proxies []*zonetest.Proxy
	for _, s := range r.s3 {
		p := zonetest.NewProxy(r.t, s.Endpoint)
		proxies = append(proxies, p)
		text = strings.ReplaceAll(text, s.Endpoint, p.Endpoint())
	}
	r.write("drill/holdfast.yaml", text)
	return func(f zonetest.Fault) {
		for _, p := range proxies {
			p.Set(f)
		}
	}
}

// begin starts a command that runs on; its end comes by the channel.
func (r *rig) begin(node string, args ...string) (*exec.Cmd, <-chan int) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := r.command(ctx, node, args...)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan int, 1)
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		ended <- cmd.ProcessState.ExitCode()
		close(done)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-done
	})
	return cmd, ended
}

func (r *rig) restores() []restoreView {
	return ask[restoresDoc](r, "drill", "restore", "list").Restores
}

// reaches waits until the newest restore is in a status and a state.
func (r *rig) reaches(status string, states ...string) (v restoreView) {
	r.t.Helper()
	await(r.t, "a restore "+status+" in "+strings.Join(states, " or "), func() bool {
		if all := r.restores(); len(all) > 0 {
			v = all[0]
		}
		return v.Status == status && slices.Contains(states, v.State)
	})
	return v
}

// A restore is cancelled by another command while it fetches and while it replays,
// killed, gone on with and discarded, and each time the list says how it stands.
func TestARestoreIsCancelledGoneOnWithAndDiscarded(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	pg.Exec("CREATE TABLE noise AS SELECT g, md5(random()::text) || md5(random()::text) AS t FROM generate_series(1, 60000) g")
	r := newRig(t, pg, true)
	r.configure()
	daemon := r.daemon("db")
	oracle := pg.StartOracle(10 * time.Millisecond)
	r.hold("db", 0, "snapshot", "take", "cms")
	pg.Exec("UPDATE noise SET t = md5(t)")
	oracle.AwaitMore(20)
	acked := oracle.Stop()
	r.archived("a", "b", "c")
	daemon.stop()
	speed := r.slowed()

	with := []string{"--identity", r.path("drill/data.key"), "--binaries", pg.BinDir()}
	p := ask[restore.Plan](r, "drill", append([]string{"restore", "plan", "cms"}, with[:2]...)...)
	to := r.path("copy")
	speed(zonetest.Fault{Rate: 300_000})
	_, ended := r.begin("drill", append([]string{"restore", "run", p.Hash, "--to", to}, with...)...)
	v := r.reaches("running", "fetching")
	if v.Dir != to || v.Plan != p.Hash || v.Snapshot != p.Snapshot || !slices.Equal(v.Can, []string{"cancel"}) {
		t.Errorf("running: %+v", v)
	}
	r.hold("drill", exitRefused, "restore", "discard", v.ID) // it is under way
	c := ask[restoreView](r, "drill", "restore", "cancel", v.ID)
	if code := <-ended; code == 0 || c.Status != "cancelled" || c.State != "fetching" || !slices.Equal(c.Can, []string{"resume", "discard"}) {
		t.Errorf("cancelled: exit %d, %+v", code, c)
	}
	r.hold("drill", exitRefused, "restore", "cancel", to)

	// Gone on with, it is the same restore; it is ended again while it replays.
	speed(zonetest.Fault{})
	r.hold("drill", 0, append([]string{"restore", "resume", to, "--fetch-only"}, with...)...)
	if v := r.reaches("done", "fetched"); v.ID != c.ID || len(r.restores()) != 1 {
		t.Errorf("gone on with, %s is %+v", c.ID, r.restores())
	}
	speed(zonetest.Fault{Rate: 200_000})
	_, ended = r.begin("drill", append([]string{"restore", "resume", to}, with...)...)
	r.reaches("running", "replaying")
	r.hold("drill", 0, "restore", "cancel", to)
	if code := <-ended; code == 0 {
		t.Error("it was cancelled, and ended well")
	}
	r.reaches("cancelled", "replaying")

	speed(zonetest.Fault{Rate: 300_000})
	killed, ended := r.begin("drill", append([]string{"restore", "resume", to}, with...)...)
	r.reaches("running", "fetching")
	_ = killed.Process.Signal(syscall.SIGKILL)
	<-ended
	r.reaches("interrupted", "fetching")
	speed(zonetest.Fault{})
	doc := ask[restoreDoc](r, "drill", append([]string{"restore", "resume", c.ID, "--start"}, with...)...)
	if !doc.Complete || doc.Opened == nil {
		t.Fatalf("gone on with: %+v", doc)
	}
	shown := ask[restoreShown](r, "drill", "restore", "show", to)
	if shown.Status != "done" || shown.State != "open" || shown.Result == nil || shown.SystemID == "" {
		t.Errorf("shown: %+v", shown)
	}
	conn := r.connect(*doc.Opened, "postgres")
	if err := pgtest.CheckOracle(t.Context(), conn, acked, pgtest.Everything); err != nil {
		t.Error(err)
	}
	conn.Close(t.Context())
	r.hold("drill", exitRefused, "restore", "cancel", c.ID)
	r.discard(to)
	if left := r.restores(); len(left) > 0 {
		t.Errorf("discarded, the list has %+v", left)
	}
	if _, err := os.Stat(to); !os.IsNotExist(err) {
		t.Errorf("discarded, %s is there: %v", to, err)
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// crashWorld is one node that does everything, over three directories, with the
// program that can be told where to die.
type crashWorld struct {
	*rig
	oracle *pgtest.Oracle
	run    *crashRun // the daemon, while one runs
	orders []int64   // jobs that were accepted and must end
}

func newCrashWorld(t *testing.T) *crashWorld {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	w := &crashWorld{rig: newRig(t, pg, false)}
	w.program = filepath.Join(w.mkdir("bin"), "holdfast")
	if out, err := exec.Command("go", "build", "-tags", "crashpoints", "-o", w.program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the program that can be told where to die: %v: %s", err, out)
	}
	w.cluster = "    retention: {window: 1s, daily: 0, keep_at_least: 1s, keep_at_most: 1d, removal_grace: 10s}\n"
	w.configure()
	w.mkdir("rooms")
	w.settle("", "SELECT count(*) > 0 FROM oracle")
	w.oracle = pg.StartOracle(20 * time.Millisecond)
	w.oracle.AwaitMore(1) // for which the drills ask
	t.Cleanup(func() {
		if w.run != nil {
			_ = w.run.cmd.Process.Kill()
			<-w.run.done
		}
		if t.Failed() {
			t.Logf("the live server's indexes: %v", pgtest.CheckTrees(context.Background(), pg.Conn("postgres")))
			data, _ := os.ReadFile(w.path("db/daemon.log"))
			t.Logf("the end of the daemon's log:\n%s", data[max(0, len(data)-12000):])
		}
	})
	return w
}

// settle writes the node's configuration, with limits and a drill's question.
func (w *crashWorld) settle(limits, question string) {
	node := "node: {allow_identity: true, " + limits
	w.write("db/holdfast.yaml", strings.Replace(w.repository("db", "db"), "node: {", node, 1)+fmt.Sprintf(`clusters:
  - name: cms
    connection: %q
    data_directory: %s
    snapshots: {schedule: "* * * * *", level: fastest}
    wal: {mode: stream, max_lag: 300ms}
%senvironments:
  - {name: rooms, directory: %s, binaries: %q, identity: {file: %s}}
drills:
  - name: rehearsal
    cluster: cms
    environment: rooms
    schedule: "* * * * *"
    select: latest
    limits: {time: 2m}
    checks:
      - {name: rows, database: postgres, sql: %q, expect: "t"}
`, w.pg.DSN("postgres"), w.pg.DataDir, w.cluster, w.path("rooms"), w.pg.BinDir(), w.path("drill/data.key"), question))
}

// crashRun is one life of the daemon.
type crashRun struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// start starts the daemon, to die at a point, or to live.
func (w *crashWorld) start(point string) {
	w.t.Helper()
	w.run = w.launch("HOLDFAST_CRASH_AT=" + point)
}

// launch starts the daemon of node db, with more of an environment. What it says
// goes to the end of its log.
func (r *rig) launch(env ...string) *crashRun {
	r.t.Helper()
	f, err := os.OpenFile(r.path("db/daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	c := &crashRun{cmd: r.command(context.Background(), "db", "daemon"), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = f, f
	c.cmd.Env = append(c.cmd.Env, env...)
	if err := c.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		c.err = c.cmd.Wait()
		f.Close()
	}()
	return c
}

// ended says whether this life is over.
func (r *crashRun) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// killed waits for the daemon's death at its point, keeping it busy, and returns
// what it died at.
func (w *crashWorld) killed(point string, provoke ...func() error) string {
	w.t.Helper()
	next := 0
	await(w.t, "the crash at "+point, func() bool {
		if w.run.ended() {
			return true
		}
		if len(provoke) > 0 && w.idle() {
			if provoke[next%len(provoke)]() == nil {
				next++
			}
		}
		return false
	})
	ws, ok := w.run.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		w.t.Fatalf("at %s the daemon ended by itself: %v", point, w.run.err)
	}
	w.run = nil
	data, err := os.ReadFile(w.path("db/daemon.log"))
	if err != nil {
		w.t.Fatal(err)
	}
	_, at, _ := strings.Cut(string(data[bytes.LastIndex(data, []byte("crash point: ")):]), ": ")
	at, _, _ = strings.Cut(at, "\n")
	return at
}

// callDaemon calls the daemon; an error is one that does not answer, or refuses.
func callDaemon[In, Out any](r *rig, op server.Op[In, Out], in In) (out Out, err error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	client, err := server.Dial(ctx, r.path("db/hf.sock"))
	if err != nil {
		return out, err
	}
	return server.Call(ctx, client, op, in)
}

// accept has the daemon take on a job, which must then end, whoever dies.
func accept[In any](w *crashWorld, op server.Op[In, jobRef], in In) error {
	ref, err := callDaemon(w.rig, op, in)
	if err == nil {
		w.orders = append(w.orders, ref.Job)
	}
	return err
}

func (w *crashWorld) takeSnapshot() error { return accept(w, opSnapshotTake, takeIn{Cluster: "cms"}) }
func (w *crashWorld) runDrill() error     { return accept(w, opDrillRun, drillIn{"rehearsal"}) }
func (w *crashWorld) retention() error {
	return accept(w, opRetentionApply, retentionIn{Cluster: "cms", Force: true})
}

// jobs are the daemon's, the newest first.
func (w *crashWorld) jobs() ([]scheduler.Job, error) {
	doc, err := callDaemon(w.rig, opJobs, none{})
	return doc.Jobs, err
}

// idle says that the daemon answers, archives, and has no job open.
func (w *crashWorld) idle() bool {
	jobs, err := w.jobs()
	if err != nil {
		return false
	}
	for _, j := range jobs {
		if !j.State.Finished() {
			return false
		}
	}
	return true
}

// recovered waits until the daemon, started again, archives everything that was
// committed by now and has ended every job; nothing may be left of those that died.
func (w *crashWorld) recovered(after string) {
	w.t.Helper()
	want, err := lsn.Parse(w.pg.LSN())
	if err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "after the crash at "+after+": the archive's "+want.String(), func() bool {
		if w.run.ended() {
			w.t.Fatalf("after the crash at %s the daemon ended: %v", after, w.run.err)
		}
		doc, err := callDaemon(w.rig, opWALStatus, clusterQuery{"cms"})
		if err != nil || len(doc.Clusters) != 1 || doc.Clusters[0].Archiving == nil {
			return false
		}
		c := doc.Clusters[0]
		if len(c.Gaps) > 0 {
			w.t.Fatalf("after the crash at %s the WAL has gaps: %+v", after, c.Gaps)
		}
		return c.Archiving.Connected && c.Archiving.Durable >= want
	})
	await(w.t, "after the crash at "+after+": the end of all jobs", w.idle)
	w.jobsEnded(after)
	w.nothingLeft(after)
}

// jobsEnded wants every job that was accepted, and every slot's, to have been
// done in the end.
func (w *crashWorld) jobsEnded(after string) {
	w.t.Helper()
	jobs, err := w.jobs()
	if err != nil {
		w.t.Fatal(err)
	}
	known := map[int64]bool{}
	for _, j := range jobs {
		known[j.ID] = true
		if j.State != scheduler.Done {
			w.t.Errorf("after the crash at %s: job %d (%s, attempt %d) is %s: %s", after, j.ID, j.Kind, j.Attempt, j.State, j.Error)
		}
	}
	for _, id := range w.orders {
		if !known[id] && len(jobs) < 100 {
			w.t.Errorf("after the crash at %s: job %d is lost", after, id)
		}
	}
}

// nothingLeft wants no copy and no process of a drill that died.
func (w *crashWorld) nothingLeft(after string) {
	w.t.Helper()
	rooms := w.path("rooms")
	entries, err := os.ReadDir(rooms)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		w.t.Errorf("after the crash at %s: %s is left", after, e.Name())
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range lines {
		if text, err := os.ReadFile(name); err == nil && bytes.Contains(text, []byte(rooms)) {
			w.t.Errorf("after the crash at %s: a process is left: %q", after, text)
		}
	}
}

// stopped ends the daemon as systemd does: within 30 s, with nothing amiss.
func (w *crashWorld) stopped() {
	w.t.Helper()
	began := time.Now()
	if err := w.run.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "the daemon's end", w.run.ended)
	if took := time.Since(began); w.run.err != nil || took > 30*time.Second {
		w.t.Errorf("told to stop, the daemon ended after %s: %v", took, w.run.err)
	}
	if _, err := os.Stat(w.path("db/hf.sock")); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("its socket is left: %v", err)
	}
	w.run = nil
}

// busy gives the daemon a snapshot and a drill, and waits until both are under way.
func (w *crashWorld) busy() {
	w.t.Helper()
	await(w.t, "an order for a snapshot", func() bool { return w.takeSnapshot() == nil })
	await(w.t, "an order for a drill", func() bool { return w.runDrill() == nil })
	await(w.t, "a snapshot and a drill under way", func() bool {
		jobs, err := w.jobs()
		under := map[string]bool{}
		for _, j := range jobs {
			under[j.Kind] = under[j.Kind] || j.State == scheduler.Running && len(j.Progress) > 0
		}
		return err == nil && under[jobSnapshot] && under[jobDrill]
	})
}

// proven wants what a group of crashes left to be whole: a drill passes, the
// ledger verifies with one outcome for each slot, and a restore of the end of the
// archive holds every commit.
func (w *crashWorld) proven(name string) {
	w.t.Helper()
	w.hold("db", 0, "snapshot", "take", "cms")
	w.hold("db", 0, "drill", "run", "rehearsal")
	await(w.t, "the end of all jobs", w.idle)
	acked := w.oracle.Acked()
	w.archived("a", "b")
	w.slotsClosed()
	w.allTold()
	copied := "copy-" + name
	w.restore(copied)
	conn := w.connect(w.open(copied), "postgres")
	end := acked[len(acked)-1].ID
	var found int64
	// The writer goes on: the copy holds all that was acknowledged, and has no hole.
	err := conn.QueryRow(w.t.Context(), "SELECT count(*) FILTER (WHERE id <= $1) FROM oracle", end).Scan(&found)
	if err != nil || found != end {
		w.t.Errorf("the restored copy holds %d of %d commits: %v", found, end, err)
	}
	var all, newest int64
	if err := conn.QueryRow(w.t.Context(), "SELECT count(*), max(id) FROM oracle").Scan(&all, &newest); err != nil || all != newest {
		w.t.Errorf("the restored copy holds %d rows up to %d: %v", all, newest, err)
	}
	w.discard(w.path(copied))
}

// allTold wants a ledger entry for each snapshot that there is. A schedule goes on
// meanwhile, and what it began is told a little later.
func (w *crashWorld) allTold() {
	w.t.Helper()
	var list []snapshotDoc
	await(w.t, "a ledger that tells once of each snapshot", func() bool {
		list = ask[snapshotsDoc](w.rig, "db", "snapshot", "list", "cms").Snapshots
		told := map[string]int{}
		for _, e := range ask[struct {
			Entries []entryDoc `json:"entries"`
		}](w.rig, "db", "ledger", "show", "--type", "snapshot.taken", "--last", "100000").Entries {
			told[e.Subject["snapshot"]]++
		}
		return !slices.ContainsFunc(list, func(s snapshotDoc) bool { return told[s.ID] != 1 })
	})
	w.t.Logf("%d snapshots", len(list))
}

// slotsClosed reads the ledger as a stranger does, until a moment when no slot is open.
func (w *crashWorld) slotsClosed() {
	w.t.Helper()
	w.hold("db", 0, "ledger", "verify")
	var due, outcomes, verdicts map[string]int
	await(w.t, "one outcome of each slot that was announced once", func() bool {
		due, outcomes, verdicts = w.slots()
		for slot, n := range due {
			if n != 1 || outcomes[slot] != 1 {
				return false
			}
		}
		return len(due) > 0 && len(outcomes) == len(due)
	})
	if verdicts[drills.Fail]+verdicts[drills.Aborted]+verdicts[drills.Inconclusive] > 0 {
		w.t.Errorf("%d slots: %v", len(due), verdicts)
	}
	w.t.Logf("%d drills: %v", len(due), verdicts)
	passed := verdicts[drills.Pass] + verdicts[drills.PassWithGaps]
	await(w.t, "a proof of each drill that passed", func() bool {
		dir := w.path("zones/a/proofs")
		return files(dir)-len(filesWith(dir, "/placement-")) == passed
	})
}

// slots counts, by slot, how often it was announced and how often it ended, and the
// outcomes.
func (w *crashWorld) slots() (due, outcomes, verdicts map[string]int) {
	w.t.Helper()
	due, outcomes, verdicts = map[string]int{}, map[string]int{}, map[string]int{}
	for _, e := range ask[struct {
		Entries []struct {
			Type string `json:"type"`
			Body struct {
				Slot    string `json:"slot"`
				Outcome string `json:"outcome"`
			} `json:"body"`
		} `json:"entries"`
	}](w.rig, "db", "ledger", "show", "--type", "drill", "--last", "100000").Entries {
		switch e.Type {
		case ledger.TypeDrillDue:
			due[e.Body.Slot]++
		case ledger.TypeDrillOutcome:
			outcomes[e.Body.Slot]++
			verdicts[e.Body.Outcome]++
		}
	}
	return due, outcomes, verdicts
}

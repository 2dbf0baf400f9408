package scheduler_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/scheduler"
	"github.com/holdfast-dr/holdfast/scheduler/schedulertest"
)

const (
	childMode = "HOLDFAST_SCHEDULER_CHILD"
	childPath = "HOLDFAST_SCHEDULER_PATH"
)

// TestMain lets the test binary be the daemon that is killed.
func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		if err := child(mode, os.Getenv(childPath)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child runs a runner until it is killed, two hours after the clock of the test
// that enqueued. It says what it does on standard output, and hangs in the job
// or in the telling of missed slots when its mode names that.
func child(mode, path string) error {
	clock := schedulertest.NewClock()
	clock.Move(2 * time.Hour)
	q, err := scheduler.OpenSQLite(context.Background(), path, clock.Now)
	if err != nil {
		return err
	}
	say := func(what string, detail any) {
		fmt.Println(what, detail)
		if mode == what {
			<-context.Background().Done() // forever
		}
	}
	r := &scheduler.Runner{
		Queue: q, Now: clock.Now, Poll: 5 * time.Millisecond,
		Handlers: map[string]scheduler.Handler{"k": func(_ context.Context, job scheduler.Job, _ func(any)) (any, error) {
			say("begun", fmt.Sprint(job.Key, " ", job.Attempt))
			return nil, nil
		}},
		OnMissed: func(_ context.Context, _ scheduler.Schedule, slots []time.Time) error {
			say("missed", len(slots))
			return nil
		},
		OnFinished: func(_ context.Context, job scheduler.Job) { say("finished", fmt.Sprint(job.Key, " ", job.Attempt)) },
		Schedules:  []scheduler.Schedule{{Name: "hourly", Spec: "0 * * * *", Kind: "k"}},
	}
	return r.Run(context.Background())
}

type process struct {
	*testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startChild(t *testing.T, mode, path string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // kills it, so that no wait is endless
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childMode+"="+mode, childPath+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &process{t, cmd, bufio.NewScanner(out)}
}

func (p *process) says(want string) {
	p.Helper()
	if !p.lines.Scan() || p.lines.Text() != want {
		p.Fatalf("the process says %q, want %q", p.lines.Text(), want)
	}
}

func (p *process) kill() {
	p.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		p.Fatal(err)
	}
	_ = p.cmd.Wait() // "signal: killed" is what was wanted
}

func TestAKilledProcessLosesNothing(t *testing.T) {
	path, clock := filepath.Join(t.TempDir(), "jobs.db"), schedulertest.NewClock()
	q := openSQLite(t, path, clock.Now)
	state := scheduler.SlotState{Spec: "0 * * * *", Last: clock.Now().Add(-time.Hour)} // 11:00
	if _, err := q.TakeSlot(t.Context(), "hourly", state, nil); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}

	p := startChild(t, "missed", path) // between the slots' being due and their being taken
	p.says("missed 2")
	p.kill()
	p = startChild(t, "begun", path) // in the middle of the job
	p.says("missed 2")
	p.says("begun hourly@2026-03-01T14:00:00Z 1")
	p.kill()
	p = startChild(t, "begun", path) // again; nobody waited for a lease
	p.says("begun hourly@2026-03-01T14:00:00Z 2")

	second := startChild(t, "run", path) // beside the living one
	second.says("error opening the job queue " + path + ": is another daemon running? " + heldBy(t, path))
	if err := second.cmd.Wait(); err == nil {
		t.Error("a second daemon ended well")
	}
	p.kill()
	p = startChild(t, "run", path)
	p.says("begun hourly@2026-03-01T14:00:00Z 3")
	p.says("finished hourly@2026-03-01T14:00:00Z 3")
	p.kill()

	q = openSQLite(t, path, clock.Now)
	jobs, err := q.List(t.Context(), scheduler.Filter{})
	if err != nil || len(jobs) != 1 || jobs[0].State != scheduler.Done || jobs[0].Attempt != 3 {
		t.Errorf("%+v, %v", jobs, err)
	}
}

// heldBy is what the lock itself says to a second owner.
func heldBy(t *testing.T, path string) string {
	t.Helper()
	_, err := scheduler.OpenSQLite(t.Context(), path, nil)
	if err == nil {
		t.Fatal("the queue can be opened twice")
	}
	_, why, _ := strings.Cut(err.Error(), "is another daemon running? ")
	return why
}

package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/scheduler"
	"github.com/holdfast-dr/holdfast/scheduler/schedulertest"
)

// bench is a runner on a real queue, with a clock that the test moves.
type bench struct {
	*testing.T
	path     string
	q        *scheduler.SQLite
	r        *scheduler.Runner
	clock    *schedulertest.Clock
	finished chan scheduler.Job
	stop     func() // tells the runner to stop and waits until it has
}

func newBench(t *testing.T, handlers map[string]scheduler.Handler) *bench {
	b := &bench{T: t, path: filepath.Join(t.TempDir(), "jobs.db"), clock: schedulertest.NewClock()}
	b.q = openSQLite(t, b.path, b.clock.Now)
	b.finished = make(chan scheduler.Job, 100)
	b.r = &scheduler.Runner{
		Queue: b.q, Handlers: handlers, Now: b.clock.Now,
		Poll: 5 * time.Millisecond, Heartbeat: 5 * time.Millisecond, Grace: time.Minute,
		Backoff:    func(int) time.Duration { return 0 },
		OnFinished: func(_ context.Context, job scheduler.Job) { b.finished <- job },
	}
	return b
}

func (b *bench) start() {
	b.Helper()
	ctx, end := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- b.r.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		end()
		if err := receive(b.T, done); err != nil {
			b.Errorf("run: %v", err)
		}
	})
	b.Cleanup(b.stop)
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing happened for 20 seconds")
		panic("unreachable")
	}
}

// until looks again and again until ok holds.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick, end := time.NewTicker(2*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("it never came to be that %s", what)
		}
	}
}

func (b *bench) enqueue(job scheduler.Job) int64 {
	b.Helper()
	id, created, err := b.r.Enqueue(b.Context(), job)
	if err != nil || !created {
		b.Fatalf("enqueue: created %v, %v", created, err)
	}
	return id
}

func (b *bench) get(id int64) scheduler.Job {
	b.Helper()
	job, err := b.q.Get(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	return job
}

func done(context.Context, scheduler.Job, func(any)) (any, error) { return nil, nil }

func TestOutcomesFollowWhatTheHandlerReturns(t *testing.T) {
	var mu sync.Mutex
	calls := map[string]int{}
	b := newBench(t, map[string]scheduler.Handler{"k": func(_ context.Context, job scheduler.Job, progress func(any)) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		calls[job.Key]++
		progress(map[string]int{"call": calls[job.Key]})
		switch first := calls[job.Key] == 1; {
		case job.Key == "once more" && first:
			return nil, errors.New("zone down")
		case job.Key == "not yet" && first:
			return nil, fmt.Errorf("waiting: %w", scheduler.Snooze(0))
		case job.Key == "hopeless":
			return "partial", scheduler.Cancel(errors.New("no such cluster"))
		case job.Key == "never":
			return nil, errors.New("zone down")
		case job.Key == "panics":
			panic("out of range")
		case job.Key == "unprintable":
			return make(chan int), nil
		}
		return map[string]string{"snapshot": "S1"}, nil
	}})
	b.start()
	tests := map[string]struct {
		state          scheduler.State
		attempt, calls int
		err            string
	}{
		"at once":     {scheduler.Done, 1, 1, ""},
		"once more":   {scheduler.Done, 2, 2, ""},
		"not yet":     {scheduler.Done, 1, 2, ""},
		"hopeless":    {scheduler.Failed, 1, 1, "no such cluster"},
		"never":       {scheduler.Failed, 3, 3, "zone down"},
		"panics":      {scheduler.Failed, 3, 3, "panic: out of range"},
		"unprintable": {scheduler.Failed, 3, 3, "unsupported type"},
	}
	for key := range tests {
		b.enqueue(scheduler.Job{Kind: "k", Key: key, MaxAttempts: 3})
	}
	for range tests {
		job := receive(t, b.finished)
		want := tests[job.Key]
		if job.State != want.state || job.Attempt != want.attempt || !strings.Contains(job.Error, want.err) || (want.err == "") != (job.Error == "") {
			t.Errorf("%s: %s after %d attempts: %q", job.Key, job.State, job.Attempt, job.Error)
		}
		mu.Lock()
		if calls[job.Key] != want.calls || string(job.Progress) != fmt.Sprintf(`{"call":%d}`, want.calls) {
			t.Errorf("%s: %d calls, progress %s", job.Key, calls[job.Key], job.Progress)
		}
		mu.Unlock()
		if job.Key == "at once" && string(job.Output) != `{"snapshot":"S1"}` || job.Key == "hopeless" && string(job.Output) != `"partial"` {
			t.Errorf("%s: output %s", job.Key, job.Output)
		}
	}
}

func TestALaneRunsOneJobAndWorkersAreBounded(t *testing.T) {
	var mu sync.Mutex
	now, lane := 0, map[string]int{}
	begun, gate := make(chan struct{}, 100), make(chan struct{})
	b := newBench(t, map[string]scheduler.Handler{"k": func(_ context.Context, job scheduler.Job, _ func(any)) (any, error) {
		mu.Lock()
		now++
		lane[job.Lane]++
		if now > 3 || lane[job.Lane] > 1 {
			t.Errorf("%d handlers run, %d in lane %s", now, lane[job.Lane], job.Lane)
		}
		mu.Unlock()
		begun <- struct{}{}
		<-gate
		mu.Lock()
		defer mu.Unlock()
		now--
		lane[job.Lane]--
		return nil, nil
	}})
	b.r.Workers = 3
	for i := range 30 {
		b.enqueue(scheduler.Job{Kind: "k", Lane: fmt.Sprint("lane", i%6)})
	}
	b.start()
	for range 3 {
		receive(t, begun) // three lanes at a time, though no handler has ended
	}
	close(gate)
	for range 30 {
		receive(t, b.finished)
	}
}

func TestAStopWaitsForHandlersThenEndsThemWithoutLosingAnAttempt(t *testing.T) {
	begun, release := make(chan struct{}, 2), make(chan struct{})
	b := newBench(t, map[string]scheduler.Handler{
		"quick": func(ctx context.Context, _ scheduler.Job, _ func(any)) (any, error) {
			begun <- struct{}{}
			<-release
			return "finished", ctx.Err()
		},
		"slow": func(ctx context.Context, _ scheduler.Job, progress func(any)) (any, error) {
			begun <- struct{}{}
			<-ctx.Done()
			progress("packs 1 to 7 are stored")
			if !errors.Is(context.Cause(ctx), scheduler.ErrStopping) {
				t.Errorf("ended by %v", context.Cause(ctx))
			}
			return nil, ctx.Err()
		},
	})
	b.r.Grace = 50 * time.Millisecond
	quick, slow := b.enqueue(scheduler.Job{Kind: "quick"}), b.enqueue(scheduler.Job{Kind: "slow"})
	b.start()
	receive(t, begun)
	receive(t, begun)
	close(release)
	receive(t, b.finished)
	b.stop()
	late := b.enqueue(scheduler.Job{Kind: "quick"})
	if job := b.get(quick); job.State != scheduler.Done || string(job.Output) != `"finished"` {
		t.Errorf("quick: %+v", job)
	}
	if job := b.get(slow); job.State != scheduler.Available || job.Attempt != 0 || string(job.Progress) != `"packs 1 to 7 are stored"` {
		t.Errorf("slow: %+v", job)
	}
	if job := b.get(late); job.State != scheduler.Available || job.Attempt != 0 {
		t.Errorf("a job was started after the stop: %+v", job)
	}
}

func TestCancellingEndsAHandlersContext(t *testing.T) {
	begun := make(chan struct{}, 2)
	b := newBench(t, map[string]scheduler.Handler{"k": func(ctx context.Context, _ scheduler.Job, _ func(any)) (any, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, fmt.Errorf("stopped copying: %w", context.Cause(ctx))
	}})
	b.start()
	// Through the runner at once; through the queue, as another process would, by heartbeat.
	for _, cancel := range []func(context.Context, int64) error{b.r.Cancel, b.q.Cancel} {
		id := b.enqueue(scheduler.Job{Kind: "k"})
		receive(t, begun)
		if err := cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if job := receive(t, b.finished); job.ID != id || job.State != scheduler.Cancelled || !strings.Contains(job.Error, "stopped copying") {
			t.Errorf("%+v", job)
		}
	}
	if err := b.r.Cancel(t.Context(), 99); !errors.Is(err, scheduler.ErrNoJob) {
		t.Error(err)
	}
}

func TestDeadlinesEndJobsThatRunAndThoseThatNeverBegan(t *testing.T) {
	var b *bench
	b = newBench(t, map[string]scheduler.Handler{"k": func(ctx context.Context, job scheduler.Job, _ func(any)) (any, error) {
		if job.Key == "late" {
			t.Error("it began after its deadline")
		}
		<-ctx.Done()
		b.clock.Move(50 * time.Millisecond) // the queue's clock is the test's, the context's is not
		return nil, ctx.Err()
	}})
	b.enqueue(scheduler.Job{Kind: "k", Key: "late", Deadline: b.clock.Now().Add(-time.Second)})
	b.enqueue(scheduler.Job{Kind: "k", Key: "long", Deadline: b.clock.Now().Add(50 * time.Millisecond)})
	b.start()
	for range 2 {
		job := receive(t, b.finished)
		want := map[string]string{"late": "passed before it could begin", "long": "deadline exceeded"}[job.Key]
		if job.State != scheduler.Failed || !strings.Contains(job.Error, want) || job.Attempt != 1 {
			t.Errorf("%s: %s at attempt %d: %s", job.Key, job.State, job.Attempt, job.Error)
		}
	}
}

func TestTheRunnerRefusesSchedulesItCannotServe(t *testing.T) {
	for want, schedules := range map[string][]scheduler.Schedule{
		"no handler does": {{Name: "a", Spec: "@daily", Kind: "other"}},
		"and once":        {{Name: "a", Spec: "@daily", Kind: "k"}, {Name: "a", Spec: "@daily", Kind: "k"}},
		"must be given":   {{Spec: "@daily", Kind: "k"}},
		"reading":         {{Name: "a", Spec: "daily", Kind: "k"}},
	} {
		b := newBench(t, map[string]scheduler.Handler{"k": done})
		b.r.Schedules = schedules
		if err := b.r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

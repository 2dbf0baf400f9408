package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
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
	late := int64(0)
	close(release)
	receive(t, b.finished)
	b.stop()
	late = b.enqueue(scheduler.Job{Kind: "quick"})
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

// told records what a runner says of missed slots.
type told struct {
	mu    sync.Mutex
	slots []string
	err   error
}

func (m *told) missed(_ context.Context, s scheduler.Schedule, slots []time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, slot := range slots {
		m.slots = append(m.slots, s.Name+" "+slot.Format("01-02 15:04"))
	}
	return m.err
}

func (m *told) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	slots := m.slots
	m.slots = nil
	return slots
}

// scheduled is a bench with the schedule "hourly" at each full hour, from 12:00.
func scheduled(t *testing.T, handler scheduler.Handler) (*bench, *told) {
	b, m := newBench(t, map[string]scheduler.Handler{"k": handler}), &told{}
	b.r.Schedules = []scheduler.Schedule{{Name: "hourly", Spec: "0 * * * *", Kind: "k", Lane: "cms", Payload: json.RawMessage(`{"cluster":"cms"}`), Limit: time.Hour}}
	b.r.OnMissed = m.missed
	return b, m
}

// known waits until the runner has taken up its schedules.
func (b *bench) known() {
	b.Helper()
	until(b.T, "the schedule is known", func() bool {
		states, err := b.q.SlotStates(b.Context())
		return err == nil && len(states) == len(b.r.Schedules) && states["hourly"].Spec == b.r.Schedules[0].Spec
	})
}

// again makes a fresh runner on the same queue, as after a restart.
func (b *bench) again() {
	b.r = &scheduler.Runner{
		Queue: b.q, Handlers: b.r.Handlers, Schedules: b.r.Schedules, OnMissed: b.r.OnMissed, OnFinished: b.r.OnFinished,
		Now: b.r.Now, Poll: b.r.Poll, Heartbeat: b.r.Heartbeat, Grace: b.r.Grace, Backoff: b.r.Backoff,
	}
}

func wantSlot(t *testing.T, job scheduler.Job, slot string) {
	t.Helper()
	if got := job.Slot.Format("01-02 15:04"); got != slot || job.State != scheduler.Done || job.Key != scheduler.SlotKey("hourly", job.Slot) {
		t.Fatalf("job %s of slot %s is %s (%s), want slot %s", job.Key, got, job.State, job.Error, slot)
	}
}

func TestMissedSlotsAreMadeUpOnceAndTheEarlierOnesTold(t *testing.T) {
	b, m := scheduled(t, done)
	b.start()
	b.known()
	b.clock.Move(time.Hour) // 13:00: due while it runs
	job := receive(t, b.finished)
	wantSlot(t, job, "03-01 13:00")
	if job.Lane != "cms" || string(job.Payload) != `{"cluster":"cms"}` || !job.Deadline.Equal(b.clock.Now().Add(time.Hour)) {
		t.Errorf("%+v", job)
	}
	b.stop()
	b.clock.Move(4*time.Hour + 10*time.Minute) // 17:10: four slots while nothing ran
	b.again()
	b.start()
	wantSlot(t, receive(t, b.finished), "03-01 17:00")
	if got, want := m.take(), []string{"hourly 03-01 14:00", "hourly 03-01 15:00", "hourly 03-01 16:00"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	b.stop()
	b.again()
	b.start() // nothing is due twice
	b.clock.Move(50 * time.Minute)
	wantSlot(t, receive(t, b.finished), "03-01 18:00")
	b.stop()
	if jobs, err := b.q.List(t.Context(), scheduler.Filter{}); err != nil || len(jobs) != 3 || len(m.take()) > 0 {
		t.Errorf("%d jobs, %v", len(jobs), err)
	}
}

func TestMissedSlotsThatCannotBeRecordedAreToldAgain(t *testing.T) {
	b, m := scheduled(t, done)
	b.start()
	b.known()
	m.mu.Lock()
	m.err = errors.New("the ledger is full")
	m.mu.Unlock()
	b.clock.Move(3 * time.Hour)
	until(t, "they were told twice", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.slots) >= 4 })
	if jobs, err := b.q.List(t.Context(), scheduler.Filter{}); err != nil || len(jobs) > 0 {
		t.Fatalf("%d jobs were made before the missed slots were recorded, %v", len(jobs), err)
	}
	m.mu.Lock()
	m.err = nil
	m.mu.Unlock()
	wantSlot(t, receive(t, b.finished), "03-01 15:00")
}

func TestSlotsWaitForASlowJobInsteadOfQueueingBehindIt(t *testing.T) {
	begun, release := make(chan struct{}, 10), make(chan struct{}, 10)
	b, m := scheduled(t, func(context.Context, scheduler.Job, func(any)) (any, error) {
		begun <- struct{}{}
		<-release
		return nil, nil
	})
	b.start()
	b.known()
	b.clock.Move(time.Hour)
	receive(t, begun)
	b.clock.Move(3 * time.Hour)
	release <- struct{}{}
	wantSlot(t, receive(t, b.finished), "03-01 13:00")
	receive(t, begun)
	release <- struct{}{}
	wantSlot(t, receive(t, b.finished), "03-01 16:00")
	if got, want := m.take(), []string{"hourly 03-01 14:00", "hourly 03-01 15:00"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
}

func TestAClockThatJumpsNeitherRepeatsNorStopsASchedule(t *testing.T) {
	b, m := scheduled(t, done)
	b.start()
	b.known()
	b.clock.Move(time.Hour)
	wantSlot(t, receive(t, b.finished), "03-01 13:00")
	b.clock.Move(-20 * time.Minute) // a correction: 12:40
	b.clock.Move(30 * time.Minute)  // 13:10: 13:00 has run
	b.clock.Move(50 * time.Minute)
	wantSlot(t, receive(t, b.finished), "03-01 14:00")
	b.clock.Move(365 * 24 * time.Hour) // far ahead: more slots than one batch
	wantSlot(t, receive(t, b.finished), "03-01 14:00")
	if got := len(m.take()); got != 365*24-1 {
		t.Errorf("%d slots were told", got)
	}
	b.clock.Move(-365*24*time.Hour + time.Minute) // and back: 14:01
	until(t, "the schedule follows the clock", func() bool {
		states, err := b.q.SlotStates(t.Context())
		return err == nil && states["hourly"].Last.Equal(b.clock.Now())
	})
	b.clock.Move(time.Hour)
	wantSlot(t, receive(t, b.finished), "03-01 15:00")
	if jobs, err := b.q.List(t.Context(), scheduler.Filter{}); err != nil || len(jobs) != 4 {
		t.Errorf("%d jobs, %v", len(jobs), err)
	}
}

func TestAChangedScheduleMissesNothingThatWasNeverDue(t *testing.T) {
	b, m := scheduled(t, done)
	b.start()
	b.known()
	b.stop()
	b.clock.Move(2*time.Hour + 30*time.Minute) // 14:30: two slots of the old expression
	b.r.Schedules[0].Spec = "*/10 * * * *"
	b.again()
	b.start()
	wantSlot(t, receive(t, b.finished), "03-01 14:00")
	b.known()
	if got, want := m.take(), []string{"hourly 03-01 13:00"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	b.clock.Move(10 * time.Minute)
	wantSlot(t, receive(t, b.finished), "03-01 14:40")
	b.stop()
	b.r.Schedules = nil
	b.again()
	b.start()
	until(t, "a schedule that is gone is forgotten", func() bool {
		states, err := b.q.SlotStates(t.Context())
		return err == nil && len(states) == 0
	})
}

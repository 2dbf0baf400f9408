// Package schedulertest is the conformance suite of job queues: what
// scheduler.Queue promises, asked of a real store.
package schedulertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/scheduler"
)

// Store is one store under test, empty when the suite gets it.
type Store interface {
	// Open opens it as a new process does. now is its clock.
	Open(t *testing.T, now func() time.Time) scheduler.Queue
	// Crash ends the process that had it open, without a word to the queue.
	Crash(t *testing.T, q scheduler.Queue)
}

// Clock is a clock that tests move.
type Clock struct {
	mu sync.Mutex
	at time.Time
}

// NewClock starts at a fixed moment.
func NewClock() *Clock { return &Clock{at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

// Now is the clock's time.
func (c *Clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.at }

// Move moves it, back as well.
func (c *Clock) Move(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.at = c.at.Add(d) }

type fixture struct {
	*testing.T
	store Store
	clock *Clock
	q     scheduler.Queue
}

// Run asks every promise of a new store each.
func Run(t *testing.T, newStore func(t *testing.T) Store) {
	for name, ask := range map[string]func(*fixture){
		"a job comes back as it was enqueued":                    roundTrip,
		"a key is one job, finished or not":                      uniqueKeys,
		"jobs start when they are due, oldest first":             dueOrder,
		"a claim takes only the kinds that were asked for":       kinds,
		"a lane has one running job":                             lanes,
		"racing claims never share a job or a lane":              racingClaims,
		"an outcome is stored, a job retried and refunded":       outcomes,
		"a stale claim can neither beat nor settle":              staleClaims,
		"jobs of a dead process are found at once":               deadOwners,
		"jobs of a living process are left alone":                livingOwner,
		"attempts are bounded although each one is killed":       boundedCrashes,
		"cancelling ends what waits and asks what runs":          cancelling,
		"a slot and its job are one act":                         slots,
		"listings are filtered, bounded, newest first":           listings,
		"pruning removes what finished before, nothing else":     pruning,
		"a queue survives its process with all that it was told": durability,
	} {
		t.Run(name, func(t *testing.T) {
			f := &fixture{T: t, store: newStore(t), clock: NewClock()}
			f.q = f.store.Open(t, f.clock.Now)
			ask(f)
		})
	}
}

func (f *fixture) enqueue(job scheduler.Job) int64 {
	f.Helper()
	id, created, err := f.q.Enqueue(f.Context(), job)
	if err != nil || !created {
		f.Fatalf("enqueue %+v: created %v, %v", job, created, err)
	}
	return id
}

func (f *fixture) claim(kinds ...string) scheduler.Job {
	f.Helper()
	job, ok, err := f.q.Claim(f.Context(), kinds)
	if err != nil || !ok {
		f.Fatalf("claim %v: %v, %v", kinds, ok, err)
	}
	return job
}

func (f *fixture) claimNothing(kinds ...string) {
	f.Helper()
	if job, ok, err := f.q.Claim(f.Context(), kinds); err != nil || ok {
		f.Fatalf("claim %v: got %+v, %v", kinds, job, err)
	}
}

func (f *fixture) settle(job scheduler.Job, o scheduler.Outcome) {
	f.Helper()
	if err := f.q.Settle(f.Context(), job, o); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) get(id int64) scheduler.Job {
	f.Helper()
	job, err := f.q.Get(f.Context(), id)
	if err != nil {
		f.Fatal(err)
	}
	return job
}

// restart crashes the process and opens the store as another.
func (f *fixture) restart() []scheduler.Job {
	f.Helper()
	f.store.Crash(f.T, f.q)
	f.q = f.store.Open(f.T, f.clock.Now)
	jobs, err := f.q.Recover(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	return jobs
}

func (f *fixture) want(job scheduler.Job, state scheduler.State, attempt int) {
	f.Helper()
	if job.State != state || job.Attempt != attempt {
		f.Fatalf("job %d is %s at attempt %d (%s), want %s at %d", job.ID, job.State, job.Attempt, job.Error, state, attempt)
	}
}

func roundTrip(f *fixture) {
	now := f.clock.Now()
	in := scheduler.Job{
		Kind: "k", Lane: "l", Key: "key", Schedule: "s", Slot: now.Add(-time.Hour), Payload: json.RawMessage(`{"a":[1,"ü"]}`),
		RunAt: now.Add(time.Minute), Deadline: now.Add(time.Hour), MaxAttempts: 3,
	}
	got := f.get(f.enqueue(in))
	if got.Kind != in.Kind || got.Lane != in.Lane || got.Key != in.Key || got.Schedule != in.Schedule || got.MaxAttempts != 3 || string(got.Payload) != string(in.Payload) {
		f.Errorf("got %+v", got)
	}
	if !got.Slot.Equal(in.Slot) || !got.RunAt.Equal(in.RunAt) || !got.Deadline.Equal(in.Deadline) || !got.CreatedAt.Equal(now) || !got.StartedAt.IsZero() {
		f.Errorf("times: %+v", got)
	}
	f.want(got, scheduler.Available, 0)
	if plain := f.get(f.enqueue(scheduler.Job{Kind: "k"})); !plain.RunAt.Equal(now) || plain.MaxAttempts != scheduler.DefaultAttempts || !plain.Deadline.IsZero() || !plain.Slot.IsZero() {
		f.Errorf("defaults: %+v", plain)
	}
	if _, err := f.q.Get(f.Context(), 1<<40); !errors.Is(err, scheduler.ErrNoJob) {
		f.Errorf("a job that is none: %v", err)
	}
	if _, _, err := f.q.Enqueue(f.Context(), scheduler.Job{}); err == nil {
		f.Error("a job without a kind was taken")
	}
}

func uniqueKeys(f *fixture) {
	id := f.enqueue(scheduler.Job{Kind: "k", Key: "one"})
	again := func(when string) {
		f.Helper()
		if other, created, err := f.q.Enqueue(f.Context(), scheduler.Job{Kind: "k", Key: "one"}); err != nil || created || other != id {
			f.Errorf("%s: id %d, created %v, %v", when, other, created, err)
		}
	}
	again("waiting")
	job := f.claim("k")
	again("running")
	f.settle(job, scheduler.Outcome{State: scheduler.Done})
	again("done")
	f.enqueue(scheduler.Job{Kind: "k"})
	f.enqueue(scheduler.Job{Kind: "k"})
}

func dueOrder(f *fixture) {
	now := f.clock.Now()
	later := f.enqueue(scheduler.Job{Kind: "k", RunAt: now.Add(time.Minute)})
	second := f.enqueue(scheduler.Job{Kind: "k", RunAt: now.Add(-time.Second)})
	first := f.enqueue(scheduler.Job{Kind: "k", RunAt: now.Add(-time.Hour)})
	if a, b := f.claim("k"), f.claim("k"); a.ID != first || b.ID != second || !a.StartedAt.Equal(now) {
		f.Errorf("claimed %d, %d at %v", a.ID, b.ID, a.StartedAt)
	}
	f.claimNothing("k")
	f.clock.Move(time.Minute)
	if c := f.claim("k"); c.ID != later {
		f.Errorf("claimed %d", c.ID)
	}
}

func kinds(f *fixture) {
	f.enqueue(scheduler.Job{Kind: "a"})
	f.claimNothing()
	f.claimNothing("b", "A", "a' OR 1=1")
	f.claim("b", "a")
}

func lanes(f *fixture) {
	first, second := f.enqueue(scheduler.Job{Kind: "k", Lane: "x"}), f.enqueue(scheduler.Job{Kind: "k", Lane: "x"})
	other := f.enqueue(scheduler.Job{Kind: "k", Lane: "y"})
	job := f.claim("k")
	if next := f.claim("k"); job.ID != first || next.ID != other {
		f.Fatalf("claimed %d and %d", job.ID, next.ID)
	}
	f.claimNothing("k")
	f.settle(job, scheduler.Outcome{State: scheduler.Available, RetryAt: f.clock.Now().Add(time.Hour)})
	if next := f.claim("k"); next.ID != second {
		f.Errorf("claimed %d", next.ID)
	}
	f.enqueue(scheduler.Job{Kind: "k"})
	f.enqueue(scheduler.Job{Kind: "k"})
	f.claim("k")
	f.claim("k") // no lane excludes nothing
}

func racingClaims(f *fixture) {
	for i := range 20 {
		f.enqueue(scheduler.Job{Kind: "k", Lane: fmt.Sprint("lane", i%5)})
	}
	var mu sync.Mutex
	runs, lane := map[int64]int{}, map[string]int{}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for {
				job, ok, err := f.q.Claim(f.Context(), []string{"k"})
				if err != nil {
					f.Error(err)
				}
				if !ok {
					return
				}
				mu.Lock()
				runs[job.ID]++
				lane[job.Lane]++
				if lane[job.Lane] > 1 {
					f.Errorf("lane %s runs %d jobs", job.Lane, lane[job.Lane])
				}
				mu.Unlock()
				runtime.Gosched() // let the others try while this lane is taken
				mu.Lock()
				lane[job.Lane]--
				mu.Unlock()
				if err := f.q.Settle(f.Context(), job, scheduler.Outcome{State: scheduler.Done}); err != nil {
					f.Error(err)
				}
			}
		})
	}
	group.Wait()
	for job, n := range runs {
		if n != 1 {
			f.Errorf("job %d ran %d times", job, n)
		}
	}
	if left, err := f.q.List(f.Context(), scheduler.Filter{States: []scheduler.State{scheduler.Running}}); err != nil || len(left) > 0 {
		f.Errorf("%d still run, %v", len(left), err)
	}
}

func outcomes(f *fixture) {
	id := f.enqueue(scheduler.Job{Kind: "k", Lane: "x"})
	retry := f.clock.Now().Add(time.Minute)
	f.settle(f.claim("k"), scheduler.Outcome{State: scheduler.Available, Error: "zone down", RetryAt: retry})
	f.want(f.get(id), scheduler.Available, 1)
	f.claimNothing("k")
	f.clock.Move(time.Minute)
	f.settle(f.claim("k"), scheduler.Outcome{State: scheduler.Available, RetryAt: f.clock.Now(), Refund: true})
	f.want(f.get(id), scheduler.Available, 1)
	job := f.claim("k")
	if err := f.q.Heartbeat(f.Context(), job, json.RawMessage(`{"bytes":1}`)); err != nil {
		f.Fatal(err)
	}
	if err := f.q.Heartbeat(f.Context(), job, nil); err != nil {
		f.Fatal(err)
	}
	if got := f.get(id); string(got.Progress) != `{"bytes":1}` || got.Owner == "" {
		f.Errorf("running: %+v", got)
	}
	if err := f.q.Settle(f.Context(), job, scheduler.Outcome{State: scheduler.Running}); err == nil {
		f.Error("running was taken for an outcome")
	}
	f.settle(job, scheduler.Outcome{State: scheduler.Done, Output: json.RawMessage(`"S1"`)})
	got := f.get(id)
	f.want(got, scheduler.Done, 2)
	if string(got.Output) != `"S1"` || !got.FinishedAt.Equal(f.clock.Now()) || got.Owner != "" || string(got.Progress) != `{"bytes":1}` {
		f.Errorf("done: %+v", got)
	}
}

func staleClaims(f *fixture) {
	id := f.enqueue(scheduler.Job{Kind: "k"})
	old := f.claim("k")
	f.settle(old, scheduler.Outcome{State: scheduler.Available, RetryAt: f.clock.Now()})
	current := f.claim("k")
	stale := func(job scheduler.Job, when string) {
		f.Helper()
		if err := f.q.Heartbeat(f.Context(), job, nil); !errors.Is(err, scheduler.ErrLost) {
			f.Errorf("%s: heartbeat: %v", when, err)
		}
		if err := f.q.Settle(f.Context(), job, scheduler.Outcome{State: scheduler.Done}); !errors.Is(err, scheduler.ErrLost) {
			f.Errorf("%s: settle: %v", when, err)
		}
	}
	stale(old, "an attempt before")
	f.restart()
	stale(current, "a process before")
	f.settle(f.claim("k"), scheduler.Outcome{State: scheduler.Done})
	f.want(f.get(id), scheduler.Done, 3)
}

func deadOwners(f *fixture) {
	id := f.enqueue(scheduler.Job{Kind: "k", Lane: "x"})
	f.claim("k")
	jobs := f.restart() // the clock has not moved: nothing waited for a lease
	if len(jobs) != 1 || jobs[0].ID != id || jobs[0].Error == "" {
		f.Fatalf("recovered %+v", jobs)
	}
	f.want(jobs[0], scheduler.Available, 1)
	if job := f.claim("k"); job.ID != id || job.Attempt != 2 {
		f.Errorf("claimed %+v", job)
	}
}

func livingOwner(f *fixture) {
	f.enqueue(scheduler.Job{Kind: "k"})
	job := f.claim("k")
	f.clock.Move(365 * 24 * time.Hour) // a jump of the clock is no death
	if jobs, err := f.q.Recover(f.Context()); err != nil || len(jobs) > 0 {
		f.Errorf("recovered %+v, %v", jobs, err)
	}
	f.claimNothing("k")
	f.settle(job, scheduler.Outcome{State: scheduler.Done})
}

func boundedCrashes(f *fixture) {
	id := f.enqueue(scheduler.Job{Kind: "k", MaxAttempts: 2})
	f.claim("k")
	f.restart()
	f.claim("k")
	if jobs := f.restart(); len(jobs) != 1 {
		f.Fatalf("recovered %+v", jobs)
	}
	f.want(f.get(id), scheduler.Failed, 2)
	f.claimNothing("k")
}

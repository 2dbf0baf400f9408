package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Handler does one job. Its context ends at the job's deadline, when the job is
// cancelled, and some time after the runner is told to stop; what it returns is
// kept as the job's output, what it reports as its progress, both as JSON. An
// error means: again later, until the attempts are used up; [Snooze] and
// [Cancel] say otherwise.
type Handler func(ctx context.Context, job Job, progress func(any)) (output any, err error)

// Runner carries jobs from a queue to handlers and slots of schedules into the
// queue. Queue and Handlers are required.
type Runner struct {
	Queue     Queue
	Handlers  map[string]Handler // by kind; jobs of other kinds are left alone
	Schedules []Schedule

	// OnMissed is told of slots that passed without a run and will get none: all
	// but the newest of those that fell due while nothing ran or while the run
	// before was not finished. An error means that it is told again: it must be
	// prepared to hear of a slot twice.
	OnMissed func(ctx context.Context, s Schedule, slots []time.Time) error
	// OnFinished is told when a job has ended as done, failed or cancelled.
	OnFinished func(ctx context.Context, job Job)

	Workers   int                             // handlers at a time; zero: 4
	Grace     time.Duration                   // how long handlers may go on once told to stop; zero: 30 s
	Poll      time.Duration                   // how often the queue is looked at, unasked; zero: 1 s
	Heartbeat time.Duration                   // how often progress is stored and cancelling noticed; zero: 2 s
	History   time.Duration                   // how long finished jobs are kept; zero: 400 days
	Backoff   func(attempt int) time.Duration // before the next attempt; nil: 10 s, doubled up to 10 min
	Now       func() time.Time                // nil: time.Now
	Log       *zap.Logger                     // nil: none

	init    sync.Once
	wake    chan struct{}
	mu      sync.Mutex
	running map[int64]context.CancelCauseFunc
}

func (r *Runner) defaults() {
	r.init.Do(func() {
		setDefault(&r.Workers, 4)
		setDefault(&r.Grace, 30*time.Second)
		setDefault(&r.Poll, time.Second)
		setDefault(&r.Heartbeat, 2*time.Second)
		setDefault(&r.History, 400*24*time.Hour)
		if r.Backoff == nil {
			r.Backoff = doubling
		}
		if r.Now == nil {
			r.Now = time.Now
		}
		if r.Log == nil {
			r.Log = zap.NewNop()
		}
		r.wake = make(chan struct{}, 1)
		r.running = map[int64]context.CancelCauseFunc{}
	})
}

func setDefault[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

func doubling(attempt int) time.Duration {
	return min(10*time.Minute, 10*time.Second<<min(max(attempt-1, 0), 10))
}

// Enqueue adds a job and lets the runner look at once.
func (r *Runner) Enqueue(ctx context.Context, job Job) (id int64, created bool, err error) {
	r.defaults()
	id, created, err = r.Queue.Enqueue(ctx, job)
	r.poke()
	return id, created, err
}

// Cancel ends a job that waits, and the context of one that runs.
func (r *Runner) Cancel(ctx context.Context, id int64) error {
	r.defaults()
	if err := r.Queue.Cancel(ctx, id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if end := r.running[id]; end != nil {
		end(ErrCancelled)
	}
	return nil
}

func (r *Runner) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, and returns when its handlers have: they may go on
// for Grace, then their contexts end with [ErrStopping]. A fault of the queue is
// logged and tried again; Run fails only when it cannot begin.
func (r *Runner) Run(ctx context.Context) error {
	r.defaults()
	schedules, err := r.parseSchedules()
	if err != nil {
		return err
	}
	recovered, err := r.Queue.Recover(ctx)
	if err != nil {
		return fmt.Errorf("starting the scheduler: %w", err)
	}
	for _, job := range recovered {
		r.Log.Warn("a job was running when its process ended", zap.Int64("job", job.ID), zap.String("kind", job.Kind), zap.String("state", string(job.State)), zap.Int("attempt", job.Attempt))
		r.finished(ctx, job)
	}
	handlers, endHandlers := context.WithCancelCause(context.WithoutCancel(ctx))
	defer endHandlers(nil)
	var group sync.WaitGroup
	slots := make(chan struct{}, r.Workers)
	r.loop(ctx, handlers, schedules, &group, slots)

	stopped := make(chan struct{})
	go func() { group.Wait(); close(stopped) }()
	grace := time.NewTimer(r.Grace)
	defer grace.Stop()
	select {
	case <-stopped:
	case <-grace.C:
		endHandlers(ErrStopping)
		<-stopped
	}
	return nil
}

// loop turns until ctx ends: slots that are due, then jobs that can start.
func (r *Runner) loop(ctx, handlers context.Context, schedules []parsedSchedule, group *sync.WaitGroup, slots chan struct{}) {
	poll := time.NewTicker(r.Poll)
	defer poll.Stop()
	var pruned time.Time
	for {
		r.takeSlots(ctx, schedules)
		r.startJobs(ctx, handlers, group, slots)
		if now := r.Now(); now.Sub(pruned).Abs() > 24*time.Hour {
			pruned = now
			if _, err := r.Queue.Prune(ctx, now.Add(-r.History)); err != nil && ctx.Err() == nil {
				r.Log.Error("old jobs were not removed", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		case <-r.wake:
		}
	}
}

// startJobs starts what can start now; a job that ends pokes the loop.
func (r *Runner) startJobs(ctx, handlers context.Context, group *sync.WaitGroup, slots chan struct{}) {
	kinds := slices.Sorted(maps.Keys(r.Handlers))
	for ctx.Err() == nil {
		select {
		case slots <- struct{}{}:
		default:
			return
		}
		job, ok, err := r.Queue.Claim(ctx, kinds)
		if err != nil || !ok {
			<-slots
			if err != nil && ctx.Err() == nil {
				r.Log.Error("no job could be claimed", zap.Error(err))
			}
			return
		}
		group.Go(func() {
			defer r.poke()
			defer func() { <-slots }()
			r.work(handlers, job)
		})
	}
}

// work runs one attempt and settles it.
func (r *Runner) work(ctx context.Context, job Job) {
	jobCtx, end := context.WithCancelCause(ctx)
	defer end(nil)
	r.mu.Lock()
	r.running[job.ID] = end
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.running, job.ID)
	}()

	report := make(chan json.RawMessage, 1)
	beating := make(chan struct{})
	go func() { defer close(beating); r.beat(jobCtx, end, job, report) }()
	output, err := r.attempt(jobCtx, job, report)
	cause := context.Cause(jobCtx)
	end(nil)
	<-beating
	if errors.Is(cause, ErrLost) {
		r.Log.Error("a job was taken away while it ran", zap.Int64("job", job.ID), zap.String("kind", job.Kind))
		return
	}
	r.settle(ctx, job, outcomeOf(job, output, err, cause, r.Now(), r.Backoff), report)
}

func (r *Runner) attempt(ctx context.Context, job Job, report chan json.RawMessage) (output json.RawMessage, err error) {
	if !job.Deadline.IsZero() {
		left := job.Deadline.Sub(r.Now())
		if left <= 0 {
			return nil, Cancel(fmt.Errorf("its deadline %v passed before it could begin", job.Deadline.Format(time.RFC3339)))
		}
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, left)
		defer end()
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	value, err := r.Handlers[job.Kind](ctx, job, func(v any) { replace(report, v) })
	if value != nil {
		encoded, marshalErr := json.Marshal(value)
		output, err = encoded, errors.Join(err, marshalErr)
	}
	return output, err
}

// replace leaves the newest report in the channel: nobody needs the older ones.
func replace(report chan json.RawMessage, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		text, _ = json.Marshal(fmt.Sprintf("progress cannot be encoded: %v", err))
	}
	for {
		select {
		case report <- text:
			return
		default:
		}
		select {
		case <-report:
		default:
		}
	}
}

// beat stores progress until the attempt ends, and ends the attempt when the
// job was cancelled or is somebody else's.
func (r *Runner) beat(ctx context.Context, end context.CancelCauseFunc, job Job, report chan json.RawMessage) {
	tick := time.NewTicker(r.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		progress := newest(report)
		err := r.Queue.Heartbeat(ctx, job, progress)
		if err != nil && progress != nil {
			offer(report, progress)
		}
		switch {
		case errors.Is(err, ErrCancelled):
			end(ErrCancelled)
		case errors.Is(err, ErrLost):
			end(ErrLost)
		case err != nil && ctx.Err() == nil:
			r.Log.Warn("a job's progress was not stored", zap.Int64("job", job.ID), zap.Error(err))
		}
	}
}

// offer puts a report back unless there is a newer one.
func offer(report chan json.RawMessage, text json.RawMessage) {
	select {
	case report <- text:
	default:
	}
}

func newest(report chan json.RawMessage) json.RawMessage {
	select {
	case text := <-report:
		return text
	default:
		return nil
	}
}

package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
)

// outcomeOf decides what becomes of a job from what its handler returned and
// why its context ended, if it did.
func outcomeOf(job Job, output json.RawMessage, err, cause error, now time.Time, wait func(int) time.Duration) Outcome {
	o := Outcome{State: Done, Output: output}
	if err == nil {
		return o
	}
	o.Error = err.Error()
	var later snooze
	var final cancel
	switch {
	case errors.As(err, &final):
		o.State = Failed
	case errors.Is(cause, ErrCancelled):
		o.State = Cancelled
	case errors.Is(cause, ErrStopping):
		o.State, o.RetryAt, o.Refund = Available, now, true
	case !job.Deadline.IsZero() && !now.Before(job.Deadline):
		o.State = Failed
	case errors.As(err, &later):
		o.State, o.RetryAt, o.Refund, o.Error = Available, now.Add(later.d), true, later.Error()
	case job.Attempt >= job.MaxAttempts:
		o.State = Failed
	default:
		o.State, o.RetryAt = Available, now.Add(wait(job.Attempt))
	}
	return o
}

// settle tries for a while: what it cannot store, the next start finds as a job
// of a process that ended.
func (r *Runner) settle(ctx context.Context, job Job, o Outcome, report chan json.RawMessage) {
	ctx, end := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer end()
	if progress := newest(report); progress != nil {
		if err := r.Queue.Heartbeat(ctx, job, progress); err != nil && !errors.Is(err, ErrCancelled) {
			r.Log.Warn("a job's progress was not stored", zap.Int64("job", job.ID), zap.Error(err))
		}
	}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := r.Queue.Settle(ctx, job, o)
		if errors.Is(err, ErrLost) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(10*time.Second))
	fields := []zap.Field{zap.Int64("job", job.ID), zap.String("kind", job.Kind), zap.String("key", job.Key), zap.Int("attempt", job.Attempt), zap.String("state", string(o.State))}
	if err != nil {
		r.Log.Error("a job's outcome was not stored", append(fields, zap.Error(err))...)
		return
	}
	if o.Error != "" {
		r.Log.Warn("a job did not succeed", append(fields, zap.String("error", o.Error))...)
	}
	if settled, err := r.Queue.Get(ctx, job.ID); err == nil {
		r.finished(ctx, settled)
	}
}

func (r *Runner) finished(ctx context.Context, job Job) {
	if r.OnFinished != nil && job.State.Finished() {
		r.OnFinished(ctx, job)
	}
}

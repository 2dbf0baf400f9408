package zone

import (
	"context"
	"sync"
	"time"
)

// pauses are the times of one call in which we did not let it send. nil: none.
type pauses struct {
	mu    sync.Mutex
	total time.Duration
	since time.Time // zero: none now
}

// count is pace with its waiting noted.
func (p *pauses) count(pace func(context.Context, int) error) func(context.Context, int) error {
	if pace == nil {
		return nil
	}
	return func(ctx context.Context, n int) error {
		p.mark(time.Now())
		defer p.mark(time.Time{})
		return pace(ctx, n)
	}
}

func (p *pauses) mark(since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.since.IsZero() {
		p.total += time.Since(p.since)
	}
	p.since = since
}

// sum is the time paused so far, and whether it goes on.
func (p *pauses) sum() (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		return p.total, false
	}
	return p.total + time.Since(p.since), true
}

// limit ends a context when d has gone by that was no pause.
func (p *pauses) limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if p == nil {
		return context.WithTimeout(ctx, d)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	began := time.Now()
	var mu sync.Mutex // the timer may fire before it is known here
	mu.Lock()
	defer mu.Unlock()
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		mu.Lock()
		defer mu.Unlock()
		paused, now := p.sum()
		left := d - (time.Since(began) - paused)
		switch {
		case ctx.Err() != nil:
		case now:
			timer.Reset(max(left, time.Second))
		case left > 0:
			timer.Reset(left)
		default:
			cancel(context.DeadlineExceeded)
		}
	})
	return ctx, func() {
		timer.Stop()
		cancel(context.Canceled)
	}
}

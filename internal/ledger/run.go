package ledger

import (
	"context"
	"errors"
	"time"
)

// Run anchors a little after appends, and writes a heartbeat now and then, so
// that silence is provable too. What fails is tried again, at most a minute
// later. It returns when ctx ends, after a last attempt to anchor, or with
// [ErrRolledBack] or [ErrForked].
func (l *Ledger) Run(ctx context.Context) error {
	beat := time.NewTicker(l.conf.Heartbeat)
	defer beat.Stop()
	wake := time.NewTimer(0) // what stood here alone before the start
	defer wake.Stop()
	due, pause := true, l.conf.AnchorAfter
	for {
		select {
		case <-ctx.Done():
			return l.last(ctx)
		case <-beat.C:
			if _, err := l.Append(ctx, heartbeat()); err != nil && ctx.Err() == nil {
				return err
			}
		case <-l.grown:
			if !due {
				due = true
				wake.Reset(l.conf.AnchorAfter)
			}
		case <-wake.C:
			due = false
			c, err := l.Anchor(ctx)
			if errors.Is(err, ErrRolledBack) || errors.Is(err, ErrForked) || errors.Is(err, ErrState) {
				return err
			}
			l.tell(c, err)
			if err == nil {
				pause = l.conf.AnchorAfter
				continue
			}
			due, pause = true, min(2*pause, time.Minute)
			wake.Reset(pause)
		}
	}
}

func heartbeat() Entry {
	return Entry{Type: TypeHeartbeat, Actor: Actor{Kind: "holdfast"}, Body: struct{}{}}
}

// last sends what was appended in the last moments, for a few seconds.
func (l *Ledger) last(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	c, err := l.Anchor(ctx)
	l.tell(c, err)
	if errors.Is(err, ErrRolledBack) || errors.Is(err, ErrForked) {
		return err
	}
	return nil // what waits is sent after the next start
}

func (l *Ledger) tell(c Checkpoint, err error) {
	if l.conf.OnAnchor != nil {
		l.conf.OnAnchor(c, err)
	}
}

package zone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"
)

// Options bound a zone. The zero value means the defaults.
type Options struct {
	// Timeout is how long the zone may keep silent: for an answer, for the next
	// object of a listing, for the next bytes of a body. Default 30 s.
	Timeout time.Duration
	// MinRate, bytes per second, is what a body may take beyond Timeout.
	// Default 256 KiB/s.
	MinRate int64
	// IdentityTTL is for how long a seen identity vouches for a write or a
	// Stat. Default 10 s. A store whose place can vanish beneath its name, as a
	// mount can, is looked at each time (see Vanisher).
	IdentityTTL time.Duration
	// MaxCalls is how many calls may be under way, hung ones included. Default 64.
	MaxCalls int
}

// Vanisher is a driver whose place may turn into another between two calls, as
// a directory does when what was mounted on it is gone.
type Vanisher interface{ MayVanish() bool }

// Zone guards a driver. Each call ends by a deadline, even when the driver
// hangs in the kernel; and nothing that the driver says of absence, and no
// write that it acknowledges, is passed on before the zone has shown its
// identity: ErrUnreachable otherwise, and never fs.ErrNotExist.
//
// A body given to Create or Repair must not be changed later, even when the
// call failed: a hung driver may still be reading it.
type Zone struct {
	name string
	d    Driver
	want Identity
	opt  Options
	// slots bounds the calls that hang beyond their deadline, too.
	slots chan struct{}

	mu   sync.Mutex
	seen time.Time // when the newest reading that showed our identity began
}

var _ Driver = (*Zone)(nil)

// SingleVersion implements the interface of that name for those of the driver's kind.
func (z *Zone) SingleVersion() bool {
	d, ok := z.d.(SingleVersion)
	return ok && d.SingleVersion()
}

// Open puts the guard before d. It asks the zone nothing: a zone may be away
// now and come back.
func Open(name string, d Driver, want Identity, opt Options) *Zone {
	if opt.Timeout <= 0 {
		opt.Timeout = 30 * time.Second
	}
	if opt.MinRate <= 0 {
		opt.MinRate = 256 << 10
	}
	if opt.IdentityTTL == 0 {
		opt.IdentityTTL = 10 * time.Second
	}
	if v, ok := d.(Vanisher); ok && v.MayVanish() {
		opt.IdentityTTL = -1
	}
	if opt.MaxCalls <= 0 {
		opt.MaxCalls = 64
	}
	return &Zone{name: name, d: d, want: want, opt: opt, slots: make(chan struct{}, opt.MaxCalls)}
}

// Name is the zone's name in the configuration.
func (z *Zone) Name() string { return z.name }

// Identity is the one that the zone must show.
func (z *Zone) Identity() Identity { return z.want }

// Check reads the zone's identity now: nil, or an error that is ErrUnreachable.
func (z *Zone) Check(ctx context.Context) error { return z.verify(ctx, -1) }

// Create implements [Creator].
func (z *Zone) Create(ctx context.Context, name string, body []byte, opt CreateOptions) error {
	var paused pauses
	opt.Pace = paused.count(opt.Pace)
	return z.change(ctx, "create", name, len(body), &paused, func(ctx context.Context) error {
		return z.d.Create(ctx, name, body, opt)
	})
}

// Repair implements [Repairer].
func (z *Zone) Repair(ctx context.Context, name string, body []byte, opt CreateOptions) error {
	var paused pauses
	opt.Pace = paused.count(opt.Pace)
	return z.change(ctx, "repair", name, len(body), &paused, func(ctx context.Context) error {
		return z.d.Repair(ctx, name, body, opt)
	})
}

// ExtendLock implements [LockExtender].
func (z *Zone) ExtendLock(ctx context.Context, name, version string, until time.Time) error {
	return z.change(ctx, "extend the lock of", name, 0, nil, func(ctx context.Context) error {
		return z.d.ExtendLock(ctx, name, version, until)
	})
}

// RemoveVersion implements [Remover].
func (z *Zone) RemoveVersion(ctx context.Context, name, version string) error {
	return z.change(ctx, "remove", name, 0, nil, func(ctx context.Context) error {
		return z.d.RemoveVersion(ctx, name, version)
	})
}

// Stat implements [Reader].
func (z *Zone) Stat(ctx context.Context, name, version string) (Object, error) {
	o, err := call(ctx, z, z.opt.Timeout, func(ctx context.Context) (Object, error) {
		return z.d.Stat(ctx, name, version)
	}, nil)
	if err = z.confirm(ctx, err, z.opt.IdentityTTL); err != nil {
		return Object{}, z.wrap("stat", name, err)
	}
	return o, nil
}

// change sees the identity before, so that nothing is written or removed in the
// wrong place, and after, so that nothing is acknowledged that went there.
func (z *Zone) change(ctx context.Context, what, name string, size int, paused *pauses, fn func(context.Context) error) error {
	err := z.verify(ctx, z.opt.IdentityTTL)
	if err == nil {
		limit := z.opt.Timeout + time.Duration(int64(size)*int64(time.Second)/z.opt.MinRate)
		_, err = callPaused(ctx, z, limit, paused, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, fn(ctx)
		}, nil)
		err = z.confirm(ctx, err, z.opt.IdentityTTL)
	}
	return z.wrap(what, name, err)
}

// confirm lets an answer of the driver pass if the zone shows its identity:
// success and "exists" by one seen within ttl, "not there" by one seen just now.
func (z *Zone) confirm(ctx context.Context, err error, ttl time.Duration) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		ttl = -1
	case err != nil && !errors.Is(err, fs.ErrExist):
		return err
	}
	if verr := z.verify(ctx, ttl); verr != nil {
		return verr
	}
	return err
}

// verify reads the identity, unless a reading within ttl showed it.
func (z *Zone) verify(ctx context.Context, ttl time.Duration) error {
	begin := time.Now()
	z.mu.Lock()
	known := !z.seen.IsZero() && ttl > 0 && begin.Sub(z.seen) <= ttl
	z.mu.Unlock()
	if known {
		return nil
	}
	_, err := call(ctx, z, z.opt.Timeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, showsIdentity(ctx, z.d, z.want)
	}, nil)
	z.mu.Lock()
	defer z.mu.Unlock()
	if err != nil {
		z.seen = time.Time{}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrUnreachable, context.Cause(ctx))
		}
		// Its text only: a missing identity must not look like a missing object.
		return fmt.Errorf("%w: %s", ErrUnreachable, err.Error())
	}
	if begin.After(z.seen) {
		z.seen = begin
	}
	return nil
}

func (z *Zone) wrap(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("zone %s: %s %s: %w", z.name, what, name, err)
}

// Close closes the driver.
func (z *Zone) Close() error { return z.d.Close() }

// call runs fn and leaves it behind when it does not end in time; drop gets
// what such a straggler returns after all.
func call[T any](ctx context.Context, z *Zone, limit time.Duration, fn func(context.Context) (T, error), drop func(T)) (T, error) {
	return callPaused(ctx, z, limit, nil, fn, drop)
}

// callPaused is call with time that is none of the zone's.
func callPaused[T any](ctx context.Context, z *Zone, limit time.Duration, paused *pauses, fn func(context.Context) (T, error), drop func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var none T
	outer := ctx
	ctx, cancel := paused.limit(ctx, limit)
	defer cancel()
	select {
	case z.slots <- struct{}{}:
	case <-ctx.Done():
		return none, ended(outer, limit, "waiting for one of its calls to end")
	}
	done := make(chan result)
	left := make(chan struct{})
	go func() {
		defer func() { <-z.slots }()
		v, err := fn(ctx)
		select {
		case done <- result{v, err}:
		case <-left:
			if err == nil && drop != nil {
				drop(v)
			}
		}
	}()
	select {
	case r := <-done:
		if r.err != nil && ctx.Err() != nil && !decided(r.err) {
			return none, ended(outer, limit, r.err.Error())
		}
		return r.v, r.err
	case <-ctx.Done():
		close(left)
		return none, ended(outer, limit, "no answer")
	}
}

// decided tells a driver's word from its being cut short.
func decided(err error) bool {
	return errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrLocked) ||
		errors.Is(err, ErrDigest) || errors.Is(err, errors.ErrUnsupported)
}

func ended(outer context.Context, limit time.Duration, why string) error {
	if outer.Err() != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, why, context.Cause(outer))
	}
	return fmt.Errorf("%w: %s within %s", ErrUnreachable, why, limit)
}

package vault

import (
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"
)

// abandon ends a Put that failed: nothing was acknowledged, so nothing is owed.
func (f *fan) abandon(c *core) {
	f.cancel()
	left := len(f.waiting)
	drain := func() {
		defer f.end()
		for range left {
			<-f.outcomes
		}
	}
	if !c.spawn(drain) {
		drain()
	}
}

// acknowledge journals what the other zones miss and leaves them to the
// background. A debt that cannot be journalled is an error: after a crash nobody
// would know of it before the next listing.
func (f *fan) acknowledge(c *core) (Stored, error) {
	j := f.job
	out := Stored{Size: j.debt.Size, SHA256: j.debt.SHA256}
	var owing []*member
	releases := map[*member]func(){}
	for _, m := range f.members {
		if _, ok := f.held[m.name]; ok {
			out.Zones = append(out.Zones, m.name)
			m.settle(j.name, j.debt)
			continue
		}
		out.Missed = append(out.Missed, m.name)
		if err := f.faults[m.name]; errors.Is(err, ErrConflict) {
			c.bad(m.name, j.name, err) // a person has to look: no back-fill may choose
			continue
		}
		releases[m] = m.debts.hold(j.name)
		owing = append(owing, m)
	}
	err := oweAll(owing, j)
	f.background(c, releases)
	if err != nil {
		return out, fmt.Errorf("storing %s: %w", j.name, err)
	}
	return out, nil
}

func oweAll(owing []*member, j *job) error {
	errs := make([]error, len(owing))
	var wg sync.WaitGroup
	for i, m := range owing {
		wg.Go(func() { errs[i] = m.debts.owe(j.name, j.debt) })
	}
	wg.Wait()
	for i, err := range errs {
		if errors.Is(err, errTooManyDebts) {
			errs[i] = nil // the listing at the next start, or the next one, finds it
		}
	}
	return errors.Join(errs...)
}

// background lets the slow zones go on while the bodies held so are few enough,
// and hands each to back-fill when its write has ended.
func (f *fan) background(c *core, releases map[*member]func()) {
	for m, release := range releases {
		if !f.waiting[m] {
			release()
			m.wake()
		}
	}
	left, size := len(f.waiting), f.job.debt.Size
	if left == 0 {
		f.cancel()
		f.end()
		return
	}
	kept := c.held.TryAcquire(size)
	if !kept {
		f.cancel()
	}
	drain := func() {
		for range left {
			o := <-f.outcomes
			f.late(c, o, releases[o.m])
		}
		if kept {
			c.held.Release(size)
		}
		f.cancel()
		f.end()
	}
	if !c.spawn(drain) {
		f.cancel()
		drain()
	}
}

// late takes the outcome of a zone that answered after the acknowledgement.
func (f *fan) late(c *core, o outcome, release func()) {
	switch {
	case o.err == nil:
		o.m.settle(f.job.name, f.job.debt)
	case errors.Is(o.err, ErrConflict):
		c.bad(o.m.name, f.job.name, o.err)
		o.m.debts.delete(f.job.name)
	default:
		c.log.Info("a zone missed an object, it will be back-filled",
			zap.String("zone", o.m.name), zap.String("object", f.job.name), zap.Error(o.err))
	}
	release()
	o.m.wake()
}

// settle takes a debt off that these bytes pay.
func (m *member) settle(name string, paid debt) {
	if old, owed := m.debts.get(name); owed && (old.SHA256 == "" || old.SHA256 == paid.SHA256) {
		m.debts.delete(name)
	}
}

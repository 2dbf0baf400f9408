package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Run pays what zones owe, by itself, until ctx ends: removals first, then what
// they missed, as soon as they answer; and compares all zones by listing them at
// the start, when a zone returns that the last listing missed, and every
// Config.ReconcileEvery. It returns when all it started has ended.
func (v *Vault) Run(ctx context.Context) error {
	if v.cfg.State == "" {
		return fmt.Errorf("running the vault: %w", ErrReadOnly)
	}
	var wg sync.WaitGroup
	for _, m := range v.all {
		wg.Go(func() { v.tend(ctx, m) })
	}
	wg.Go(func() { v.reconcileNowAndThen(ctx) })
	wg.Wait()
	return nil
}

// tend keeps one zone up to date: at once when it is told that there is
// something to do, with growing pauses while the zone fails.
func (c *core) tend(ctx context.Context, m *member) {
	wait := c.cfg.RetryAfter
	for ctx.Err() == nil {
		next := 30 * c.cfg.RetryAfter
		if err := c.catchUp(ctx, m); err == nil {
			wait = c.cfg.RetryAfter
		} else if ctx.Err() == nil {
			c.log.Info("a zone could not catch up", zap.String("zone", m.name), zap.Duration("again_in", wait), zap.Error(err))
			next = wait
			wait = min(2*wait, 60*c.cfg.RetryAfter)
		}
		m.rest(ctx, next)
	}
}

// rest waits; being woken counts only while the zone is well, so that writes
// that fail do not drive a busy loop.
func (m *member) rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-m.kick:
			if _, fault := m.health(); fault == nil {
				return
			}
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// catchUp pays all of a zone's debts once; its error is the first that is worth
// another try.
func (c *core) catchUp(ctx context.Context, m *member) error {
	if err := c.payRemovals(ctx, m); err != nil {
		return err
	}
	if err := m.ping(ctx); err != nil {
		return err
	}
	first := c.learnMarks(ctx, m)
	knows := first == nil
	for phase := range phases {
		if err := c.payPhase(ctx, m, phase); first == nil {
			first = err
		}
		if phase == phaseMarks && knows && first == nil && m.reconciled() && c.cfg.OnReturn != nil {
			c.cfg.OnReturn(m.name)
		}
		if _, fault := m.health(); fault != nil || ctx.Err() != nil {
			break
		}
	}
	if first == nil && m.debts.len() == 0 && m.debts.overflowed() {
		c.relist.Store(true)
		c.zoneReturned()
	}
	return first
}

// learnMarks owes a zone that was away the marks and tombstones that others show:
// it may be an older state of itself, of which no journal knows. An error leaves it
// stale: it, or too few of the others, did not answer.
func (c *core) learnMarks(ctx context.Context, m *member) error {
	others := set{n: len(c.all) - 1, quorum: max(1, c.cfg.Quorum-1)} // its own word does not count
	for _, o := range c.all {
		if o != m {
			others.members = append(others.members, o)
		}
	}
	if !m.isStale() || others.n == 0 {
		return nil
	}
	for _, prefix := range []string{"forgotten/", "tombstones/"} {
		own, err := m.list(ctx, prefix)
		if err != nil {
			return fmt.Errorf("comparing %s: %w", prefix, err)
		}
		found, faults := gather(ctx, others, c.cfg.SlowAfter, func(ctx context.Context, o *member) ([]zone.Object, bool, error) {
			objects, err := o.list(ctx, prefix)
			return objects, false, err
		})
		if err := c.oweMissing(m, c.lacking(m, own, found)); err != nil {
			return err
		}
		if answered(others, faults) < others.proof() {
			return &Faults{Act: "comparing " + prefix, Kind: ErrDoubt, Zones: faults}
		}
	}
	return nil
}

// lacking is what others show, belongs into a zone, and is not among its own.
func (c *core) lacking(m *member, own []zone.Object, found map[string][]zone.Object) (out []zone.Object) {
	seen := map[string]bool{}
	for _, o := range own {
		seen[o.Name] = true
	}
	for _, objects := range found {
		for _, o := range objects {
			if !seen[o.Name] && !c.flights.busy(o.Name) && !m.owes(o.Name) && slices.Contains(c.root().placed(o.Name).members, m) {
				out = append(out, o)
			}
			seen[o.Name] = true
		}
	}
	return out
}

// ping sees whether a zone that was down is back.
func (m *member) ping(ctx context.Context) error {
	if last, fault := m.health(); fault == nil && !last.IsZero() {
		return nil
	}
	_, err := m.Stat(ctx, "holdfast.json", "")
	if m.saw(err, 0); sick(err) {
		return err
	}
	return nil
}

func (c *core) payPhase(ctx context.Context, m *member, phase int) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	turn := make(chan struct{}, copiesPerZone)
	behind := m.unready(phase)
	for _, l := range m.debts.all() {
		if phaseOf(l.Key) != phase || m.debts.held(l.Key) || m.debts.hopeless(l.Key, 60*c.cfg.RetryAfter) ||
			(len(l.Value.Needs) == 0 && behind[clusterOf(l.Key)]) {
			continue
		}
		turn <- struct{}{}
		if _, fault := m.health(); fault != nil || ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-turn }()
			if err := c.pay(ctx, m, l.Key, *l.Value); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = err
				}
			}
		})
	}
	wg.Wait()
	return first
}

// unready names the clusters whose notes must wait, because the zone still lacks
// objects of theirs that the notes may vouch for. What no zone has any more
// keeps no note back.
func (m *member) unready(phase int) map[string]bool {
	if phase != phaseNotes {
		return nil
	}
	out := map[string]bool{}
	for _, l := range m.debts.all() {
		if phaseOf(l.Key) == phaseObjects && !m.debts.hopeless(l.Key, time.Hour) {
			out[clusterOf(l.Key)] = true
		}
	}
	return out
}

// pay copies one object to the zone that missed it.
func (c *core) pay(ctx context.Context, m *member, name string, owed debt) error {
	err := c.supply(ctx, m, name, owed, true)
	if err == nil {
		err = c.copyTo(ctx, m, name, owed, true)
	}
	switch {
	case err == nil:
		c.log.Debug("back-filled", zap.String("zone", m.name), zap.String("object", name))
	case errors.Is(err, ErrRemoved):
		c.log.Info("not back-filled: removed or forgotten", zap.String("zone", m.name), zap.String("object", name))
	case errors.Is(err, fs.ErrNotExist):
		c.log.Warn("not back-filled: gone from the other zones too", zap.String("zone", m.name), zap.String("object", name))
	case errors.Is(err, ErrConflict):
		c.bad(m.name, name, err)
	case errors.Is(err, ErrNoGoodCopy):
		m.debts.giveUp(name)
		return err
	default:
		return err
	}
	m.settle(name, owed)
	return nil
}

package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// removal is a name that is being removed. While it is in the journal nothing is
// written, copied or read under the name through this vault.
type removal struct {
	Owe    []string `json:"owe,omitempty"`    // zones that could not be asked
	Locked []string `json:"locked,omitempty"` // zones that retain it; the caller asks again
}

// maxRemovals bounds the journal; beyond it nothing is removed before older
// removals have ended.
const maxRemovals = 1 << 18

var errTooManyRemovals = errors.New("too many removals are unfinished; bring the zones back that owe them")

type removals struct {
	*journal[removal]
}

func newRemovals() *removals { return &removals{newJournal[removal]()} }

func (r *removals) has(name string) bool {
	_, ok := r.get(name)
	return ok
}

// owing counts what a zone still has to remove.
func (r *removals) owing(zone string) int { return len(r.owedBy(zone)) }

func (r *removals) owedBy(zone string) []string {
	var names []string
	for _, l := range r.all() {
		if slices.Contains(l.Value.Owe, zone) {
			names = append(names, l.Key)
		}
	}
	return names
}

// intend journals that a name is to vanish from all zones.
func (r *removals) intend(name string, zones []string) error {
	full := false
	err := r.update(name, func(_ removal, known bool) (removal, bool) {
		full = !known && len(r.live) >= maxRemovals
		return removal{Owe: zones}, !full
	})
	if full {
		err = errTooManyRemovals
	}
	return err
}

// ended notes how one zone's removal ended, and forgets the name, durably, when
// no zone is left: a removal that came back after a crash could hit a name that
// was stored anew.
func (r *removals) ended(name, zoneName string, err error) error {
	over := false
	jErr := r.update(name, func(old removal, known bool) (removal, bool) {
		without := func(s string) bool { return s == zoneName }
		now := removal{
			Owe:    slices.DeleteFunc(slices.Clone(old.Owe), without),
			Locked: slices.DeleteFunc(slices.Clone(old.Locked), without),
		}
		switch {
		case errors.Is(err, zone.ErrLocked):
			now.Locked = append(now.Locked, zoneName)
		case err != nil:
			return old, false
		}
		over = known && len(now.Owe)+len(now.Locked) == 0
		return now, known && !over
	})
	if over {
		jErr = r.forget(name)
	}
	return jErr
}

// Remover removes. One value in the program has it.
type Remover struct {
	v *Vault
}

// RemoveAll removes every version and delete marker of name in every zone of the
// vault, placed there or not, and looks again. The result has each zone's error,
// nil where nothing is left: ErrLocked where the store retains it (ask again
// when the lock has run out); any other error is a durable debt that Run pays
// before it back-fills that zone. From the call on, until all zones are done,
// the name is gone for the readers of this vault and refused by its writers.
func (r Remover) RemoveAll(ctx context.Context, name string) map[string]error {
	c := r.v.core
	results := make(map[string]error, len(c.all))
	if err := c.prepareRemoval(ctx, name); err != nil {
		for _, m := range c.all {
			results[m.name] = err
		}
		return results
	}
	s := set{members: c.all, n: len(c.all), quorum: len(c.all), each: true}
	_, faults := gather(ctx, s, 10*c.cfg.SlowAfter, func(ctx context.Context, m *member) (bool, bool, error) {
		if _, fault := m.health(); fault != nil && c.removals.owing(m.name) > 1 {
			return false, false, fmt.Errorf("zone is down, its removals are journalled: %w", fault)
		}
		return true, false, m.removeAll(ctx, name)
	})
	for _, m := range c.all {
		err := faults[m.name]
		results[m.name] = errors.Join(err, c.removals.ended(name, m.name, err))
		if err != nil {
			m.wake()
		}
	}
	return results
}

func (c *core) prepareRemoval(ctx context.Context, name string) error {
	if c.cfg.State == "" {
		return fmt.Errorf("removing %s: %w", name, ErrReadOnly)
	}
	zones := make([]string, len(c.all))
	for i, m := range c.all {
		zones[i] = m.name
	}
	if err := c.removals.intend(name, zones); err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	for _, m := range c.all {
		m.debts.delete(name)
	}
	if err := c.flights.ground(ctx, name); err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

// removeAll removes what one zone keeps under a name, and looks again.
func (m *member) removeAll(ctx context.Context, name string) error {
	for range 2 {
		all, err := m.everyVersion(ctx, name)
		if err != nil || len(all) == 0 {
			return err
		}
		var errs []error
		for _, o := range all {
			errs = append(errs, m.RemoveVersion(ctx, name, o.Version))
		}
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("removing %s: %w", name, err)
		}
	}
	if left, err := m.everyVersion(ctx, name); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("removing %s: %d versions are listed after their removal", name, len(left)))
	}
	return nil
}

// everyVersion lists at most some thousands of versions and markers of a name.
func (m *member) everyVersion(ctx context.Context, name string) (out []zone.Object, err error) {
	err = m.eachVersion(ctx, name, func(o zone.Object) error {
		if out = append(out, o); len(out) == 4096 {
			return errEnough
		}
		return nil
	})
	return out, err
}

// RemoveVersion removes one version in one zone.
func (r Remover) RemoveVersion(ctx context.Context, zoneName, name, version string) error {
	m, err := r.v.memberNamed(zoneName)
	if err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	err = m.RemoveVersion(ctx, name, version)
	m.saw(err, 0)
	return err
}

// Versions lists every version and marker under prefix in every zone of the
// vault; zones that did not answer to the end are in the second map.
func (r Remover) Versions(ctx context.Context, prefix string) (map[string][]zone.Object, map[string]error) {
	c := r.v.core
	s := set{members: c.all, n: len(c.all), quorum: 1}
	return gather(ctx, s, 10*c.cfg.SlowAfter, func(ctx context.Context, m *member) ([]zone.Object, bool, error) {
		var out []zone.Object
		err := m.ListVersions(ctx, prefix, func(o zone.Object) error {
			if len(out) == maxListing {
				return fmt.Errorf("more than %d versions under %s; list a longer prefix", maxListing, prefix)
			}
			out = append(out, o)
			return nil
		})
		return out, false, err
	})
}

// payRemovals removes what the zone owes, before anything is copied to it.
func (c *core) payRemovals(ctx context.Context, m *member) error {
	var first error
	for _, name := range c.removals.owedBy(m.name) {
		limited, cancel := context.WithTimeout(ctx, time.Minute)
		err := m.removeAll(limited, name)
		cancel()
		m.saw(err, 0)
		if jErr := c.removals.ended(name, m.name, err); jErr != nil {
			return jErr
		}
		if first == nil && err != nil && !errors.Is(err, zone.ErrLocked) {
			first = err
		}
		if sick(err) || ctx.Err() != nil {
			break
		}
	}
	return first
}

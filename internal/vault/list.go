package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Listing is what the zones show under a prefix.
type Listing struct {
	Objects []Entry      // by name
	Zones   []ZoneAnswer // every zone that was asked
	// Complete says that N-W+1 zones answered to the end: everything that was
	// ever acknowledged under the prefix, and not removed, is listed.
	Complete bool
}

// Entry is one object with the zones that show it. A zone that is not among
// them lacks it only if its ZoneAnswer has no Err.
type Entry struct {
	Name     string
	Size     int64 // as the first zone in order says; copies may differ
	Zones    []string
	Modified time.Time // the earliest that a zone says
}

// ZoneAnswer says how one zone answered.
type ZoneAnswer struct {
	Name string
	Err  error
}

// errSlow is the answer of a zone that was not waited for.
var errSlow = fmt.Errorf("did not answer as fast as enough others did: %w", zone.ErrUnreachable)

// List unites what the zones show. It does not wait long for more zones than a
// complete listing needs, and fails only where there is no answer at all or too
// many names: look at Complete before concluding that something is not there.
func (r Reader) List(ctx context.Context, prefix string) (Listing, error) {
	s := r.v.placed(prefix)
	found, faults := gather(ctx, s, r.v.cfg.SlowAfter, func(ctx context.Context, m *member) ([]zone.Object, bool, error) {
		objects, err := m.list(ctx, prefix)
		return objects, false, err
	})
	out := Listing{Complete: s.n > 0 && answered(s, faults) >= s.proof()}
	for _, m := range s.members {
		out.Zones = append(out.Zones, ZoneAnswer{m.name, faults[m.name]})
	}
	if err := ctx.Err(); err != nil {
		return Listing{}, fmt.Errorf("listing %s: %w", prefix, context.Cause(ctx))
	}
	if answered(s, faults) == 0 {
		return Listing{Zones: out.Zones}, &Faults{Act: "listing " + prefix, Kind: ErrDoubt, Zones: faults}
	}
	out.Objects = r.v.unite(s, found)
	if len(out.Objects) > maxListing {
		return Listing{}, fmt.Errorf("listing %s: more than %d names; list a longer prefix", prefix, maxListing)
	}
	return out, nil
}

func answered(s set, faults map[string]error) int { return len(s.members) - len(faults) }

// list collects at most one name more than a listing may have, so that its
// caller sees that there are too many.
func (m *member) list(ctx context.Context, prefix string) ([]zone.Object, error) {
	var out []zone.Object
	err := m.List(ctx, prefix, func(o zone.Object) error {
		out = append(out, o)
		if len(out) > maxListing {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return out, err
}

// unite merges the zones' listings; what is being removed is left out.
func (v *Vault) unite(s set, found map[string][]zone.Object) []Entry {
	byName := map[string]*Entry{}
	for _, m := range s.members {
		for _, o := range found[m.name] {
			e := byName[o.Name]
			if e == nil {
				if v.removals.has(o.Name) {
					continue
				}
				e = &Entry{Name: o.Name, Size: o.Size, Modified: o.Modified}
				byName[o.Name] = e
			}
			e.Zones = append(e.Zones, m.name)
			if o.Modified.Before(e.Modified) {
				e.Modified = o.Modified
			}
		}
	}
	out := make([]Entry, 0, len(byName))
	for _, e := range byName {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Absent says whether no zone holds any version of name: true only when N-W+1
// zones say so now and none that answered has it; false when one has it; an
// error that is ErrDoubt when too few answered.
func (r Reader) Absent(ctx context.Context, name string) (bool, error) {
	s := r.v.placed(name)
	found, faults := gather(ctx, s, r.v.cfg.SlowAfter, func(ctx context.Context, m *member) (bool, bool, error) {
		versions, err := m.versions(ctx, name)
		return len(versions) > 0, len(versions) > 0, err
	})
	for _, has := range found {
		if has {
			return false, nil
		}
	}
	if s.n > 0 && answered(s, faults) >= s.proof() {
		return true, nil
	}
	if s.n > len(s.members) {
		faults = maps.Clone(faults)
		faults["?"] = fmt.Errorf("%d zones were named that the vault does not have", s.n-len(s.members))
	}
	return false, &Faults{Act: "asking whether " + name + " is absent", Kind: ErrDoubt, Zones: faults}
}

// gather asks all zones at once. When N-W+1 have answered it waits as long again
// for the rest, and at least grace for those that are not unwell, so that a zone
// that hangs delays little, and only once in a while; it ends at once when ask
// says that its answer settles the question.
func gather[T any](ctx context.Context, s set, grace time.Duration, ask func(context.Context, *member) (val T, settled bool, err error)) (map[string]T, map[string]error) {
	type answer struct {
		m       *member
		val     T
		settled bool
		err     error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(s.members))
	w := newWaiting(s, grace)
	for _, m := range s.members {
		go func() {
			val, settled, err := ask(ctx, m)
			m.saw(err, 0)
			answers <- answer{m, val, settled, err}
		}()
	}
	found := map[string]T{}
	for range s.members {
		select {
		case a := <-answers:
			found[a.m.name] = a.val
			w.heard(a.m, a.err)
			if a.settled {
				return found, w.faults
			}
		case <-w.enough():
			w.giveUp()
			return found, w.faults
		}
	}
	return found, w.faults
}

// waiting decides how long zones are waited for.
type waiting struct {
	set
	grace   time.Duration
	begun   time.Time
	proven  time.Time // when N-W+1 had answered
	faults  map[string]error
	pending map[*member]bool // and whether it was unwell when it was asked
}

func newWaiting(s set, grace time.Duration) *waiting {
	w := &waiting{set: s, grace: grace, begun: time.Now(), faults: map[string]error{}, pending: map[*member]bool{}}
	for _, m := range s.members {
		w.faults[m.name], w.pending[m] = errSlow, m.unwell() && !s.each
	}
	return w
}

func (w *waiting) heard(m *member, err error) {
	delete(w.pending, m)
	if w.faults[m.name] = err; err == nil {
		delete(w.faults, m.name)
	}
	if w.proven.IsZero() && answered(w.set, w.faults) >= w.proof() {
		w.proven = time.Now()
	}
}

// enough fires when the zones that have not answered are not to be waited for any
// longer; it is nil while they are needed.
func (w *waiting) enough() <-chan time.Time {
	if w.proven.IsZero() {
		return nil
	}
	patience := w.proven.Sub(w.begun)
	for _, unwell := range w.pending {
		if !unwell {
			patience = max(w.grace, patience)
		}
	}
	return time.After(time.Until(w.proven.Add(patience)))
}

// giveUp leaves the zones that did not answer.
func (w *waiting) giveUp() {
	for m, unwell := range w.pending {
		if !unwell {
			m.gaveUp()
		}
	}
}

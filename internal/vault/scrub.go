package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Target is an object that must be in the zones, and until when it must be locked.
type Target struct {
	Need
	LockUntil time.Time // zero: no matter
	// LockLeast is below which end a lock is lengthened to LockUntil; zero: LockUntil.
	// Moments that move on are followed in steps.
	LockLeast time.Time
}

func (t Target) least() time.Time {
	if t.LockLeast.IsZero() {
		return t.LockUntil
	}
	return t.LockLeast
}

// ScrubConfig bounds a Scrub.
type ScrubConfig struct {
	Every time.Duration // each copy is read once in it
	Rate  int64         // bytes a second read from one zone; 0: no limit
	// Locks says which zones lock.
	Locks map[string]bool
	Now   func() time.Time
	// OnFault hears of each copy that is wrong, missing or hidden beneath others, and of
	// each lock that could not be lengthened. It must not block.
	OnFault func(zone, name string, err error)
}

// seen is what the verification ledger keeps of one copy.
type seen struct {
	At   int64  `json:"at,omitempty"`   // when it was last read and right; unix seconds
	Lock int64  `json:"lock,omitempty"` // until when the zone showed it to be locked
	Bad  string `json:"bad,omitempty"`  // why it is not right now
	Hide bool   `json:"hide,omitempty"` // other versions or a marker lie over it
}

// Scrub is rolling verification: a ledger of when each copy in each zone was last
// read and right and until when it is locked, durable beside the vault's journals,
// and the turns that keep it young. Losing it costs nothing but reading afresh.
type Scrub struct {
	v   *Vault
	cfg ScrubConfig

	zones map[string]*journal[seen]
	mu    sync.Mutex
	mine  map[string][]Target // what each zone should hold
	short map[string]int      // of these, locks that end before they must
}

// OpenScrub opens the verification ledger. Close it before the vault.
func (v *Vault) OpenScrub(cfg ScrubConfig) (*Scrub, error) {
	if v.cfg.State == "" {
		return nil, fmt.Errorf("opening the verification ledger: %w", ErrReadOnly)
	}
	s := &Scrub{v: v, cfg: cfg, zones: map[string]*journal[seen]{}, mine: map[string][]Target{}, short: map[string]int{}}
	for _, m := range v.members {
		j := newJournal[seen]()
		if err := j.open(pathIn(v.cfg.State, "scrub-"+m.name+".log")); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.zones[m.name] = j
	}
	return s, nil
}

// Close closes the ledger.
func (s *Scrub) Close() error {
	var errs []error
	for _, j := range s.zones {
		errs = append(errs, j.close())
	}
	return errors.Join(errs...)
}

// Coverage is how far verification of one zone has come.
type Coverage struct {
	Zone     string    `json:"zone"`
	Objects  int       `json:"objects"`         // that it should hold and keep
	Verified int       `json:"verified"`        // of these, read and right within the time configured
	Bad      int       `json:"bad"`             // wrong or missing when last looked at
	Hidden   int       `json:"hidden"`          // right, beneath later versions or a delete marker
	Short    int       `json:"short_locks"`     // locks that end before they must
	Oldest   time.Time `json:"oldest,omitzero"` // when the copy that was not read for longest was
}

// Coverage tells of every zone, as of the last turn.
func (s *Scrub) Coverage() []Coverage {
	now := s.cfg.Now()
	var out []Coverage
	for _, m := range s.v.members {
		s.mu.Lock()
		mine, c := s.mine[m.name], Coverage{Zone: m.name, Short: s.short[m.name]}
		s.mu.Unlock()
		for _, t := range mine {
			if s.v.barred(t.Name) {
				continue // it is let go, and not looked at any more
			}
			c.Objects++
			if e, ok := s.zones[m.name].get(t.Name); ok {
				c.add(e, now, s.cfg.Every)
			}
		}
		out = append(out, c)
	}
	return out
}

func (c *Coverage) add(e seen, now time.Time, every time.Duration) {
	at := time.Unix(e.At, 0).UTC()
	switch {
	case e.Bad != "":
		c.Bad++
	case e.At == 0:
		return
	case now.Sub(at) <= 2*every:
		c.Verified++
	}
	if e.Hide {
		c.Hidden++
	}
	if e.At > 0 && (c.Oldest.IsZero() || at.Before(c.Oldest)) {
		c.Oldest = at
	}
}

// Expect says what must be in the zones, which is all there is: what is known of others
// is forgotten.
func (s *Scrub) Expect(targets []Target) {
	for _, m := range s.v.members {
		var mine []Target
		names := make(map[string]bool, len(targets))
		for _, t := range targets {
			if slices.Contains(s.v.placed(t.Name).members, m) {
				mine = append(mine, t)
				names[t.Name] = true
			}
		}
		j := s.zones[m.name]
		var others []string
		j.each(func(name string, _ seen) {
			if !names[name] {
				others = append(others, name)
			}
		})
		for _, name := range others {
			j.delete(name)
		}
		s.mu.Lock()
		s.mine[m.name] = mine
		s.mu.Unlock()
	}
}

// Turn looks at every zone at once: first at the locks of all that is expected, then,
// for at most as long as given, at the copies that were not read for longest. What is
// wrong or missing is healed from a good copy. Zones that do not answer are left for the
// next turn.
func (s *Scrub) Turn(ctx context.Context, most time.Duration) error {
	errs := make([]error, len(s.v.members))
	var wg sync.WaitGroup
	for i, m := range s.v.members {
		wg.Go(func() { errs[i] = s.turn(ctx, m, most) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Scrub) turn(ctx context.Context, m *member, most time.Duration) error {
	s.mu.Lock()
	mine := s.mine[m.name]
	s.mu.Unlock()
	if s.cfg.Locks[m.name] {
		if err := s.lock(ctx, m, mine); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return s.verify(ctx, m, mine)
}

func (s *Scrub) get(m *member, name string) seen {
	v, _ := s.zones[m.name].get(name)
	return v
}

func (s *Scrub) set(m *member, name string, change func(*seen)) error {
	return s.zones[m.name].update(name, func(old seen, _ bool) (seen, bool) {
		now := old
		change(&now)
		return now, now != old
	})
}

// lock lengthens what ends too early, as far as the ledger and the zone say.
func (s *Scrub) lock(ctx context.Context, m *member, targets []Target) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(extending)
	var mu sync.Mutex
	short := 0
	for _, t := range targets {
		if t.LockUntil.IsZero() || s.get(m, t.Name).Lock >= t.least().Unix() || s.v.barred(t.Name) {
			continue
		}
		g.Go(func() error {
			at, err := m.lengthen(gctx, t.Need, t.LockUntil)
			if sick(err) || gctx.Err() != nil {
				return err
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it is missing, which verification tells
			}
			if err != nil || at.Before(t.least().Truncate(time.Second)) {
				mu.Lock()
				short++
				mu.Unlock()
				s.fault(m, t.Name, cmp.Or(err, errShort))
			}
			return s.set(m, t.Name, func(n *seen) { n.Lock = at.Unix() })
		})
	}
	err := g.Wait()
	s.mu.Lock()
	s.short[m.name] = short
	s.mu.Unlock()
	return err
}

var errShort = errors.New("the zone did not lengthen the lock")

func (s *Scrub) fault(m *member, name string, err error) {
	if s.cfg.OnFault != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.OnFault(m.name, name, err)
	}
}

// verify reads what is due, longest unread first, until ctx ends.
func (s *Scrub) verify(ctx context.Context, m *member, targets []Target) error {
	now := s.cfg.Now()
	var due []Target
	at := make(map[string]int64, len(targets))
	for _, t := range targets {
		last := s.get(m, t.Name)
		if last.Bad != "" || now.Sub(time.Unix(last.At, 0)) >= s.cfg.Every {
			due, at[t.Name] = append(due, t), last.At
		}
	}
	slices.SortStableFunc(due, func(a, b Target) int { return cmp.Compare(at[a.Name], at[b.Name]) })
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(verifying)
	for _, t := range due {
		if gctx.Err() != nil {
			break
		}
		if s.v.barred(t.Name) {
			continue // it is let go
		}
		g.Go(func() error { return s.one(gctx, m, t) })
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil // done, or the turn is over
}

// verifying is how many copies of one zone are read at a time; each has its share of
// the rate.
const verifying = 4

// one examines a copy, heals it where it is not right, and writes down how it is.
func (s *Scrub) one(ctx context.Context, m *member, t Target) error {
	x, err := s.v.Examine(ctx, m.name, t.Need, s.pace)
	if sick(err) || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) && (m.owes(t.Name) || s.v.flights.busy(t.Name)) {
		return nil // back-fill knows
	}
	wrong := err
	if err == nil && x.Hidden != nil {
		wrong = fmt.Errorf("%w: %w", ErrHidden, x.Hidden)
	}
	if wrong != nil {
		if s.cfg.OnFault != nil {
			s.cfg.OnFault(m.name, t.Name, wrong)
		}
		if _, err := s.v.healOne(ctx, m, t.Need); err != nil {
			s.v.log.Info("a copy could not be healed", zap.String("zone", m.name), zap.String("object", t.Name), zap.Error(err))
		}
		if x, err = s.v.Examine(ctx, m.name, t.Need, s.pace); sick(err) || ctx.Err() != nil {
			return err
		}
	}
	hidden := err == nil && x.Hidden != nil
	var shown zone.Object
	if err == nil && s.cfg.Locks[m.name] {
		if shown, err = m.Stat(ctx, t.Name, x.Version); sick(err) || ctx.Err() != nil {
			return err
		}
	}
	return s.set(m, t.Name, func(n *seen) {
		n.Bad, n.Hide = "", hidden
		if n.Lock = shown.LockedUntil.Unix(); shown.LockedUntil.IsZero() {
			n.Lock = 0
		}
		if err != nil {
			n.Bad = wordOf(err)
			return
		}
		n.At = s.cfg.Now().Unix()
	})
}

func wordOf(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "missing"
	case errors.Is(err, zone.ErrDigest):
		return "wrong"
	}
	return err.Error()
}

// pace waits as long as n bytes take at the rate.
func (s *Scrub) pace(ctx context.Context, n int) error {
	if s.cfg.Rate <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Duration(verifying * int64(n) * int64(time.Second) / s.cfg.Rate))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

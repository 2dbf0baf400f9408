package retention

import (
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// Policy is a floor and a ceiling for one cluster. A zero policy keeps everything.
type Policy struct {
	Window time.Duration // every moment of it can be restored
	// Hourly to Yearly are how many hours, days, ISO weeks, months and years of Zone
	// (nil: UTC) that have snapshots keep their newest one.
	Hourly, Daily, Weekly, Monthly, Yearly int
	Zone                                   *time.Location
	KeepAtLeast                            time.Duration // since a snapshot's end; 0: the window
	KeepAtMost                             time.Duration // of any byte, since it was read from live; 0: no ceiling
	RemovalGrace                           time.Duration // between the mark and the removal
	// RenewAfter is how old the packs of others may be that a snapshot refers to, at
	// its start: its bytes are that much older than it is itself.
	RenewAfter time.Duration
	// Lead is how long before its ceiling a snapshot is let go, besides the grace:
	// the time between two runs.
	Lead time.Duration
	// Logical and Project count in place of the policy's own, where they are given.
	Logical, Project *Counts
}

// Counts are how many snapshots of a class are kept.
type Counts struct {
	Hourly, Daily, Weekly, Monthly, Yearly int
	KeepAtLeast                            time.Duration
}

// For is the policy of snapshots of a kind. Those that need no WAL have no window; the
// ceiling and the grace are one for all.
func (p Policy) For(kind string) Policy {
	own := map[string]*Counts{catalog.Logical: p.Logical, catalog.Project: p.Project}[kind]
	p.Logical, p.Project = nil, nil
	if catalog.Exported(kind) {
		p.Window = 0
	}
	if own != nil {
		p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly, p.KeepAtLeast = own.Hourly, own.Daily, own.Weekly, own.Monthly, own.Yearly, own.KeepAtLeast
	}
	return p
}

func (p Policy) zero() bool {
	q := p
	q.RemovalGrace, q.RenewAfter, q.Lead, q.Zone = 0, 0, 0, nil
	return q == Policy{}
}

// Floor is how long a snapshot stays at least.
func (p Policy) Floor() time.Duration {
	if p.KeepAtLeast > 0 {
		return p.KeepAtLeast
	}
	return p.Window
}

// Expires is when the bytes of a snapshot are gone at the latest: keep_at_most
// after the oldest of them, which the snapshot's note tells, or renew_after
// allows. Zero: never.
func (p Policy) Expires(s catalog.Snapshot) time.Time {
	if p.KeepAtMost == 0 {
		return time.Time{}
	}
	oldest := s.StartedAt.Add(-p.RenewAfter)
	if !s.Oldest.IsZero() {
		oldest = s.Oldest
		if s.StartedAt.Before(oldest) {
			oldest = s.StartedAt
		}
	}
	return oldest.Add(p.KeepAtMost).UTC()
}

// Check finds what cannot be meant.
func (p Policy) Check() error {
	var errs []error
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"window", p.Window}, {"keep_at_least", p.KeepAtLeast}, {"keep_at_most", p.KeepAtMost}, {"removal_grace", p.RemovalGrace}, {"renew_after", p.RenewAfter}} {
		if d.d < 0 {
			errs = append(errs, fmt.Errorf("%s is %s, want 0 or more", d.name, d.d))
		}
	}
	for _, class := range []Policy{p, p.For(catalog.Logical), p.For(catalog.Project)} {
		if min(class.Hourly, class.Daily, class.Weekly, class.Monthly, class.Yearly) < 0 || class.KeepAtLeast < 0 {
			errs = append(errs, errors.New("a count below 0"))
			break
		}
	}
	if p.KeepAtMost > 0 && p.KeepAtMost <= max(p.Window, p.Floor())+p.RemovalGrace+p.RenewAfter+p.Lead {
		errs = append(errs, fmt.Errorf("keep_at_most %s leaves no room for window, keep_at_least, renew_after and removal_grace", p.KeepAtMost))
	}
	if least := max(p.For(catalog.Logical).Floor(), p.For(catalog.Project).Floor()); p.KeepAtMost > 0 && p.KeepAtMost <= least+p.RemovalGrace+p.Lead {
		errs = append(errs, fmt.Errorf("keep_at_most %s leaves no room for the keep_at_least of logical or project snapshots, %s, and removal_grace", p.KeepAtMost, least))
	}
	if len(errs) > 0 {
		return fmt.Errorf("retention policy: %w", errors.Join(errs...))
	}
	return nil
}

func (p Policy) zone() *time.Location {
	if p.Zone == nil {
		return time.UTC
	}
	return p.Zone
}

// tier is one of the counts.
type tier struct {
	name   string
	count  int
	bucket func(time.Time) string
}

// tiers are the counts by which a moment of Zone falls into an hour, a day, and so on.
// Where clocks are put back an hour is there twice, and its two are told apart.
func (p Policy) tiers() []tier {
	hour := "2006-01-02 15h"
	if p.zone() != time.UTC {
		hour += " -0700"
	}
	return []tier{
		{"hourly", p.Hourly, func(t time.Time) string { return t.Format(hour) }},
		{"daily", p.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", p.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprintf("%d week %d", y, w) }},
		{"monthly", p.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", p.Yearly, func(t time.Time) string { return t.Format("2006") }},
	}
}

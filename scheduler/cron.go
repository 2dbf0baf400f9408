package scheduler

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Cron is a schedule of wall-clock times in one zone, UTC unless CRON_TZ=ZONE
// stands before its five fields. Each wall-clock time is one slot, named by the
// instant at which it happens: a time that daylight saving skips happens when
// the gap ends, one that it repeats happens the first time.
type Cron struct {
	spec string
	wall *cron.SpecSchedule // in UTC, as if the zone had no offset
	zone *time.Location
}

// ParseCron reads five fields or @hourly, @daily, @weekly, @monthly, @yearly.
// Intervals (@every) have no slots and are refused.
func ParseCron(spec string) (Cron, error) {
	fields, zone := strings.TrimSpace(spec), time.UTC
	if rest, found := strings.CutPrefix(fields, "CRON_TZ="); found {
		name, tail, _ := strings.Cut(rest, " ")
		loaded, err := time.LoadLocation(name)
		if err != nil || name == "" || name == "Local" {
			return Cron{}, fmt.Errorf("reading schedule %q: %q is no time zone of the IANA database", spec, name)
		}
		fields, zone = strings.TrimSpace(tail), loaded
	}
	// The library would panic on a zone without fields after it.
	if strings.Contains(fields, "TZ=") {
		return Cron{}, fmt.Errorf("reading schedule %q: a second time zone", spec)
	}
	parsed, err := cron.ParseStandard(fields)
	if err != nil {
		return Cron{}, fmt.Errorf("reading schedule %q: %w", spec, err)
	}
	wall, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return Cron{}, fmt.Errorf("reading schedule %q: an interval has no fixed times; write five fields", spec)
	}
	wall.Location = time.UTC
	return Cron{spec: spec, wall: wall, zone: zone}, nil
}

func (c Cron) String() string { return c.spec }

// Next is the first slot after t, in UTC; the zero time when there is none in
// the next years (the 30th of February).
func (c Cron) Next(t time.Time) time.Time {
	if c.wall == nil {
		return time.Time{}
	}
	// instant never goes back while wall-clock time goes on, so looking from t's
	// own wall-clock time misses no slot. In the hour that repeats it first finds
	// times that have happened already.
	for wall := c.wall.Next(asWall(t.In(c.zone))); !wall.IsZero(); wall = c.wall.Next(wall) {
		if at := instant(wall, c.zone); at.After(t) {
			return at
		}
	}
	return time.Time{}
}

// Slots lists the slots in (after, until], oldest first, at most limit.
func (c Cron) Slots(after, until time.Time, limit int) []time.Time {
	var slots []time.Time
	for at := c.Next(after); !at.IsZero() && !at.After(until) && len(slots) < limit; at = c.Next(at) {
		slots = append(slots, at)
	}
	return slots
}

// due says whether a slot lies in (after, until].
func (c Cron) due(after, until time.Time) bool { return len(c.Slots(after, until, 1)) > 0 }

// asWall is the time that a clock on the wall shows, written as if in UTC.
func asWall(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// instant is when a clock in the zone first shows wall, or, if it never does,
// when it jumps over it.
func instant(wall time.Time, zone *time.Location) time.Time {
	guess := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), wall.Second(), 0, zone)
	start, end := guess.ZoneBounds()
	first := time.Time{}
	for _, near := range []time.Time{start.Add(-time.Second), guess, end} {
		_, offset := near.In(zone).Zone()
		at := wall.Add(-time.Duration(offset) * time.Second)
		if asWall(at.In(zone)).Equal(wall) && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if !first.IsZero() {
		return first
	}
	for _, jump := range []time.Time{start, end} {
		before := asWall(jump.Add(-time.Second).In(zone)).Add(time.Second)
		if !jump.IsZero() && !wall.Before(before) && wall.Before(asWall(jump.In(zone))) {
			return jump.UTC()
		}
	}
	return guess.UTC()
}

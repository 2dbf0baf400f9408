package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata"

	"pgregory.net/rapid"
)

func parse(t testing.TB, spec string) Cron {
	t.Helper()
	c, err := ParseCron(spec)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func at(t testing.TB, text string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A time that daylight saving skips runs right after the gap, one that it
// repeats runs once, the first time.
func TestDaylightSavingSkipsNothingAndDoublesNothing(t *testing.T) {
	tests := []struct {
		name, spec, after string
		want              []string // in UTC
	}{
		{
			"Berlin spring, 02:30 does not exist", "CRON_TZ=Europe/Berlin 30 2 * * *", "2026-03-28T00:00:00Z",
			[]string{"2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"},
		},
		{
			"Berlin autumn, 02:30 comes twice", "CRON_TZ=Europe/Berlin 30 2 * * *", "2026-10-24T00:00:00Z",
			[]string{"2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"},
		},
		{
			"Berlin autumn, from the middle of the hour that repeats", "CRON_TZ=Europe/Berlin 30 2 * * *", "2026-10-25T01:10:00Z",
			[]string{"2026-10-26T01:30:00Z"},
		},
		{
			"Berlin spring, many skipped times are one slot with the time after", "CRON_TZ=Europe/Berlin */15 * * * *", "2026-03-29T00:30:00Z",
			[]string{"2026-03-29T00:45:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:15:00Z"},
		},
		{
			"Berlin autumn, each time of the repeated hour once", "CRON_TZ=Europe/Berlin 0,30 * * * *", "2026-10-24T23:45:00Z",
			[]string{"2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"},
		},
		{
			"New York spring", "CRON_TZ=America/New_York 15 2 * * *", "2026-03-07T12:00:00Z",
			[]string{"2026-03-08T07:00:00Z", "2026-03-09T06:15:00Z"},
		},
		{
			"New York autumn", "CRON_TZ=America/New_York 30 1 * * *", "2026-10-31T12:00:00Z",
			[]string{"2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"},
		},
		{
			"Lord Howe spring, half an hour", "CRON_TZ=Australia/Lord_Howe 15 2 * * *", "2026-10-02T20:00:00Z",
			[]string{"2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"},
		},
		{
			"Lord Howe autumn, half an hour", "CRON_TZ=Australia/Lord_Howe 45 1 * * *", "2026-04-03T20:00:00Z",
			[]string{"2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"},
		},
		{
			"Samoa lost a whole day", "CRON_TZ=Pacific/Apia 0 12 * * *", "2011-12-29T00:00:00Z",
			[]string{"2011-12-29T22:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"},
		},
		{
			"midnight that does not exist", "CRON_TZ=America/Sao_Paulo 0 0 * * *", "2018-11-03T12:00:00Z",
			[]string{"2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"},
		},
		{
			"UTC by default", "15 */6 * * *", "2026-03-29T00:15:00Z",
			[]string{"2026-03-29T06:15:00Z", "2026-03-29T12:15:00Z"},
		},
		{"leap day", "0 0 29 2 *", "2026-01-01T00:00:00Z", []string{"2028-02-29T00:00:00Z"}},
		{"never", "0 0 30 2 *", "2026-01-01T00:00:00Z", []string{"0001-01-01T00:00:00Z"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, now := parse(t, tt.spec), at(t, tt.after)
			for _, want := range tt.want {
				now = c.Next(now)
				if got := now.Format(time.RFC3339); got != want {
					t.Fatalf("got %s, want %s", got, want)
				}
			}
		})
	}
}

// slowly finds the slots of one day and its neighbours by looking at every
// minute there is.
func slowly(c Cron, from, until time.Time) []time.Time {
	seen, slots := map[time.Time]bool{}, []time.Time{}
	add := func(at time.Time) {
		if len(slots) == 0 || !slots[len(slots)-1].Equal(at) {
			slots = append(slots, at)
		}
	}
	previous := asWall(from.Add(-time.Minute).In(c.zone))
	for now := from; !now.After(until); now = now.Add(time.Minute) {
		wall := asWall(now.In(c.zone))
		for skipped := previous.Add(time.Minute); !skipped.After(wall); skipped = skipped.Add(time.Minute) {
			if !seen[skipped] && c.wall.Minute&(1<<skipped.Minute()) != 0 && c.wall.Hour&(1<<skipped.Hour()) != 0 {
				add(now.UTC())
			}
			seen[skipped] = true
		}
		previous = wall
	}
	return slots
}

func TestNextAgreesWithLookingAtEveryMinute(t *testing.T) {
	zones := []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu", "Africa/Casablanca", "Pacific/Apia"}
	rapid.Check(t, func(t *rapid.T) {
		field := func(name string, most int) string {
			return rapid.SampledFrom([]string{"*", "*/7", fmt.Sprint(rapid.IntRange(0, most).Draw(t, name))}).Draw(t, name+" field")
		}
		spec := fmt.Sprintf("CRON_TZ=%s %s %s * * *", rapid.SampledFrom(zones).Draw(t, "zone"), field("minute", 59), field("hour", 23))
		c, err := ParseCron(spec)
		if err != nil {
			t.Fatal(err)
		}
		from := time.Date(rapid.IntRange(2010, 2026).Draw(t, "year"), time.Month(rapid.IntRange(1, 12).Draw(t, "month")), rapid.IntRange(1, 28).Draw(t, "day"), 0, 0, 0, 0, time.UTC)
		// Half of the time look at a day around a change of the clock.
		if _, change := from.In(c.zone).ZoneBounds(); rapid.Bool().Draw(t, "at a change") && !change.IsZero() {
			from = change.UTC().Truncate(time.Hour).Add(-12 * time.Hour)
		}
		until := from.Add(26 * time.Hour)
		// The reference must have seen the first pass of an hour that repeats.
		want := slices.DeleteFunc(slowly(c, from.Add(-26*time.Hour), until), func(at time.Time) bool { return !at.After(from) })
		got := c.Slots(from, until, 10_000)
		if !slices.EqualFunc(got, want, time.Time.Equal) {
			t.Fatalf("%s from %v:\ngot  %v\nwant %v", spec, from, got, want)
		}
	})
}

func TestSchedulesThatAreRefused(t *testing.T) {
	for _, spec := range []string{"", "* * * *", "61 * * * *", "@every 5m", "@reboot", "CRON_TZ=", "CRON_TZ=UTC", "CRON_TZ=Europe/Roma 1 2 * * *", "CRON_TZ=Local 1 2 * * *", "TZ=UTC", "CRON_TZ=UTC TZ=UTC"} {
		if c, err := ParseCron(spec); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", spec)) {
			t.Errorf("%q: %v, %v", spec, c, err)
		}
	}
	if next := (Cron{}).Next(time.Now()); !next.IsZero() {
		t.Errorf("a schedule of nothing is due at %v", next)
	}
}

// Ninety days of waiting for each slot in turn: no slot is late, none is early.
func TestWaitingForSlotsMeetsThemAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, begin, met := parse(t, "CRON_TZ=Europe/Berlin 30 2 * * *"), time.Now(), 0
		for time.Since(begin) < 90*24*time.Hour {
			next := c.Next(time.Now())
			<-time.After(time.Until(next))
			if now := time.Now(); !now.Equal(next) {
				t.Fatalf("woke at %v for %v", now, next)
			}
			met++
		}
		if want := len(c.Slots(begin, time.Now(), 1000)); met != want || met < 90 {
			t.Errorf("met %d slots of %d", met, want)
		}
	})
}

func FuzzParseCron(f *testing.F) {
	for _, spec := range []string{"15 */6 * * *", "CRON_TZ=Europe/Rome 15 2 * * *", "@daily", "CRON_TZ=UTC", "*/0 * * * *", "TZ= ", "0 0 30 2 *"} {
		f.Add(spec, int64(1774746000))
	}
	f.Fuzz(func(t *testing.T, spec string, unix int64) {
		c, err := ParseCron(spec)
		if err != nil {
			return
		}
		now := time.Unix(unix%(1<<33), 0)
		if next := c.Next(now); !next.IsZero() && !next.After(now) {
			t.Errorf("%q: the slot after %v is %v", spec, now, next)
		}
	})
}

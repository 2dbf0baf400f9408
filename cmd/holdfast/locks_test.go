package main

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/retention"
)

// free is nothing on hold.
var free = retention.OnHold{WAL: func(catalog.WAL) bool { return false }}

func TestLocksEndWhereTheLastNeedOfAnObjectEnds(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	d := func(t time.Duration) configs.Duration { return configs.Duration(t) }
	w := &world{now: func() time.Time { return now }, cfg: &configs.Config{Clusters: []configs.Cluster{{
		Name: "cms", Retention: configs.Retention{Window: d(7 * day), KeepAtLeast: d(2 * day), KeepAtMost: d(30 * day), RenewAfter: d(5 * day)},
	}}}}
	taken := func(id string, ago time.Duration) catalog.Snapshot {
		return catalog.Snapshot{ID: id, StartedAt: now.Add(-ago), FinishedAt: now.Add(-ago)}
	}
	old, base, kept, newest := taken("old", 20*day), taken("base", 9*day), taken("kept", 3*day), taken("newest", time.Hour)
	ends := lockEnds{}
	p := w.lockPlan("cms", []catalog.Snapshot{newest, kept, base, old}, free, ends)
	p.snapshot(old, "old", "shared-with-base")
	p.snapshot(base, "base", "shared-with-base", "shared-with-newest")
	p.snapshot(kept, "kept")
	p.snapshot(newest, "newest", "shared-with-newest")
	p.wal(catalog.WAL{ArchivedAt: now.Add(-4 * day), Object: catalog.Ref{Name: "wal-before-kept"}, Index: catalog.Ref{Name: "index"}}, "note")
	p.wal(catalog.WAL{ArchivedAt: now.Add(-time.Minute), Object: catalog.Ref{Name: "wal-now"}}, "note-now")
	p.wal(catalog.WAL{ArchivedAt: now, Slice: true, Object: catalog.Ref{Name: "slice"}}, "slice-note")
	for name, want := range map[string]lockEnd{
		"old":                {now.Add(-18 * day), now.Add(-18 * day)}, // long over
		"base":               {now.Add(4 * day), now.Add(4 * day)},     // until kept is out of the window
		"shared-with-base":   {now.Add(4 * day), now.Add(4 * day)},
		"kept":               {now.Add(-day), now.Add(-day)}, // its floor
		"newest":             {now.Add(7 * day), now.Add(7 * day / 2)},
		"shared-with-newest": {now.Add(7 * day), now.Add(4 * day)},
		"wal-before-kept":    {now.Add(4 * day), now.Add(4 * day)},
		"index":              {now.Add(4 * day), now.Add(4 * day)},
		"wal-now":            {now.Add(7 * day), now.Add(7 * day / 2)},
		"slice":              {},
	} {
		if got := ends[name]; !got.until.Equal(want.until) || !got.least.Equal(want.least) {
			t.Errorf("%s: until %s, at least %s; want %s, %s", name, got.until, got.least, want.until, want.least)
		}
	}
	last := taken("last", 26*day) // the only one: it never goes, and no lock passes its ceiling
	ends = lockEnds{}
	p = w.lockPlan("cms", []catalog.Snapshot{last}, free, ends)
	p.snapshot(last, "last")
	if got := ends["last"]; got.until.After(last.StartedAt.Add(30*day)) || got.least.After(got.until) {
		t.Errorf("past the ceiling: %+v", got)
	}
	held := retention.OnHold{Snapshots: map[string][]string{"last": {"h1"}}, WAL: func(n catalog.WAL) bool { return n.From == 7 }}
	ends = lockEnds{}
	p = w.lockPlan("cms", []catalog.Snapshot{last}, held, ends)
	p.snapshot(last, "last")
	p.wal(catalog.WAL{ArchivedAt: now.Add(-26 * day), Slice: true, From: 7, Object: catalog.Ref{Name: "slice on hold"}}, "its note")
	p.wal(catalog.WAL{ArchivedAt: now.Add(-27 * day), From: 8, Object: catalog.Ref{Name: "free"}}, "note")
	for name, want := range map[string]lockEnd{
		"last": {now.Add(7 * day), now.Add(7 * day / 2)}, "slice on hold": {now.Add(7 * day), now.Add(7 * day / 2)}, "its note": {now.Add(7 * day), now.Add(7 * day / 2)},
		"free": {now.Add(-19 * day), now.Add(-19 * day)},
	} {
		if got := ends[name]; got != want {
			t.Errorf("with a hold, %s: until %s, at least %s; want %s, %s", name, got.until, got.least, want.until, want.least)
		}
	}
}

func TestWhatStaysForGoodIsLockedAndWhatMustVanishIsNot(t *testing.T) {
	now := time.Now()
	w := &world{now: func() time.Time { return now }, cfg: &configs.Config{
		Repository: configs.Repository{Zones: []configs.Zone{{Name: "a", ObjectLock: "none"}, {Name: "b", ObjectLock: "governance"}}},
		Clusters:   []configs.Cluster{{Name: "cms", Retention: configs.Retention{Window: configs.Duration(time.Hour), KeepAtLeast: configs.Duration(time.Minute)}}},
	}}
	for name, locked := range map[string]bool{
		"tombstones/x/tombstone.note": true, "forgotten/cms/1.note": true, "ledger/db/checkpoint/1": true, "keys/digest/00000001.age": true, "certificates/1.note": true,
		"keys/4f1c/identity.age": false, "probe/x/plain": false, "clusters/cms/wal/1": false,
	} {
		if got := w.lockKept(name); got.IsZero() == locked || locked && !got.Equal(now.Add(time.Hour)) {
			t.Errorf("%s is locked until %s", name, got)
		}
	}
	w.cfg.Repository.Zones[1].ObjectLock = "none"
	if got := w.lockKept("tombstones/x"); !got.IsZero() {
		t.Errorf("locked until %s where no zone locks", got)
	}
}

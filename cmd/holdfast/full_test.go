package main

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

func TestAFullSnapshotIsDueWhenTheLastOneIsTooOld(t *testing.T) {
	now := time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	made := func(complete bool, list ...any) (all catalog.Snapshots) {
		all.Complete, all.Begun = complete, map[string]catalog.Intent{}
		for i := 0; i < len(list); i += 3 {
			id := list[i].(string)
			all.All = append(all.All, catalog.Noted[catalog.Snapshot]{Body: catalog.Snapshot{ID: id, StartedAt: now.Add(-list[i+1].(time.Duration))}})
			all.Begun[id] = catalog.Intent{ID: id, Base: list[i+2].(string)}
		}
		return all
	}
	for name, c := range map[string]struct {
		all  catalog.Snapshots
		want bool
	}{
		"none yet":                    {made(true), true},
		"a full one of today":         {made(true, "a", day, ""), false},
		"a full one long ago":         {made(true, "a", 90*day, "", "b", day, "a"), true},
		"one of many is full":         {made(true, "a", 90*day, "", "b", 10*day, "", "c", day, "b"), false},
		"a zone that may hold others": {made(false, "a", 90*day, ""), false},
		"a logical one of today": {func() catalog.Snapshots {
			s := made(true, "a", day, "")
			s.All[0].Body.Kind = catalog.Logical
			return s
		}(), true},
		"its beginning is not known":   {func() catalog.Snapshots { s := made(true, "a", day, ""); delete(s.Begun, "a"); return s }(), true},
		"older than that by a second":  {made(true, "a", 30*day+time.Second, ""), true},
		"younger than that by as much": {made(true, "a", 30*day-time.Second, ""), false},
	} {
		if got := fullDue(c.all, 30*day, now); got != c.want {
			t.Errorf("%s: due %t, want %t", name, got, c.want)
		}
	}
}

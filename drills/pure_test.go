package drills

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/restore"
)

func at(hours float64) time.Time {
	return time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(hours * float64(time.Hour)))
}

func picks(selector string, n int) Pick {
	p := Pick{Select: selector, Seed: strings.Repeat("ab", 32)}
	for i := range n {
		p.Candidates = append(p.Candidates, Candidate{Snapshot: fmt.Sprintf("s%03d", i)})
	}
	return p
}

func TestChoiceFollowsFromEntryAlone(t *testing.T) {
	for _, selector := range selectors {
		p := picks(selector, 7)
		p.Spans = []Span{{at(0), at(5)}, {at(7), at(8)}}
		first, err := Choose("plan", "slot", p)
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(Announcement{Due: ledger.Due{Slot: "slot"}, PlanHash: "plan", Pick: &p})
		if err != nil {
			t.Fatal(err)
		}
		due := ledger.Record{Envelope: ledger.Envelope{Body: body}}
		again, err := Recompute(due)
		if err != nil || again != first {
			t.Errorf("%s: %+v and %+v, %v", selector, first, again, err)
		}
		if err := VerifyChoice(due, Record{Snapshot: first.Snapshot, Target: &first.Target}); err != nil {
			t.Error(err)
		}
		other := Choice{Snapshot: "s999", Target: restore.Target{Kind: restore.Immediate, Snapshot: "s999"}}
		if err := VerifyChoice(due, Record{Snapshot: other.Snapshot, Target: &other.Target}); err == nil {
			t.Errorf("%s: another snapshot passes for the choice", selector)
		}
	}
}

func TestEveryPartOfTheEntryMovesARandomChoice(t *testing.T) {
	hits := map[string]int{}
	for i := range 400 {
		p := picks(Random, 8)
		plan, slot := "plan", "slot"
		switch i % 4 {
		case 0:
			p.Seed = fmt.Sprint(i)
		case 1:
			plan = fmt.Sprint(i)
		case 2:
			slot = fmt.Sprint(i)
		case 3:
			p.Candidates[7].Proven = at(float64(i))
		}
		c, err := Choose(plan, slot, p)
		if err != nil {
			t.Fatal(err)
		}
		hits[c.Snapshot]++
	}
	// 400 draws of 8: fewer than 20 of one is beyond five standard deviations.
	for s, n := range hits {
		if n < 20 {
			t.Errorf("%s was chosen %d times of 400", s, n)
		}
	}
	if len(hits) != 8 {
		t.Errorf("chosen: %v", hits)
	}
}

func TestSelectorsChooseWhatTheyName(t *testing.T) {
	p := picks(Stalest, 4)
	for i, proven := range []float64{5, 2, 9, 3} {
		p.Candidates[i].Proven = at(proven)
	}
	for selector, want := range map[string]string{Latest: "s003", Oldest: "s000", Stalest: "s001"} {
		p.Select = selector
		if c, err := Choose("", "", p); err != nil || c.Snapshot != want {
			t.Errorf("%s: %+v, %v", selector, c, err)
		}
	}
	p.Select = Stalest
	p.Candidates[2].Proven = time.Time{}
	if c, _ := Choose("", "", p); c.Snapshot != "s002" {
		t.Errorf("one that was never proven is the stalest, not %s", c.Snapshot)
	}
}

func TestARandomTimeLiesInTheSpans(t *testing.T) {
	p := picks(RandomTime, 1)
	p.Spans = []Span{{at(0), at(1)}, {at(10), at(13)}}
	late := 0
	for i := range 400 {
		p.Seed = fmt.Sprint(i)
		c, err := Choose("plan", "slot", p)
		if err != nil {
			t.Fatal(err)
		}
		in := false
		for _, s := range p.Spans {
			in = in || c.Target.Time.After(s.From) && !c.Target.Time.After(s.To)
		}
		if !in {
			t.Fatalf("%s is in none of the spans", c.Target.Time)
		}
		if c.Target.Time.After(at(9)) {
			late++
		}
	}
	if late < 250 || late > 350 {
		t.Errorf("%d of 400 fell into the span that is three quarters of the time", late)
	}
	for _, spans := range [][]Span{nil, {{at(1), at(1)}}} {
		p.Spans = spans
		if _, err := Choose("plan", "slot", p); !errors.Is(err, errNothing) {
			t.Errorf("%v: %v", spans, err)
		}
	}
}

func TestNothingIsChosenFromNothing(t *testing.T) {
	for _, selector := range selectors {
		if c, err := Choose("plan", "slot", Pick{Select: selector}); !errors.Is(err, errNothing) {
			t.Errorf("%s: %+v, %v", selector, c, err)
		}
	}
	if _, err := Choose("plan", "slot", picks("easiest", 2)); err == nil {
		t.Error("an unknown selector chose")
	}
}

func TestASampleKeepsTheEndsAndTheStalestAndFitsAnEntry(t *testing.T) {
	all := picks(Stalest, 5000).Candidates
	for i := range all {
		all[i] = Candidate{strings.Repeat("x", 70) + fmt.Sprint(i), at(float64(i%100) + 1)}
	}
	all[4711].Proven = at(0)
	kept, left := sample("seed", all)
	if len(kept) != maxCandidates || left != len(all)-maxCandidates {
		t.Fatalf("kept %d, left %d", len(kept), left)
	}
	if kept[0] != all[0] || kept[len(kept)-1] != all[len(all)-1] {
		t.Error("the oldest and the newest are not kept")
	}
	c, err := Choose("", "", Pick{Select: Stalest, Candidates: kept})
	if err != nil || c.Snapshot != all[4711].Snapshot {
		t.Errorf("the stalest is lost: %+v, %v", c, err)
	}
	data, err := json.Marshal(Announcement{Pick: &Pick{Candidates: kept}})
	if err != nil || len(data) > 55<<10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	again, _ := sample("seed", all)
	if fmt.Sprint(again) != fmt.Sprint(kept) {
		t.Error("the same seed samples others")
	}
	if few, left := sample("seed", all[:10]); len(few) != 10 || left != 0 {
		t.Errorf("of ten %d are kept", len(few))
	}
}

func TestSpansThatTouchAreOne(t *testing.T) {
	got := merge([]reach{
		{span: Span{at(5), at(9)}},
		{span: Span{at(0), at(2)}},
		{span: Span{at(1), at(3)}},
		{span: Span{at(9), at(10)}},
		{span: Span{at(6), at(7)}},
		{span: Span{at(20), at(20)}},
	})
	if want := []Span{{at(0), at(3)}, {at(5), at(10)}}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// flawless is the record of a drill without a gap.
func flawless() Record {
	r := Record{Wanted: "L8", Cleanup: Cleanup{Verified: true}, Place: Place{Room: &sandbox.Room{NoEgress: true}}}
	r.RTO = measure(time.Minute, ptr(time.Second), "x")
	r.RPO = measure(time.Minute, ptr(time.Second), "x")
	for _, l := range levels {
		r.Checks = append(r.Checks, Check{ID: l, Verdict: passed})
	}
	r.Level = reached(r.Checks)
	return r
}

func TestVerdictFollowsFromTheRecord(t *testing.T) {
	for name, c := range map[string]struct {
		change         func(*Record)
		outcome, class string
	}{
		"nothing":                  {func(*Record) {}, Pass, ""},
		"a level failed":           {func(r *Record) { r.Checks[6] = Check{ID: "L6", Verdict: failed, Class: ClassBackup} }, Fail, ClassBackup},
		"a level could not be run": {func(r *Record) { r.Checks[6].Verdict = gap }, PassWithGaps, ""},
		"a zone lacks something":   {func(r *Record) { r.Checks = append(r.Checks, Check{ID: "L1:b", Verdict: gap}) }, PassWithGaps, ""},
		"the room was not closed":  {func(r *Record) { r.Place.Room.NoEgress = false }, PassWithGaps, ""},
		"the room is unknown":      {func(r *Record) { r.Place.Room = nil }, PassWithGaps, ""},
		"a level was left out":     {func(r *Record) { r.Checks = r.Checks[:8] }, PassWithGaps, ""},
		"nothing was restored":     {func(r *Record) { r.Checks, r.Wanted = r.Checks[:3], "L2" }, PassWithGaps, ""},
		"it took too long":         {func(r *Record) { r.RTO = measure(time.Second, ptr(time.Minute), "x") }, Fail, ClassPolicy},
		"the archive is old":       {func(r *Record) { r.RPO = measure(time.Second, ptr(time.Minute), "x") }, PassWithGaps, ""},
		"the copy is still there":  {func(r *Record) { r.Cleanup = Cleanup{Left: []string{"/x"}} }, Fail, ClassTarget},
		"it ended before": {func(r *Record) {
			r.Failure = &Failure{"restore", TimedOut, ClassPolicy, "x"}
			r.Checks[0].Verdict = failed
		}, TimedOut, ClassPolicy},
	} {
		r := flawless()
		c.change(&r)
		r.Level = reached(r.Checks)
		outcome, class, reason := Verdict(r)
		if outcome != c.outcome || class != c.class || (reason == "") != (outcome == Pass) {
			t.Errorf("%s: %s (%s) %q, want %s (%s)", name, outcome, class, reason, c.outcome, c.class)
		}
		r.Outcome.Outcome, r.Class = outcome, class
		if err := Entails(r); err != nil {
			t.Error(err)
		}
		if c.outcome != Pass {
			r.Outcome.Outcome, r.Class = Pass, ""
			if Entails(r) == nil {
				t.Errorf("%s: a record that says pass is believed", name)
			}
		}
	}
}

func TestALevelCountsOnlyWhenAllBelowItPassed(t *testing.T) {
	checks := flawless().Checks
	checks[5].Verdict = gap
	if got := reached(checks); got != "L4" {
		t.Errorf("with a gap at L5 the level is %q", got)
	}
	if got := reached(nil); got != "" {
		t.Errorf("without checks the level is %q", got)
	}
}

func TestAFaultOfTheHarnessIsNotOneOfTheBackup(t *testing.T) {
	ended := func(cause error) context.Context {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		return ctx
	}
	for name, c := range map[string]struct {
		ctx            context.Context
		zoned          bool
		err            error
		outcome, class string
	}{
		"programs":         {t.Context(), false, fmt.Errorf("x: %w", errPrereq), Inconclusive, ClassHarness},
		"disk full":        {t.Context(), false, &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, Inconclusive, ClassHarness},
		"unknown":          {t.Context(), false, errors.New("x"), Inconclusive, ClassHarness},
		"disk limit":       {t.Context(), false, fmt.Errorf("x: %w", errPolicy), Inconclusive, ClassPolicy},
		"disk limit later": {ended(errDisk), false, errors.New("x"), Inconclusive, ClassPolicy},
		"time":             {ended(errTime), false, vault.ErrNoGoodCopy, TimedOut, ClassPolicy},
		"stopped":          {ended(context.Canceled), false, vault.ErrNoGoodCopy, Aborted, ClassHarness},
		"rot":              {t.Context(), false, &vault.Faults{Kind: vault.ErrNoGoodCopy}, Fail, ClassBackup},
		"gone":             {t.Context(), true, &vault.Faults{Kind: fs.ErrNotExist}, Fail, ClassBackup},
		"forged":           {t.Context(), false, seal.ErrUntrusted, Fail, ClassBackup},
		"wrong key":        {t.Context(), false, fmt.Errorf("x: %w", seal.ErrIdentity), Fail, ClassKey},
		"short":            {t.Context(), false, restore.ErrIncomplete, Fail, ClassBackup},
		"no WAL":           {t.Context(), false, restore.ErrUnreachable, Fail, ClassBackup},
		"all zones silent": {t.Context(), false, &vault.Faults{Kind: vault.ErrDoubt, Zones: map[string]error{"a": zone.ErrUnreachable}}, Inconclusive, ClassZone},
		"its zone silent":  {t.Context(), true, &vault.Faults{Kind: vault.ErrDoubt, Zones: map[string]error{"a": zone.ErrUnreachable}}, Fail, ClassZone},
		"purge":            {t.Context(), false, errPurge, Fail, ClassPolicy},
	} {
		if outcome, class := blame(c.ctx, c.zoned, c.err); outcome != c.outcome || class != c.class {
			t.Errorf("%s: %s (%s), want %s (%s)", name, outcome, class, c.outcome, c.class)
		}
	}
}

func TestALargeRecordFitsAnEntryWithEveryVerdict(t *testing.T) {
	r := flawless()
	for i := range 300 {
		r.Checks = append(r.Checks, Check{ID: fmt.Sprintf("L8:q%d", i), Verdict: passed, Expected: strings.Repeat("é", 400), Observed: strings.Repeat("<", 900)})
	}
	for range maxCopies {
		r.BadCopies = append(r.BadCopies, BadCopy{"a", strings.Repeat("x", 200), strings.Repeat("y", 200)})
	}
	small := fit(r)
	if n := size(small); n > maxRecord {
		t.Errorf("%d bytes", n)
	}
	if len(small.Checks) != len(r.Checks) {
		t.Errorf("%d checks of %d are left", len(small.Checks), len(r.Checks))
	}
	if len(r.Checks[20].Observed) != 900 {
		t.Error("the record itself was cut")
	}
	if got := cut("éé", 3); got != "é…" {
		t.Errorf("cut inside a letter: %q", got)
	}
}

func TestADefinitionThatCannotRunIsRefused(t *testing.T) {
	good := Definition{Name: "weekly", Cluster: "cms", Select: Latest, Level: "L8", Limits: Limits{Time: time.Hour}, Environment: Environment{Directory: "/srv/x"}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Definition){
		"name": func(d *Definition) { d.Name = "../x" }, "cluster": func(d *Definition) { d.Cluster = "" }, "selector": func(d *Definition) { d.Select = "best" },
		"level": func(d *Definition) { d.Level = "L9" }, "time": func(d *Definition) { d.Limits.Time = 0 }, "directory": func(d *Definition) { d.Environment.Directory = "x" },
	} {
		d := good
		spoil(&d)
		if d.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
		before, _ := good.Hash()
		if after, _ := d.Hash(); after == before {
			t.Errorf("%s: the plan's hash does not see the change", name)
		}
	}
}

func FuzzRecompute(f *testing.F) {
	f.Add([]byte(`{"slot":"s","plan_hash":"p","pick":{"select":"random","candidates":[{"id":"a"}]}}`))
	f.Add([]byte(`{"slot":"s","pick":{"select":"random_time","candidates":[{"id":"a"}],"spans":[{"from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z"}]}}`))
	f.Add([]byte(`{"pick":{"select":"stalest","candidates":[]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		due := ledger.Record{Envelope: ledger.Envelope{Body: body}}
		first, err := Recompute(due)
		again, err2 := Recompute(due)
		if (err == nil) != (err2 == nil) || err == nil && first != again {
			t.Errorf("%+v, %v and %+v, %v", first, err, again, err2)
		}
	})
}

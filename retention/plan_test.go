package retention

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

const (
	day = 24 * time.Hour
	mib = lsn.LSN(1 << 20)
	seg = 16 * mib
)

var noon = time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC) // a Sunday

// ago is a snapshot of timeline 1 that ended so long before noon. Its WAL is at
// one segment an hour since a thousand days before.
func ago(d time.Duration, change ...func(*catalog.Snapshot)) catalog.Snapshot {
	at := noon.Add(-d)
	start := place(d)
	s := catalog.Snapshot{
		Cluster: "main", ID: at.Format("0102-1504"), Kind: "physical", Epoch: 1, SystemID: "sys", Timeline: 1, SegSize: int64(seg),
		StartLSN: start + 100, StopLSN: start + seg/2, StartedAt: at.Add(-time.Minute), FinishedAt: at,
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

// endedAt is a snapshot that ended at a time.
func endedAt(text string) catalog.Snapshot {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return ago(noon.Sub(t))
}

var newYork, auckland = located("America/New_York"), located("Pacific/Auckland")

func located(name string) *time.Location {
	zone, err := time.LoadLocation(name)
	if err != nil {
		panic(err)
	}
	return zone
}

func place(d time.Duration) lsn.LSN { return lsn.LSN((1000*day-d)/time.Hour) * seg }

func suspect(s *catalog.Snapshot) { s.Suspect = true }

// segments are the full files of timeline t of the hours between.
func segments(epoch int, t uint32, from, to time.Duration) (files []File) {
	for at := place(from); at <= place(to); at += seg {
		files = append(files, file(epoch, t, at, at+seg))
	}
	return files
}

func file(epoch int, t uint32, from, to lsn.LSN) File {
	return File{WALEntry: catalog.WALEntry{Epoch: epoch, Timeline: t, From: from, To: to, Name: fmt.Sprintf("%d/%d/%s-%s", epoch, t, from, to)}}
}

func inputs(p Policy, snaps ...catalog.Snapshot) Inputs {
	return Inputs{
		Cluster: "main", Now: noon, Policy: p, Snapshots: snaps, Complete: true, MaxShare: 1,
		Lineages: []catalog.Lineage{{Epoch: 1, SystemID: "sys", Timeline: 1}},
	}
}

func plan(t testing.TB, in Inputs) Plan {
	t.Helper()
	p, err := MakePlan(in)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// table prints decisions as lines, "+" for what stays.
func table(list []Decision) string {
	var b strings.Builder
	for _, d := range list {
		sign := "-"
		if d.Keep {
			sign = "+"
		}
		fmt.Fprintf(&b, "%s %s %s\n", sign, d.ID, strings.Join(d.Reasons, ", "))
	}
	return b.String()
}

func TestPoliciesByTable(t *testing.T) {
	daily := []catalog.Snapshot{ago(9 * day), ago(8 * day), ago(7 * day), ago(3 * day), ago(2*day + time.Hour), ago(2 * day), ago(day), ago(time.Hour)}
	for name, test := range map[string]struct {
		policy Policy
		snaps  []catalog.Snapshot
		proofs []catalog.Proof
		holds  []Hold
		want   string
	}{
		"zero keeps everything": {snaps: []catalog.Snapshot{ago(800 * day), ago(time.Hour)}, want: `
+ 0105-1200 the policy sets no end
+ 0315-1100 newest, the policy sets no end, the window begins at it
`},
		"window begins at the newest before it": {policy: Policy{Window: 7 * day}, snaps: []catalog.Snapshot{ago(9 * day), ago(8 * day), ago(6 * day), ago(time.Hour)}, want: `
- 0306-1200 no rule keeps it
+ 0307-1200 the window begins at it
+ 0309-1200 keep_at_least 7d, in the window of 7d
+ 0315-1100 newest, keep_at_least 7d, in the window of 7d
`},
		"the newest of each day": {policy: Policy{Daily: 3, KeepAtLeast: time.Second}, snaps: daily, want: `
- 0306-1200 no rule keeps it
- 0307-1200 no rule keeps it
- 0308-1200 no rule keeps it
- 0312-1200 no rule keeps it
- 0313-1100 no rule keeps it
+ 0313-1200 daily: 2026-03-13
+ 0314-1200 daily: 2026-03-14
+ 0315-1100 newest, the window begins at it, daily: 2026-03-15
`},
		"weeks are ISO weeks, months and years UTC": {
			policy: Policy{Weekly: 2, Monthly: 2, Yearly: 2},
			snaps:  []catalog.Snapshot{ago(100 * day), ago(73*day + 13*time.Hour), ago(40 * day), ago(14 * day), ago(7 * day), ago(6 * day), ago(0)}, want: `
- 1205-1200 no rule keeps it
+ 1231-2300 yearly: 2025
+ 0203-1200 monthly: 2026-02
- 0301-1200 no rule keeps it
+ 0308-1200 weekly: 2026 week 10
- 0309-1200 no rule keeps it
+ 0315-1200 newest, the window begins at it, weekly: 2026 week 11, monthly: 2026-03, yearly: 2026
`,
		},
		"a time without snapshots uses no count up": {policy: Policy{Daily: 2}, snaps: []catalog.Snapshot{ago(50 * day), ago(40 * day), ago(30 * day)}, want: `
- 0124-1200 no rule keeps it
+ 0203-1200 daily: 2026-02-03
+ 0213-1200 newest, the window begins at it, daily: 2026-02-13
`},
		"suspect ones are not what is left": { // C-21
			policy: Policy{Daily: 1, KeepAtLeast: time.Second},
			snaps:  []catalog.Snapshot{ago(3 * day), ago(2 * day), ago(day, suspect), ago(time.Hour, suspect)}, want: `
- 0312-1200 no rule keeps it
+ 0313-1200 newest, the window begins at it, daily: 2026-03-13
- 0314-1200 suspect, and older than keep_at_least
+ 0315-1100 newest, though suspect
`,
		},
		"days of a time zone, on the day that clocks are put forward": { // 2026-03-08 in New York has 23 hours
			policy: Policy{Daily: 3, KeepAtLeast: time.Second, Zone: newYork},
			snaps: []catalog.Snapshot{
				endedAt("2026-03-08T04:59:00Z"),                                  // 23:59 the day before
				endedAt("2026-03-08T05:00:00Z"), endedAt("2026-03-09T03:59:00Z"), // its first and last minute
				endedAt("2026-03-09T04:00:00Z"), ago(0),
			}, want: `
- 0308-0459 no rule keeps it
- 0308-0500 no rule keeps it
+ 0309-0359 daily: 2026-03-08
+ 0309-0400 daily: 2026-03-09
+ 0315-1200 newest, the window begins at it, daily: 2026-03-15
`,
		},
		"hours of a time zone, when clocks are put back": { // 01:30 is twice on 2025-11-02 in New York
			policy: Policy{Hourly: 4, KeepAtLeast: time.Second, Zone: newYork},
			snaps: []catalog.Snapshot{
				endedAt("2025-11-02T04:30:00Z"), endedAt("2025-11-02T05:30:00Z"), endedAt("2025-11-02T05:40:00Z"), endedAt("2025-11-02T06:30:00Z"), ago(0),
			}, want: `
+ 1102-0430 hourly: 2025-11-02 00h -0400
- 1102-0530 no rule keeps it
+ 1102-0540 hourly: 2025-11-02 01h -0400
+ 1102-0630 hourly: 2025-11-02 01h -0500
+ 0315-1200 newest, the window begins at it, hourly: 2026-03-15 08h -0400
`,
		},
		"months and years of a time zone": {
			policy: Policy{Monthly: 2, Yearly: 2, KeepAtLeast: time.Second, Zone: auckland},
			snaps:  []catalog.Snapshot{endedAt("2025-12-31T10:59:00Z"), endedAt("2025-12-31T11:00:00Z"), endedAt("2026-02-28T10:59:00Z"), endedAt("2026-02-28T11:00:00Z")}, want: `
+ 1231-1059 yearly: 2025
- 1231-1100 no rule keeps it
+ 0228-1059 monthly: 2026-02
+ 0228-1100 newest, the window begins at it, monthly: 2026-03, yearly: 2026
`,
		},
		"the newest proven stays, failed proofs prove nothing": {
			policy: Policy{Daily: 1}, snaps: daily,
			proofs: []catalog.Proof{{Snapshot: "0307-1200", Outcome: "pass"}, {Snapshot: "0308-1200", Outcome: "pass_with_gaps"}, {Snapshot: "0314-1200", Outcome: "fail"}}, want: `
- 0306-1200 no rule keeps it
- 0307-1200 no rule keeps it
+ 0308-1200 newest proven
- 0312-1200 no rule keeps it
- 0313-1100 no rule keeps it
- 0313-1200 no rule keeps it
- 0314-1200 no rule keeps it
+ 0315-1100 newest, the window begins at it, daily: 2026-03-15
`,
		},
		"the ceiling ends counts, not holds": {
			policy: Policy{Yearly: 9, Monthly: 99, KeepAtMost: 60 * day, RemovalGrace: day},
			snaps:  []catalog.Snapshot{ago(90 * day), ago(59 * day), ago(58 * day), ago(0)},
			holds:  []Hold{onSnapshot("h1", "1215-1200", "case 7")}, want: `
+ 1215-1200 monthly: 2025-12, yearly: 2025, hold h1: case 7
- 0115-1200 no rule keeps it
+ 0116-1200 monthly: 2026-01
+ 0315-1200 newest, the window begins at it, monthly: 2026-03, yearly: 2026
`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputs(test.policy, test.snaps...)
			in.Now = noon.Add(10 * time.Second)
			in.Last = noon
			in.Proofs, in.Holds = test.proofs, test.holds
			got := table(plan(t, in).Snapshots)
			if want := strings.TrimPrefix(test.want, "\n"); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestNewestAndNewestProvenStayBeyondTheCeilingAndAreReported(t *testing.T) { // promise 6
	in := inputs(Policy{Window: day, KeepAtMost: 10 * day}, ago(30*day), ago(20*day), ago(15*day))
	in.Last = noon.Add(-time.Hour)
	in.Proofs = []catalog.Proof{{Snapshot: "0223-1200", Outcome: "pass"}}
	p := plan(t, in)
	if len(p.OverRetained) != 2 || p.Err() != nil {
		t.Fatalf("%+v, %v", p.OverRetained, p.Err())
	}
	for i, want := range []OverRetained{
		{ID: "0223-1200", Needs: []string{"drill"}},
		{ID: "0228-1200", Needs: []string{"snapshot"}},
	} {
		if got := p.OverRetained[i]; got.ID != want.ID || !slices.Equal(got.Needs, want.Needs) || got.Since.IsZero() {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

func TestPlansAreRefused(t *testing.T) {
	snaps := []catalog.Snapshot{ago(30 * day), ago(20 * day), ago(10 * day), ago(0)}
	for name, test := range map[string]struct {
		change func(*Inputs)
		want   string
	}{
		"incomplete":                      {func(in *Inputs) { in.Complete, in.Missing = false, []string{"zone b"} }, "not complete: [zone b]"},
		"clock before the newest":         {func(in *Inputs) { in.Now = noon.Add(-time.Hour) }, "went back"},
		"clock before the last run":       {func(in *Inputs) { in.Last = noon.Add(time.Hour) }, "went back"},
		"clock far ahead of all":          {func(in *Inputs) { in.Now = noon.Add(8 * day) }, "may have jumped"},
		"clock far ahead of the last run": {func(in *Inputs) { in.Now, in.Last = noon.Add(20*day), noon.Add(12*day) }, "may have jumped"},
		"too much at once":                {func(in *Inputs) { in.MaxShare = 0 }, "removes 3 of 4"},
	} {
		in := inputs(Policy{Daily: 1}, snaps...)
		if plan(t, in).Err() != nil {
			t.Fatal("refused without a reason")
		}
		test.change(&in)
		p := plan(t, in)
		if err := p.Err(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if name != "too much at once" && strings.Contains(table(p.Snapshots), "-  ") {
			t.Errorf("%s: a plan on doubtful facts removes something", name)
		}
		in.Force = true
		if forced := plan(t, in).Err() == nil; forced != (name == "too much at once") {
			t.Errorf("%s: forcing it: %v", name, forced)
		}
	}
	// What was stopped for long and then took a snapshot goes on.
	in := inputs(Policy{Daily: 1}, ago(40*day), ago(0))
	in.Last = noon.Add(-40 * day)
	if err := plan(t, in).Err(); err != nil {
		t.Error(err)
	}
	if _, err := MakePlan(inputs(Policy{Window: 10 * day, KeepAtMost: 5 * day})); err == nil {
		t.Error("a ceiling below the window was accepted")
	}
}

func TestIntentsStayUntilTheyAreGarbage(t *testing.T) {
	in := inputs(Policy{Daily: 1}, ago(9*day), ago(0))
	in.Intents = []catalog.Intent{{ID: "old", StartedAt: noon.Add(-4 * day)}, {ID: "young", StartedAt: noon.Add(-2 * day), Base: "0306-1200"}}
	p := plan(t, in)
	if got, want := table(p.Garbage), "- old was begun and never committed\n+ young may be running\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if !p.Snapshots[0].Keep {
		t.Error("the base of a snapshot that is being taken goes")
	}
}

func walTable(list []WALDecision) string {
	var b strings.Builder
	for _, d := range list {
		sign := "-"
		if d.Keep {
			sign = "+"
		}
		fmt.Fprintf(&b, "%s %d/%d %s..%s (%d) %s\n", sign, d.Epoch, d.Timeline, d.From, d.To, d.Files, strings.Join(d.Reasons, ", "))
	}
	return b.String()
}

func at(d time.Duration) string { return place(d).String() }

func TestWALStaysByProof(t *testing.T) { // C-59
	snaps := []catalog.Snapshot{ago(20 * day), ago(9 * day), ago(8 * day), ago(0)}
	in := inputs(Policy{Window: 7 * day, Monthly: 2}, snaps...)
	in.WAL = segments(1, 1, 21*day, 0)
	// Slices of one hour of the window: one file covers them all. Those of the
	// segment that is not full yet are covered by none.
	a := place(3 * day)
	in.WAL = append(in.WAL, file(1, 1, a, a+mib), file(1, 1, a+mib, a+2*mib), file(1, 1, a+2*mib, a+seg))
	b := place(0) + seg
	in.WAL = append(in.WAL, file(1, 1, b, b+mib), file(1, 1, b+mib, b+2*mib))
	want := "- 1/1 " + at(21*day) + ".." + at(20*day) + " (24) no snapshot and no window needs it\n" +
		"+ 1/1 " + at(20*day) + ".." + (place(20*day) + seg).String() + " (1) snapshot 0223-1200\n" +
		"- 1/1 " + (place(20*day) + seg).String() + ".." + at(8*day) + " (287) no snapshot and no window needs it\n" +
		"+ 1/1 " + at(8*day) + ".." + (place(8*day) + seg).String() + " (1) the window, snapshot 0307-1200\n" +
		"+ 1/1 " + (place(8*day) + seg).String() + ".." + at(0) + " (191) the window\n" +
		"- 1/1 " + a.String() + ".." + (a + 2*mib).String() + " (2) a longer file covers it\n" +
		"- 1/1 " + (a + 2*mib).String() + ".." + (a + seg).String() + " (1) a longer file covers it\n" +
		"+ 1/1 " + at(0) + ".." + b.String() + " (1) the window, snapshot 0315-1200\n" +
		"+ 1/1 " + b.String() + ".." + (b + 2*mib).String() + " (2) the window\n"
	if got := walTable(plan(t, in).WAL); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func on(epoch int, timeline uint32) func(*catalog.Snapshot) {
	return func(s *catalog.Snapshot) { s.Epoch, s.Timeline = epoch, timeline }
}

// A restore to an earlier place made timeline 2 while the window still reaches
// timeline 1: both must be restorable, each from a snapshot on its own history.
func TestWindowHoldsOnEveryTimeline(t *testing.T) { // C-60, C-61
	fork := 20 * day
	in := inputs(Policy{Window: 7 * day},
		ago(25*day), ago(21*day), ago(12*day), ago(8*day), // of timeline 1; the last two behind the fork
		ago(2*day, on(2, 2)))
	in.Lineages = append(in.Lineages, catalog.Lineage{Epoch: 2, SystemID: "sys", Timeline: 2, ClaimedAt: noon.Add(-3 * day)})
	in.Histories = map[Branch][]lsn.Switch{{"sys", 2}: {{Timeline: 1, LSN: place(fork) + 5}}}
	in.WAL = append(segments(1, 1, 26*day, 4*day), segments(2, 2, fork, 0)...)
	history := file(2, 2, place(fork)+5, place(fork)+5)
	history.File = "00000002.history"
	in.WAL = append(in.WAL, history)
	p := plan(t, in)
	if got, want := table(p.Snapshots), `- 0218-1200 no rule keeps it
+ 0222-1200 the window begins at it
- 0303-1200 no rule keeps it
+ 0307-1200 the window begins at it
+ 0313-1200 newest, keep_at_least 7d, in the window of 7d
`; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	kept := func(epoch int, tl uint32, l lsn.LSN) bool {
		return slices.ContainsFunc(p.WAL, func(d WALDecision) bool {
			return d.Keep && d.Epoch == epoch && d.Timeline == tl && d.From <= l && l < d.To
		})
	}
	for _, test := range []struct {
		epoch    int
		timeline uint32
		at       lsn.LSN
		keep     bool
	}{
		{1, 1, place(21*day) - 1, false},
		{1, 1, place(21 * day), true},
		{1, 1, place(fork) + 4, true},
		{1, 1, place(15 * day), false},
		{1, 1, place(8 * day), true},
		{1, 1, place(4 * day), true},
		{2, 2, place(fork), true},
		{2, 2, place(0), true},
	} {
		if got := kept(test.epoch, test.timeline, test.at); got != test.keep {
			t.Errorf("timeline %d at %s: kept %v", test.timeline, test.at, got)
		}
	}
	if !strings.Contains(walTable(p.WAL), "+ 2/2 "+history.From.String()+".."+history.From.String()) {
		t.Error("the history of a timeline that stays goes")
	}

	in.Histories = nil
	for _, d := range append(plan(t, in).WAL, WALDecision{Keep: true}) {
		if !d.Keep {
			t.Errorf("without the history of timeline 2: %+v goes", d)
		}
	}
}

// The history of a timeline stays when the first WAL of it goes, in whose midst it is.
func TestAHistoryThatStaysHoldsNoPlanUp(t *testing.T) {
	fork := 25 * day
	in := inputs(Policy{Window: 7 * day}, ago(20*day, on(1, 2)), ago(9*day, on(1, 2)), ago(2*day, on(1, 2)))
	in.Histories = map[Branch][]lsn.Switch{{"sys", 2}: {{Timeline: 1, LSN: place(fork) + 5}}}
	history := file(1, 2, place(fork)+5, place(fork)+5)
	history.File = "00000002.history"
	in.WAL = append(segments(1, 2, fork, 0), history)
	p := plan(t, in)
	around := slices.ContainsFunc(p.WAL, func(d WALDecision) bool { return !d.Keep && d.From < history.From && history.From < d.To })
	if !around || !strings.Contains(walTable(p.WAL), "+ 1/2 "+history.From.String()+".."+history.From.String()) {
		t.Fatalf("the history goes, or the WAL around it stays:\n%s", walTable(p.WAL))
	}
	if n, kept := keptAfterAll(p.WAL, p.WAL); kept {
		t.Errorf("a plan that is made again contradicts itself: %s to %s", n.From, n.To)
	}
	later := slices.Clone(p.WAL)
	for i := range later {
		later[i].Keep = true
	}
	if _, kept := keptAfterAll(p.WAL, later); !kept {
		t.Error("WAL that stays by now goes unnoticed")
	}
}

func TestAnUpgradedSystemKeepsOnlyWhatSnapshotsNeed(t *testing.T) {
	upgraded := func(s *catalog.Snapshot) { s.Epoch, s.SystemID = 2, "new" }
	in := inputs(Policy{Window: 7 * day, Monthly: 2}, ago(20*day), ago(15*day), ago(9*day, upgraded), ago(day, upgraded))
	in.Lineages = append(in.Lineages, catalog.Lineage{Epoch: 2, SystemID: "new", Timeline: 1, ClaimedAt: noon.Add(-10 * day)})
	in.WAL = append(segments(1, 1, 20*day, 11*day), segments(2, 1, 10*day, 0)...)
	got := walTable(plan(t, in).WAL)
	s := place(15 * day)
	if !strings.Contains(got, "+ 1/1 "+s.String()+".."+(s+seg).String()+" (1) snapshot 0228-1200\n- 1/1 ") || !strings.Contains(got, "+ 2/1 "+at(9*day)) {
		t.Error(got)
	}
}

func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{
			Window: time.Duration(rapid.IntRange(0, 10).Draw(t, "window")) * day, Hourly: rapid.IntRange(0, 5).Draw(t, "h"), Daily: rapid.IntRange(0, 5).Draw(t, "d"),
			Weekly: rapid.IntRange(0, 3).Draw(t, "w"), Monthly: rapid.IntRange(0, 3).Draw(t, "m"), KeepAtLeast: time.Duration(rapid.IntRange(0, 12).Draw(t, "least")) * day,
		}
		if most := rapid.IntRange(0, 60).Draw(t, "most"); most > 12 {
			p.KeepAtMost = time.Duration(most) * day
		}
		var snaps []catalog.Snapshot
		for _, h := range rapid.SliceOfNDistinct(rapid.IntRange(0, 2000), 1, 30, rapid.ID).Draw(t, "hours") {
			s := ago(time.Duration(h) * time.Hour)
			s.Suspect = rapid.IntRange(0, 4).Draw(t, "suspect") == 0
			snaps = append(snaps, s)
		}
		in := inputs(p, snaps...)
		in.Last, in.WAL = noon, segments(1, 1, 84*day, 0)
		for _, s := range snaps {
			if rapid.IntRange(0, 5).Draw(t, "proven") == 0 {
				in.Proofs = append(in.Proofs, catalog.Proof{Snapshot: s.ID, Outcome: rapid.SampledFrom([]string{"pass", "pass_with_gaps", "fail"}).Draw(t, "outcome")})
			}
		}
		checkPlan(t, in)
	})
}

func checkPlan(t *rapid.T, in Inputs) {
	p, err := MakePlan(in)
	if err != nil || p.Err() != nil {
		t.Fatal(err, p.Err())
	}
	if len(p.Snapshots) != len(in.Snapshots) {
		t.Fatalf("%d decisions on %d snapshots", len(p.Snapshots), len(in.Snapshots))
	}
	keep := map[string]bool{}
	for _, d := range p.Snapshots {
		keep[d.ID] = d.Keep
		if len(d.Reasons) == 0 {
			t.Fatalf("%s: no reason", d.ID)
		}
	}
	slices.SortFunc(in.Snapshots, older)
	var newest, proven string
	var left []catalog.Snapshot
	for _, s := range in.Snapshots {
		if !s.Suspect || newest == "" {
			newest = s.ID
		}
		for _, f := range in.Proofs {
			if f.Snapshot == s.ID && f.Outcome != "fail" {
				proven = s.ID
			}
		}
		if noon.Sub(s.FinishedAt) < in.Policy.Floor() && !keep[s.ID] {
			t.Fatalf("%s goes below the floor", s.ID)
		}
		over := slices.ContainsFunc(p.OverRetained, func(o OverRetained) bool { return o.ID == s.ID })
		if want := keep[s.ID] && in.Policy.KeepAtMost > 0 && noon.Sub(s.StartedAt) >= in.Policy.KeepAtMost; want != over {
			t.Fatalf("%s: over-retained %v, reported %v", s.ID, want, over)
		}
		if keep[s.ID] {
			left = append(left, s)
			checkWAL(t, p, s)
		}
	}
	last := in.Snapshots[len(in.Snapshots)-1].ID
	if !keep[last] || (proven != "" && !keep[proven]) {
		t.Fatalf("the last %s, the newest proven %s: %v", last, proven, keep)
	}
	in.Snapshots = left
	again, _ := MakePlan(in)
	for _, d := range again.Snapshots {
		if !d.Keep {
			t.Fatalf("a second plan removes %s as well", d.ID)
		}
	}
}

func checkWAL(t *rapid.T, p Plan, s catalog.Snapshot) {
	for at := first(s); at < s.StopLSN; at += seg {
		if !slices.ContainsFunc(p.WAL, func(d WALDecision) bool { return d.Keep && d.From <= at && at < d.To }) {
			t.Fatalf("%s is kept and its WAL at %s goes", s.ID, at)
		}
	}
}

func logicalAgo(d time.Duration) catalog.Snapshot {
	return ago(d, func(s *catalog.Snapshot) { s.Kind, s.ID = catalog.Logical, "L"+s.ID })
}

func projectAgo(mac string, d time.Duration) catalog.Snapshot {
	return ago(d, func(s *catalog.Snapshot) { s.Kind, s.ID, s.KeyMAC = catalog.Project, mac+s.ID, mac })
}

// goes are the ids of what a plan lets go.
func goes(p Plan) (ids []string) {
	for _, d := range p.Snapshots {
		if !d.Keep {
			ids = append(ids, d.ID)
		}
	}
	return ids
}

func TestEachClassOfSnapshotsIsCountedByItself(t *testing.T) {
	policy := Policy{Window: 7 * day, Daily: 2, KeepAtLeast: 12 * time.Hour, KeepAtMost: 100 * day}
	in := inputs(policy, ago(9*day), ago(6*day), ago(time.Hour),
		logicalAgo(5*day), logicalAgo(4*day), logicalAgo(3*day),
		projectAgo("a", 5*day), projectAgo("a", 4*day), projectAgo("a", 3*day), projectAgo("b", 50*day))
	in.WAL = segments(1, 1, 10*day, 0)
	p := plan(t, in)
	if got, want := goes(p), []string{logicalAgo(5 * day).ID, projectAgo("a", 5*day).ID}; !slices.Equal(got, want) {
		t.Errorf("%v go, want %v", got, want)
	}
	without := plan(t, inputs(policy, ago(9*day), ago(6*day), ago(time.Hour)))
	if p.Window != without.Window {
		t.Errorf("the window begins at %v with logical snapshots, and at %v without", p.Window, without.Window)
	}
	for _, d := range p.WAL {
		if d.Keep && slices.ContainsFunc(d.Reasons, func(r string) bool { return strings.HasPrefix(r, "snapshot L") || strings.HasPrefix(r, "snapshot a") }) {
			t.Errorf("WAL %s to %s stays for a logical snapshot: %v", d.From, d.To, d.Reasons)
		}
	}
}

func TestAClassHasCountsOfItsOwn(t *testing.T) {
	in := inputs(Policy{Window: 7 * day, Daily: 7, KeepAtMost: 100 * day, Logical: &Counts{Daily: 1, KeepAtLeast: 12 * time.Hour}, Project: &Counts{Weekly: 1}},
		ago(time.Hour), logicalAgo(2*day), logicalAgo(day), logicalAgo(11*time.Hour), projectAgo("a", 3*day), projectAgo("a", 2*day))
	if got, want := goes(plan(t, in)), []string{projectAgo("a", 3*day).ID, logicalAgo(2 * day).ID, logicalAgo(day).ID}; !slices.Equal(got, want) {
		t.Errorf("%v go, want %v", got, want)
	}
}

func TestTheNewestLogicalSnapshotStaysUntilTheCeiling(t *testing.T) {
	policy := Policy{Daily: 1, KeepAtMost: 100 * day}
	in := inputs(policy, ago(time.Hour), logicalAgo(99*day), projectAgo("a", 99*day))
	if got := goes(plan(t, in)); len(got) > 0 {
		t.Errorf("%v go", got)
	}
	in = inputs(policy, ago(time.Hour), logicalAgo(100*day), projectAgo("a", 100*day))
	p := plan(t, in)
	if got := goes(p); len(got) != 2 || len(p.OverRetained) > 0 {
		t.Errorf("%v go, over-retained %v", got, p.OverRetained)
	}
}

func TestADeletedProjectsOwnSnapshotsGoUnlessAHoldIsOnThem(t *testing.T) {
	newest, older := projectAgo("a", time.Hour), projectAgo("a", 2*day)
	in := inputs(Policy{Daily: 7, KeepAtLeast: day, KeepAtMost: 100 * day}, ago(time.Hour), older, newest, projectAgo("b", time.Hour))
	in.Purged = map[string]string{newest.ID: "t", older.ID: "t"}
	p := plan(t, in)
	if got := goes(p); !slices.Equal(got, []string{older.ID, newest.ID}) {
		t.Errorf("%v go", got)
	}
	in.Holds = []Hold{{Hold: catalog.Hold{ID: "h", Kind: catalog.HoldProject, KeyMAC: "a"}, Moments: []time.Time{noon}}}
	if got := goes(plan(t, in)); !slices.Equal(got, []string{older.ID}) {
		t.Errorf("with a hold on the project %v go", got)
	}
}

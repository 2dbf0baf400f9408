package retention

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// histories is how many random histories are lived through: otherwise, or as many
// times more as HOLDFAST_HISTORIES is more than 1,000.
func histories(t *testing.T, otherwise int) int {
	t.Helper()
	text := os.Getenv("HOLDFAST_HISTORIES")
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	noErr(t, err)
	return max(1, n*otherwise/1000)
}

// life is a random history of one cluster: what its zones hold, and how that came.
type life struct {
	r       *rand.Rand
	policy  Policy
	now     time.Time
	last    time.Time
	tl      uint32
	epoch   int
	at      lsn.LSN
	snaps   map[string]catalog.Snapshot
	gone    map[string]time.Time // marked, and when the grace has passed
	wal     []File
	forks   map[Branch][]lsn.Switch
	claims  []catalog.Lineage
	proofs  []catalog.Proof
	holds   []Hold
	ends    map[string]lsn.LSN // of spans on hold, where they were seen to be past
	refused int
	n       int
}

func newLife(seed uint64) *life {
	r := rand.New(rand.NewPCG(seed, 7))
	p := Policy{
		Window: time.Duration(r.IntN(6)) * day, Hourly: r.IntN(4), Daily: r.IntN(5), Weekly: r.IntN(3), Monthly: r.IntN(3), KeepAtLeast: time.Duration(r.IntN(6)) * day,
		RemovalGrace: time.Duration(r.IntN(48)) * time.Hour, RenewAfter: time.Duration(r.IntN(4)) * day, Lead: day, Zone: []*time.Location{nil, newYork, auckland}[r.IntN(3)],
	}
	if r.IntN(4) > 0 {
		p.KeepAtMost = time.Duration(14+r.IntN(40)) * day
	}
	return &life{
		r: r, policy: p, now: noon.AddDate(0, 0, r.IntN(365)), tl: 1, epoch: 1, at: 100 * seg, snaps: map[string]catalog.Snapshot{}, gone: map[string]time.Time{}, ends: map[string]lsn.LSN{},
		forks: map[Branch][]lsn.Switch{}, claims: []catalog.Lineage{{Epoch: 1, SystemID: "sys", Timeline: 1}},
	}
}

// live lets some hours pass: WAL always, and now and then something else.
func (l *life) live() {
	hours := 1 + l.r.IntN(18)
	l.now = l.now.Add(time.Duration(hours) * time.Hour)
	for range hours {
		l.wal = append(l.wal, file(l.epoch, l.tl, l.at, l.at+seg))
		l.at += seg
	}
	switch l.r.IntN(12) {
	case 0: // a promotion
		from := Branch{"sys", l.tl}
		l.tl, l.epoch = l.tl+1, l.epoch+1
		at := l.at - seg/2
		l.forks[Branch{"sys", l.tl}] = append(slices.Clone(l.forks[from]), lsn.Switch{Timeline: from.Timeline, LSN: at})
		l.claims = append(l.claims, catalog.Lineage{Epoch: l.epoch, SystemID: "sys", Timeline: l.tl, ClaimedAt: l.now})
		history := file(l.epoch, l.tl, at, at)
		history.File = lsn.HistoryName(l.tl)
		l.wal = append(l.wal, file(l.epoch, l.tl, l.at-seg, l.at), history)
	case 1:
		if id := l.any(); id != "" {
			l.proofs = append(l.proofs, catalog.Proof{Snapshot: id, Outcome: []string{"pass", "fail"}[l.r.IntN(2)]})
		}
	case 2:
		if id := l.any(); id != "" {
			l.holds = append(l.holds, onSnapshot("h"+id, id, "case"))
		}
	case 3:
		from := time.Duration(l.r.IntN(20)) * day
		h := onSpan(fmt.Sprintf("s%d", l.n), 0, 0)
		h.From, h.To = l.now.Add(-from), l.now.Add(-from/2)
		// A hold brings nothing back: of what went before it was placed nothing is asked.
		if base, end := l.restores(l.inputs().Snapshots, h); base.ID == "" || l.stored(l.tl, first(base), end) {
			l.holds = append(l.holds, h)
		}
	case 4:
		if len(l.holds) > 0 {
			l.holds = slices.Delete(l.holds, 0, 1+l.r.IntN(len(l.holds)))
		}
	default:
		l.take()
	}
}

func (l *life) any() string {
	var ids []string
	for id := range l.snaps {
		if l.gone[id].IsZero() {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return ""
	}
	slices.Sort(ids) // a seed tells the same story each time
	return ids[l.r.IntN(len(ids))]
}

func (l *life) take() {
	l.n++
	s := catalog.Snapshot{
		Cluster: "main", ID: fmt.Sprintf("n%04d", l.n), Kind: "physical", Epoch: l.epoch, SystemID: "sys", Timeline: l.tl, SegSize: int64(seg),
		StartLSN: l.at + 100, StopLSN: l.at + seg/2, StartedAt: l.now.Add(-time.Minute), FinishedAt: l.now, Suspect: l.r.IntN(8) == 0,
	}
	s.Oldest = s.StartedAt.Add(-time.Duration(l.r.Int64N(int64(l.policy.RenewAfter) + 1)))
	l.wal = append(l.wal, file(l.epoch, l.tl, l.at, l.at+seg))
	l.at += seg
	l.snaps[s.ID] = s
}

func (l *life) inputs() Inputs {
	in := Inputs{
		Cluster: "main", Now: l.now, Last: l.last, Policy: l.policy, WAL: l.wal, Lineages: l.claims, Histories: l.forks, Proofs: l.proofs, Holds: l.holds,
		Complete: true, MaxShare: 1,
	}
	for id, s := range l.snaps {
		if l.gone[id].IsZero() {
			in.Snapshots = append(in.Snapshots, s)
		}
	}
	slices.SortFunc(in.Snapshots, older)
	return in
}

// keep plans and lets go what the plan does not keep: WAL at once, snapshots after
// their grace. Sometimes the clock jumps, or a zone does not answer: then nothing may go.
func (l *life) keep() (in Inputs, p Plan, err error) {
	in = l.inputs()
	switch l.r.IntN(10) {
	case 0:
		in.Now = in.Now.Add(-time.Duration(1+l.r.IntN(500)) * time.Hour)
	case 1:
		in.Now = in.Now.AddDate(0, 0, 20+l.r.IntN(1000))
	case 2:
		in.Complete = false
	}
	if p, err = MakePlan(in); err != nil {
		return in, p, err
	}
	if p.Err() != nil {
		l.refused++
		if slices.ContainsFunc(p.Snapshots, func(d Decision) bool { return !d.Keep }) || slices.ContainsFunc(p.WAL, func(d WALDecision) bool { return !d.Keep }) {
			return in, p, fmt.Errorf("a refused plan lets something go: %v", p.Refused)
		}
		return in, p, nil
	}
	if !in.Now.Equal(l.now) || !in.Complete {
		return in, p, nil // a jump too small to notice, before anything was seen
	}
	for _, d := range p.Snapshots {
		if !d.Keep {
			l.gone[d.ID] = l.now.Add(l.policy.RemovalGrace)
		}
	}
	for id, at := range l.gone {
		if !at.After(l.now) {
			delete(l.snaps, id)
		}
	}
	l.wal = slices.DeleteFunc(slices.Clone(l.wal), func(f File) bool {
		return slices.ContainsFunc(p.WAL, func(d WALDecision) bool {
			return !d.Keep && d.span().Takes(f.WALEntry)
		})
	})
	l.last = l.now
	return in, p, nil
}

// check looks, by rules of its own, at what is left after a plan.
func (l *life) check(in Inputs, p Plan) error {
	left := map[string]bool{}
	for _, d := range p.Snapshots {
		left[d.ID] = d.Keep
	}
	var newest, proven string
	good := map[string]bool{}
	for _, f := range in.Proofs {
		good[f.Snapshot] = good[f.Snapshot] || f.Outcome == "pass"
	}
	for _, s := range in.Snapshots {
		if !s.Suspect {
			newest = s.ID
		}
		if good[s.ID] {
			proven = s.ID
		}
	}
	for _, id := range []string{newest, proven} {
		if id != "" && !left[id] {
			return fmt.Errorf("the newest, or the newest proven, %s is gone", id)
		}
	}
	for _, s := range in.Snapshots {
		must := slices.ContainsFunc(p.OverRetained, func(o OverRetained) bool { return o.ID == s.ID })
		switch ceiling := l.policy.KeepAtMost; {
		case l.now.Sub(s.FinishedAt) < l.policy.Floor() && !left[s.ID]:
			return fmt.Errorf("%s is gone below its floor", s.ID)
		case ceiling > 0 && left[s.ID] && !must && l.now.Sub(s.Oldest) >= ceiling:
			return fmt.Errorf("%s stays past its ceiling and nobody is told", s.ID)
		case left[s.ID] && !l.stored(s.Timeline, first(s), s.StopLSN):
			return fmt.Errorf("%s stays and the WAL that makes it consistent does not", s.ID)
		}
	}
	if d, kept := keptAfterAll(p.WAL, p.WAL); kept {
		return fmt.Errorf("the plan lets WAL %s to %s go and keeps it", d.From, d.To)
	}
	if err := l.checkHistories(in, left); err != nil {
		return err
	}
	return l.checkSpans(in, left)
}

// checkHistories wants the history of each timeline of which, or of a later one,
// something is left: recovery reads them all (C-61).
func (l *life) checkHistories(in Inputs, left map[string]bool) error {
	var last uint32
	for _, s := range in.Snapshots {
		if left[s.ID] {
			last = max(last, s.Timeline)
		}
	}
	for _, f := range l.wal {
		if f.From < f.To {
			last = max(last, f.Timeline)
		}
	}
	for t := uint32(2); t <= last; t++ {
		if !slices.ContainsFunc(l.wal, func(f File) bool { return f.File == lsn.HistoryName(t) }) {
			return fmt.Errorf("something of timeline %d is left, and the history of %d is gone", last, t)
		}
	}
	return nil
}

// checkSpans wants, for the window and each span on hold, all WAL of the timeline now
// alive from the newest good snapshot before it, if one lies on that timeline.
func (l *life) checkSpans(in Inputs, left map[string]bool) error {
	for _, h := range append([]Hold{{Hold: catalog.Hold{ID: "window", Kind: catalog.HoldSpan, From: l.now.Add(-l.policy.Window), To: l.now}}}, in.Holds...) {
		if h.Kind == catalog.HoldSnapshot && l.gone[h.Snapshot].IsZero() {
			if s, ok := l.snaps[h.Snapshot]; ok && !left[s.ID] {
				return fmt.Errorf("%s is on hold and gone", s.ID)
			}
		}
		if h.Kind != catalog.HoldSpan {
			continue
		}
		base, end := l.restores(in.Snapshots, h)
		if base.ID == "" {
			continue
		}
		if !left[base.ID] {
			return fmt.Errorf("%s restores the beginning of %s and is gone", base.ID, h.ID)
		}
		if !l.stored(l.tl, first(base), end) {
			return fmt.Errorf("WAL of %s has a hole between %s and %s", h.ID, first(base), end)
		}
	}
	return nil
}

// restores is the snapshot of the timeline now alive that restores the beginning of a
// span, if there is one, and where the WAL of the span ends.
func (l *life) restores(snaps []catalog.Snapshot, h Hold) (base catalog.Snapshot, end lsn.LSN) {
	end = l.at
	for _, s := range snaps {
		if s.Timeline == l.tl && !s.Suspect && !s.FinishedAt.After(h.From) {
			base = s
		}
		if s.Timeline == l.tl && s.StartedAt.After(h.To.Add(clockMargin)) {
			end = min(end, s.StartLSN)
		}
	}
	if h.ID == "window" {
		return base, end
	}
	// Once a snapshot showed that the end of the span is past, what lies behind it may
	// go, and the snapshot as well.
	key := fmt.Sprint(h.ID, " on ", l.tl)
	if known, ok := l.ends[key]; !ok || end < known {
		l.ends[key] = end
	}
	return base, l.ends[key]
}

// stored says whether the WAL of a timeline is there from one place to another.
func (l *life) stored(t uint32, from, to lsn.LSN) bool {
	for at := from; at < to; {
		i := slices.IndexFunc(l.wal, func(f File) bool { return f.Timeline == t && f.From <= at && at < f.To })
		if i < 0 {
			return false
		}
		at = l.wal[i].To
	}
	return true
}

// Promise 6: whatever happens to a cluster, nothing that a kept snapshot, the window or
// a hold needs is removed, and nothing stays past its ceiling unless that is told.
func TestNothingNeededGoesAndNothingPastItsCeilingStaysInRandomHistories(t *testing.T) {
	refused, removed := 0, 0
	for seed := range histories(t, 1000) {
		l := newLife(uint64(seed))
		l.take()
		for step := range 40 {
			l.live()
			in, p, err := l.keep()
			if err == nil && p.Err() == nil && in.Now.Equal(l.now) && in.Complete {
				err = l.check(in, p)
			}
			if err != nil {
				t.Fatalf("seed %d, step %d: %v\npolicy %+v\n%s%s", seed, step, err, l.policy, table(p.Snapshots), walTable(p.WAL))
			}
		}
		refused += l.refused
		removed += l.n - len(l.snaps)
	}
	if refused == 0 || removed == 0 {
		t.Errorf("%d plans were refused and %d snapshots removed: the histories try nothing", refused, removed)
	}
}

// The same by the real Keeper over three directories: what every kept snapshot lists is
// in every zone after each removal, and no byte that is past its ceiling is, on its clock.
func TestTheKeeperRemovesNothingNeededInRandomHistories(t *testing.T) {
	for seed := range histories(t, 6) {
		l := newLife(uint64(seed) + 1<<32)
		l.policy.KeepAtMost, l.policy.RenewAfter, l.policy.Window = 20*day, 0, min(l.policy.Window, 3*day)
		l.policy.KeepAtLeast = min(l.policy.KeepAtLeast, 4*day)
		r := newRig(t, l.policy)
		r.now = l.now
		for range 14 {
			l.now = l.now.Add(time.Duration(6+l.r.IntN(60)) * time.Hour)
			l.n++
			l.at += seg
			s := catalog.Snapshot{
				Cluster: "main", ID: fmt.Sprintf("n%04d", l.n), Kind: "physical", Epoch: 1, SystemID: "sys", Timeline: 1, SegSize: int64(seg),
				StartLSN: l.at + 100, StopLSN: l.at + seg/2, StartedAt: l.now.Add(-time.Minute), FinishedAt: l.now,
			}
			r.now = l.now
			r.take(s)
			l.snaps[s.ID] = s
			if l.r.IntN(5) == 0 {
				r.hold(catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: s.ID})
			}
			r.apply()
			r.settle()
			r.sweep()
			l.compare(t, r, seed)
		}
	}
}

// compare wants each snapshot that the catalog shows whole in each zone, and none that
// is past its ceiling without a hold.
func (l *life) compare(t *testing.T, r *rig, seed int) {
	t.Helper()
	snaps, err := r.keeper.Catalog.Snapshots(t.Context(), "main")
	noErr(t, err)
	held, err := r.keeper.Held(t.Context())
	noErr(t, err)
	for i, n := range snaps.List {
		r.whole(n.Body.ID)
		age := l.now.Sub(n.Body.StartedAt)
		if last := i == len(snaps.List)-1; age > l.policy.KeepAtMost && len(held[n.Body.ID]) == 0 && !last {
			t.Errorf("seed %d: %s is %s old and stays", seed, n.Body.ID, age)
		}
	}
	for zone := range r.dirs {
		for _, name := range r.names(zone, "/packs/") {
			id, _, _ := strings.Cut(strings.TrimPrefix(name, catalog.SnapshotsDir("main")), "/")
			if s := l.snaps[id]; l.now.Sub(s.StartedAt) > l.policy.KeepAtMost+60*time.Hour && len(held[id]) == 0 {
				t.Errorf("seed %d: zone %d has %s, of %s ago", seed, zone, name, l.now.Sub(s.StartedAt))
			}
		}
	}
}

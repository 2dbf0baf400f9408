package evidence_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/drills/evidence"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/scheduler"
)

const repository = "0123456789abcdef"

var (
	day    = 24 * time.Hour
	begins = time.Date(2026, 9, 18, 0, 0, 0, 0, time.UTC)
	period = evidence.Period{From: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 10, 15, 0, 0, 0, 0, time.UTC)}
)

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func schedule(spec string, after, until time.Time) ([]time.Time, error) {
	c, err := scheduler.ParseCron(spec)
	return c.Slots(after, until, 1<<20), err
}

// zone is a directory that a ledger is kept in: a zone's copy.
type zone struct{ ledger.Dir }

func (z zone) Put(_ context.Context, name string, body []byte) error {
	path := filepath.Join(string(z.Dir), name)
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, body) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.Create(path, body, 0o600)
}

// node is one that writes a ledger about its drills.
type node struct {
	t      testing.TB
	zone   zone
	signer note.Signer
	vkey   string
	trust  seal.Trust
	log    *ledger.Ledger
	now    time.Time
	name   string

	witnesses *ledger.Cosigners
}

func newNode(t testing.TB, name string, z zone) *node {
	t.Helper()
	skey, vkey, err := seal.NewSigningKey(name)
	if err != nil {
		t.Fatal(err)
	}
	signer, _, err := seal.LoadSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, zone: z, signer: signer, vkey: vkey, now: begins, name: name}
	n.trust = must[seal.Trust](t)(seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, May: []string{"ledger"}}}))
	n.open()
	return n
}

// open begins a log in a state of its own: a second one is a new origin.
func (n *node) open() {
	n.t.Helper()
	if n.log != nil {
		if err := n.log.Close(); err != nil {
			n.t.Fatal(err)
		}
	}
	n.log = must[*ledger.Ledger](n.t)(ledger.Open(ledger.Config{
		Dir: n.t.TempDir(), Repository: repository, Origin: n.name, Signer: n.signer, Trust: n.trust, Store: n.zone, Witnesses: n.witnesses,
		Now: func() time.Time { return n.now }, Host: ledger.Host{Node: n.name}, Software: ledger.Software{Version: "test"},
	}))
	n.t.Cleanup(func() { n.log.Close() })
}

func (n *node) at(t time.Time) *node { n.now = t; return n }

func (n *node) append(typ string, body any) int64 {
	n.t.Helper()
	return must[int64](n.t)(n.log.Append(n.t.Context(), ledger.Entry{Type: typ, Subject: map[string]string{"drill": "nightly"}, Actor: ledger.Actor{Kind: "schedule"}, Body: body}))
}

func (n *node) anchor() ledger.Checkpoint {
	n.t.Helper()
	return must[ledger.Checkpoint](n.t)(n.log.Anchor(n.t.Context()))
}

func (n *node) plans(p drills.Plans) { n.t.Helper(); n.append(ledger.TypeDrillPlans, p) }

// nightly is due at three every night, and owes its outcome five hours later.
func nightly() drills.Plan {
	return drills.Plan{Name: "nightly", Cluster: "cms", PlanHash: "plan", Schedule: "0 3 * * *", Select: drills.Random, Level: "L7", Owes: 5 * 3600}
}

// announce writes a slot as a drill does, and returns the choice that it makes.
func (n *node) announce(at time.Time, pick drills.Pick) (int64, drills.Choice, drills.Announcement) {
	n.t.Helper()
	a := drills.Announcement{
		Due: ledger.Due{Slot: drills.SlotKey("nightly", at), DueAt: at, Deadline: at.Add(5 * time.Hour)},
		ID:  at.Format("20060102"), Drill: "nightly", Cluster: "cms", PlanHash: "plan", Trigger: "schedule", Pick: &pick,
	}
	choice := must[drills.Choice](n.t)(drills.Choose(a.PlanHash, a.Slot, pick))
	return n.append(ledger.TypeDrillDue, a), choice, a
}

// record is the record of a drill that passed.
func record(index int64, choice drills.Choice, a drills.Announcement, now time.Time) drills.Record {
	r := drills.Record{
		ID: a.ID, Name: a.Drill, Cluster: a.Cluster, Trigger: a.Trigger, DueAt: a.DueAt, PlanHash: a.PlanHash, Level: "L7", Wanted: "L7",
		StartedAt: now, FinishedAt: now.Add(10 * time.Minute), Snapshot: choice.Snapshot, Target: &choice.Target, Phases: []drills.Phase{},
		Selection: &drills.Selection{Select: a.Pick.Select, Algorithm: drills.Algorithm, DueIndex: index, Choice: "self-attested"},
		Place:     drills.Place{Name: "standby", Room: &sandbox.Room{NoEgress: true}}, Cleanup: drills.Cleanup{Verified: true},
	}
	measured, met := 412.5, true
	r.RTO = drills.Measure{Measured: &measured, Met: &met}
	for _, level := range []string{"L0", "L1", "L2", "L3", "L4", "L5", "L6", "L7"} {
		r.Checks = append(r.Checks, drills.Check{ID: level, Verdict: "pass", Expected: "é ✓", Observed: "\u2028 \x7f <&>", Seconds: 0.1234567890123})
	}
	r.Slot = a.Slot
	settle(&r)
	return r
}

// settle gives a record the level and outcome that follow from it.
func settle(r *drills.Record) {
	r.Level = ""
	for _, c := range r.Checks {
		if c.Verdict != "pass" {
			break
		}
		r.Level = c.ID
	}
	var reason string
	r.Outcome.Outcome, r.Class, reason = drills.Verdict(*r)
	r.Reason = reason
}

// picks are candidates that differ from night to night.
func picks(selector string, at time.Time) drills.Pick {
	p := drills.Pick{Select: selector, Seed: fmt.Sprintf("%064x", at.Unix())}
	for i := range 7 {
		taken := at.Add(-time.Duration(7-i) * day)
		p.Candidates = append(p.Candidates, drills.Candidate{Snapshot: taken.Format("20060102T150405Z"), Proven: taken.Add(time.Duration(i*i%5) * time.Hour)})
	}
	p.Candidates[3].Proven = time.Time{}
	p.Spans = []drills.Span{{From: at.Add(-7*day + 123456789), To: at.Add(-4 * day)}, {From: at.Add(-3 * day), To: at}}
	return p
}

// night drills once; change may spoil the record before it is written.
func (n *node) night(at time.Time, selector string, change func(*drills.Record)) {
	n.t.Helper()
	index, choice, a := n.at(at).announce(at, picks(selector, at))
	r := record(index, choice, a, at)
	if change != nil {
		change(&r)
	}
	n.at(at.Add(10*time.Minute)).append(ledger.TypeDrillOutcome, r)
}

// heartbeats fills the log up to a time, so that it has more than one bundle.
func (n *node) heartbeats(until time.Time, every time.Duration) {
	n.t.Helper()
	for at := n.now.Add(every); at.Before(until); at = at.Add(every) {
		n.at(at).append(ledger.TypeHeartbeat, map[string]string{})
	}
}

// history is four weeks of a node's drills: every night one, of every selector;
// one failed, one was missed, one had gaps.
func (n *node) history() {
	n.t.Helper()
	selectors := []string{drills.Random, drills.RandomTime, drills.Latest, drills.Oldest, drills.Stalest}
	for i := range 29 {
		today := begins.Add(time.Duration(i) * day)
		n.at(today)
		n.plans(drills.Plans{Drills: []drills.Plan{nightly()}})
		n.heartbeats(today.Add(3*time.Hour), 20*time.Minute)
		at := today.Add(3 * time.Hour)
		switch i {
		case 16:
			n.night(at, selectors[i%5], func(r *drills.Record) {
				r.Checks[5] = drills.Check{ID: "L5", Verdict: "fail", Class: drills.ClassBackup, Observed: "a torn page"}
				settle(r)
			})
		case 18:
			n.missed(at)
		case 20:
			n.night(at, selectors[i%5], func(r *drills.Record) { r.Place.Room.NoEgress = false; settle(r) })
		default:
			n.night(at, selectors[i%5], nil)
		}
		n.heartbeats(today.Add(day), 40*time.Minute)
	}
	n.anchor()
}

// missed is a slot that was due while nothing ran.
func (n *node) missed(at time.Time) {
	n.t.Helper()
	a := drills.Announcement{
		Due: ledger.Due{Slot: drills.SlotKey("nightly", at), DueAt: at, Deadline: at.Add(5 * time.Hour)},
		ID:  "missed", Drill: "nightly", Cluster: "cms", PlanHash: "plan", Trigger: "schedule",
	}
	n.at(at.Add(time.Hour)).append(ledger.TypeDrillDue, a)
	r := drills.Record{ID: a.ID, Name: a.Drill, DueAt: at, PlanHash: "plan", FinishedAt: n.now, Wanted: "L7", Phases: []drills.Phase{}, Checks: []drills.Check{}, Cleanup: drills.Cleanup{Verified: true}}
	r.Slot, r.Failure = a.Slot, &drills.Failure{Stage: "schedule", Outcome: drills.MissedSlot, Class: drills.ClassHarness, Reason: "the daemon was down"}
	settle(&r)
	n.append(ledger.TypeDrillOutcome, r)
}

// export makes the bundle of every log that the zone shows.
func (n *node) export() []byte {
	n.t.Helper()
	return exportOf(n.t, n.zone.Dir, n.trust)
}

func exportOf(t testing.TB, src ledger.Source, trust seal.Trust) []byte {
	t.Helper()
	logs, left, err := evidence.Logs(t.Context(), src, trust, repository, period)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	head := evidence.Head{Repository: repository, Period: period, MadeAt: period.To.Add(time.Hour), LeftOut: left}
	if err := evidence.Write(t.Context(), &out, src, head, logs); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func codes(faults []ledger.Fault) []string {
	var out []string
	for _, f := range faults {
		out = append(out, fmt.Sprintf("%s %s %d", f.Code, f.Origin, f.Index))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func pretty(v any) string {
	b, _ := json.MarshalIndent(v, "", " ")
	return string(b)
}

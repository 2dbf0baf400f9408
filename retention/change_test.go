package retention

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAPolicyThatKeepsLessIsShownToldAndApproved(t *testing.T) {
	r := newRig(t, Policy{Daily: 4, KeepAtMost: 60 * day, RemovalGrace: day})
	r.takeAll(3, 2, 1, 0)
	if m := r.apply(); m.ID != "" {
		t.Fatalf("marked %v", m.Snapshots)
	}
	r.keeper.Policy.Daily, r.keeper.ApproveShorter = 2, true
	p, err := r.keeper.Plan(t.Context(), false)
	noErr(t, err)
	c := p.Change
	if c == nil || !slices.Equal(c.Shorter, []string{"daily 2 instead of 4"}) || !slices.Equal(c.Goes, []string{ago(3 * day).ID, ago(2 * day).ID}) || c.WAL != 2 {
		t.Fatalf("the difference: %+v", c)
	}
	if p.Err() == nil || !strings.Contains(p.Err().Error(), "--approve "+c.Hash) || strings.Contains(table(p.Snapshots), "- ") {
		t.Errorf("without an approval: %v\n%s", p.Err(), table(p.Snapshots))
	}
	if _, err := r.keeper.Apply(t.Context(), p); err == nil {
		t.Error("applied without an approval")
	}
	r.keeper.Approved = "another"
	if p, _ := r.keeper.Plan(t.Context(), false); p.Err() == nil {
		t.Error("approved by another hash")
	}
	r.keeper.Approved = c.Hash
	if m := r.apply(); !slices.Equal(m.Snapshots, c.Goes) {
		t.Errorf("marked %v, want %v", m.Snapshots, c.Goes)
	}
	want := []string{"retention.policy main", "removal.intent main"}
	if !slices.Equal(r.book.entries, want) {
		t.Errorf("ledger %v, want %v", r.book.entries, want)
	}
	r.keeper.Approved = ""
	if p, err := r.keeper.Plan(t.Context(), false); err != nil || p.Change != nil || p.Err() != nil {
		t.Errorf("once applied: %+v, %v, %v", p.Change, p.Err(), err)
	}
	noErr(t, os.Remove(r.keeper.State))
	if r.apply(); len(r.book.entries) != 3 || r.book.entries[2] != want[0] {
		t.Errorf("a policy of which nothing is known: ledger %v", r.book.entries)
	}
	r.keeper.Policy.Monthly = 12 // what keeps more needs nobody
	if p, err := r.keeper.Plan(t.Context(), false); err != nil || p.Change == nil || len(p.Change.Shorter) != 0 || p.Err() != nil {
		t.Errorf("a longer one: %+v, %v, %v", p.Change, p.Err(), err)
	}
}

func TestWhatKeepsLessIsNamed(t *testing.T) {
	old := Policy{Window: 7 * day, Hourly: 1, Daily: 2, Weekly: 3, Monthly: 4, Yearly: 5, KeepAtLeast: 9 * day, KeepAtMost: 400 * day, RemovalGrace: day, Zone: newYork}
	for want, change := range map[string]func(*Policy){
		"":                                   func(p *Policy) { p.KeepAtMost, p.Daily = 0, 9 },
		"window 6d instead of 7d":            func(p *Policy) { p.Window = 6 * day },
		"keep_at_least 7d instead of 9d":     func(p *Policy) { p.KeepAtLeast = 0 },
		"keep_at_most 300d instead of 400d":  func(p *Policy) { p.KeepAtMost = 300 * day },
		"removal_grace 1h0m0s instead of 1d": func(p *Policy) { p.RemovalGrace = time.Hour },

		"logical daily 1 instead of 2": func(p *Policy) {
			p.Logical = &Counts{Hourly: 1, Daily: 1, Weekly: 3, Monthly: 4, Yearly: 5, KeepAtLeast: 9 * day}
		},
		"project keep_at_least 1d instead of 9d; project hourly 0 instead of 1; project yearly 0 instead of 5": func(p *Policy) {
			p.Project = &Counts{Daily: 2, Weekly: 3, Monthly: 4, KeepAtLeast: day}
		},
		"hourly 0 instead of 1; yearly 4 instead of 5": func(p *Policy) { p.Hourly, p.Yearly = 0, 4 },
	} {
		p := old
		change(&p)
		if got := strings.Join(p.shorter(old), "; "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if back, err := p.Terms().policy(0); err != nil || back.Terms() != p.Terms() {
			t.Errorf("%+v is read back as %+v: %v", p, back, err)
		}
	}
	if got := (Policy{Window: day, KeepAtMost: 2 * day}).shorter(Policy{}); !slices.Equal(got, []string{"keep_at_most 2d instead of none", "a policy instead of none"}) {
		t.Errorf("a policy where there was none: %q", got)
	}
}

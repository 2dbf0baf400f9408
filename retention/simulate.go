package retention

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Simulation is what will exist when, by a schedule and a policy.
type Simulation struct {
	Cluster   string      `json:"cluster"`
	From      time.Time   `json:"from"`
	To        time.Time   `json:"to"`
	Snapshots []Lifetime  `json:"snapshots"` // the oldest first
	Days      []Day       `json:"days"`
	Refused   []Refusal   `json:"refused"` // plans that a person would have to look at
	Over      []OverSince `json:"over_retained"`
}

// Lifetime is when one snapshot exists.
type Lifetime struct {
	ID      string    `json:"id"`
	At      time.Time `json:"finished_at"`
	Virtual bool      `json:"virtual"`             // it is not taken yet
	Marked  time.Time `json:"marked_at,omitzero"`  // when the policy lets it go; zero: not by the end
	Gone    time.Time `json:"gone_at,omitzero"`    // when its grace has passed
	Reasons []string  `json:"reasons"`             // why it stayed, the day before it went or at the end
	Expires time.Time `json:"expires_at,omitzero"` // by the ceiling
}

// Day is what exists at the end of one simulated day.
type Day struct {
	At        time.Time      `json:"at"`
	Snapshots int            `json:"snapshots"`            // that can be restored
	Waiting   int            `json:"waiting"`              // marked, within their grace
	Oldest    time.Time      `json:"oldest,omitzero"`      // when the oldest that can be restored ended
	Window    time.Time      `json:"window_from,omitzero"` // every moment since can be restored
	Rules     map[string]int `json:"rules"`                // how many each rule keeps
}

// Refusal is a plan that would not be carried out by itself.
type Refusal struct {
	At  time.Time `json:"at"`
	Why []string  `json:"why"`
}

// OverSince is a snapshot that stays beyond its ceiling, and the day on which that is first so.
type OverSince struct {
	ID    string    `json:"id"`
	At    time.Time `json:"at"`
	Needs []string  `json:"needs"`
}

// ErrSimulate means that there is nothing to simulate with.
var ErrSimulate = errors.New("cannot simulate")

// Simulate plans once a day from in.Now until a time, as [MakePlan] does, with the
// snapshots that in holds and those that slots, ascending, will add. A plan that is
// refused because it removes too much at once is noted, and carried out all the same,
// as by a person; one that is refused for doubt ends the simulation. WAL is left out.
func Simulate(in Inputs, slots []time.Time, until time.Time) (Simulation, error) {
	if !in.Complete {
		return Simulation{}, fmt.Errorf("%w from the present: the listing is not complete: %s", ErrSimulate, strings.Join(in.Missing, "; "))
	}
	s := &simulator{in: in, byID: map[string]*Lifetime{}, over: map[string]bool{}}
	s.in.WAL, s.in.Marked, s.in.Slices, s.in.Intents, s.in.Force = nil, nil, nil, nil, true
	s.out = Simulation{Cluster: in.Cluster, From: in.Now.UTC(), To: until.UTC(), Days: []Day{}, Refused: []Refusal{}, Over: []OverSince{}}
	for _, x := range in.Snapshots {
		s.add(x, false)
	}
	now := in.Now
	for {
		for len(slots) > 0 && !slots[0].After(now) {
			s.take(slots[0])
			slots = slots[1:]
		}
		if err := s.day(now); err != nil {
			return s.out, err
		}
		if !now.Before(until) {
			break
		}
		if now = now.AddDate(0, 0, 1); now.After(until) {
			now = until
		}
	}
	slices.SortStableFunc(s.lives, func(a, b *Lifetime) int { return a.At.Compare(b.At) })
	s.out.Snapshots = make([]Lifetime, len(s.lives))
	for i, l := range s.lives {
		s.out.Snapshots[i] = *l
	}
	return s.out, nil
}

type simulator struct {
	in    Inputs
	out   Simulation
	lives []*Lifetime
	byID  map[string]*Lifetime
	over  map[string]bool
}

func (s *simulator) add(x catalog.Snapshot, virtual bool) {
	l := &Lifetime{ID: x.ID, At: x.FinishedAt.UTC(), Virtual: virtual, Reasons: []string{}, Expires: s.in.Policy.Expires(x)}
	s.lives = append(s.lives, l)
	s.byID[x.ID] = l
}

// take adds a snapshot that goes on where the newest one is.
func (s *simulator) take(at time.Time) {
	x := catalog.Snapshot{Cluster: s.in.Cluster, Epoch: 1, SystemID: "simulated", Timeline: 1, SegSize: 16 << 20}
	for _, old := range s.in.Snapshots {
		if old.Kind == "physical" && (older(x, old) < 0 || x.Kind == "") {
			x = catalog.Snapshot{
				Cluster: old.Cluster, Kind: "physical", Epoch: old.Epoch, SystemID: old.SystemID, Timeline: old.Timeline, SegSize: old.SegSize, StopLSN: old.StopLSN,
			}
		}
	}
	x.Kind, x.ID = "physical", at.UTC().Format("20060102T150405Z")+"-simulated"
	x.StartLSN = (x.StopLSN + 1).SegmentStart(segSize(x)) + lsn.LSN(segSize(x))
	x.StopLSN, x.StartedAt, x.FinishedAt = x.StartLSN+1, at.UTC(), at.UTC()
	s.in.Snapshots = append(s.in.Snapshots, x)
	s.add(x, true)
}

// day makes one plan and lets go what it says.
func (s *simulator) day(now time.Time) error {
	s.in.Now = now
	asked := s.in
	asked.Force = false
	p, err := MakePlan(asked)
	if err != nil {
		return err
	}
	if len(p.Refused) > 0 {
		s.out.Refused = append(s.out.Refused, Refusal{now.UTC(), p.Refused})
		if p, err = MakePlan(s.in); err != nil || p.Err() != nil {
			return errors.Join(err, p.Err())
		}
	}
	d := Day{At: now.UTC(), Window: p.Window.From, Rules: map[string]int{}}
	for _, x := range p.Snapshots {
		l := s.byID[x.ID]
		if !x.Keep {
			l.Marked, l.Gone = now.UTC(), now.UTC().Add(s.in.Policy.RemovalGrace)
			continue
		}
		l.Reasons = x.Reasons
		d.Snapshots++
		if d.Oldest.IsZero() || x.At.Before(d.Oldest) {
			d.Oldest = x.At
		}
		for _, r := range x.Reasons {
			d.Rules[rule(r)]++
		}
	}
	for _, o := range p.OverRetained {
		if !s.over[o.ID] {
			s.over[o.ID] = true
			s.out.Over = append(s.out.Over, OverSince{o.ID, now.UTC(), o.Needs})
		}
	}
	s.in.Snapshots = slices.DeleteFunc(slices.Clone(s.in.Snapshots), func(x catalog.Snapshot) bool { return !s.byID[x.ID].Marked.IsZero() })
	for _, l := range s.lives {
		if !l.Marked.IsZero() && l.Gone.After(now) {
			d.Waiting++
		}
	}
	s.in.Last = now
	s.out.Days = append(s.out.Days, d)
	return nil
}

// rule is the kind of a reason: "daily: 2026-03-15" is by rule daily.
func rule(reason string) string {
	for _, r := range []string{"keep_at_least", "in the window", "hold"} {
		if strings.HasPrefix(reason, r) {
			return r
		}
	}
	name, _, _ := strings.Cut(reason, ":")
	return name
}

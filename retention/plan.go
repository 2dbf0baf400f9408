package retention

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Inputs are all that a plan follows from.
type Inputs struct {
	Cluster string
	Now     time.Time
	Last    time.Time // Now of the last plan that was carried out; zero: none is known
	Policy  Policy

	Snapshots []catalog.Snapshot      // committed and not forgotten
	Intents   []catalog.Intent        // begun and not committed, without a mark
	WAL       []File                  // every note, files that are no WAL included
	Marked    []catalog.WALSpan       // stretches under a mark already
	Slices    []catalog.WALSpan       // stretches whose covered files are
	Lineages  []catalog.Lineage       // of every epoch
	Histories map[Branch][]lsn.Switch // of timelines after the first, as far as known
	Proofs    []catalog.Proof
	Holds     []Hold
	Passed    []Passed // places that tell spans on hold where to end

	Complete  bool          // nothing that was ever acknowledged is missing above
	Missing   []string      // why not
	IntentAge time.Duration // an older intent is garbage; 0: 72 h
	MaxShare  float64       // of the snapshots may go at once; 0: a half
	Force     bool          // whatever MaxShare says

	Change     *Change // of the policy since the last plan was carried out
	Unapproved string  // how it is to be approved first; "": it need not be, or is

	RetiredAt time.Time // the cluster's end; zero: it is protected

	Purged map[string]string // the tombstones of deleted projects, by the snapshots of nothing else

	Due   map[string]due // snapshots that hold deleted projects whose deadlines come before their end
	Early *EarlyPurge    // how the removal of these stands

	spared []string // marked snapshots on which a hold ended less than a grace ago
}

// Branch is one timeline of one database system.
type Branch struct {
	SystemID string
	Timeline uint32
}

// Plan is what stays and what goes, with reasons.
type Plan struct {
	Hash         string         `json:"hash"`
	Cluster      string         `json:"cluster"`
	Now          time.Time      `json:"now"`
	Snapshots    []Decision     `json:"snapshots"` // the oldest first
	Garbage      []Decision     `json:"garbage"`   // snapshots that were begun and never committed
	WAL          []WALDecision  `json:"wal"`
	Window       Window         `json:"window"`
	OverRetained []OverRetained `json:"over_retained"`
	// Refused says why the plan must not be carried out; empty: it may.
	Refused []string    `json:"refused"`
	Forced  bool        `json:"forced,omitempty"`
	Change  *Change     `json:"policy_change,omitempty"` // since the last plan that was carried out
	Early   *EarlyPurge `json:"purge_early,omitempty"`
	// RetiredAt is when the cluster was retired; zero: it is protected.
	RetiredAt time.Time `json:"retired_at,omitzero"`
	// Pending are the plans that must be approved before more of this may be done.
	Pending []Pending `json:"-"`
}

// Decision is about one snapshot.
type Decision struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind,omitempty"` // logical | project; "": physical
	Keep    bool      `json:"keep"`
	Reasons []string  `json:"reasons"`
	At      time.Time `json:"finished_at"`
	Expires time.Time `json:"expires_at,omitzero"` // the latest, by the ceiling
}

// Window is the span of which every moment can be restored once the plan is
// carried out, as far as snapshots tell: WAL may have gaps. Zero: there is none.
type Window struct {
	From time.Time `json:"from,omitzero"`
}

// OverRetained is a snapshot that stays beyond its ceiling, and what lets it go.
type OverRetained struct {
	ID      string    `json:"id"`
	Since   time.Time `json:"since"`
	Because []string  `json:"because"`
	Needs   []string  `json:"needs"` // snapshot | drill | release of a hold
}

// ErrRefused means that a plan must not be carried out.
var ErrRefused = errors.New("the retention plan is refused")

// Err is ErrRefused with the reasons, or nil.
func (p Plan) Err() error {
	if len(p.Refused) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrRefused, strings.Join(p.Refused, "; "))
}

// clockMargin is how far two clocks may be apart.
const clockMargin = 10 * time.Minute

// MakePlan decides. It is pure: the same inputs give the same plan, and a plan
// over what the last one kept, at the same moment, removes nothing more. The
// error is a policy that cannot be meant; a plan that must not be carried out
// says so itself.
func MakePlan(in Inputs) (Plan, error) {
	if err := in.Policy.Check(); err != nil {
		return Plan{}, err
	}
	p := newPlanner(in)
	p.plan = Plan{
		Cluster: in.Cluster, Now: p.Now, Snapshots: []Decision{}, Garbage: []Decision{}, WAL: []WALDecision{},
		OverRetained: []OverRetained{}, Refused: []string{}, Forced: in.Force, Change: in.Change, Early: in.Early, RetiredAt: in.RetiredAt,
	}
	p.guard()
	if len(p.plan.Refused) > 0 {
		p.keepAll("the plan is refused")
	}
	p.setAside()
	if !p.retired() {
		p.keepNewest()
		p.keepNewestExported()
		p.keepFloor()
		p.keepWindow()
		p.keepTiers()
	}
	p.keepHolds()
	p.keepBuiltOn()
	p.decide()
	p.judgeIntents()
	p.judgeWAL()
	p.checkShare()
	var err error
	p.plan.Hash, err = approval.Hash(p.plan)
	return p.plan, err
}

// older sorts by lineage, then by where a snapshot ends (P13 of the pains).
func older(a, b catalog.Snapshot) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.StopLSN, b.StopLSN), a.FinishedAt.Compare(b.FinishedAt), strings.Compare(a.ID, b.ID))
}

type planner struct {
	Inputs
	plan  Plan
	why   map[string][]string // reasons to keep, by snapshot
	must  map[string]bool     // kept beyond the ceiling as well
	held  map[string][]string // ids of holds, by snapshot
	aside map[string]bool     // what an approved early removal lets go
	firm  map[string][]string // reasons that it never sets aside
	bases []base              // what the window begins at
	spans []span              // what holds need of the WAL

	timelines map[string][]uint32 // that were found, by system
	systems   map[int]string      // by epoch
}

// newPlanner sorts what a plan follows from.
func newPlanner(in Inputs) *planner {
	in.Now = in.Now.UTC()
	in.WAL = sortFiles(in.WAL)
	in.Snapshots = slices.Clone(in.Snapshots)
	slices.SortStableFunc(in.Snapshots, older)
	return &planner{
		Inputs: in, why: map[string][]string{}, must: map[string]bool{}, held: map[string][]string{}, aside: map[string]bool{},
		timelines: map[string][]uint32{}, systems: map[int]string{},
	}
}

// keep gives a reason that ends at the ceiling.
func (p *planner) keep(id, format string, args ...any) {
	if why := fmt.Sprintf(format, args...); !slices.Contains(p.why[id], why) {
		p.why[id] = append(p.why[id], why)
	}
}

// insist gives a reason that does not.
func (p *planner) insist(id, format string, args ...any) {
	p.keep(id, format, args...)
	p.must[id] = true
}

func (p *planner) keepAll(why string) {
	for _, s := range p.Snapshots {
		p.insist(s.ID, "%s", why)
	}
}

// class are the snapshots that are counted together, and of which the newest stays: those
// of a kind, and the projects' each on its own.
type class struct{ kind, mac string }

func classOf(s catalog.Snapshot) class { return class{s.Kind, s.KeyMAC} }

// good are the snapshots that count as backups (C-21), of a class.
func (p *planner) good(c class) (list []catalog.Snapshot) {
	for _, s := range p.Snapshots {
		if !s.Suspect && classOf(s) == c && !p.gone(s.ID) {
			list = append(list, s)
		}
	}
	return list
}

// gone says that a snapshot is let go whatever the policy says: by an approved plan, or
// because it is of a deleted project alone.
func (p *planner) gone(id string) bool { return p.aside[id] || p.Purged[id] != "" }

func (p *planner) classes() []class {
	var list []class
	for _, s := range p.Snapshots {
		if c := classOf(s); !slices.Contains(list, c) {
			list = append(list, c)
		}
	}
	return list
}

// keepNewestExported keeps the newest logical snapshot, and the newest of each project,
// until the ceiling: the cluster does not end with it.
func (p *planner) keepNewestExported() {
	for _, c := range p.classes() {
		if good := p.good(c); catalog.Exported(c.kind) && len(good) > 0 {
			p.keep(good[len(good)-1].ID, "newest %s", c.kind)
		}
	}
}

// keepNewest keeps the newest snapshot, the newest good and the newest proven one.
func (p *planner) keepNewest() {
	proven := map[string]bool{}
	for _, f := range p.Proofs {
		if f.Outcome == "pass" || f.Outcome == "pass_with_gaps" {
			proven[f.Snapshot] = true
		}
	}
	for _, c := range p.classes() {
		if catalog.Exported(c.kind) {
			continue
		}
		if good := p.good(c); len(good) > 0 {
			p.insist(good[len(good)-1].ID, "newest")
		}
		for i, seen, best := len(p.Snapshots)-1, false, false; i >= 0; i-- {
			s := p.Snapshots[i]
			if classOf(s) != c {
				continue
			}
			if !seen && s.Suspect {
				p.insist(s.ID, "newest, though suspect")
			}
			if seen = true; proven[s.ID] && !best {
				p.insist(s.ID, "newest proven")
				best = true
			}
		}
	}
}

func (p *planner) keepFloor() {
	for _, s := range p.Snapshots {
		if p.gone(s.ID) {
			continue
		}
		policy := p.Policy.For(s.Kind)
		if policy.zero() {
			p.insist(s.ID, "the policy sets no end")
		} else if age := p.Now.Sub(s.FinishedAt); age < policy.Floor() {
			p.insist(s.ID, "keep_at_least %s", short(policy.Floor()))
		}
	}
}

// keepTiers keeps the newest good snapshot of each of the last n hours, days, …
// that have one. A time without snapshots uses none of them up.
func (p *planner) keepTiers() {
	for _, c := range p.classes() {
		good := p.good(c)
		slices.SortStableFunc(good, func(a, b catalog.Snapshot) int { return a.FinishedAt.Compare(b.FinishedAt) })
		for _, t := range p.Policy.For(c.kind).tiers() {
			last, left := "", t.count
			for i := len(good) - 1; i >= 0 && left > 0; i-- {
				if b := t.bucket(good[i].FinishedAt.In(p.Policy.zone())); b != last {
					p.keep(good[i].ID, "%s: %s", t.name, b)
					last = b
					left--
				}
			}
		}
	}
}

// keepBuiltOn keeps what unfinished snapshots name.
func (p *planner) keepBuiltOn() {
	for _, in := range p.Intents {
		if in.Base != "" && p.alive(in) {
			p.insist(in.Base, "snapshot %s, which is being taken, builds on it", in.ID)
		}
	}
}

// decide weighs reasons against the ceiling.
func (p *planner) decide() {
	for _, s := range p.Snapshots {
		d := Decision{ID: s.ID, Keep: len(p.why[s.ID]) > 0, Reasons: p.why[s.ID], At: s.FinishedAt.UTC()}
		if catalog.Exported(s.Kind) {
			d.Kind = s.Kind
		}
		limit := p.Policy.KeepAtMost
		d.Expires = p.Policy.Expires(s)
		switch over := limit > 0 && !p.Now.Before(d.Expires.Add(-p.Policy.RemovalGrace-p.Policy.Lead)); {
		case d.Keep && over && !p.must[s.ID]:
			d.Keep, d.Reasons = false, []string{"keep_at_most " + short(limit)}
		case d.Keep && over:
			p.over(s, d)
		case !d.Keep && p.aside[s.ID]:
			d.Reasons = []string{"it holds the project of purge " + strings.Join(p.Due[s.ID].Purges, ", ") + ", which is due before it: approved plan " + p.Early.Hash}
		case !d.Keep && p.Purged[s.ID] != "":
			d.Reasons = []string{"it is of the deleted project of purge " + p.Purged[s.ID] + " alone"}
		case !d.Keep && p.retired():
			d.Reasons = []string{"the cluster is retired"}
		case !d.Keep && s.Suspect:
			d.Reasons = []string{"suspect, and older than keep_at_least"}
		case !d.Keep:
			d.Reasons = []string{"no rule keeps it"}
		}
		p.tellDue(d)
		p.plan.Snapshots = append(p.plan.Snapshots, d)
	}
}

// over reports a snapshot that must stay beyond its ceiling.
func (p *planner) over(s catalog.Snapshot, d Decision) {
	o := OverRetained{ID: s.ID, Since: d.Expires, Because: d.Reasons, Needs: []string{}}
	need := func(what string) {
		if !slices.Contains(o.Needs, what) {
			o.Needs = append(o.Needs, what)
		}
	}
	for _, r := range d.Reasons {
		switch {
		case r == "newest proven":
			need("drill")
		case strings.HasPrefix(r, "hold "):
			need("release of a hold")
		default:
			need("snapshot")
		}
	}
	p.plan.OverRetained = append(p.plan.OverRetained, o)
}

func (p *planner) alive(in catalog.Intent) bool {
	limit := p.IntentAge
	if limit <= 0 {
		limit = 72 * time.Hour
	}
	return p.Now.Sub(in.StartedAt) < limit
}

func (p *planner) judgeIntents() {
	for _, in := range p.Intents {
		d := Decision{ID: in.ID, At: in.StartedAt.UTC(), Keep: true, Reasons: []string{"may be running"}}
		if len(p.plan.Refused) == 0 && (!p.Policy.zero() || p.retired()) && !p.alive(in) {
			d.Keep, d.Reasons = false, []string{"was begun and never committed"}
		}
		p.plan.Garbage = append(p.plan.Garbage, d)
	}
}

func short(d time.Duration) string {
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return d.String()
}

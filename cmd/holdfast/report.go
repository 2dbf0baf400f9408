package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/retention"
)

var opRetentionReport = server.Op[reportIn, retentionReport]{ID: "retention-report", Method: http.MethodGet, Path: "/v1/clusters/{cluster}/retention/report", Summary: "What the zones were seen to hold, against the policy"}

type reportIn struct {
	Cluster string    `path:"cluster"`
	From    time.Time `query:"from"`
	To      time.Time `query:"to"`
}

// reporter gathers one report.
type reporter struct {
	*world
	conf  configs.Cluster
	k     *retention.Keeper
	doc   retentionReport
	tombs []catalog.Tombstone
}

// retentionReport observes the zones now, and reads the ledgers for the period.
func (w *world) retentionReport(ctx context.Context, in reportIn) (retentionReport, error) {
	c, err := w.cluster(in.Cluster)
	if err != nil {
		return retentionReport{}, err
	}
	r := &reporter{world: w, conf: c}
	if r.k, err = w.keeper(in.Cluster); err != nil {
		return r.doc, err
	}
	r.doc = newRetentionReport(in, w.now().UTC(), r.k.Policy, c)
	for _, step := range []func(context.Context) error{r.inventory, r.plan, r.floor, r.tombstoned, r.ledgers, r.residency, r.holds, r.purged} {
		if err := step(ctx); err != nil {
			return r.doc, fmt.Errorf("reporting on the retention of %s: %w", in.Cluster, err)
		}
	}
	r.doc.OK = len(r.doc.Failures) == 0
	return r.doc, nil
}

func (r *reporter) fail(kind, zone, format string, args ...any) {
	r.doc.Failures = append(r.doc.Failures, failureDoc{kind, zone, fmt.Sprintf(format, args...)})
}

// inventory lists each zone itself; a zone that does not answer was not observed.
func (r *reporter) inventory(ctx context.Context) error {
	inv, err := r.k.Inventory(ctx)
	if err != nil {
		return err
	}
	for _, z := range r.zones {
		if err := inv.Faults[z.Name()]; err != nil {
			r.fail("not observed", z.Name(), "it did not answer: %v", err)
		}
	}
	for _, h := range inv.Holdings {
		d := holdingDoc{Holding: h, Locks: r.locks(ctx, h)}
		if h.TooOld > 0 {
			r.fail("over-retained", h.Zone, "%d versions of class %s are older than keep_at_most %s; the oldest is %s of %s", h.TooOld, h.Class, span(r.k.Policy.KeepAtMost), h.OldestObject, clock(h.Oldest))
		}
		if l := d.Locks; l != nil && l.BeyondCeiling > 0 {
			r.fail("over-retained", h.Zone, "%d of %d sampled objects of class %s are locked beyond keep_at_most", l.BeyondCeiling, l.Sampled, h.Class)
		}
		r.doc.Inventory = append(r.doc.Inventory, d)
	}
	return nil
}

// locks reads back the locks of a sample; nil where the zone is not to lock, or
// nothing could be read.
func (r *reporter) locks(ctx context.Context, h retention.Holding) *locksDoc {
	i := slices.IndexFunc(r.cfg.Repository.Zones, func(z configs.Zone) bool { return z.Name == h.Zone })
	if i < 0 || r.cfg.Repository.Zones[i].S3 == nil {
		return nil
	}
	d := locksDoc{Configured: r.cfg.Repository.Zones[i].ObjectLock}
	for _, name := range h.Sample {
		o, err := r.zones[i].Stat(ctx, name, "")
		if err != nil {
			continue // removed since, or away: it is not in the sample
		}
		d.Sampled++
		if !o.LockedUntil.After(r.doc.At) {
			continue
		}
		d.Locked++
		left := o.LockedUntil.Sub(r.doc.At).Seconds()
		if d.LeastLeft == nil || left < *d.LeastLeft {
			d.LeastLeft = &left
		}
		if d.MostLeft == nil || left > *d.MostLeft {
			d.MostLeft = &left
		}
		if most := r.k.Policy.KeepAtMost; most > 0 && o.LockedUntil.After(o.Modified.Add(most)) && !h.KeptByHold(name) {
			d.BeyondCeiling++
		}
	}
	return &d
}

// plan tells what would go now, what stays beyond its ceiling, and why nothing goes.
func (r *reporter) plan(ctx context.Context) error {
	p, err := r.k.Plan(ctx, false)
	if err != nil {
		return err
	}
	r.doc.OverRetained, r.doc.RetiredAt = p.OverRetained, p.RetiredAt
	for _, why := range p.Refused {
		r.doc.Refused = append(r.doc.Refused, refusalDoc{At: r.doc.At, What: "retention", Why: why})
	}
	for _, d := range p.Snapshots {
		if d.Keep {
			r.doc.Kept++
		}
	}
	return nil
}

// floor looks for what should be there and is not: copies, WAL, the window.
func (r *reporter) floor(ctx context.Context) error {
	wal, err := r.walOf(ctx, r.conf.Name, nil)
	if err != nil {
		return err
	}
	r.doc.Window, r.doc.present = wal.Window, map[string]bool{}
	if !r.doc.RetiredAt.IsZero() {
		return nil // it has no floor any more
	}
	since := r.doc.At.Add(-r.k.Policy.Window)
	for _, g := range wal.Gaps {
		r.fail("under-retained", "", "no zone holds the WAL from %s to %s of timeline %d", g.From, g.To, g.Timeline)
	}
	for _, z := range wal.Zones {
		r.doc.Windows = append(r.doc.Windows, zoneWindow{z.Name, z.Window, z.Err})
	}
	snaps, err := r.catalog.Snapshots(ctx, r.conf.Name)
	if err != nil {
		return err
	}
	first := r.doc.At
	for _, in := range snaps.Begun {
		if in.StartedAt.Before(first) {
			first = in.StartedAt
		}
	}
	if from := wal.Window.From; r.k.Policy.Window > 0 && first.Before(since) && (from.IsZero() || from.After(since)) {
		r.fail("under-retained", "", "the window begins %s; every moment since %s is to be restorable", clock(from), clock(since))
	}
	need := max(r.conf.Residency.Copies, 1)
	for _, s := range snaps.List {
		if len(s.Zones) < need {
			r.fail("under-retained", "", "snapshot %s is whole in %d zones (%s), want %d", s.Body.ID, len(s.Zones), strings.Join(s.Zones, ", "), need)
		}
	}
	for _, s := range snaps.List {
		r.doc.present[s.Body.ID] = true
	}
	return nil
}

// ledgers reads every node's ledger: removals begun and ended, refusals, policies.
func (r *reporter) ledgers(ctx context.Context) error {
	entries, err := r.ledgerEntries(ctx, "", 0)
	if err != nil {
		return err
	}
	byMark := map[string]*deletionDoc{}
	if err := r.letGoEarly(entries); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Subject["cluster"] != r.conf.Name {
			continue
		}
		if e.Type == "snapshot.taken" {
			r.taken(e)
		}
		if e.Time.Wall.Before(r.doc.Period.From) || e.Time.Wall.After(r.doc.Period.To) {
			continue
		}
		switch e.Type {
		case ledger.TypeRemovalIntent, ledger.TypeRemovalResult:
			err = r.removal(e, byMark)
		case "incident":
			err = r.refusal(e)
		case "hold", "hold.released":
			r.doc.HoldEvents = append(r.doc.HoldEvents, holdEvent{e.Time.Wall.UTC(), e.Type, e.Subject["hold"]})
		}
		if err != nil {
			return fmt.Errorf("reading entry %d of ledger %s: %w", e.Index, e.Origin, err)
		}
	}
	return r.deletions(ctx, byMark)
}

// letGoEarly takes what approved plans let go for what need not be there.
func (r *reporter) letGoEarly(entries []ledger.Record) error {
	for _, e := range entries {
		if e.Type != ledger.TypeRemovalIntent || e.Subject["cluster"] != r.conf.Name {
			continue
		}
		var b removalEntry
		if err := json.Unmarshal(e.Body, &b); err != nil {
			return fmt.Errorf("reading entry %d of ledger %s: %w", e.Index, e.Origin, err)
		}
		for _, id := range b.Snapshots {
			r.doc.present[id] = r.doc.present[id] || b.Early != nil
		}
	}
	return nil
}

// tombstoned finds whose snapshots go before the policy ends them.
func (r *reporter) tombstoned(ctx context.Context) error {
	tombs, err := r.catalog.Tombstones(ctx, r.conf.Name)
	r.tombs = tombs.Bodies()
	return err
}

// taken finds a snapshot that the ledger has, within the floor, and no zone.
func (r *reporter) taken(e ledger.Record) {
	id := e.Subject["snapshot"]
	var s catalog.Snapshot
	if json.Unmarshal(e.Body, &s) == nil && slices.ContainsFunc(r.tombs, s.Of) {
		return // it goes with its project
	}
	if floor := r.k.Policy.For(s.Kind).Floor(); r.doc.RetiredAt.IsZero() && r.doc.At.Sub(e.Time.Wall) < floor && !r.doc.present[id] {
		r.fail("under-retained", "", "snapshot %s was taken %s, within keep_at_least %s, and is not there", id, clock(e.Time.Wall), span(floor))
	}
}

// removalEntry is the body of removal.intent and removal.result.
type removalEntry struct {
	Mark      string            `json:"mark"`
	PlanHash  string            `json:"plan_hash"`
	Snapshots []string          `json:"snapshots"`
	WAL       int               `json:"wal_stretches"`
	Removed   int               `json:"objects_removed"`
	Zones     map[string]string `json:"zones"`
	Early     *struct {
		Hash string `json:"plan_hash"`
	} `json:"purge_early"`
	Ended []struct {
		Mark    string            `json:"mark"`
		Removed int               `json:"objects_removed"`
		Zones   map[string]string `json:"zones"`
	} `json:"ended"`
}

func (r *reporter) removal(e ledger.Record, byMark map[string]*deletionDoc) error {
	var b removalEntry
	if err := json.Unmarshal(e.Body, &b); err != nil {
		return err
	}
	at := func(mark string) *deletionDoc {
		if byMark[mark] == nil {
			byMark[mark] = &deletionDoc{Mark: mark, Snapshots: []string{}, Reasons: []string{}, Zones: map[string]string{}}
		}
		return byMark[mark]
	}
	if b.Mark != "" {
		d := at(b.Mark)
		if e.Type == ledger.TypeRemovalIntent {
			d.MarkedAt, d.By, d.Origin, d.Index = e.Time.Wall.UTC(), e.Actor.Kind, e.Origin, e.Index
		} else {
			d.DoneAt = e.Time.Wall.UTC()
		}
		d.PlanHash, d.Snapshots, d.WAL = b.PlanHash, append([]string{}, b.Snapshots...), b.WAL
		d.done(b.Removed, b.Zones)
	}
	for _, end := range b.Ended {
		d := at(end.Mark)
		d.DoneAt = e.Time.Wall.UTC()
		d.done(end.Removed, end.Zones)
	}
	return nil
}

func (d *deletionDoc) done(removed int, zones map[string]string) {
	d.Removed += removed
	for z, at := range zones {
		d.Zones[z] = at
	}
}

// deletions joins the ledger's removals with the marks, which have the reasons.
func (r *reporter) deletions(ctx context.Context, byMark map[string]*deletionDoc) error {
	marks, err := r.catalog.Forgotten(ctx, r.conf.Name)
	if err != nil {
		return err
	}
	for _, m := range marks.Bodies() {
		if d := byMark[m.ID]; d != nil {
			d.Reasons, d.NotBefore = m.Reasons, m.NotBefore
		}
	}
	for _, d := range byMark {
		r.doc.Deletions = append(r.doc.Deletions, *d)
	}
	slices.SortFunc(r.doc.Deletions, func(a, b deletionDoc) int { return strings.Compare(a.Mark, b.Mark) })
	return nil
}

// refusal notes an incident that says that retention was refused, when it opened.
func (r *reporter) refusal(e ledger.Record) error {
	var i incident.Incident
	if err := json.Unmarshal(e.Body, &i); err != nil {
		return err
	}
	if i.Open() && strings.HasPrefix(i.Key, "retention-refused/") {
		r.doc.Refused = append(r.doc.Refused, refusalDoc{At: i.OpenedAt.UTC(), What: "retention", Why: i.Detail})
	}
	return nil
}

// residency compares where the cluster's objects were seen with where they may be.
func (r *reporter) residency(context.Context) error {
	allowed := map[string]bool{}
	for _, z := range r.cfg.Repository.Allowed(r.conf.Residency) {
		allowed[z.Name] = true
	}
	r.doc.Residency = residencyDoc{Allow: append([]string{}, r.conf.Residency.Allow...), Copies: r.conf.Residency.Copies, Zones: []residencyZone{}}
	for _, z := range r.cfg.Repository.Zones {
		d := residencyZone{Zone: z.Name, Jurisdiction: z.Jurisdiction, Allowed: allowed[z.Name]}
		for _, h := range r.doc.Inventory {
			if h.Zone == z.Name {
				d.Versions += h.Versions
			}
		}
		if d.Versions > 0 && !d.Allowed {
			r.fail("residency", z.Name, "it holds %d versions of %s, in jurisdiction %q", d.Versions, r.conf.Name, z.Jurisdiction)
		}
		r.doc.Residency.Zones = append(r.doc.Residency.Zones, d)
	}
	return nil
}

func (r *reporter) holds(ctx context.Context) error {
	list := holdsDoc{Holds: []holdDoc{}}
	err := r.addHolds(ctx, &list, r.conf.Name)
	for _, h := range list.Holds {
		if h.Released == nil {
			r.doc.Holds = append(r.doc.Holds, h)
		}
	}
	return err
}

// purged counts the purges by what the repository shows of them.
func (r *reporter) purged(ctx context.Context) error {
	tombs, err := r.catalog.Tombstones(ctx, r.conf.Name)
	if err != nil {
		return err
	}
	absences, err := r.catalog.Absences(ctx)
	if err != nil {
		return err
	}
	certs, err := r.catalog.Certificates(ctx)
	if err != nil {
		return err
	}
	done := map[string]bool{}
	for _, c := range certs.Bodies() {
		done[c.Tombstone] = true
	}
	p := &r.doc.Purges
	for _, t := range tombs.Bodies() {
		p.Requested++
		if _, ok := absences[t.ID]; ok {
			p.Absent++
		}
		if done[t.ID] {
			p.Certified++
		} else if r.doc.At.After(t.Deadline) && !slices.ContainsFunc(r.doc.Holds, func(h holdDoc) bool { return slices.Contains(h.Purges, t.ID) }) {
			p.Overdue = append(p.Overdue, t.ID)
			r.fail("over-retained", "", "purge %s was to be done by %s", t.ID, clock(t.Deadline))
		}
	}
	return nil
}

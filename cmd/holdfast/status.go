package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// statusDoc is the answer of `status`: one screen.
type statusDoc struct {
	OK       bool            `json:"ok"`
	Daemon   bool            `json:"daemon"` // whether a daemon answered
	At       time.Time       `json:"at"`
	Clusters []clusterStatus `json:"clusters"`
	Zones    []zoneStatus    `json:"zones"`
}

type clusterStatus struct {
	Name         string              `json:"name"`
	RetiredAt    time.Time           `json:"retired_at,omitzero"`
	Window       window              `json:"window"`
	RPO          measure             `json:"rpo"`
	RTO          measure             `json:"rto"`
	LastSnapshot *snapshotRef        `json:"last_snapshot,omitempty"`
	LastProof    *proofRef           `json:"last_proof,omitempty"`
	Proven       provenDoc           `json:"proven"`
	Kept         keptDoc             `json:"kept"`
	Zones        []walZone           `json:"zones"`
	Holds        []heldRef           `json:"holds"` // in force
	Incidents    []incident.Incident `json:"incidents"`
	Missed       []string            `json:"missed"` // objectives that do not hold, in words
}

// measure is an objective with its measurement, in seconds; absent is not known.
type measure struct {
	Objective *float64 `json:"objective,omitempty"`
	Measured  *float64 `json:"measured,omitempty"`
}

type snapshotRef struct {
	ID         string    `json:"id"`
	FinishedAt time.Time `json:"finished_at"`
	Suspect    bool      `json:"suspect"`
	StoredSize int64     `json:"stored_bytes"` // of all objects that it needs
	NewBytes   int64     `json:"new_bytes"`    // of those that were made for it
}

// keptDoc is what of a cluster is kept.
type keptDoc struct {
	Snapshots int       `json:"snapshots"`
	NewBytes  int64     `json:"new_bytes"`           // of all objects that were made for them
	Oldest    string    `json:"oldest,omitempty"`    // the one that goes first, by id
	ExpiresAt time.Time `json:"expires_at,omitzero"` // and when its ceiling is
}

// heldRef is a hold in force.
type heldRef struct {
	ID       string    `json:"id"`
	On       string    `json:"on"`
	ReviewBy time.Time `json:"review_by"`
	Overdue  bool      `json:"overdue"`
}

type proofRef struct {
	Drill    string    `json:"drill"`
	Snapshot string    `json:"snapshot"`
	At       time.Time `json:"at"`
	Level    string    `json:"level"`
	Outcome  string    `json:"outcome"`
}

type zoneStatus struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Behind int    `json:"behind_objects"`
	Err    string `json:"error,omitempty"`
	// Verified is how far this node's rolling verification has come; nil: not begun.
	Verified *vault.Coverage `json:"verified,omitempty"`
}

func seconds(d time.Duration) *float64 {
	if d == 0 {
		return nil
	}
	s := d.Seconds()
	return &s
}

// statusOf reads what the repository shows; the daemon adds what it alone knows.
func (w *world) statusOf(ctx context.Context, in clusterQuery) (statusDoc, error) {
	doc := statusDoc{OK: true, At: w.now().UTC(), Clusters: []clusterStatus{}, Zones: []zoneStatus{}}
	names, err := w.clusterNames(ctx, in.Cluster)
	if err != nil {
		return doc, err
	}
	for _, name := range names {
		c, err := w.clusterStatus(ctx, name)
		if err != nil {
			return doc, err
		}
		doc.Clusters = append(doc.Clusters, c)
	}
	cover := w.coverage()
	for _, z := range w.zones {
		s := zoneStatus{Name: z.Name(), State: "up"}
		if c, ok := cover[z.Name()]; ok {
			s.Verified = &c
		}
		check, cancel := context.WithTimeout(ctx, 10*time.Second)
		if err := z.Check(check); err != nil {
			s.State, s.Err, doc.OK = "down", err.Error(), false
		}
		cancel()
		doc.Zones = append(doc.Zones, s)
	}
	return doc, nil
}

func (w *world) clusterStatus(ctx context.Context, name string) (clusterStatus, error) {
	c := clusterStatus{Name: name, Holds: []heldRef{}, Incidents: []incident.Incident{}, Missed: []string{}}
	wal, err := w.walOf(ctx, name, nil)
	if err != nil {
		return c, err
	}
	c.Window, c.Zones = wal.Window, wal.Zones
	gone, err := w.catalog.Retired(ctx, name)
	if err != nil {
		return c, err
	}
	for _, r := range gone.Bodies() {
		c.RetiredAt = r.RetiredAt
	}
	snaps, err := w.catalog.Snapshots(ctx, name)
	if err != nil {
		return c, err
	}
	physical := snaps
	physical.List = catalog.OfKind(snaps.List, catalog.Physical)
	if n := len(physical.List); n > 0 {
		s := physical.List[n-1].Body
		c.LastSnapshot = &snapshotRef{s.ID, s.FinishedAt.UTC(), s.Suspect, s.StoredSize, s.NewBytes}
	}
	c.Kept = w.kept(name, snaps.Bodies())
	proofs, err := w.catalog.Proofs(ctx, name)
	if err != nil {
		return c, err
	}
	c.LastProof, c.RTO.Measured = newestProof(proofs.Bodies())
	c.Proven = provenOf(physical.Bodies(), proofs.Bodies(), w.now())
	holds, err := w.catalog.Holds(ctx, name)
	if err != nil {
		return c, err
	}
	for _, h := range holds.InForce() {
		d := w.holdDoc(h)
		c.Holds = append(c.Holds, heldRef{d.ID, d.about(), d.ReviewBy, d.Overdue})
	}
	for _, conf := range w.cfg.Clusters {
		if conf.Name == name {
			c.RPO.Objective, c.RTO.Objective = seconds(conf.Objectives.RPO.Std()), seconds(conf.Objectives.RTO.Std())
		}
	}
	return c, nil
}

// kept sums up what is kept and says when the first of it must go.
func (w *world) kept(cluster string, list []catalog.Snapshot) keptDoc {
	doc := keptDoc{Snapshots: len(list)}
	for _, s := range list {
		doc.NewBytes += s.NewBytes
		for _, c := range w.cfg.Clusters {
			at := policyOf(c.Retention).Expires(s)
			if c.Name == cluster && !at.IsZero() && (doc.ExpiresAt.IsZero() || at.Before(doc.ExpiresAt)) {
				doc.Oldest, doc.ExpiresAt = s.ID, at
			}
		}
	}
	return doc
}

// newestProof is the newest of them that proves something, and the recovery time that was
// measured with it.
func newestProof(list []catalog.Proof) (best *proofRef, rto *float64) {
	for _, p := range list {
		if proves(p) && (best == nil || p.At.After(best.At)) {
			best, rto = &proofRef{p.Drill, p.Snapshot, p.At.UTC(), p.Level, p.Outcome}, p.RTO
		}
	}
	return best, rto
}

// statusNow is the daemon's status.
func (n *node) statusNow(ctx context.Context, in clusterQuery) (statusDoc, error) {
	doc, err := n.statusOf(ctx, in)
	if err != nil {
		return doc, err
	}
	doc.Daemon = true
	for i, z := range n.vault.State() {
		if i < len(doc.Zones) && doc.Zones[i].Name == z.Name {
			doc.Zones[i].Behind = z.BehindObjects
		}
	}
	open, err := n.incidents.List()
	if err != nil {
		return doc, err
	}
	for i := range doc.Clusters {
		c := &doc.Clusters[i]
		if rpo, known := n.rpo(c.Name); known {
			s := rpo.Seconds()
			c.RPO.Measured = &s
		}
		for _, inc := range open {
			if inc.Open() && (inc.Cluster == c.Name || inc.Cluster == "") {
				c.Incidents = append(c.Incidents, inc)
			}
		}
		doc.OK = doc.OK && len(c.Incidents) == 0
	}
	return doc, nil
}

// judge says which objectives are missed.
func (d *statusDoc) judge() {
	for i := range d.Clusters {
		c := &d.Clusters[i]
		if !c.RetiredAt.IsZero() {
			continue // it has no objectives any more
		}
		if o, m := c.RPO.Objective, c.RPO.Measured; o != nil && m != nil && *m > *o {
			c.Missed = append(c.Missed, fmt.Sprintf("RPO: %.0f s would be lost now, the objective is %.0f s", *m, *o))
		}
		if o, m := c.RTO.Objective, c.RTO.Measured; o != nil && m != nil && *m > *o {
			c.Missed = append(c.Missed, fmt.Sprintf("RTO: the last proof took %.0f s, the objective is %.0f s", *m, *o))
		}
		if c.LastSnapshot == nil {
			c.Missed = append(c.Missed, "there is no snapshot")
		}
		d.OK = d.OK && len(c.Missed) == 0
	}
}

func (d statusDoc) text(w io.Writer) {
	for _, c := range d.Clusters {
		if !c.RetiredAt.IsZero() {
			fmt.Fprintf(w, "%s\n  RETIRED        since %s: nothing of it is taken, and what there was goes; %s not yet marked\n", c.Name, clock(c.RetiredAt), count(c.Kept.Snapshots, "snapshot"))
			c.incidentText(w)
			continue
		}
		fmt.Fprintf(w, "%s\n  restorable     %s to %s\n", c.Name, clock(c.Window.From), clock(c.Window.To))
		fmt.Fprintf(w, "  RPO            %s (objective %s)\n", c.RPO.text(c.RPO.Measured), c.RPO.text(c.RPO.Objective))
		rto := "not measured"
		if c.RTO.Measured != nil {
			rto = c.RTO.text(c.RTO.Measured) + " in the last proof"
		}
		fmt.Fprintf(w, "  RTO            %s (objective %s)\n", rto, c.RTO.text(c.RTO.Objective))
		if s := c.LastSnapshot; s != nil {
			fmt.Fprintf(w, "  last snapshot  %s, %s; %s were made for it, it needs %s\n", s.ID, ago(s.FinishedAt, d.At), size(s.NewBytes), size(s.StoredSize))
		} else {
			fmt.Fprintln(w, "  last snapshot  none")
		}
		if k := c.Kept; k.Oldest != "" {
			fmt.Fprintf(w, "  kept           %s; %s is the first to go, by %s\n", count(k.Snapshots, "snapshot"), k.Oldest, clock(k.ExpiresAt))
		}
		if p := c.LastProof; p != nil {
			fmt.Fprintf(w, "  last proof     %s, %s: %s at %s by drill %s\n", p.Snapshot, ago(p.At, d.At), p.Outcome, p.Level, p.Drill)
		} else {
			fmt.Fprintln(w, "  last proof     NOT VERIFIED: no drill has passed yet")
		}
		fmt.Fprintf(w, "  proven         %s\n", c.Proven.text(c.Kept.Snapshots, d.At))
		for _, h := range c.Holds {
			late := ""
			if h.Overdue {
				late = ": PAST ITS REVIEW"
			}
			fmt.Fprintf(w, "  on hold        %s, by hold %s, to be reviewed by %s%s\n", h.On, h.ID, clock(h.ReviewBy), late)
		}
		for _, m := range c.Missed {
			fmt.Fprintln(w, "  MISSED        ", m)
		}
		c.incidentText(w)
	}
	for _, z := range d.Zones {
		fmt.Fprintf(w, "zone %-12s %s, %d objects behind; %s%s\n", z.Name, z.State, z.Behind, coverText(z.Verified, d.At), after(": ", z.Err))
	}
	if !d.Daemon {
		fmt.Fprintln(w, "no daemon answers on this node: RPO and incidents are not known")
	}
}

func (c clusterStatus) incidentText(w io.Writer) {
	for _, i := range c.Incidents {
		fmt.Fprintf(w, "  INCIDENT       %s, since %s; see `holdfast incident show %s`\n", i.Title, clock(i.OpenedAt), i.Key)
	}
}

// after puts a separator before what is there, and nothing before nothing.
func after(sep, s string) string {
	if s == "" {
		return ""
	}
	return sep + s
}

func (measure) text(s *float64) string {
	if s == nil {
		return "not known"
	}
	return span(time.Duration(*s * float64(time.Second)))
}

func (e *env) statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status [CLUSTER]", Short: "One screen: window, RPO, RTO, zones, last proof, incidents", Args: cobra.MaximumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
		in := optionalCluster(args)
		doc, err := call(c.Context(), e, opStatus, in, (*world).statusOf)
		if err != nil {
			return err
		}
		doc.judge()
		if err := e.print(doc, doc.text); err != nil {
			return err
		}
		if !doc.OK {
			return silent{exitNotHeld}
		}
		return nil
	}}
}

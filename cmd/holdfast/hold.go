package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/retention"
)

var (
	opHoldAdd     = server.Op[holdAdd, holdDoc]{ID: "hold-add", Method: http.MethodPost, Path: "/v1/clusters/{cluster}/holds", Summary: "Keep a snapshot, a span of time or a project until it is released"}
	opHoldRelease = server.Op[holdRelease, holdDoc]{ID: "hold-release", Method: http.MethodPost, Path: "/v1/holds/{id}/release", Summary: "End a hold"}
	opHoldList    = server.Op[clusterQuery, holdsDoc]{ID: "hold-list", Method: http.MethodGet, Path: "/v1/holds", Summary: "The holds, released ones as well"}
)

// holdAdd asks for a hold: on a snapshot, on a span, on a project in live, or on one
// that is being purged.
type holdAdd struct {
	Cluster string `path:"cluster"`
	Body    struct {
		Snapshot string    `json:"snapshot,omitempty"`
		From     time.Time `json:"from,omitzero" required:"false"`
		To       time.Time `json:"to,omitzero" required:"false"`
		Project  string    `json:"project,omitempty" doc:"A project's id in live; it is stored as its keyed digest."`
		Purge    string    `json:"purge,omitempty" doc:"A tombstone's id."`
		Reason   string    `json:"reason" doc:"One line, without personal data: a case number."`
		By       string    `json:"by" doc:"Who wants it, without personal data: a role."`
		ReviewBy time.Time `json:"review_by"`
	}
}

type holdRelease struct {
	ID   string `path:"id"`
	Body struct {
		Reason string `json:"reason"`
		By     string `json:"by"`
	}
}

// holdDoc is one hold.
type holdDoc struct {
	ID        string       `json:"id"`
	Cluster   string       `json:"cluster"`
	Kind      string       `json:"kind"` // snapshot | span | project
	Snapshot  string       `json:"snapshot,omitempty"`
	From      time.Time    `json:"from,omitzero"`
	To        time.Time    `json:"to,omitzero"`
	Purges    []string     `json:"purges,omitempty"` // tombstones of the project on hold
	Reason    string       `json:"reason"`
	By        string       `json:"by"`
	Node      string       `json:"node"`
	PlacedAt  time.Time    `json:"placed_at"`
	ReviewBy  time.Time    `json:"review_by"`
	Overdue   bool         `json:"overdue"` // in force, and past its review
	Keeps     []string     `json:"keeps"`   // snapshots
	Released  *releasedDoc `json:"released,omitempty"`
	keyMAC    string
	keyDigest int
}

type releasedDoc struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// holdsDoc is the answer of `hold list`.
type holdsDoc struct {
	Holds    []holdDoc `json:"holds"`
	Complete bool      `json:"complete"`
	Faults   []string  `json:"faults,omitempty"`
}

func (w *world) holdDoc(h catalog.Hold) holdDoc {
	return holdDoc{
		ID: h.ID, Cluster: h.Cluster, Kind: h.Kind, Snapshot: h.Snapshot, From: h.From, To: h.To, Reason: h.Reason, By: h.By, Node: h.Node,
		PlacedAt: h.PlacedAt, ReviewBy: h.ReviewBy, Overdue: w.now().After(h.ReviewBy), Keeps: []string{}, keyMAC: h.KeyMAC, keyDigest: h.DigestEpoch,
	}
}

// held tells, by snapshot, which holds keep it.
func (w *world) held(ctx context.Context, cluster string) (map[string][]string, error) {
	return w.asker(cluster).Held(ctx)
}

// asker is a keeper that answers and changes nothing.
func (w *world) asker(cluster string) *retention.Keeper {
	k := &retention.Keeper{Cluster: cluster, Catalog: w.catalog, Store: w.vault.Writer(), Index: w.index, Now: w.now, State: w.state("retention-" + cluster + ".json")}
	for _, c := range w.cfg.Clusters {
		if c.Name == cluster {
			k.Policy = policyOf(c.Retention)
		}
	}
	return k
}

func (w *world) holdList(ctx context.Context, in clusterQuery) (holdsDoc, error) {
	doc := holdsDoc{Holds: []holdDoc{}, Complete: true}
	names, err := w.clusterNames(ctx, in.Cluster)
	if err != nil {
		return doc, err
	}
	for _, name := range names {
		if err := w.addHolds(ctx, &doc, name); err != nil {
			return doc, fmt.Errorf("listing the holds of %s: %w", name, err)
		}
	}
	return doc, nil
}

func (w *world) addHolds(ctx context.Context, doc *holdsDoc, cluster string) error {
	list, err := w.catalog.Holds(ctx, cluster)
	if err != nil {
		return err
	}
	held, err := w.held(ctx, cluster)
	if err != nil {
		return err
	}
	tombs, err := w.catalog.Tombstones(ctx, cluster)
	if err != nil {
		return err
	}
	doc.Complete = doc.Complete && list.Complete
	for _, f := range list.Faults {
		doc.Faults = append(doc.Faults, f.Error())
	}
	for _, h := range list.Bodies() {
		d := w.holdDoc(h)
		if end, ok := list.Released[h.ID]; ok {
			d.Overdue, d.Released = false, &releasedDoc{end.ReleasedAt, end.By, end.Reason}
		}
		for id, by := range held {
			if slices.Contains(by, h.ID) {
				d.Keeps = append(d.Keeps, id)
			}
		}
		slices.Sort(d.Keeps)
		for _, t := range tombs.Bodies() {
			if d.keyMAC != "" && t.KeyMAC == d.keyMAC && t.DigestEpoch == d.keyDigest {
				d.Purges = append(d.Purges, t.ID)
			}
		}
		doc.Holds = append(doc.Holds, d)
	}
	return nil
}

// holdAdd places a hold; no retention runs meanwhile.
func (n *node) holdAdd(ctx context.Context, in holdAdd) (holdDoc, error) {
	ctx = asHuman(ctx)
	b := in.Body
	h := catalog.Hold{Snapshot: b.Snapshot, From: b.From, To: b.To, Reason: b.Reason, By: b.By, Node: n.cfg.Node.Name, ReviewBy: b.ReviewBy}
	var err error
	if b.Project != "" {
		err = n.withProjects(ctx, in.Cluster, func(p *retention.Purger, conn *pgx.Conn) error {
			v, err := p.Preview(ctx, conn, b.Project)
			if err == nil {
				h, err = p.PlaceOnProject(ctx, v, h)
			}
			return err
		})
		return n.holdDoc(h), keepFault(err)
	}
	n.keeping.Lock()
	defer n.keeping.Unlock()
	k, err := n.keeper(in.Cluster)
	if err != nil {
		return holdDoc{}, err
	}
	switch {
	case b.Purge != "":
		h, err = k.PlaceOnPurge(ctx, b.Purge, h)
	case b.Snapshot != "":
		h.Kind = catalog.HoldSnapshot
		h, err = k.Place(ctx, h)
	default:
		h.Kind = catalog.HoldSpan
		h, err = k.Place(ctx, h)
	}
	return n.holdDoc(h), keepFault(err)
}

func (n *node) holdRelease(ctx context.Context, in holdRelease) (holdDoc, error) {
	ctx = asHuman(ctx)
	n.keeping.Lock()
	defer n.keeping.Unlock()
	doc, err := n.holdList(ctx, clusterQuery{})
	if err != nil {
		return holdDoc{}, err
	}
	i := slices.IndexFunc(doc.Holds, func(h holdDoc) bool { return h.ID == in.ID && h.Released == nil })
	if i < 0 {
		return holdDoc{}, usage("there is no hold %q in force; `holdfast hold list` shows those there are", in.ID)
	}
	d := doc.Holds[i]
	k, err := n.keeper(d.Cluster)
	if err != nil {
		return d, err
	}
	end, err := k.Release(ctx, catalog.Released{Hold: d.ID, Reason: in.Body.Reason, By: in.Body.By, Node: n.cfg.Node.Name})
	if err != nil {
		return d, keepFault(err)
	}
	d.Overdue, d.Released = false, &releasedDoc{end.ReleasedAt, end.By, end.Reason}
	n.settle(ctx, holdKey(d.ID), "the hold was released")
	return d, nil
}

func holdKey(id string) string { return "hold-review/" + id }

// tellHolds opens an incident for each hold past its review, and closes those of the others.
func (n *node) tellHolds(ctx context.Context, cluster string) error {
	list, err := n.catalog.Holds(ctx, cluster)
	if err != nil {
		return err
	}
	for _, h := range list.Bodies() {
		_, ended := list.Released[h.ID]
		switch {
		case ended:
			n.settle(ctx, holdKey(h.ID), "the hold was released")
		case n.now().After(h.ReviewBy):
			n.raise(ctx, incident.Incident{
				Key: holdKey(h.ID), Cluster: cluster, Severity: "warning", Title: "hold " + h.ID + " of " + cluster + " is past its review",
				Detail: fmt.Sprintf("placed %s by %s (%s), to be reviewed by %s", clock(h.PlacedAt), h.By, h.Reason, clock(h.ReviewBy)),
				Remedy: "look whether it is needed: `holdfast hold release " + h.ID + "` ends it; place another one first to go on with it",
			})
		}
	}
	return nil
}

// checkHolds says of each cluster's holds whether one waits for its review.
func checkHolds(ctx context.Context, w *world, only string) (list []finding) {
	for _, c := range w.cfg.Clusters {
		if only != "" && c.Name != only {
			continue
		}
		holds, err := w.catalog.Holds(ctx, c.Name)
		if err != nil {
			list = append(list, bad("holds of "+c.Name, "bring the zones back: nothing is removed before the holds are known", "%v", err))
			continue
		}
		for _, f := range holds.Faults {
			list = append(list, bad("holds of "+c.Name, "trust its signer (repository.trusted_signers, may: [tombstone]), or remove it: nothing goes before that", "a hold cannot be believed: %v", f))
		}
		var late []string
		for _, h := range holds.InForce() {
			if w.now().After(h.ReviewBy) {
				late = append(late, h.ID+" since "+clock(h.ReviewBy))
			}
		}
		switch {
		case len(late) > 0:
			list = append(list, warn("holds of "+c.Name, "review them: `holdfast hold list "+c.Name+"`, `holdfast hold release ID`", "past their review: %s", strings.Join(late, ", ")))
		case len(holds.InForce()) > 0:
			list = append(list, good("holds of "+c.Name, "%s in force", count(len(holds.InForce()), "hold")))
		}
	}
	return list
}

func (n *node) serveHolds(s *server.Server) {
	server.Serve(s, opHoldAdd, n.holdAdd)
	server.Serve(s, opHoldRelease, n.holdRelease)
	server.Serve(s, opHoldList, n.holdList)
}

// reviewTime reads a day, a time, or a span from now.
func reviewTime(text string, now time.Time) (time.Time, error) {
	if d, err := configs.ParseDuration(text); err == nil {
		return now.Add(d.Std()), nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usage("--review-by %s: want a day (2027-03-01), a time (2027-03-01T12:00:00+01:00), or a span from now (90d)", text)
	}
	return t, nil
}

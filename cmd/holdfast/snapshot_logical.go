package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// actTake has a snapshot taken, by the daemon or here. Which order it is says the node:
// it alone knows whose a MAC is.
func (e *env) actTake(ctx context.Context, in takeIn) (json.RawMessage, error) {
	return actAs(ctx, e, opSnapshotTake, in, "snapshot of "+in.Cluster, func(ctx context.Context, n *node, progress func(any)) (json.RawMessage, error) {
		o, err := n.takeOrder(ctx, in)
		if err != nil {
			return nil, err
		}
		return n.run(ctx, jobSnapshot, laneOf(o), o, progress)
	})
}

// laneOf is where an order for a snapshot waits: the cluster's jobs are not to wait for
// hours of copying rows.
func laneOf(o order) string {
	if catalog.Exported(o.Kind) {
		return o.Cluster + "/" + catalog.Logical
	}
	return o.Cluster
}

// kindOf is the kind of snapshot that is asked for; "" is a physical one.
func kindOf(in takeIn) string {
	switch {
	case in.Project != "":
		return catalog.Project
	case in.Logical:
		return catalog.Logical
	}
	return ""
}

// takeOrder is the order of a person who asks for a snapshot.
func (n *node) takeOrder(ctx context.Context, in takeIn) (order, error) {
	o := order{Cluster: in.Cluster, Human: true, Full: in.Full, Kind: kindOf(in)}
	if in.Full && o.Kind != "" || in.Logical && in.Project != "" {
		return o, usage("full, logical and project are three kinds of snapshot: ask for one")
	}
	if in.Project == "" {
		return o, nil
	}
	c, err := n.cluster(in.Cluster)
	if err != nil {
		return o, err
	}
	src, err := sourceOf(n.cfg, c)
	if err != nil {
		return o, err
	}
	o.KeyMAC = tenancy.MAC(n.keys, c.Name, src.layout, in.Project)
	return o, n.undeleted(ctx, c.Name, o.KeyMAC)
}

// takeLogical takes one logical snapshot of the cluster, or of a project.
func (p *protected) takeLogical(ctx context.Context, o order, progress func(snapshot.Progress)) (catalog.Snapshot, error) {
	s, err := p.ready(ctx)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	facts, server, err := p.look(ctx)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	c := &copying{projectSource: &projectSource{cfg: p.n.cfg, cluster: p.cfg}, madeAt: p.n.now().UTC(), workers: p.n.cfg.Node.Limits.Workers, log: p.n.log}
	cfg := snapshot.LogicalConfig{Take: p.takeConfig(s, progress), Kind: o.Kind, Server: server, ServerNum: facts.ServerNum, SegSize: facts.SegSize}
	cfg.Fill = func(ctx context.Context, to *snapshot.LogicalFiles) (snapshot.Filled, error) {
		filled, err := c.databases(ctx, to)
		if p.cfg.Projects != nil && !errors.Is(err, postgres.ErrNoDump) {
			err = tenancy.Wordless(err, tenancy.Layout{Kind: p.cfg.Projects.Layout})
		}
		return filled, err
	}
	if o.Kind == catalog.Project {
		if c.projectSource, err = sourceOf(p.n.cfg, p.cfg); err != nil {
			return catalog.Snapshot{}, err
		}
		cfg.KeyMAC, cfg.DigestEpoch = o.KeyMAC, p.n.keys.Epoch
		cfg.Fill = func(ctx context.Context, to *snapshot.LogicalFiles) (snapshot.Filled, error) {
			return c.project(ctx, to, o.KeyMAC, p.n.keys)
		}
	}
	snap, err := snapshot.TakeLogical(ctx, cfg)
	p.n.needsChanged(p)
	return snap, p.noteLogical(ctx, o.Kind, snap, err)
}

// undeleted refuses a project whose deletion was asked for: a copy of it would only have
// to go.
func (n *node) undeleted(ctx context.Context, cluster, mac string) error {
	tombs, err := n.catalog.Tombstones(ctx, cluster)
	if err != nil {
		return err
	}
	absences, err := n.catalog.Absences(ctx)
	if err != nil {
		return err
	}
	for _, t := range tombs.Bodies() {
		if _, gone := absences[t.ID]; t.KeyMAC == mac && !gone {
			return refused("`holdfast purge show "+t.ID+"` tells how far it is", "taking a snapshot of a project of %s: its deletion was requested %s, as %s", cluster, clock(t.RequestedAt), t.ID)
		}
	}
	return nil
}

// noteLogical writes a logical snapshot's end into the ledger and opens or closes the
// incident.
func (p *protected) noteLogical(ctx context.Context, kind string, snap catalog.Snapshot, err error) error {
	subject := map[string]string{"cluster": p.cfg.Name}
	key := kind + "-snapshot-failed/" + p.cfg.Name
	if err != nil {
		clean := context.WithoutCancel(ctx)
		_, lerr := p.n.append(clean, "snapshot.failed", subject, map[string]string{"error": err.Error(), "kind": kind})
		if ctx.Err() == nil {
			p.n.raise(clean, incident.Incident{
				Key: key, Cluster: p.cfg.Name, Severity: "warning", Title: fmt.Sprintf("no %s snapshot of %s could be taken", kind, p.cfg.Name),
				Detail: err.Error(), Remedy: "mend what it says, and take it again: the next one that succeeds closes this",
			})
		}
		return errors.Join(err, lerr)
	}
	subject["snapshot"] = snap.ID
	if _, err := p.n.append(ctx, "snapshot.taken", subject, summary(snap)); err != nil {
		return err
	}
	p.n.log.Info("snapshot taken", zap.String("cluster", p.cfg.Name), zap.String("id", snap.ID), zap.String("kind", kind), zap.Int64("raw_bytes", snap.RawBytes), zap.Int64("new_bytes", snap.NewBytes))
	p.n.settle(ctx, key, "snapshot "+snap.ID+" was taken")
	p.n.notify.Send(ctx, "snapshot", summary(snap))
	return nil
}

// packed puts exported files into the packs of a snapshot.
type packed struct{ to *snapshot.LogicalFiles }

// Add implements portable.Adder.
func (p packed) Add(name string, write func(io.Writer) error) (f portable.File, err error) {
	f.Name = name
	f.Bytes, f.SHA256, err = p.to.Add(name, write)
	return f, err
}

// copying is what fills one logical snapshot.
type copying struct {
	*projectSource
	to      packed
	madeAt  time.Time
	workers int
	log     *zap.Logger
	filled  snapshot.Filled
}

// together bounds the databases whose snapshots are opened at once, so that their
// moments lie close to each other: each takes a connection until the end.
const together = 16

// moment widens what the snapshot is of.
func (c *copying) moment(at tenancy.Moment) {
	f := &c.filled
	if f.First.IsZero() || at.Time.Before(f.First) {
		f.First = at.Time
	}
	if at.Time.After(f.Last) {
		f.Last = at.Time
	}
	f.To = max(f.To, at.LSN)
}

// databases copies every database that is no template.
func (c *copying) databases(ctx context.Context, to *snapshot.LogicalFiles) (_ snapshot.Filled, err error) {
	c.to = packed{to}
	index := portable.Databases{Format: portable.FormatDatabases, Cluster: c.cluster.Name, Software: version, MadeAt: c.madeAt, Databases: []portable.DatabaseEntry{}, NotCovered: []string{
		"roles, their passwords and memberships; owners and grants; tablespaces, publications and subscriptions",
	}}
	list, err := c.list(ctx)
	if err != nil {
		return c.filled, err
	}
	open := []*opened{}
	defer func() {
		for _, o := range open {
			err = errors.Join(err, o.end())
		}
	}()
	for i, d := range list {
		if !d.Connect {
			index.NotCovered = append(index.NotCovered, "database "+pgx.Identifier{d.Name}.Sanitize()+", which lets nobody connect")
			continue
		}
		if len(open) == 0 {
			if open, err = c.open(ctx, list[i:]); err != nil {
				return c.filled, err
			}
		}
		o := open[0]
		open = open[1:]
		entry, err := c.database(ctx, o.view, d, fmt.Sprintf("databases/%04d/", i+1))
		if err = errors.Join(err, o.end()); err != nil {
			return c.filled, err
		}
		index.Databases = append(index.Databases, entry)
	}
	_, err = portable.AddJSON(c.to, portable.ManifestName, index)
	return c.filled, err
}

func (c *copying) list(ctx context.Context) ([]tenancy.DatabaseOf, error) {
	dsn, err := dsnOf(c.cluster)
	if err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: the connection string does not parse", c.cluster.Name)
	}
	conn, err := c.connect(ctx, cmp.Or(cfg.Database, cfg.User))
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return tenancy.Databases(ctx, conn)
}

// opened is a database whose moment is held.
type opened struct {
	view *tenancy.View
	end  func() error
}

// open opens the first databases of a list, one right after the other.
func (c *copying) open(ctx context.Context, list []tenancy.DatabaseOf) (out []*opened, err error) {
	for _, d := range list {
		if !d.Connect {
			continue
		}
		// The layout is one of which everything is copied; it names no project.
		v, end, err := tenancy.ViewOf(ctx, c.connect, tenancy.Layout{Kind: tenancy.Database}, d.Name)
		if err != nil {
			for _, o := range out {
				err = errors.Join(err, o.end())
			}
			return nil, err
		}
		c.moment(v.At)
		if out = append(out, &opened{v, end}); len(out) == together {
			break
		}
	}
	return out, nil
}

// database copies one database below dir.
func (c *copying) database(ctx context.Context, v *tenancy.View, d tenancy.DatabaseOf, dir string) (entry portable.DatabaseEntry, err error) {
	entry = portable.DatabaseEntry{Name: d.Name, OID: d.OID, Moment: v.At}
	m := portable.Manifest{
		Format: portable.Format, Cluster: c.cluster.Name, Database: d.Name, Moment: v.At, Software: version, MadeAt: c.madeAt, Form: tenancy.Copy, Masked: []string{}, References: []string{},
	}
	if entry.Schemas, err = v.SchemaOIDs(ctx); err != nil {
		return entry, err
	}
	if m.NotCovered, err = v.Uncovered(ctx); err != nil {
		return entry, err
	}
	if m.DDL, err = c.ddlOf(ctx, v, dir); err != nil {
		return entry, err
	}
	s, err := v.Everything(ctx)
	if err != nil {
		return entry, err
	}
	if m.Tables, err = c.tables(ctx, v, s, dir); err != nil {
		return entry, err
	}
	m.Sequences = orEmpty(s.Sequences)
	if _, err = c.to.Add(dir+"load.sql", func(w io.Writer) error { return m.LoadScript(w, v.ClientEncoding(), s.Advance()) }); err != nil {
		return entry, err
	}
	entry.File, err = portable.AddJSON(c.to, dir+portable.ManifestName, m)
	entry.Rows, entry.Bytes = m.Rows()
	return entry, err
}

// ddlOf writes all of the DDL of a database, what lies outside schemas too.
func (c *copying) ddlOf(ctx context.Context, v *tenancy.View, dir string) (*portable.DDL, error) {
	dump, err := postgres.FindDump(ctx, sandbox.DefaultPattern, majorIn(v.At.Server))
	if err != nil {
		return nil, err
	}
	id, err := v.Export(ctx)
	if err != nil {
		return nil, err
	}
	f, err := c.to.Add(dir+"schema.sql", func(w io.Writer) error {
		return c.dump(ctx, dump, v.Database, postgres.DumpArgs(id, nil, nil), &limit{w, maxDDL})
	})
	f.Name = "schema.sql"
	return &portable.DDL{By: dump.Version, File: f}, err
}

// tables copies the tables of a database, the largest first, by several connections that
// share its snapshot.
func (c *copying) tables(ctx context.Context, v *tenancy.View, s *tenancy.Slice, dir string) ([]portable.Table, error) {
	order, err := heaviest(ctx, v, s)
	if err != nil {
		return nil, err
	}
	work := make(chan int, len(order))
	for _, i := range order {
		work <- i
	}
	close(work)
	tables := make([]portable.Table, len(s.Parts))
	g, gctx := errgroup.WithContext(ctx)
	for range min(max(1, c.workers), len(order)) {
		g.Go(func() (err error) {
			with, err := v.Beside(gctx, c.connect)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, with.Close(gctx)) }()
			for i := range work {
				if tables[i], err = c.table(gctx, with, s.Parts[i], dir, fmt.Sprintf("data/%04d.%s", i+1, tenancy.Copy)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return tables, g.Wait()
}

// heaviest are the places of the parts, the largest tables first.
func heaviest(ctx context.Context, v *tenancy.View, s *tenancy.Slice) (order []int, err error) {
	weights := make([]int64, len(s.Parts))
	for i, p := range s.Parts {
		if weights[i], err = p.Weight(ctx, v); err != nil {
			return nil, fmt.Errorf("asking how large %s is: %w", p.Name, err)
		}
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(weights[b], weights[a]) })
	return order, nil
}

func (c *copying) table(ctx context.Context, with *tenancy.Copier, p tenancy.Part, dir, file string) (portable.Table, error) {
	t := tableOf(p)
	if p.Rows == 0 {
		return t, nil
	}
	f, err := c.to.Add(dir+file, func(w io.Writer) (err error) {
		t.Rows, err = with.Write(ctx, p, w)
		return err
	})
	t.File = f
	t.File.Name = file
	return t, err
}

// project copies one project, whose key has the MAC.
func (c *copying) project(ctx context.Context, to *snapshot.LogicalFiles, mac string, keys seal.DigestKeys) (snapshot.Filled, error) {
	list, names, err := c.listed(ctx)
	if err != nil {
		return c.filled, err
	}
	at := slices.IndexFunc(list, func(p tenancy.Project) bool { return tenancy.MAC(keys, c.cluster.Name, c.layout, p.ID) == mac })
	if at < 0 {
		return c.filled, failed("`holdfast project list "+c.cluster.Name+"` shows those there are", "%w", tenancy.ErrNoProject)
	}
	key := list[at].ID
	x := &exporting{projectSource: c.projectSource, to: packed{to}, form: tenancy.Copy, madeAt: c.madeAt}
	err = x.open(ctx, key, []string{key}, func() error {
		c.moment(x.view.At)
		if c.filled.OID, err = x.view.ObjectID(ctx, key); err != nil {
			return err
		}
		if err := x.prepare(ctx, ""); err != nil {
			return err
		}
		_, err := x.one(ctx, key, names[key], "", true, func(string) {})
		return err
	})
	return c.filled, tenancy.Unnamed(err, c.layout, key)
}

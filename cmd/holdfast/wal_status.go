package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// walDoc is the answer of `wal status`.
type walDoc struct {
	Clusters []walCluster `json:"clusters"`
}

type walCluster struct {
	Name      string      `json:"name"`
	Window    window      `json:"window"`
	RPO       *float64    `json:"rpo_seconds,omitempty"`
	Gaps      []gapDoc    `json:"gaps"`
	Zones     []walZone   `json:"zones"`
	Stretches []stretch   `json:"stretches"`
	Graph     graphDoc    `json:"graph"`
	Archiving *archiveDoc `json:"archiving,omitempty"` // told by the daemon that archives it
}

type window struct {
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
}

// gapDoc is a stretch that no zone holds.
type gapDoc struct {
	From     lsn.LSN `json:"from_lsn"`
	To       lsn.LSN `json:"to_lsn"`
	Timeline uint32  `json:"timeline"`
}

// walZone is one zone's WAL as the zone itself shows it.
type walZone struct {
	Name   string   `json:"name"`
	Newest lsn.LSN  `json:"newest_lsn"`
	Behind int64    `json:"behind_bytes"`
	Window window   `json:"window"`
	RPO    *float64 `json:"rpo_seconds,omitempty"` // if this zone alone were left
	Runs   []runDoc `json:"runs"`
	Err    string   `json:"error,omitempty"`
}

// runDoc is a stretch in one state; its lineage is the first of the database system.
type runDoc struct {
	State    catalog.WALState `json:"state" enum:"FOUND,DELAYED,UPLOADING,LOST"`
	Lineage  int              `json:"lineage"`
	Timeline uint32           `json:"timeline"`
	From     lsn.LSN          `json:"from_lsn"`
	To       lsn.LSN          `json:"to_lsn"`
}

type stretch struct {
	Lineage  int     `json:"lineage"`
	Timeline uint32  `json:"timeline"`
	From     lsn.LSN `json:"from_lsn"`
	To       lsn.LSN `json:"to_lsn"`
}

type archiveDoc struct {
	Durable   lsn.LSN `json:"durable_lsn"`
	ServerEnd lsn.LSN `json:"server_lsn"`
	Behind    int64   `json:"behind_bytes"`
	Connected bool    `json:"connected"`
	Err       string  `json:"error,omitempty"`
	// Spool is the WAL that waits on this node's disk for the zones to take it.
	Spool *spoolDoc `json:"spool,omitempty"`
	// Slots is the replication slot on each server of the connection.
	Slots []slotDoc `json:"slots,omitempty"`
}

// walStatusOf reads the repository; what is on its way only the daemon knows.
func (w *world) walStatusOf(ctx context.Context, in clusterQuery) (walDoc, error) {
	doc := walDoc{Clusters: []walCluster{}}
	names, err := w.clusterNames(ctx, in.Cluster)
	if err != nil {
		return doc, err
	}
	for _, name := range names {
		c, err := w.walOf(ctx, name, nil)
		if err != nil {
			return doc, err
		}
		doc.Clusters = append(doc.Clusters, c)
	}
	return doc, nil
}

// walOf tells of one cluster's WAL, of which coming is on its way.
func (w *world) walOf(ctx context.Context, name string, coming []catalog.WALSpan) (walCluster, error) {
	c := walCluster{Name: name, Gaps: []gapDoc{}, Zones: []walZone{}, Stretches: []stretch{}}
	r, err := w.readWAL(ctx, name)
	if err != nil {
		return c, err
	}
	for _, s := range catalog.Stretches(r.entries.List) {
		c.Stretches = append(c.Stretches, stretch{s.Epoch, s.Timeline, s.From, s.To})
	}
	c.Graph = r.graph()
	for _, h := range r.holes(coming) {
		c.Gaps = append(c.Gaps, gapDoc{h.From, h.To, h.Timeline})
	}
	all := spansOf(r.held(""))
	newest := end(all, all)
	for _, z := range r.entries.Zones {
		doc := walZone{Name: z.Name, Runs: []runDoc{}}
		if z.Err != nil {
			doc.Err = z.Err.Error()
			c.Zones = append(c.Zones, doc)
			continue
		}
		doc.Newest = end(spansOf(r.held(z.Name)), all)
		doc.Behind = int64(newest - doc.Newest)
		for _, run := range r.runs(z.Name, coming) {
			doc.Runs = append(doc.Runs, runDoc{run.State, run.Epoch, run.Timeline, run.From, run.To})
		}
		if doc.Window, err = w.window(ctx, r, z.Name); err != nil {
			return c, err
		}
		c.Zones = append(c.Zones, doc)
	}
	c.Window, err = w.window(ctx, r, "")
	return c, err
}

// walStatus is the daemon's answer.
func (n *node) walStatus(ctx context.Context, in clusterQuery) (walDoc, error) {
	doc := walDoc{Clusters: []walCluster{}}
	names, err := n.clusterNames(ctx, in.Cluster)
	if err != nil {
		return doc, err
	}
	for _, name := range names {
		p := n.protectors()[name]
		c, err := n.walOf(ctx, name, p.coming()) // first what is on its way: it may arrive meanwhile
		if err != nil {
			return doc, err
		}
		c.Archiving = p.archiving()
		c.measure(n.now())
		if rpo, known := n.rpo(name); known && c.RPO == nil {
			c.RPO = new(rpo.Seconds())
		}
		doc.Clusters = append(doc.Clusters, c)
	}
	return doc, nil
}

// measure says what would be lost if the server were gone now and a zone, or the
// best of them, were left: what the server has and the zone does not show.
func (c *walCluster) measure(now time.Time) {
	if c.Archiving == nil || c.Archiving.ServerEnd == 0 {
		return
	}
	for i := range c.Zones {
		z := &c.Zones[i]
		switch {
		case z.Err != "" || z.Newest == 0:
			continue
		case z.Newest >= c.Archiving.ServerEnd && c.Archiving.Connected:
			z.RPO = new(0.0)
		case !z.Window.To.IsZero():
			z.RPO = new(max(0, now.Sub(z.Window.To).Seconds()))
		}
		if z.RPO != nil && (c.RPO == nil || *z.RPO < *c.RPO) {
			c.RPO = z.RPO
		}
	}
}

// coming is the WAL that was received and that the quorum does not hold yet.
func (p *protected) coming() []catalog.WALSpan {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	s := p.session
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	pos := s.archive.Position()
	if pos.Durable == 0 || pos.Received <= pos.Durable {
		return nil
	}
	return []catalog.WALSpan{{Epoch: s.lineage.Epoch, Timeline: pos.Timeline, From: pos.Durable, To: pos.Received}}
}

// archiving is how the cluster's WAL arrives; nil where this node takes none.
func (p *protected) archiving() *archiveDoc {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	session, err := p.session, p.err
	p.mu.Unlock()
	a := &archiveDoc{}
	if session != nil {
		pos := session.archive.Position()
		*a = archiveDoc{Durable: pos.Durable, ServerEnd: pos.ServerEnd, Behind: pos.Behind, Connected: pos.Connected}
		err = pos.Err
		a.Spool = spoolDocOf(pos.Spool)
		a.Slots = p.slots(session)
	}
	if err != nil {
		a.Err = err.Error()
	}
	return a
}

func (d walDoc) text(w io.Writer) {
	for _, c := range d.Clusters {
		fmt.Fprintf(w, "%s: restorable from %s to %s\n", c.Name, clock(c.Window.From), clock(c.Window.To))
		if c.RPO != nil {
			fmt.Fprintf(w, "  would lose now: %s\n", lossText(c.RPO))
		}
		if a := c.Archiving; a != nil {
			fmt.Fprintf(w, "  archiving: durable to %s, server at %s, %s behind, %s%s\n", a.Durable, a.ServerEnd, size(a.Behind), either(a.Connected, "connected", "NOT CONNECTED"), after(": ", a.Err))
			a.Spool.text(w)
			for _, s := range a.Slots {
				fmt.Fprintf(w, "  slot on %s: %s\n", s.Host, s.words())
			}
		}
		c.Graph.text(w)
		for _, g := range c.Gaps {
			fmt.Fprintf(w, "  GAP on timeline %d: %s to %s\n", g.Timeline, g.From, g.To)
		}
		for _, z := range c.Zones {
			z.text(w)
		}
	}
}

func (z walZone) text(w io.Writer) {
	if z.Err != "" {
		fmt.Fprintf(w, "  zone %-12s does not answer: %s\n", z.Name, z.Err)
		return
	}
	fmt.Fprintf(w, "  zone %-12s newest %s, %s behind; restorable from %s to %s; alone would lose %s\n",
		z.Name, z.Newest, size(z.Behind), clock(z.Window.From), clock(z.Window.To), lossText(z.RPO))
	for _, r := range z.Runs {
		fmt.Fprintf(w, "    %-9s timeline %d, %s to %s\n", r.State, r.Timeline, r.From, r.To)
	}
}

func lossText(seconds *float64) string {
	if seconds == nil {
		return "an unknown time"
	}
	return span(time.Duration(*seconds * float64(time.Second)))
}

func (e *env) walStatusCommand() *cobra.Command {
	return &cobra.Command{Use: "status [CLUSTER]", Short: "The window, the lag and the gaps, by zone", Args: cobra.MaximumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
		in := optionalCluster(args)
		doc, err := call(c.Context(), e, opWALStatus, in, (*world).walStatusOf)
		if err != nil {
			return err
		}
		return e.print(doc, doc.text)
	}}
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

type pushIn struct {
	Body struct {
		Cluster string `json:"cluster,omitempty" doc:"Needed where the configuration has several."`
		Path    string `json:"path" doc:"What archive_command has as %p."`
		DataDir string `json:"data_dir" doc:"The command's working directory."`
	}
}

type pushDoc struct {
	Archived string `json:"archived"`
}

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
	Archiving *archiveDoc `json:"archiving,omitempty"` // told by the daemon that archives it
}

type window struct {
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
}

type gapDoc struct {
	From     lsn.LSN `json:"from_lsn"`
	To       lsn.LSN `json:"to_lsn"`
	Timeline uint32  `json:"timeline"`
	Zone     string  `json:"zone,omitempty"` // "" is in every zone
}

type walZone struct {
	Name   string  `json:"name"`
	Newest lsn.LSN `json:"newest_lsn"`
	Behind int64   `json:"behind_bytes"`
	Err    string  `json:"error,omitempty"`
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
}

func (w *world) walStatusOf(ctx context.Context, in clusterQuery) (walDoc, error) {
	doc := walDoc{Clusters: []walCluster{}}
	names, err := w.clusterNames(ctx, in.Cluster)
	if err != nil {
		return doc, err
	}
	for _, name := range names {
		c, err := w.walOf(ctx, name)
		if err != nil {
			return doc, err
		}
		doc.Clusters = append(doc.Clusters, c)
	}
	return doc, nil
}

// walOf reads what the repository holds of one cluster's WAL.
func (w *world) walOf(ctx context.Context, name string) (walCluster, error) {
	c := walCluster{Name: name, Gaps: []gapDoc{}, Zones: []walZone{}, Stretches: []stretch{}}
	entries, err := w.catalog.WALEntries(ctx, name, "")
	if err != nil {
		return c, err
	}
	snaps, err := w.catalog.Snapshots(ctx, name)
	if err != nil {
		return c, err
	}
	marks, err := w.catalog.Forgotten(ctx, name)
	if err != nil {
		return c, err
	}
	spans := catalog.Stretches(entries.List)
	var end lsn.LSN
	for i, s := range spans {
		c.Stretches = append(c.Stretches, stretch{s.Epoch, s.Timeline, s.From, s.To})
		end = max(end, s.To)
		if i > 0 && spans[i-1].Epoch == s.Epoch && spans[i-1].Timeline == s.Timeline &&
			!letGo(catalog.WALSpan{Epoch: s.Epoch, Timeline: s.Timeline, From: spans[i-1].To, To: s.From}, marks.Bodies()) {
			c.Gaps = append(c.Gaps, gapDoc{From: spans[i-1].To, To: s.From, Timeline: s.Timeline})
		}
	}
	for _, z := range entries.Zones {
		c.Zones = append(c.Zones, zoneWAL(z.Name, z.Err, entries.List, end))
	}
	c.Window, err = w.window(ctx, name, snaps, entries.List, spans)
	return c, err
}

// letGo says that retention let all of a stretch go: then it is no gap.
func letGo(gap catalog.WALSpan, marks []catalog.Forgotten) bool {
	var gone []catalog.WALSpan
	for _, m := range marks {
		gone = append(gone, m.WAL...)
	}
	slices.SortFunc(gone, func(a, b catalog.WALSpan) int { return cmp.Compare(a.From, b.From) })
	for _, s := range gone {
		if s.Epoch == gap.Epoch && s.Timeline == gap.Timeline && s.From <= gap.From {
			gap.From = max(gap.From, s.To)
		}
	}
	return gap.From >= gap.To
}

func zoneWAL(name string, err error, entries []catalog.WALEntry, end lsn.LSN) walZone {
	z := walZone{Name: name}
	if err != nil {
		z.Err = err.Error()
		return z
	}
	for _, e := range entries {
		for _, has := range e.Zones {
			if has == name {
				z.Newest = max(z.Newest, e.To)
			}
		}
	}
	z.Behind = int64(end - z.Newest)
	return z
}

// window is from the oldest snapshot from which the WAL goes on without a gap to
// the newest moment that the archive is known to hold.
func (w *world) window(ctx context.Context, name string, snaps catalog.Snapshots, entries []catalog.WALEntry, spans []catalog.WALSpan) (window, error) {
	var out window
	if len(spans) == 0 || len(snaps.List) == 0 {
		return out, nil
	}
	last := spans[len(spans)-1]
	for _, s := range snaps.List {
		if s.Body.Timeline == last.Timeline && s.Body.StartLSN >= last.From && s.Body.StopLSN <= last.To && !s.Body.Suspect {
			out.From = s.Body.FinishedAt.UTC()
			break
		}
	}
	var newest []catalog.WALEntry
	for _, e := range entries {
		if e.Epoch == last.Epoch && e.Timeline == last.Timeline && e.To == last.To && e.To > e.From {
			newest = append(newest, e)
		}
	}
	notes, _, err := w.catalog.WALNotes(ctx, name, newest)
	for _, n := range notes {
		for _, t := range []time.Time{n.Body.LastTime, n.Body.ServerTime} {
			if t.After(out.To) {
				out.To = t.UTC()
			}
		}
	}
	return out, err
}

// walStatus adds what only the daemon knows.
func (n *node) walStatus(ctx context.Context, in clusterQuery) (walDoc, error) {
	doc, err := n.walStatusOf(ctx, in)
	for i := range doc.Clusters {
		c := &doc.Clusters[i]
		if rpo, known := n.rpo(c.Name); known {
			s := rpo.Seconds()
			c.RPO = &s
		}
		p := n.protectors()[c.Name]
		if p == nil {
			continue
		}
		p.mu.Lock()
		session, perr := p.session, p.err
		p.mu.Unlock()
		a := &archiveDoc{}
		if session != nil {
			pos := session.archive.Position()
			*a = archiveDoc{Durable: pos.Durable, ServerEnd: pos.ServerEnd, Behind: pos.Behind, Connected: pos.Connected}
			perr = pos.Err
		}
		if perr != nil {
			a.Err = perr.Error()
		}
		c.Archiving = a
	}
	return doc, err
}

func (d walDoc) text(w io.Writer) {
	for _, c := range d.Clusters {
		fmt.Fprintf(w, "%s: restorable from %s to %s\n", c.Name, clock(c.Window.From), clock(c.Window.To))
		if c.RPO != nil {
			fmt.Fprintf(w, "  would lose now: %s\n", span(time.Duration(*c.RPO*float64(time.Second))))
		}
		if a := c.Archiving; a != nil {
			fmt.Fprintf(w, "  archiving: durable to %s, server at %s, %s behind, connected %v %s\n", a.Durable, a.ServerEnd, size(a.Behind), a.Connected, a.Err)
		}
		for _, s := range c.Stretches {
			fmt.Fprintf(w, "  lineage %d, timeline %d: %s to %s\n", s.Lineage, s.Timeline, s.From, s.To)
		}
		for _, g := range c.Gaps {
			fmt.Fprintf(w, "  GAP on timeline %d: %s to %s\n", g.Timeline, g.From, g.To)
		}
		for _, z := range c.Zones {
			fmt.Fprintf(w, "  zone %-12s newest %s, %s behind %s\n", z.Name, z.Newest, size(z.Behind), z.Err)
		}
	}
}

// walPush archives one file for archive_command.
func (n *node) walPush(ctx context.Context, in pushIn) (pushDoc, error) {
	name, err := n.pushCluster(in.Body.Cluster)
	if err != nil {
		return pushDoc{}, err
	}
	push := func(ctx context.Context, p *protected) error {
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		s, err := p.ready(wait)
		if err != nil {
			return err
		}
		if s.pusher == nil {
			return usage("cluster %s is archived by streaming: take archive_command away, or set wal.mode: push", name)
		}
		return s.pusher.Push(ctx, snapshot.PushRequest{Path: in.Body.Path, DataDir: in.Body.DataDir})
	}
	if n.runner == nil {
		err = n.withArchiving(ctx, name, push)
	} else {
		var p *protected
		if p, err = n.live(name); err == nil {
			err = push(ctx, p)
		}
	}
	return pushDoc{filepath.Base(in.Body.Path)}, err
}

// pushCluster is the cluster of a push: the only one whose WAL is pushed, unless named.
func (n *node) pushCluster(name string) (string, error) {
	var list []string
	for _, c := range n.cfg.Clusters {
		if c.Connection != "" && (name == c.Name || name == "" && c.WAL.Mode == "push") {
			list = append(list, c.Name)
		}
	}
	if len(list) != 1 {
		return "", usage("wal push: %d clusters of the configuration fit (%s); name one with --cluster", len(list), strings.Join(list, ", "))
	}
	return list[0], nil
}

func (e *env) walCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "wal", Short: "Push, fetch and watch the write-ahead log"}
	status := &cobra.Command{Use: "status [CLUSTER]", Short: "The window, the lag and the gaps", Args: cobra.MaximumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
		in := clusterQuery{}
		if len(args) > 0 {
			in.Cluster = args[0]
		}
		doc, err := call(c.Context(), e, opWALStatus, in, (*world).walStatusOf)
		if err != nil {
			return err
		}
		return e.print(doc, doc.text)
	}}
	cmd.AddCommand(e.walPushCommand(), e.walFetchCommand(), status)
	return cmd
}

func (e *env) walPushCommand() *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use: "push PATH", Short: "Archive one file: archive_command = 'holdfast wal push %p'", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			var in pushIn
			in.Body.Cluster, in.Body.Path, in.Body.DataDir = cluster, args[0], dir
			cfg, err := e.load()
			if err != nil {
				return err
			}
			if client, err := server.Dial(c.Context(), cfg.Node.Socket); err == nil {
				_, err = server.Call(c.Context(), client, opWALPush, in)
				return err
			}
			return e.asNode(c.Context(), func(ctx context.Context, n *node) error {
				_, err := n.walPush(ctx, in)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "which `CLUSTER`, where several are pushed")
	return cmd
}

// errAbsent ends `wal fetch` with exit 1: the file is proven not to be there.
var errAbsent = errors.New("the file is not in the archive")

// fetchCode is the exit code of `wal fetch`: whatever is not a proof of absence
// is a doubt, usage and configuration included (C-62).
func fetchCode(err error) int {
	if err == nil {
		return restore.ExitFetched
	}
	if errors.Is(err, errAbsent) {
		return restore.ExitAbsent
	}
	return restore.ExitDoubt
}

func (e *env) walFetchCommand() *cobra.Command {
	var room, cluster, identity string
	cmd := &cobra.Command{
		Use: "fetch NAME DEST", Short: "Fetch one file: exit 0 fetched, 1 proven absent, 254 every doubt", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if room != "" {
				code, err := restore.FetchMain(room, args[0], args[1])
				if code == restore.ExitAbsent {
					return errors.Join(errAbsent, silent{code})
				}
				return err
			}
			return e.fetchAlone(c.Context(), cluster, identity, args[0], args[1])
		},
	}
	cmd.Flags().StringVar(&room, "room", "", "ask the restore that listens on `SOCKET`")
	cmd.Flags().StringVar(&cluster, "cluster", "", "which `CLUSTER`, where the repository has several")
	cmd.Flags().StringVar(&identity, "identity", "", "age identity `FILE` that opens data")
	return cmd
}

// fetchAlone fetches without a plan: absence is proven by fresh listings.
func (e *env) fetchAlone(ctx context.Context, cluster, identity, name, dest string) error {
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	if cluster == "" {
		names, err := w.catalog.Clusters(ctx)
		if err != nil {
			return err
		}
		if len(names) != 1 {
			return usage("wal fetch: the repository shows %d clusters (%s); name one with --cluster", len(names), strings.Join(names, ", "))
		}
		cluster = names[0]
	}
	repo, err := w.repo(configs.Secret{File: identity})
	if err != nil {
		return err
	}
	code, err := restore.FetchByName(ctx, repo, cluster, name, dest)
	if code == restore.ExitAbsent {
		return errors.Join(errAbsent, silent{code})
	}
	return err
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/snapshot"
)

func (e *env) lineageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "lineage", Short: "Who may write a cluster's snapshots and WAL"}
	var takeOver bool
	open := &cobra.Command{
		Use:   "open CLUSTER",
		Short: "Claim the lineage of a cluster for this node",
		Long: `Claims the lineage of a cluster for this node, as the daemon does when it starts.

With --take-over it claims it although the node that has it still shows life. Do this only when
you know that the other one writes no more, or must not: it is fenced off within a minute.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.openLineage(asHuman(cmd.Context()), args[0], takeOver)
		},
	}
	open.Flags().BoolVar(&takeOver, "take-over", false, "even from a node that shows life")
	cmd.AddCommand(&cobra.Command{
		Use: "list [CLUSTER]", Short: "List the writer epochs of each cluster, the newest last", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return e.listLineages(cmd.Context(), first(args)) },
	}, open)
	return cmd
}

type lineagesDocument struct {
	Lineages []catalog.Lineage `json:"lineages"`
	Complete bool              `json:"complete"`
	Faults   []string          `json:"faults"`
}

func (e *env) listLineages(ctx context.Context, only string) error {
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	names := []string{only}
	if only == "" {
		if names, err = w.catalog.Clusters(ctx); err != nil {
			return err
		}
	}
	doc := lineagesDocument{Lineages: []catalog.Lineage{}, Complete: true, Faults: []string{}}
	for _, name := range names {
		list, err := w.catalog.Lineages(ctx, name)
		if err != nil {
			return err
		}
		doc.Lineages = append(doc.Lineages, list.Bodies()...)
		doc.Complete = doc.Complete && list.Complete
		for _, f := range list.Faults {
			doc.Faults = append(doc.Faults, f.Error())
		}
	}
	return e.print(doc, func(out io.Writer) {
		var rows [][]string
		for _, l := range doc.Lineages {
			how := cmp.Or(l.How, "first")
			if l.Parent > 0 {
				how += fmt.Sprintf(" (after %d)", l.Parent)
			}
			rows = append(rows, []string{l.Cluster, fmt.Sprint(l.Epoch), l.Node, fmt.Sprint(l.Major), l.SystemID, fmt.Sprint(l.Timeline), l.StartLSN.String(), clock(l.ClaimedAt), how})
		}
		table(out, "CLUSTER\tEPOCH\tNODE\tPG\tSYSTEM ID\tTIMELINE\tFROM\tCLAIMED\tHOW", rows)
		if !doc.Complete {
			fmt.Fprintln(out, "too few zones answered: newer ones may exist")
		}
		for _, f := range doc.Faults {
			fmt.Fprintln(out, f)
		}
	})
}

func (e *env) openLineage(ctx context.Context, cluster string, takeOver bool) (err error) {
	cfg, err := e.load()
	if err != nil {
		return err
	}
	c, err := (&world{cfg: cfg}).cluster(cluster)
	if err != nil {
		return err
	}
	if c.Connection == "" {
		return usage("cluster %s has no connection in this configuration: run this on its database host", cluster)
	}
	n, err := e.openNode(ctx, cfg, e.logger())
	if errors.Is(err, durable.ErrHeld) {
		return refused("stop the daemon (systemctl stop holdfast), run this, and start it again", "claiming the lineage of %s: the daemon holds this node's state: %w", cluster, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	p, err := n.protect(c)
	if err != nil {
		return err
	}
	p.takeOver = takeOver
	s, err := p.claim(ctx)
	if err != nil {
		return claimFault(cluster, err)
	}
	if _, err := n.ledger.Anchor(ctx); err != nil {
		return fmt.Errorf("writing the claim into the ledger: %w", err)
	}
	return e.print(s.lineage, func(w io.Writer) {
		fmt.Fprintf(w, "node %s has lineage %d of %s: timeline %d from %s\n", s.lineage.Node, s.lineage.Epoch, cluster, s.lineage.Timeline, s.lineage.StartLSN)
		fmt.Fprintln(w, "start the daemon to archive under it")
	})
}

// claimFault gives each refusal of a claim its remedy.
func claimFault(cluster string, err error) error {
	remedies := []struct {
		is     error
		remedy string
	}{
		{snapshot.ErrClaimed, "stop the other daemon and wait a quarter of an hour, or, when you know that it writes no more, use --take-over"},
		{snapshot.ErrForeignServer, "correct clusters[" + cluster + "].connection, or give the other server a cluster of its own"},
		{snapshot.ErrOldTimeline, "connect to the server that was promoted: this one is an old primary or a copy of one"},
	}
	for _, r := range remedies {
		if errors.Is(err, r.is) {
			return refused(r.remedy, "claiming the lineage of %s: %w", cluster, err)
		}
	}
	remedy := "see what `holdfast check " + cluster + "` says"
	if strings.Contains(err.Error(), "connect to PostgreSQL") {
		remedy = "start the server, and " + remedy
	}
	return failed(remedy, "claiming the lineage of %s: %w", cluster, err)
}

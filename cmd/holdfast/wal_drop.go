package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/snapshot"
)

var opWALDrop = server.Op[walDropIn, snapshot.Gap]{ID: "wal-drop", Method: http.MethodPost, Path: "/v1/clusters/{cluster}/wal/drop", Summary: "Give up the WAL that only the server holds, and record the gap"}

type walDropIn struct {
	Cluster string `path:"cluster"`
	Record  bool   `query:"record_gap" doc:"Must be true: what is dropped is recorded as a gap."`
}

// walDropLimit is how long an order waits for the server.
const walDropLimit = time.Minute

// dropper is what can give up WAL: a stream.
type dropper interface {
	Drop(ctx context.Context) (snapshot.Gap, error)
}

// walDrop carries out an operator's order to give up WAL.
func (n *node) walDrop(ctx context.Context, in walDropIn) (g snapshot.Gap, err error) {
	if !in.Record {
		return g, usage("wal drop gives up WAL that only the server holds: moments in it can never be restored; say so with --record-gap")
	}
	drop := func(ctx context.Context, p *protected) error {
		ctx, cancel := context.WithTimeout(ctx, walDropLimit)
		defer cancel()
		s, err := p.ready(ctx)
		if err != nil {
			return err
		}
		d, ok := s.archive.(dropper)
		if !ok {
			return usage("cluster %s pushes its WAL: PostgreSQL keeps what archive_command did not take; see docs/runbooks/wal-on-a-full-disk.md", in.Cluster)
		}
		g, err = d.Drop(ctx)
		if errors.Is(err, snapshot.ErrNothingToDrop) {
			return refused("`holdfast wal status "+in.Cluster+"` shows what is archived", "%w", err)
		}
		return err
	}
	if n.runner == nil {
		return g, n.withArchiving(ctx, in.Cluster, drop)
	}
	p, err := n.live(in.Cluster)
	if err != nil {
		return g, err
	}
	err = drop(ctx, p)
	return g, err
}

func (e *env) walDropCommand() *cobra.Command {
	var in walDropIn
	cmd := &cobra.Command{
		Use: "drop CLUSTER --record-gap", Short: "Give up the WAL that only the server holds, so that it may remove it", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in.Cluster = args[0]
			if !in.Record {
				return usage("wal drop gives up WAL that only the server holds: moments in it can never be restored; say so with --record-gap")
			}
			g, err := e.dropWAL(c.Context(), in)
			if err != nil {
				return err
			}
			return e.print(g, func(w io.Writer) {
				fmt.Fprintf(w, "%s: the WAL from %s to %s is given up; the gap is in the ledger\n", g.Cluster, g.From, g.To)
				fmt.Fprintln(w, "what was on its way is still sent; a snapshot behind the gap is taken by the daemon as soon as the zones take it")
			})
		},
	}
	cmd.Flags().BoolVar(&in.Record, "record-gap", false, "record what is given up as a gap; required")
	return cmd
}

func (e *env) dropWAL(ctx context.Context, in walDropIn) (g snapshot.Gap, err error) {
	cfg, err := e.load()
	if err != nil {
		return g, err
	}
	if client, err := server.Dial(ctx, cfg.Node.Socket); err == nil {
		return server.Call(ctx, client, opWALDrop, in)
	}
	err = e.asNode(ctx, func(ctx context.Context, n *node) error {
		g, err = n.walDrop(asHuman(ctx), in)
		return err
	})
	return g, err
}

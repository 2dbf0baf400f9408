package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/scheduler"
)

var (
	opRetentionPlan  = server.Op[retentionIn, retention.Plan]{ID: "retention-plan", Method: http.MethodGet, Path: "/v1/clusters/{cluster}/retention/plan", Summary: "What stays and what goes, with reasons"}
	opRetentionApply = server.Op[retentionIn, jobRef]{ID: "retention-apply", Method: http.MethodPost, Path: "/v1/clusters/{cluster}/retention", Summary: "Mark what goes, and remove what was marked before the grace"}
)

type retentionIn struct {
	Cluster string `path:"cluster"`
	Force   bool   `query:"force" doc:"Also where the plan removes more than its share."`
	Approve string `query:"approve" doc:"The hash of a change of the policy, by which it may keep less."`
}

// applied is what one run of retention did.
type applied struct {
	Plan   retention.Plan    `json:"plan"`
	Mark   string            `json:"mark,omitempty"` // "" where nothing goes
	Swept  []retention.Swept `json:"swept"`
	Marked []string          `json:"marked"` // snapshots
}

// keepLedger gives retention the node's ledger.
type keepLedger struct{ n *node }

func (l keepLedger) Append(ctx context.Context, typ string, subject map[string]string, body any) (int64, error) {
	return l.n.append(ctx, typ, subject, body)
}

func (l keepLedger) AppendAnchored(ctx context.Context, typ string, subject map[string]string, body any) (int64, error) {
	return l.n.appendAnchored(ctx, typ, subject, body)
}

// policyOf converts a configured policy.
func policyOf(r configs.Retention) retention.Policy {
	zone, err := time.LoadLocation(r.TimeZone)
	if err != nil { // refused with the configuration
		zone = time.UTC
	}
	return retention.Policy{
		Window: r.Window.Std(), Hourly: r.Hourly, Daily: r.Daily, Weekly: r.Weekly, Monthly: r.Monthly, Yearly: r.Yearly, Zone: zone,
		KeepAtLeast: r.KeepAtLeast.Std(), KeepAtMost: r.KeepAtMost.Std(), RemovalGrace: r.RemovalGrace.Std(), RenewAfter: r.RenewAfter.Std(),
		Lead: min(10*time.Minute, r.KeepAtMost.Std()/20), Logical: countsOf(r.Logical), Project: countsOf(r.Project),
	}
}

func countsOf(c *configs.Counts) *retention.Counts {
	if c == nil {
		return nil
	}
	return &retention.Counts{Hourly: c.Hourly, Daily: c.Daily, Weekly: c.Weekly, Monthly: c.Monthly, Yearly: c.Yearly, KeepAtLeast: c.KeepAtLeast.Std()}
}

// keeper plans for a cluster; only a node can act with it.
func (w *world) keeper(cluster string) (*retention.Keeper, error) {
	c, err := w.cluster(cluster)
	if err != nil {
		return nil, err
	}
	k := &retention.Keeper{
		Cluster: cluster, Policy: policyOf(c.Retention), Catalog: w.catalog, Store: w.vault.Writer(), Remover: w.vault.Remover(),
		Signer: w.signer, Index: w.index, State: w.state("retention-" + cluster + ".json"), Now: w.now,
	}
	k.ApproveShorter, k.Board = c.Retention.Approve, w.board()
	if p := c.Projects; p != nil && p.Purge.Early {
		k.Early = &retention.Early{Grace: p.Purge.Grace.Std()}
	}
	if w.holder != nil {
		k.Ledger = keepLedger{w.holder.node}
	}
	return k, nil
}

func (w *world) retentionPlan(ctx context.Context, in retentionIn) (retention.Plan, error) {
	k, err := w.keeper(in.Cluster)
	if err != nil {
		return retention.Plan{}, err
	}
	return k.Plan(ctx, in.Force)
}

// doRetention carries the policy out: both acts, each idempotent.
func (n *node) doRetention(ctx context.Context, _ scheduler.Job, o order, _ func(any)) (any, error) {
	n.keeping.Lock()
	defer n.keeping.Unlock()
	k, err := n.keeper(o.Cluster)
	if err != nil {
		return nil, scheduler.Cancel(err)
	}
	if err := n.tellHolds(ctx, o.Cluster); err != nil {
		return nil, err
	}
	k.Approved = o.Approve
	out := applied{Swept: []retention.Swept{}, Marked: []string{}}
	if err := n.lookAgain(ctx, k); err != nil {
		return nil, err
	}
	if out.Plan, err = k.Plan(ctx, o.Force); err != nil {
		return nil, err
	}
	if !out.Plan.RetiredAt.IsZero() {
		n.endArchiving(ctx, o.Cluster)
	}
	n.tellPlan(ctx, out.Plan)
	n.helpEarly(ctx, out.Plan)
	if err := n.ask(ctx, o.Cluster, out.Plan.Pending); err != nil {
		return nil, err
	}
	if len(out.Plan.Refused) > 0 { // who asked reads why in the plan
		return out, nil
	}
	mark, err := k.Apply(ctx, out.Plan)
	if err != nil {
		return nil, err
	}
	if mark.ID != "" {
		out.Mark, out.Marked = mark.ID, mark.Snapshots
	}
	if out.Swept, err = k.Sweep(ctx); err != nil {
		return nil, err
	}
	return out, nil
}

// lookAgain finds what was removed and is there again, after a zone was away and once
// after each start.
func (n *node) lookAgain(ctx context.Context, k *retention.Keeper) error {
	n.mu.Lock()
	due := n.revisit[k.Cluster]
	delete(n.revisit, k.Cluster)
	n.mu.Unlock()
	if !due {
		return nil
	}
	again, err := k.Revisit(ctx)
	if err != nil {
		n.mu.Lock()
		n.revisit[k.Cluster] = true
		n.mu.Unlock()
		return err
	}
	if len(again) == 0 {
		return nil
	}
	n.log.Warn("a zone shows again what was removed; it is removed again", zap.String("cluster", k.Cluster), zap.Strings("marks", again))
	_, err = n.append(ctx, "removal.again", map[string]string{"cluster": k.Cluster}, map[string]any{"marks": again})
	return err
}

// tellPlan opens and closes the incidents that a plan gives rise to, and has a
// snapshot taken where that lets an over-retained one go.
func (n *node) tellPlan(ctx context.Context, p retention.Plan) {
	key := "retention-refused/" + p.Cluster
	if len(p.Refused) > 0 {
		n.raise(ctx, incident.Incident{
			Key: key, Cluster: p.Cluster, Severity: "warning", Title: "retention of " + p.Cluster + " is refused",
			Detail: strings.Join(p.Refused, "; "), Remedy: "look at `holdfast retention plan " + p.Cluster + "`",
		})
	} else {
		n.settle(ctx, key, "a plan could be carried out")
	}
	key = "over-retained/" + p.Cluster
	if len(p.OverRetained) == 0 {
		n.settle(ctx, key, "nothing is kept beyond its ceiling")
		return
	}
	first := p.OverRetained[0]
	n.raise(ctx, incident.Incident{
		Key: key, Cluster: p.Cluster, Severity: "warning", Title: fmt.Sprintf("%d snapshots of %s stay beyond their ceiling, or hold a deleted project too long", len(p.OverRetained), p.Cluster),
		Detail: fmt.Sprintf("%s since %s: %s", first.ID, clock(first.Since), strings.Join(first.Because, "; ")),
		Remedy: "it needs: " + strings.Join(first.Needs, ", "),
	})
	for _, need := range first.Needs {
		if need == "snapshot" {
			_ = n.enqueueSnapshot(ctx, p.Cluster, "over-retained-"+first.ID) // the next run asks again
		}
	}
}

func (n *node) serveKeeping(s *server.Server) {
	server.Serve(s, opRetentionPlan, n.retentionPlan)
	server.Serve(s, opRetentionSimulate, n.retentionSimulate)
	server.Serve(s, opRetentionReport, n.retentionReport)
	server.Serve(s, opRetentionApply, func(ctx context.Context, in retentionIn) (jobRef, error) {
		if _, err := n.cluster(in.Cluster); err != nil {
			return jobRef{}, err
		}
		return answerOrder(n.run(ctx, jobRetention, in.Cluster, order{Cluster: in.Cluster, Human: true, Force: in.Force, Approve: in.Approve}, nil))
	})
	server.Serve(s, opRetirePlan, n.retirePlan)
	server.Serve(s, opRetire, func(ctx context.Context, in retireIn) (jobRef, error) {
		if err := n.mayRetire(asHuman(ctx), in); err != nil {
			return jobRef{}, err
		}
		return answerOrder(n.run(ctx, jobRetire, in.Cluster, order{Cluster: in.Cluster, Human: true, Typed: in.Typed}, nil))
	})
	n.serveHolds(s)
	n.serveProjects(s)
}

func (e *env) retentionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "retention", Short: "Say what stays and what goes, and carry it out"}
	plan := &cobra.Command{Use: "plan CLUSTER", Short: "What stays and what goes, each with its reasons; changes nothing", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		p, err := call(c.Context(), e, opRetentionPlan, retentionIn{Cluster: args[0]}, (*world).retentionPlan)
		if err != nil {
			return err
		}
		return e.print(p, func(out io.Writer) { retentionText(out, p) })
	}}
	var force bool
	var approve string
	apply := &cobra.Command{Use: "apply CLUSTER", Short: "Mark what goes, and remove what was marked before the grace", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		return e.applyRetention(c.Context(), retentionIn{args[0], force, approve})
	}}
	apply.Flags().BoolVar(&force, "force", false, "also where the plan removes more than its share")
	apply.Flags().StringVar(&approve, "approve", "", "the `HASH` of a change of the policy that keeps less, or of an early removal, as the plan shows it")
	cmd.AddCommand(plan, apply, e.simulateCommand(), e.reportCommand())
	return cmd
}

func (e *env) applyRetention(ctx context.Context, in retentionIn) error {
	cluster := in.Cluster
	out, err := act(ctx, e, opRetentionApply, in, jobRetention, cluster, order{Cluster: cluster, Human: true, Force: in.Force, Approve: in.Approve}, "retention of "+cluster)
	if err != nil {
		return err
	}
	var doc applied
	if err := json.Unmarshal(out, &doc); err != nil {
		return fmt.Errorf("reading what retention did: %w", err)
	}
	if len(doc.Plan.Refused) > 0 {
		return refused("look at `holdfast retention plan "+cluster+"`; --force carries out a plan that only removes more than its share", "%w", doc.Plan.Err())
	}
	return e.print(doc, func(out io.Writer) {
		if doc.Mark == "" {
			fmt.Fprintln(out, "nothing new goes")
		} else {
			fmt.Fprintf(out, "marked under %s: %d snapshots %s\n", doc.Mark, len(doc.Marked), strings.Join(doc.Marked, " "))
		}
		for _, s := range doc.Swept {
			state := "done: no zone shows a version of it"
			if !s.Done {
				state = "not done yet"
			}
			if s.Kept > 0 {
				state += fmt.Sprintf(", but for %d objects that snapshots which stay need", s.Kept)
			}
			fmt.Fprintf(out, "mark %s: %d objects removed, %s\n", s.Mark, s.Removed, state)
			for z, why := range s.Owed {
				fmt.Fprintf(out, "  zone %s is owed it: %s\n", z, why)
			}
		}
	})
}

func retentionText(out io.Writer, p retention.Plan) {
	fmt.Fprintf(out, "plan %s for %s at %s\n", p.Hash, p.Cluster, clock(p.Now))
	for _, d := range append(append([]retention.Decision{}, p.Snapshots...), p.Garbage...) {
		fmt.Fprintf(out, "  %-5s %s  %s  %s\n", verb(d.Keep), d.ID, clock(d.At), strings.Join(d.Reasons, "; "))
	}
	for _, w := range p.WAL {
		fmt.Fprintf(out, "  %-5s WAL %s to %s (lineage %d, timeline %d, %d files)  %s\n", verb(w.Keep), w.From, w.To, w.Epoch, w.Timeline, w.Files, strings.Join(w.Reasons, "; "))
	}
	fmt.Fprintf(out, "window from %s on\n", clock(p.Window.From))
	if c := p.Change; c != nil {
		fmt.Fprintf(out, "POLICY CHANGED since the last plan that was carried out (change %s)\n", c.Hash)
		for _, s := range c.Shorter {
			fmt.Fprintln(out, "  it keeps less:", s)
		}
		fmt.Fprintf(out, "  because of it go now: %s, %s of WAL %s\n", count(len(c.Goes), "snapshot"), count(c.WAL, "file"), strings.Join(c.Goes, " "))
	}
	if p.Early != nil {
		earlyText(out, *p.Early, p.Cluster)
	}
	for _, o := range p.OverRetained {
		fmt.Fprintf(out, "OVER-RETAINED %s since %s: %s; needs %s\n", o.ID, clock(o.Since), strings.Join(o.Because, "; "), strings.Join(o.Needs, ", "))
	}
	for _, r := range p.Refused {
		fmt.Fprintln(out, "REFUSED", r)
	}
}

func verb(keep bool) string {
	if keep {
		return "keep"
	}
	return "GO"
}

// keepFault gives retention's and purge's ends their exit codes.
func keepFault(err error) error {
	switch {
	case errors.Is(err, retention.ErrConfirm):
		return &fault{exit: exitRefused, err: err, remedy: "type the name that was asked for, or give --yes or --confirm NAME"}
	case errors.Is(err, retention.ErrOnHold):
		return &fault{exit: exitRefused, err: err, remedy: "`holdfast hold list` shows it; it forbids this until `holdfast hold release ID`"}
	case errors.Is(err, retention.ErrSimulate):
		return &fault{exit: exitRefused, err: err, remedy: "`holdfast zone list` shows which zones are away; --from-nothing begins without them"}
	case errors.Is(err, retention.ErrRefused), errors.Is(err, retention.ErrHold), errors.Is(err, retention.ErrUnapproved):
		return &fault{exit: exitRefused, err: err}
	}
	return err
}

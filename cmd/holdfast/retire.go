package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/scheduler"
)

var (
	opRetirePlan = server.Op[retireIn, retention.Retirement]{ID: "cluster-retire-plan", Method: http.MethodGet, Path: "/v1/clusters/{cluster}/retire", Summary: "What the end of a cluster would remove, and what it waits for"}
	opRetire     = server.Op[retireIn, jobRef]{ID: "cluster-retire", Method: http.MethodPost, Path: "/v1/clusters/{cluster}/retire", Summary: "End a cluster for good: all of it goes"}
)

type retireIn struct {
	Cluster string `path:"cluster"`
	Typed   string `query:"typed" doc:"The cluster's name, where no approvers are configured."`
}

// retiredRun is the answer of `cluster retire`.
type retiredRun struct {
	Retirement retention.Retirement `json:"retirement"`
	Applied    json.RawMessage      `json:"applied,omitempty"` // the first run of retention after it
}

// errRetired ends what would take more of a cluster that is retired.
var errRetired = &fault{exit: exitRefused, err: errors.New("the cluster is retired: no snapshot and no WAL of it is taken any more"), remedy: "protect it under another name, or take its configuration and its archive_command or slot away"}

// retired says whether a cluster is.
func (w *world) retired(ctx context.Context, cluster string) (bool, error) {
	list, err := w.catalog.Retired(ctx, cluster)
	return len(list.List) > 0, err
}

func (w *world) retirePlan(ctx context.Context, in retireIn) (retention.Retirement, error) {
	k, err := w.keeper(in.Cluster)
	if err != nil {
		return retention.Retirement{}, err
	}
	if in.Typed == in.Cluster {
		k.Confirmed = true
	}
	r, err := k.PlanRetirement(ctx)
	return r, keepFault(err)
}

// mayRetire refuses what is on hold or not approved; what waits is put where approvers
// find it.
func (n *node) mayRetire(ctx context.Context, in retireIn) error {
	r, err := n.retirePlan(ctx, in)
	if err != nil {
		return err
	}
	err = r.Refused()
	if errors.Is(err, retention.ErrUnapproved) {
		if err := n.ask(ctx, in.Cluster, []retention.Pending{r.Pending()}); err != nil {
			return err
		}
	}
	return keepFault(err)
}

// doRetire ends a cluster, and runs retention at once: everything is marked. It runs in the
// cluster's lane, so no snapshot is being taken.
func (n *node) doRetire(ctx context.Context, job scheduler.Job, o order, progress func(any)) (any, error) {
	if err := n.mayRetire(ctx, retireIn{o.Cluster, o.Typed}); err != nil {
		return nil, err
	}
	var out retiredRun
	err := func() (err error) {
		n.keeping.Lock()
		defer n.keeping.Unlock()
		k, err := n.keeper(o.Cluster)
		if err != nil {
			return err
		}
		k.Confirmed = o.Typed == o.Cluster
		out.Retirement, err = k.Retire(ctx, n.cfg.Node.Name)
		return keepFault(err)
	}()
	if err != nil {
		return nil, err
	}
	done, err := n.doRetention(ctx, job, order{Cluster: o.Cluster, Human: o.Human}, progress)
	if err == nil {
		out.Applied = marshal(done)
	}
	return out, err
}

// endArchiving stops what takes the WAL of a cluster that is retired.
func (n *node) endArchiving(ctx context.Context, cluster string) {
	p := n.protectors()[cluster]
	if p == nil || !p.retire() {
		return
	}
	n.log.Info("the cluster is retired: archiving ends", zap.String("cluster", cluster))
	open, err := n.incidents.List()
	if err != nil {
		n.log.Error("cannot read the incidents of a cluster that is retired", zap.String("cluster", cluster), zap.Error(err))
	}
	for _, i := range open {
		kind, _, _ := strings.Cut(i.Key, "/")
		if i.Open() && i.Cluster == cluster && slices.Contains(takingKinds, kind) {
			n.settle(ctx, i.Key, "the cluster is retired")
		}
	}
}

// takingKinds are the kinds of incidents about what is not taken of a cluster.
var takingKinds = []string{"archiving", "rpo", "snapshot-failed", "slot", "wal-gap", "bad-pages"}

func (p *protected) isRetired() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// retire ends archiving for good; false: it had ended.
func (p *protected) retire() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	p.ended = true
	if p.end != nil {
		p.end()
	}
	return true
}

func (e *env) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "End the protection of a cluster"}
	var in retireIn
	var dry bool
	retire := &cobra.Command{
		Use: "retire CLUSTER", Short: "Remove all of a cluster, the newest snapshot too, and take no more of it", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in.Cluster = args[0]
			if dry {
				return e.showRetirement(c.Context(), in)
			}
			return e.retire(c.Context(), in)
		},
	}
	retire.Flags().BoolVar(&dry, "dry-run", false, "show the plan and its hash; change nothing")
	retire.Flags().StringVar(&in.Typed, "confirm", "", "the cluster's `NAME`, instead of typing it")
	cmd.AddCommand(retire)
	return cmd
}

func (e *env) showRetirement(ctx context.Context, in retireIn) error {
	r, err := call(ctx, e, opRetirePlan, in, (*world).retirePlan)
	if err != nil {
		return err
	}
	return e.print(r, func(out io.Writer) { retirementText(out, r) })
}

// retire shows the plan, has the name typed where that is what counts, and ends the cluster.
func (e *env) retire(ctx context.Context, in retireIn) error {
	r, err := call(ctx, e, opRetirePlan, in, (*world).retirePlan)
	if err != nil {
		return err
	}
	if e.output == "text" {
		retirementText(e.out, r)
	}
	if err := r.Refused(); errors.Is(err, retention.ErrConfirm) {
		if in.Typed, err = e.typed("This cannot be undone. Type the cluster's name to go on: "); err != nil {
			return err
		}
	}
	out, err := act(ctx, e, opRetire, in, jobRetire, in.Cluster, order{Cluster: in.Cluster, Human: true, Typed: in.Typed}, "retiring "+in.Cluster)
	if err != nil {
		return err
	}
	var doc retiredRun
	if err := json.Unmarshal(out, &doc); err != nil {
		return fmt.Errorf("reading what was retired: %w", err)
	}
	return e.print(doc, func(out io.Writer) {
		fmt.Fprintf(out, "cluster %s is retired since %s: no snapshot and no WAL of it is taken any more; what there was is marked, and goes %s after that\n", in.Cluster, clock(doc.Retirement.RetiredAt), spanOf(doc.Retirement.Plan.RemovalGrace))
		fmt.Fprintln(out, "keep it in the configuration until `retention report` shows that nothing is left; drop its replication slot or archive_command on the server now, or WAL fills its disk")
	})
}

func retirementText(out io.Writer, r retention.Retirement) {
	fmt.Fprintf(out, "plan %s: the end of cluster %s\n", r.Hash, r.Plan.Cluster)
	for _, line := range retireLines(r.Plan) {
		fmt.Fprintln(out, " ", line)
	}
	fmt.Fprintf(out, "  now there are %s, the newest of %s, and %s of WAL\n", count(len(r.Snapshots), "snapshot"), clock(r.Newest), count(r.WALFiles, "file"))
	for _, id := range r.Snapshots {
		fmt.Fprintln(out, "    snapshot", id)
	}
	for _, h := range r.Holds {
		fmt.Fprintln(out, "  FORBIDDEN by", h)
	}
	switch {
	case !r.RetiredAt.IsZero():
		fmt.Fprintln(out, "  it is retired since", clock(r.RetiredAt))
	case r.Standing.Needed > 0:
		fmt.Fprintln(out, " ", r.Standing.Text())
	}
}

// retireLines say what of a retirement is approved.
func retireLines(p retention.RetirePlan) []string {
	var list []string
	for _, l := range p.Lineages {
		list = append(list, fmt.Sprintf("%d (system %s)", l.Epoch, l.SystemID))
	}
	return []string{
		"ALL snapshots and WAL of cluster " + p.Cluster + " are removed from every zone, the newest and the newest proven too; objects go " + spanOf(p.RemovalGrace) + " after they are marked",
		"no snapshot and no WAL of it is taken from then on; tombstones, certificates and ledgers stay",
		"lineages: " + strings.Join(list, ", "),
	}
}

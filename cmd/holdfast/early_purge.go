package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// helpEarly has made what lets the last copies of deleted projects go: a full snapshot,
// which needs no pack from before, then a drill of it. Each reason is one job, ever: the
// next snapshot is another reason.
func (n *node) helpEarly(ctx context.Context, p retention.Plan) {
	if p.Early == nil || n.runner == nil || len(p.Snapshots) == 0 {
		return
	}
	newest := ""
	for _, d := range p.Snapshots {
		if d.Kind == "" { // what is exported lets no other go
			newest = d.ID
		}
	}
	for _, w := range p.Early.Waits {
		var jobs []scheduler.Job
		switch {
		case slices.Contains(w.Needs, "snapshot"):
			jobs = []scheduler.Job{{Kind: jobSnapshot, Lane: p.Cluster, Key: "snapshot/" + p.Cluster + "/purge-early-" + newest, Payload: marshal(order{Cluster: p.Cluster, Full: true})}}
		case slices.Contains(w.Needs, "drill") && w.ID != newest:
			jobs = n.drillsOf(p.Cluster, "purge-early-"+newest)
		}
		for _, job := range jobs {
			if _, _, err := n.runner.Enqueue(ctx, job); err != nil {
				n.log.Error("cannot have made what lets a deleted project go", zap.String("cluster", p.Cluster), zap.String("job", job.Kind), zap.Error(err))
			}
		}
	}
}

// drillsOf are this node's drills of a cluster's newest snapshot.
func (n *node) drillsOf(cluster, why string) (jobs []scheduler.Job) {
	for _, d := range n.cfg.Drills {
		if d.Cluster == cluster && d.Select == "latest" {
			jobs = append(jobs, scheduler.Job{Kind: jobDrill, Lane: "drill/" + d.Environment, Key: "drill/" + d.Name + "/" + why, Payload: marshal(order{Drill: d.Name})})
		}
	}
	return jobs
}

// earlyText shows what an early removal would do, and what it waits for.
func earlyText(out io.Writer, e retention.EarlyPurge, cluster string) {
	fmt.Fprintf(out, "EARLY REMOVAL before retention, for purge %s, the first due %s\n", strings.Join(e.Plan.Purges, ", "), clock(e.Deadline))
	for _, line := range earlyPlanLines(e.Plan) {
		fmt.Fprintln(out, " ", line)
	}
	for _, w := range e.Waits {
		fmt.Fprintf(out, "  snapshot %s needs: %s\n", w.ID, strings.Join(w.Needs, ", "))
	}
	switch {
	case e.Hash == "":
		fmt.Fprintln(out, "  nothing can go before that")
	case e.Approved:
		fmt.Fprintf(out, "  plan %s is approved: the next `retention apply %s`, or the daemon, marks it\n", e.Hash, cluster)
	case e.Standing.Needed > 0:
		fmt.Fprintf(out, "  plan %s waits: %s\n", e.Hash, e.Standing.Text())
	default:
		fmt.Fprintf(out, "  plan %s waits for `holdfast retention apply %s --approve %s`\n", e.Hash, cluster, e.Hash)
	}
}

// earlyPlanLines say what of an early removal is approved.
func earlyPlanLines(p retention.EarlyPlan) (lines []string) {
	for _, id := range p.Snapshots {
		lines = append(lines, "goes: snapshot "+id)
	}
	for _, w := range p.WAL {
		lines = append(lines, fmt.Sprintf("goes: WAL %s to %s (lineage %d, timeline %d)", w.From, w.To, w.Epoch, w.Timeline))
	}
	for _, s := range p.Stays {
		lines = append(lines, fmt.Sprintf("stays, though it holds them: snapshot %s (%s)", s.ID, strings.Join(s.Because, "; ")))
	}
	return append(lines, "afterwards the window begins "+clock(p.Window.From)+"; objects go "+spanOf(p.RemovalGrace)+" after they are marked")
}

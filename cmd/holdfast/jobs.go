package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/scheduler"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// The kinds of jobs.
const (
	jobSnapshot  = "snapshot"
	jobRetention = "retention"
	jobPurge     = "purge"
	jobDrill     = "drill"
	jobRetire    = "retire"
)

// orderAttempts is how often an order of a person is begun: an error ends it, but
// the daemon may die under it.
const orderAttempts = 3

// order is the payload of a job: what it is about, and whether a person asked.
type order struct {
	Cluster string `json:"cluster,omitempty"`
	Drill   string `json:"drill,omitempty"`
	Human   bool   `json:"human,omitempty"`
	Force   bool   `json:"force,omitempty"`
	Approve string `json:"approve,omitempty"`
	Full    bool   `json:"full,omitempty"`
	Typed   string `json:"typed,omitempty"`
	// Kind is of a snapshot that is no physical one, KeyMAC whose a project's is: jobs
	// outlive projects, and name none.
	Kind   string `json:"kind,omitempty"`
	KeyMAC string `json:"key_mac,omitempty"`
}

// handlers carry out jobs, by kind.
func (n *node) handlers() map[string]scheduler.Handler {
	out := map[string]scheduler.Handler{}
	for kind, do := range map[string]func(context.Context, scheduler.Job, order, func(any)) (any, error){
		jobSnapshot: n.doSnapshot, jobRetention: n.doRetention, jobPurge: n.doPurge, jobDrill: n.doDrill, jobRetire: n.doRetire,
	} {
		out[kind] = func(ctx context.Context, job scheduler.Job, progress func(any)) (any, error) {
			var o order
			if err := json.Unmarshal(job.Payload, &o); err != nil {
				return nil, scheduler.Cancel(fmt.Errorf("reading the job's payload: %w", err))
			}
			if o.Human {
				ctx = asHuman(ctx)
			}
			out, err := do(ctx, job, o, func(v any) { progress(v); crashPoint("during "+job.Kind, v) })
			crashPoint("after "+job.Kind, nil)
			if err != nil && o.Human && ctx.Err() == nil {
				err = scheduler.Cancel(err) // who asked is told; only a death of the daemon is made up for
			}
			return out, err
		}
	}
	return out
}

// takeProgress is how far a snapshot has come, as a job shows it.
type takeProgress struct {
	Step  string `json:"step"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

func (n *node) doSnapshot(ctx context.Context, _ scheduler.Job, o order, progress func(any)) (any, error) {
	var doc snapshotDoc
	take := func(ctx context.Context, p *protected) error {
		tell := func(s snapshot.Progress) { progress(takeProgress{s.Step, s.Done, s.Total}) }
		var snap catalog.Snapshot
		var err error
		if catalog.Exported(o.Kind) {
			snap, err = p.takeLogical(ctx, o, tell)
		} else {
			snap, err = p.take(ctx, o.Full, tell)
		}
		doc = n.describe(ctx, snap)
		if err == nil {
			n.grew.Store(true)
		}
		return err
	}
	if gone, err := n.retired(ctx, o.Cluster); err != nil || gone {
		if gone {
			err = scheduler.Cancel(errRetired)
		}
		return nil, err
	}
	if n.runner == nil {
		err := n.withArchiving(ctx, o.Cluster, take)
		return doc, err
	}
	p, err := n.live(o.Cluster)
	if err == nil {
		err = take(ctx, p)
	}
	if err != nil && final(err) {
		return nil, scheduler.Cancel(err)
	}
	return doc, err
}

// live is the protector of a cluster that this node reaches.
func (n *node) live(cluster string) (*protected, error) {
	n.mu.Lock()
	p := n.clusters[cluster]
	n.mu.Unlock()
	if p == nil {
		return nil, usage("cluster %q has no connection in this node's configuration: run this on the node that reaches it", cluster)
	}
	return p, nil
}

// schedules are the configuration's, as the scheduler knows them.
func (n *node) schedules() []scheduler.Schedule {
	var out []scheduler.Schedule
	for _, c := range n.cfg.Clusters {
		if c.Connection == "" {
			continue
		}
		payload := marshal(order{Cluster: c.Name})
		out = append(out,
			scheduler.Schedule{Name: "snapshot/" + c.Name, Spec: string(c.Snapshots.Schedule), Kind: jobSnapshot, Lane: c.Name, Payload: payload, Limit: 24 * time.Hour, MaxAttempts: 5},
			scheduler.Schedule{Name: "retention/" + c.Name, Spec: "*/5 * * * *", Kind: jobRetention, Lane: c.Name, Payload: payload, Limit: 6 * time.Hour, MaxAttempts: 3},
		)
		if c.Projects != nil {
			out = append(out, scheduler.Schedule{Name: "purge/" + c.Name, Spec: "* * * * *", Kind: jobPurge, Lane: c.Name, Payload: payload, Limit: time.Hour, MaxAttempts: 3})
		}
	}
	for _, d := range n.cfg.Drills {
		if d.Schedule == "" {
			continue
		}
		out = append(out, scheduler.Schedule{
			Name: "drill/" + d.Name, Spec: string(d.Schedule), Kind: jobDrill, Lane: "drill/" + d.Environment,
			Payload: marshal(order{Drill: d.Name}), Limit: d.Limits.Time.Std() + time.Hour, MaxAttempts: 3, // its slot keeps its choice and gets one outcome, however often it is begun
		})
	}
	return out
}

// enqueueSnapshot has a snapshot taken soon; key keeps two reasons that are one
// from taking two.
func (n *node) enqueueSnapshot(ctx context.Context, cluster, key string) error {
	if n.runner == nil {
		return nil // without a daemon the next one sees the gap
	}
	_, _, err := n.runner.Enqueue(ctx, scheduler.Job{Kind: jobSnapshot, Lane: cluster, Key: "snapshot/" + cluster + "/" + key, Payload: marshal(order{Cluster: cluster})})
	return err
}

// missed is told of slots that passed without a run.
func (n *node) missed(ctx context.Context, s scheduler.Schedule, slots []time.Time) error {
	var o order
	if err := json.Unmarshal(s.Payload, &o); err != nil {
		return err
	}
	if s.Kind == jobDrill {
		return n.missedDrills(ctx, o.Drill, slots, "no daemon ran when it was due")
	}
	if s.Kind != jobSnapshot {
		return nil
	}
	_, err := n.append(ctx, "snapshot.missed", map[string]string{"cluster": o.Cluster}, map[string]any{"slots": slots})
	return err
}

// finished is told of a job's end: one that gave up is an incident.
func (n *node) finished(ctx context.Context, job scheduler.Job) {
	key := "job-failed/" + job.Kind + "/" + job.Lane
	if job.State == scheduler.Done {
		n.settle(ctx, key, fmt.Sprintf("job %d did it", job.ID))
		return
	}
	if job.Kind == jobDrill {
		n.drillGaveUp(ctx, job)
	}
	if job.State == scheduler.Failed && job.Kind != jobSnapshot && job.Kind != jobDrill {
		n.raise(ctx, incident.Incident{
			Key: key, Severity: "warning", Title: fmt.Sprintf("%s of %s failed", job.Kind, job.Lane), Detail: job.Error,
			Remedy: "mend what it says; the next run tries again",
		})
	}
}

// run carries out one order now, by the daemon's queue when there is one (and
// waits for it), else here.
func (n *node) run(ctx context.Context, kind, lane string, o order, progress func(any)) (json.RawMessage, error) {
	if n.runner == nil {
		out, err := n.handlers()[kind](ctx, scheduler.Job{Kind: kind, Lane: lane, Payload: marshal(o), CreatedAt: n.now()}, progress)
		if err != nil {
			return nil, err
		}
		return marshal(out), nil
	}
	id, _, err := n.runner.Enqueue(ctx, scheduler.Job{Kind: kind, Lane: lane, Payload: marshal(o), MaxAttempts: orderAttempts})
	if err != nil {
		return nil, err
	}
	return nil, queued(id)
}

// queued says that the daemon has taken the order as a job.
type queued int64

func (q queued) Error() string { return fmt.Sprintf("queued as job %d", int64(q)) }

// asJob is what the API answers to an order.
type jobRef struct {
	Job    int64           `json:"job,omitempty"`
	Output json.RawMessage `json:"output,omitempty"`
}

func answerOrder(out json.RawMessage, err error) (jobRef, error) {
	var q queued
	if errors.As(err, &q) {
		return jobRef{Job: int64(q)}, nil
	}
	return jobRef{Output: out}, err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/internal/thin"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/scheduler"
)

var (
	opDrillRun  = server.Op[drillIn, jobRef]{ID: "drill-run", Method: http.MethodPost, Path: "/v1/drills/{name}/runs", Summary: "Run a drill now"}
	opDrillList = server.Op[drillQuery, drillsDoc]{ID: "drill-list", Method: http.MethodGet, Path: "/v1/drills", Summary: "The drills' records, the newest first"}
	opDrillShow = server.Op[drillShowIn, drills.Record]{ID: "drill-show", Method: http.MethodGet, Path: "/v1/drills/records/{id}", Summary: "One drill's record"}
)

type drillIn struct {
	Name string `path:"name"`
}

type drillQuery struct {
	Name  string `query:"name"`
	Limit int    `query:"limit"`
}

type drillShowIn struct {
	ID string `path:"id"`
}

type drillsDoc struct {
	Drills []drills.Record `json:"drills"`
}

func (n *node) serveDrills(s *server.Server) {
	server.Serve(s, opRecord, n.record)
	server.Serve(s, opRotated, n.rotated)
	server.Serve(s, opDrillRun, func(ctx context.Context, in drillIn) (jobRef, error) {
		d, err := n.drill(in.Name)
		if err != nil {
			return jobRef{}, err
		}
		return answerOrder(n.run(ctx, jobDrill, "drill/"+d.Environment, order{Drill: d.Name, Human: true}, nil))
	})
	server.Serve(s, opDrillList, n.drillList)
	server.Serve(s, opDrillShow, n.drillShow)
}

// drill finds a configured drill.
func (w *world) drill(name string) (configs.Drill, error) {
	var known []string
	for _, d := range w.cfg.Drills {
		if d.Name == name {
			return d, nil
		}
		known = append(known, d.Name)
	}
	return configs.Drill{}, usage("drill %q is not in the configuration (it has: %s)", name, strings.Join(known, ", "))
}

// definition converts a configured drill.
func (w *world) definition(d configs.Drill) (def drills.Definition, env configs.Environment, err error) {
	for _, e := range w.cfg.Environments {
		if e.Name == d.Environment {
			env = e
		}
	}
	def = drills.Definition{
		Name: d.Name, Cluster: d.Cluster, Schedule: string(d.Schedule), Select: d.Select, Zone: d.Zone, Level: d.Level,
		Objectives:  drills.Objectives{RPO: d.Objectives.RPO.Std(), RTO: d.Objectives.RTO.Std()},
		Limits:      drills.Limits{Disk: int64(d.Limits.Disk), Time: d.Limits.Time.Std()},
		Environment: drills.Environment{Name: env.Name, Directory: env.Directory, Binaries: env.Binaries, User: env.User},
	}
	for _, c := range w.cfg.Clusters {
		if c.Name == d.Cluster {
			if def.Objectives.RPO == 0 {
				def.Objectives.RPO = c.Objectives.RPO.Std()
			}
			if def.Objectives.RTO == 0 {
				def.Objectives.RTO = c.Objectives.RTO.Std()
			}
		}
	}
	for _, c := range d.Checks {
		def.Checks = append(def.Checks, drills.Question(c))
	}
	return def, env, nil
}

// drillDeps are what a drill works with; the identity is its environment's.
func (n *node) drillDeps(ctx context.Context, env configs.Environment) (drills.Deps, error) {
	repo := restore.Repo{Reader: n.vault.Reader(), Catalog: n.catalog, Trust: n.trust, Index: n.index}
	if env.Identity != nil {
		ids, err := loadIdentities(*env.Identity)
		if err != nil {
			return drills.Deps{}, err
		}
		repo.Data = ids
	}
	program, err := thin.Small()
	if err != nil {
		return drills.Deps{}, fmt.Errorf("finding this program: %w", err)
	}
	return drills.Deps{
		Repo: repo, Log: n.ledger, Proofs: drills.SignedProofs{Signer: n.signer, Store: n.vault.Writer()}, Incidents: n.incidents,
		Replay: n.replayer(repo.Data), Digests: n.digestsBy(repo.Data), Program: program, Workers: n.cfg.Node.Limits.Workers, Actor: actor(ctx), Now: n.now,
	}, nil
}

// doDrill runs one drill: for its slot, or because a person asked.
func (n *node) doDrill(ctx context.Context, job scheduler.Job, o order, progress func(any)) (any, error) {
	d, err := n.drill(o.Drill)
	if err != nil {
		return nil, scheduler.Cancel(err)
	}
	def, env, err := n.definition(d)
	if err != nil {
		return nil, scheduler.Cancel(err)
	}
	if err := n.mayHold(ctx, d.Cluster, "environment "+env.Name+" of drill "+d.Name, n.cfg.Jurisdiction(env)); err != nil {
		return nil, scheduler.Cancel(err)
	}
	deps, err := n.drillDeps(ctx, env)
	if err != nil {
		return nil, scheduler.Cancel(err)
	}
	deps.Progress = func(_ string, p restore.Progress) { progress(takeProgress{p.Phase, p.Done, p.Total}) }
	slot := slotOf(d.Name, job)
	if o.Human {
		slot.Trigger = "human"
	}
	ctx, end := stoppable(ctx)
	defer end()
	rec, err := drills.Run(ctx, deps, def, slot)
	if err != nil {
		return nil, err
	}
	n.log.Info("drill ended", zap.String("drill", d.Name), zap.String("id", rec.ID), zap.String("outcome", rec.Outcome.Outcome), zap.String("level", rec.Level), zap.String("reason", rec.Reason))
	n.notify.Send(ctx, "drill", rec)
	return rec, nil
}

// slotOf is the slot of a job: the schedule's, or for one that was asked for its
// own. A job that runs again has the same one.
func slotOf(drill string, job scheduler.Job) drills.Slot {
	if job.Slot.IsZero() {
		at := job.CreatedAt.UTC()
		return drills.Slot{Key: drill + "/asked/" + at.Format(time.RFC3339Nano), DueAt: at, Trigger: "schedule"}
	}
	return drills.Slot{Key: drills.SlotKey(drill, job.Slot), DueAt: job.Slot, Trigger: "schedule"}
}

// stoppable tells a drill in its own words that the daemon stops: its slot stays
// open and it runs again.
func stoppable(ctx context.Context) (context.Context, func()) {
	told, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		cause := context.Cause(ctx)
		if errors.Is(cause, scheduler.ErrStopping) {
			cause = drills.ErrStopping
		}
		cancel(cause)
	})
	return told, func() { stop(); cancel(nil) }
}

// drillGaveUp gives the slot of a drill's job that will not run again an outcome.
func (n *node) drillGaveUp(ctx context.Context, job scheduler.Job) {
	var o order
	err := json.Unmarshal(job.Payload, &o)
	if err == nil && !job.Slot.IsZero() {
		err = n.missedDrills(ctx, o.Drill, []time.Time{job.Slot}, job.Error)
	}
	if err = errors.Join(err, n.closeDrills(ctx)); err != nil {
		n.log.Error("a drill's slot has no outcome yet", zap.String("drill", o.Drill), zap.Int64("job", job.ID), zap.Error(err))
	}
}

// owedFor is how old a slot without an outcome can be.
const owedFor = 60 * 24 * time.Hour

// closeDrills gives the slots that were announced, and that no job will run
// again, their outcome.
func (n *node) closeDrills(ctx context.Context) error {
	owed, err := drills.Owed(ctx, n.ledger, n.now().Add(-owedFor))
	if err != nil || len(owed) == 0 {
		return err
	}
	jobs, err := n.runner.Queue.List(ctx, scheduler.Filter{Kind: jobDrill, States: []scheduler.State{scheduler.Available, scheduler.Running}})
	if err != nil {
		return err
	}
	alive := map[string]bool{}
	for _, job := range jobs {
		var o order
		if err := json.Unmarshal(job.Payload, &o); err != nil {
			return err
		}
		alive[slotOf(o.Drill, job).Key] = true
	}
	var errs []error
	for _, s := range owed {
		if !alive[s.Slot] {
			errs = append(errs, n.closeDrill(ctx, s.Drill, drills.Slot{Key: s.Slot, DueAt: s.DueAt, Deadline: s.Deadline}, "its process ended"))
		}
	}
	return errors.Join(errs...)
}

// missedDrills writes down the slots that passed without a run.
func (n *node) missedDrills(ctx context.Context, name string, slots []time.Time, why string) error {
	for _, at := range slots {
		slot := drills.Slot{Key: drills.SlotKey(name, at), DueAt: at, Trigger: "schedule"}
		if err := n.closeDrill(ctx, name, slot, why); err != nil {
			return err
		}
	}
	return nil
}

// closeDrill gives one slot an outcome without a run.
func (n *node) closeDrill(ctx context.Context, name string, slot drills.Slot, why string) error {
	d, err := n.drill(name)
	if err != nil {
		return err
	}
	def, env, err := n.definition(d)
	if err != nil {
		return err
	}
	deps, err := n.drillDeps(ctx, env)
	if err != nil {
		return err
	}
	n.closing.Lock() // two at once would both find it open
	defer n.closing.Unlock()
	_, err = drills.Missed(ctx, deps, def, slot, why)
	return err
}

// sweepDrills removes what killed drills left.
func (n *node) sweepDrills(ctx context.Context) error {
	var errs []error
	for _, d := range n.cfg.Drills {
		def, _, err := n.definition(d)
		if err != nil {
			return err
		}
		swept, err := drills.Sweep(ctx, def.Environment)
		errs = append(errs, err)
		for _, s := range swept {
			n.log.Warn("removed what a killed drill left", zap.String("drill", s.Name), zap.String("slot", s.Slot))
		}
	}
	return errors.Join(errs...)
}

// zoneLog is a ledger as the zones hold it, for reading drills back.
type zoneLog struct {
	src ledger.Source
	c   ledger.Checkpoint
}

func (l zoneLog) Entries(ctx context.Context, from, to int64) ([]ledger.Record, error) {
	return ledger.Read(ctx, l.src, l.c, from, to)
}

func (l zoneLog) Status() ledger.Status { return ledger.Status{Size: l.c.Size, Anchored: l.c} }

// logs are all ledgers of the repository.
func (w *world) logs(ctx context.Context) ([]zoneLog, error) {
	origins, err := w.origins(ctx)
	if err != nil {
		return nil, err
	}
	src := ledger.FromReader(w.vault.Reader())
	var out []zoneLog
	for _, o := range origins {
		c, err := ledger.Latest(ctx, src, w.trust, w.repoID, o)
		if err != nil {
			w.log.Warn("leaving out a ledger that cannot be read", zap.String("origin", o), zap.Error(err))
			continue
		}
		out = append(out, zoneLog{src, c})
	}
	return out, nil
}

func (w *world) drillList(ctx context.Context, in drillQuery) (drillsDoc, error) {
	doc := drillsDoc{[]drills.Record{}}
	logs, err := w.logs(ctx)
	if err != nil {
		return doc, err
	}
	limit := in.Limit
	if limit <= 0 {
		limit = 50
	}
	for _, l := range logs {
		list, err := drills.List(ctx, l, in.Name, limit)
		if err != nil {
			return doc, err
		}
		doc.Drills = append(doc.Drills, list...)
	}
	slices.SortStableFunc(doc.Drills, func(a, b drills.Record) int { return b.FinishedAt.Compare(a.FinishedAt) })
	doc.Drills = doc.Drills[:min(limit, len(doc.Drills))]
	return doc, nil
}

func (w *world) drillShow(ctx context.Context, in drillShowIn) (drills.Record, error) {
	logs, err := w.logs(ctx)
	if err != nil {
		return drills.Record{}, err
	}
	for _, l := range logs {
		r, err := drills.Show(ctx, l, in.ID)
		if err == nil || !errors.Is(err, drills.ErrUnknown) {
			return r, err
		}
	}
	return drills.Record{}, usage("no ledger holds a drill %q; `holdfast drill list` shows those there are", in.ID)
}

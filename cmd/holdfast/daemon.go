package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/scheduler"
)

func (e *env) daemonCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Archive, take, keep, forget and drill by the configuration's schedules",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := e.load()
			if err != nil {
				return err
			}
			n, err := e.openNode(cmd.Context(), cfg, daemonLogger())
			if err != nil {
				return err
			}
			err = n.daemon(cmd.Context())
			return errors.Join(err, n.close())
		},
	}
}

// daemon runs everything until ctx ends.
func (n *node) daemon(ctx context.Context) error {
	queue, err := scheduler.OpenSQLite(ctx, n.state("jobs.db"), n.now)
	if err != nil {
		return err
	}
	n.onClose(queue.Close)
	n.runner = &scheduler.Runner{
		Queue: queue, Handlers: n.handlers(), Schedules: n.schedules(), OnMissed: n.missed, OnFinished: n.finished,
		Grace: 20 * time.Second, Now: n.now, Log: n.log.Named("scheduler"),
	}
	if err := n.sweepDrills(ctx); err != nil {
		n.log.Error("cannot clear what an earlier drill left", zap.Error(err))
	}
	api, err := n.api(ctx)
	if err != nil {
		return err
	}
	listeners, err := n.listen(ctx)
	if err != nil {
		return err
	}
	var archives []*protected
	for _, c := range n.cfg.Clusters {
		if c.Connection == "" {
			continue
		}
		p, err := n.protect(c)
		if err != nil {
			return err
		}
		archives = append(archives, p)
	}
	// Jobs end first: what they still do needs the archive, the zones and the ledger.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(serving)
	working, rest := context.WithCancel(gctx)
	defer context.AfterFunc(ctx, rest)()
	g.Go(func() error {
		defer stop()
		return n.runner.Run(working)
	})
	g.Go(func() error { return api.Run(gctx, listeners...) })
	g.Go(func() error { return n.vault.Run(gctx) })
	g.Go(func() error { return n.keepLedger(gctx) })
	g.Go(func() error { return n.watch(gctx) })
	g.Go(func() error { return n.watchDisk(gctx) })
	g.Go(func() error { return n.tendCopies(gctx) })
	g.Go(func() error { return n.tendProbes(gctx) })
	g.Go(func() error { return n.keepPlans(gctx) })
	g.Go(func() error {
		if err := n.closeDrills(gctx); err != nil && gctx.Err() == nil {
			n.log.Error("cut-off drills have no outcome yet; the next start tries again", zap.Error(err))
		}
		return nil
	})
	for _, p := range archives {
		g.Go(func() error { return p.Run(gctx) })
		g.Go(func() error { return p.watchWAL(gctx) })
	}
	n.log.Info("daemon started", zap.String("node", n.cfg.Node.Name), zap.String("repository", n.repoID), zap.String("ledger", n.ledger.Origin()), zap.String("version", version))
	sdNotify(daemon.SdNotifyReady)
	err = g.Wait()
	sdNotify(daemon.SdNotifyStopping)
	n.notify.Wait()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		n.log.Info("daemon stopped")
		return nil
	}
	return err
}

// keepLedger runs the ledger. A log that a copy of this state wrote as well is for
// good at its end, and no reason to archive nothing: what must be in the ledger
// before it is done fails from here on.
func (n *node) keepLedger(ctx context.Context) error {
	err := n.ledger.Run(ctx)
	if !errors.Is(err, ledger.ErrForked) && !errors.Is(err, ledger.ErrRolledBack) {
		return err
	}
	n.raise(context.WithoutCancel(ctx), incident.Incident{
		Key: "ledger-forked", Severity: "critical", Title: "the ledger of this node was written by another copy of its state",
		Detail: err.Error(), Remedy: "stop the other copy; then stop this daemon, move " + n.state("ledger") + " away and start again",
	})
	return nil
}

// sdNotify tells systemd, where there is one.
func sdNotify(state string) { _, _ = daemon.SdNotify(false, state) }

// api serves every operation, the metrics and the health.
func (n *node) api(ctx context.Context) (*server.Server, error) {
	s := server.New(version)
	n.serveOps(s)
	s.Handle("/healthz", http.HandlerFunc(n.health))
	if n.cfg.Node.Metrics {
		reg, err := n.metrics(ctx)
		if err != nil {
			return nil, err
		}
		s.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	}
	return s, nil
}

// watch looks every few seconds at what should hold: it feeds the watchdog, opens
// and closes incidents about zones and objectives, and refreshes what back-fill
// must not bring back.
func (n *node) watch(ctx context.Context) error {
	every := 5 * time.Second
	if d, err := daemon.SdWatchdogEnabled(false); err == nil && d > 0 {
		every = min(every, d/3)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n.watchZones(ctx)
		n.watchRPO(ctx)
		n.watchSlots(ctx)
		n.refreshMarks(ctx)
		sdNotify(daemon.SdNotifyWatchdog)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *node) watchZones(ctx context.Context) {
	for _, z := range n.vault.State() {
		key := "zone-down/" + z.Name
		if z.State == "up" {
			n.settle(ctx, key, "zone "+z.Name+" answers again")
			continue
		}
		detail := "it does not answer"
		if z.Err != nil {
			detail = z.Err.Error()
		}
		n.raise(ctx, incident.Incident{
			Key: key, Severity: "warning", Title: "zone " + z.Name + " does not answer", Detail: detail,
			Remedy: "snapshots and WAL go on in the other zones; bring it back and it is back-filled by itself",
		})
	}
}

// watchRPO compares how much would be lost now with the objective.
func (n *node) watchRPO(ctx context.Context) {
	for _, c := range n.cfg.Clusters {
		want := c.Objectives.RPO.Std()
		if c.Connection == "" || want == 0 {
			continue
		}
		key := "rpo/" + c.Name
		rpo, known := n.rpo(c.Name)
		switch {
		case known && rpo <= want:
			n.settle(ctx, key, "the archive is "+span(rpo)+" behind")
		case known:
			n.raise(ctx, incident.Incident{
				Key: key, Cluster: c.Name, Severity: "critical", Title: "the RPO objective of " + c.Name + " is missed",
				Detail: "the archive is " + span(rpo) + " behind, the objective is " + span(want), Remedy: "see `holdfast wal status " + c.Name + "`",
			})
		}
	}
}

func (n *node) protectors() map[string]*protected {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[string]*protected, len(n.clusters))
	for k, v := range n.clusters {
		out[k] = v
	}
	return out
}

// rpo is how much time of commits would be lost if the server were gone now:
// unknown while the archiver knows nothing.
func (n *node) rpo(cluster string) (time.Duration, bool) {
	p := n.protectors()[cluster]
	if p == nil {
		return 0, false
	}
	p.mu.Lock()
	s := p.session
	p.mu.Unlock()
	if s == nil {
		return 0, false
	}
	pos := s.archive.Position()
	if pos.Durable == 0 {
		return 0, false
	}
	if pos.Behind == 0 && pos.Connected {
		return 0, true
	}
	at := pos.ServerTime
	if at.IsZero() {
		at = pos.Commit
	}
	if at.IsZero() {
		return 0, false
	}
	return max(0, n.now().Sub(at)), true
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/internal/thin"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// The API's operations: the daemon serves them, the commands call them.
var (
	opStatus       = server.Op[clusterQuery, statusDoc]{ID: "status", Method: http.MethodGet, Path: "/v1/status", Summary: "How everything stands"}
	opJob          = server.Op[jobIn, scheduler.Job]{ID: "job-show", Method: http.MethodGet, Path: "/v1/jobs/{id}", Summary: "One job"}
	opJobs         = server.Op[none, jobsDoc]{ID: "job-list", Method: http.MethodGet, Path: "/v1/jobs", Summary: "The newest jobs"}
	opSnapshotTake = server.Op[takeIn, jobRef]{ID: "snapshot-take", Method: http.MethodPost, Path: "/v1/clusters/{cluster}/snapshots", Summary: "Take a snapshot"}
	opSnapshotList = server.Op[clusterQuery, snapshotsDoc]{ID: "snapshot-list", Method: http.MethodGet, Path: "/v1/snapshots", Summary: "The snapshots"}
	opWALPush      = server.Op[pushIn, pushDoc]{ID: "wal-push", Method: http.MethodPost, Path: thin.PushPath, Summary: "Archive one file, for archive_command"}
	opWALStatus    = server.Op[clusterQuery, walDoc]{ID: "wal-status", Method: http.MethodGet, Path: "/v1/wal", Summary: "The window, the lag and the gaps of the WAL"}
	opIncidents    = server.Op[none, incidentsDoc]{ID: "incident-list", Method: http.MethodGet, Path: "/v1/incidents", Summary: "The incidents"}
)

type none struct{}

// takeIn asks for a snapshot.
type takeIn struct {
	Cluster string `path:"cluster"`
	Full    bool   `query:"full" doc:"Store every block, and refer to no older snapshot."`
	Logical bool   `query:"logical" doc:"Copy rows and DDL of every database, in place of files."`
	Project string `query:"project" doc:"Copy the rows and DDL of the project with this id alone."`
}

type clusterQuery struct {
	Cluster string `query:"cluster"`
}

// optionalCluster reads the arguments of a command that takes a cluster or none.
func optionalCluster(args []string) clusterQuery {
	if len(args) == 0 {
		return clusterQuery{}
	}
	return clusterQuery{Cluster: args[0]}
}

type jobIn struct {
	ID int64 `path:"id"`
}

type jobsDoc struct {
	Jobs []scheduler.Job `json:"jobs"`
}

type incidentsDoc struct {
	Incidents []incident.Incident `json:"incidents"`
}

// serveOps adds every operation to the daemon's API.
func (n *node) serveOps(s *server.Server) {
	server.Serve(s, opStatus, n.statusNow)
	server.Serve(s, opJob, func(ctx context.Context, in jobIn) (scheduler.Job, error) { return n.job(ctx, in.ID) })
	server.Serve(s, opJobs, func(ctx context.Context, _ none) (jobsDoc, error) {
		jobs, err := n.runner.Queue.List(ctx, scheduler.Filter{})
		return jobsDoc{jobs}, err
	})
	server.Serve(s, opSnapshotTake, func(ctx context.Context, in takeIn) (jobRef, error) {
		if _, err := n.live(in.Cluster); err != nil {
			return jobRef{}, err
		}
		if gone, err := n.retired(ctx, in.Cluster); err != nil || gone {
			return jobRef{}, cmp.Or(err, error(errRetired))
		}
		o, err := n.takeOrder(ctx, in)
		if err != nil {
			return jobRef{}, err
		}
		return answerOrder(n.run(ctx, jobSnapshot, laneOf(o), o, nil))
	})
	server.Serve(s, opSnapshotList, n.snapshotList)
	server.Serve(s, opWALPush, n.walPush)
	server.Serve(s, opWALStatus, n.walStatus)
	server.Serve(s, opWALDrop, n.walDrop)
	server.Serve(s, opIncidents, func(context.Context, none) (incidentsDoc, error) {
		list, err := n.incidents.List()
		return incidentsDoc{list}, err
	})
	server.Serve(s, opIncidentNote, n.noteIncident)
	server.Serve(s, opZoneProbe, func(ctx context.Context, in probeIn) (probesDocument, error) { return n.probeZones(asHuman(ctx), in) })
	server.Serve(s, opApprove, n.approve)
	n.serveKeeping(s)
	n.serveDrills(s)
}

func (n *node) job(ctx context.Context, id int64) (scheduler.Job, error) {
	job, err := n.runner.Queue.Get(ctx, id)
	if errors.Is(err, scheduler.ErrNoJob) {
		return job, usage("there is no job %d", id)
	}
	return job, err
}

// listen opens the socket, and the loopback address where one is configured.
func (n *node) listen(ctx context.Context) ([]net.Listener, error) {
	l, err := server.ListenUnix(ctx, n.cfg.Node.Socket)
	if err != nil {
		return nil, err
	}
	list := []net.Listener{l}
	if addr := n.cfg.Node.Listen; addr != "" {
		host, _, err := net.SplitHostPort(addr)
		ip := net.ParseIP(host)
		if err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, errors.Join(usage("node.listen %s: this version listens on loopback only; leave it out or use 127.0.0.1:PORT", addr), l.Close())
		}
		var lc net.ListenConfig
		tcp, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listening on node.listen: %w", err), l.Close())
		}
		list = append(list, tcp)
	}
	return list, nil
}

// health answers 200 while enough zones answer for a write, else 503: what a
// supervisor or load balancer asks. It says which zones do not.
func (n *node) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	up := 0
	var down []string
	for _, z := range n.vault.State() {
		if z.State == "up" {
			up++
		} else {
			down = append(down, z.Name)
		}
	}
	if up < n.cfg.Repository.WriteQuorum {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintf(w, "%d zones answer, a write needs %d; away: %v\n", up, n.cfg.Repository.WriteQuorum, down)
}

// follow waits for a job that the daemon took, telling its progress, and gives
// its output.
func (e *env) follow(ctx context.Context, c *server.Client, id int64, what string) (json.RawMessage, error) {
	bar := e.progress(what)
	defer bar.end()
	for begun := time.Now(); ; {
		job, err := server.Call(ctx, c, opJob, jobIn{id})
		if err != nil {
			return nil, err
		}
		if job.State.Finished() {
			if job.State != scheduler.Done {
				return nil, failed("`holdfast status` and the daemon's log tell more", "%s: job %d: %s", what, id, job.Error)
			}
			return job.Output, nil
		}
		bar.job(job)
		// A job that is brief is asked after more often: its end is not to be waited for.
		select {
		case <-time.After(min(200*time.Millisecond, max(5*time.Millisecond, time.Since(begun)/20))):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: job %d goes on in the daemon", ctx.Err(), id)
		}
	}
}

// act carries out an order: through the daemon's queue, or here as the node.
func act[In any](ctx context.Context, e *env, op server.Op[In, jobRef], in In, kind, lane string, o order, what string) (json.RawMessage, error) {
	return actAs(ctx, e, op, in, what, func(ctx context.Context, n *node, progress func(any)) (json.RawMessage, error) {
		return n.run(ctx, kind, lane, o, progress)
	})
}

// actAs is act with an order that the node itself makes.
func actAs[In any](ctx context.Context, e *env, op server.Op[In, jobRef], in In, what string, do func(ctx context.Context, n *node, progress func(any)) (json.RawMessage, error)) (json.RawMessage, error) {
	cfg, err := e.load()
	if err != nil {
		return nil, err
	}
	if client, err := server.Dial(ctx, cfg.Node.Socket); err == nil {
		ref, err := server.Call(ctx, client, op, in)
		if err != nil || ref.Job == 0 {
			return ref.Output, err
		}
		return e.follow(ctx, client, ref.Job, what)
	}
	var out json.RawMessage
	err = e.asNode(ctx, func(ctx context.Context, n *node) error {
		bar := e.progress(what)
		defer bar.end()
		var err error
		out, err = do(asHuman(ctx), n, bar.any)
		return err
	})
	return out, err
}

// asNode does something that the daemon would do, where none runs: it holds the
// state, archives what the act needs, and sends the ledger before it returns.
func (e *env) asNode(ctx context.Context, do func(context.Context, *node) error) error {
	cfg, err := e.load()
	if err != nil {
		return err
	}
	n, err := e.openNode(ctx, cfg, e.logger())
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = n.vault.Run(run) }()
	err = do(ctx, n)
	if _, aerr := n.ledger.Anchor(context.WithoutCancel(ctx)); aerr != nil && err == nil {
		fmt.Fprintf(e.err, "holdfast: what was done is written down here and not yet in the zones: %v\n", aerr)
	}
	stop()
	<-ended
	n.notify.Wait()
	return errors.Join(err, n.close())
}

// withArchiving does something while the WAL of a cluster is archived, where no
// daemon does that.
func (n *node) withArchiving(ctx context.Context, cluster string, do func(context.Context, *protected) error) error {
	c, err := n.cluster(cluster)
	if err != nil {
		return err
	}
	if c.Connection == "" {
		return usage("cluster %q has no connection in this node's configuration: run this on the node that reaches it", cluster)
	}
	p, err := n.protect(c)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.Run(run) }()
	err = do(ctx, p)
	stop()
	<-ended
	return err
}

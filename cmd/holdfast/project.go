package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/scheduler"
)

var (
	opProjectList   = server.Op[projectsIn, projectsDoc]{ID: "project-list", Method: http.MethodGet, Path: "/v1/clusters/{cluster}/projects", Summary: "The projects in live"}
	opProjectShow   = server.Op[projectIn, projectDoc]{ID: "project-show", Method: http.MethodGet, Path: "/v1/clusters/{cluster}/projects/{project}", Summary: "What a project holds, and what its deletion would do"}
	opProjectDelete = server.Op[projectDelete, deletedDoc]{ID: "project-delete", Method: http.MethodPost, Path: "/v1/clusters/{cluster}/projects/{project}/purge", Summary: "Record that a project is to be gone"}
	opPurgeList     = server.Op[purgeQuery, purgesDoc]{ID: "purge-list", Method: http.MethodGet, Path: "/v1/purges", Summary: "Where each purge stands"}
)

type projectsIn struct {
	Cluster string `path:"cluster"`
	Sizes   bool   `query:"sizes" doc:"Count and measure each project's rows."`
}

type projectsDoc struct {
	Projects []listedProject `json:"projects"`
}

// listedProject is a project of live; what it holds is told when it is asked for.
type listedProject struct {
	tenancy.Project
	Rows  *int64 `json:"rows,omitempty"`
	Bytes *int64 `json:"bytes,omitempty"`
}

// projectDoc is what a project holds, and what its deletion would do.
type projectDoc struct {
	retention.Preview
	Sizes []tenancy.Size `json:"sizes"`
	Bytes int64          `json:"bytes"`
}

type projectIn struct {
	Cluster string `path:"cluster"`
	Project string `path:"project"`
}

type projectDelete struct {
	Cluster string `path:"cluster"`
	Project string `path:"project"`
	Body    struct {
		Typed  string `json:"typed" doc:"The project's id or name, as a person typed it."`
		InLive bool   `json:"in_live" doc:"Delete in live as well, in one transaction."`
	}
}

type deletedDoc struct {
	Tombstone string          `json:"tombstone"`
	Deadline  time.Time       `json:"deadline"`
	InLive    []catalog.Count `json:"deleted_in_live,omitempty"`
	State     string          `json:"state"`
	Suspended []string        `json:"suspended_by,omitempty"`
}

type purgeQuery struct {
	ID      string `query:"id"`
	Objects bool   `query:"objects" doc:"Name every object that may hold the project."`
}

type purgesDoc struct {
	Purges []retention.Purge `json:"purges"`
}

// purger sees deleted projects of a cluster through.
func (n *node) purger(cluster string) (*retention.Purger, error) {
	c, err := n.cluster(cluster)
	if err != nil {
		return nil, err
	}
	layout, _, err := layoutOf(c)
	if c.Projects == nil {
		return nil, err
	}
	k, err := n.keeper(cluster)
	if err != nil {
		return nil, err
	}
	return &retention.Purger{
		Keeper: k, Layout: layout,
		Registry: c.Projects.Registry, Within: c.Projects.Purge.Within.Std(), Epoch: n.keys.Epoch, Origin: n.ledger.Origin(),
		Keys:   func(epoch int) (seal.DigestKeys, error) { return n.digestKeys(context.Background(), epoch) },
		Memory: n.state("purge-" + cluster + ".json"), Software: "holdfast " + version, Made: n.made,
	}, nil
}

// liveConn connects to the database that holds a cluster's projects.
func (n *node) liveConn(ctx context.Context, cluster, database string) (*pgx.Conn, error) {
	p, err := n.live(cluster)
	if err != nil {
		c, cerr := n.cluster(cluster)
		if cerr != nil || c.Connection == "" {
			return nil, err
		}
		if p, err = n.protect(c); err != nil {
			return nil, err
		}
	}
	return dialProjects(ctx, cluster, p.dsn, database)
}

// dialProjects connects to a database of a cluster.
func dialProjects(ctx context.Context, cluster, dsn, database string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("connecting to the projects of %s: the connection string does not parse", cluster)
	}
	cfg.Database = database
	cfg.RuntimeParams["application_name"] = "holdfast"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to database %s of %s: %w", database, cluster, err)
	}
	return conn, nil
}

// withProjects is withLive while no retention runs and no other purge.
func (n *node) withProjects(ctx context.Context, cluster string, do func(*retention.Purger, *pgx.Conn) error) error {
	n.keeping.Lock()
	defer n.keeping.Unlock()
	return n.withLive(ctx, cluster, do)
}

// withoutLive is withProjects for a cluster that is retired: its server may be gone.
func (n *node) withoutLive(_ context.Context, cluster string, do func(*retention.Purger, *pgx.Conn) error) error {
	n.keeping.Lock()
	defer n.keeping.Unlock()
	p, err := n.purger(cluster)
	if err != nil {
		return err
	}
	return do(p, nil)
}

// withLive calls do with a cluster's purger and a connection to live.
func (n *node) withLive(ctx context.Context, cluster string, do func(*retention.Purger, *pgx.Conn) error) error {
	p, err := n.purger(cluster)
	if err != nil {
		return err
	}
	c, err := n.cluster(cluster)
	if err != nil {
		return err
	}
	_, database, err := layoutOf(c)
	if err != nil {
		return err
	}
	conn, err := n.liveConn(ctx, cluster, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return do(p, conn)
}

func (n *node) projectList(ctx context.Context, in projectsIn) (doc projectsDoc, err error) {
	doc.Projects = []listedProject{}
	err = n.withLive(ctx, in.Cluster, func(p *retention.Purger, conn *pgx.Conn) error {
		list, err := tenancy.Projects(ctx, conn, p.Registry)
		if err != nil {
			return err
		}
		var keys []string
		for _, one := range list {
			doc.Projects = append(doc.Projects, listedProject{Project: one})
			keys = append(keys, one.ID)
		}
		if !in.Sizes {
			return nil
		}
		i := 0
		return tenancy.Sizes(ctx, conn, p.Layout, keys, func(list []tenancy.Size) {
			rows, bytes := totals(list)
			doc.Projects[i].Rows, doc.Projects[i].Bytes = &rows, &bytes
			i++
		})
	})
	return doc, err
}

func totals(list []tenancy.Size) (rows, bytes int64) {
	for _, s := range list {
		rows, bytes = rows+s.Rows, bytes+s.Bytes
	}
	return rows, bytes
}

func (n *node) projectShow(ctx context.Context, in projectIn) (doc projectDoc, err error) {
	err = n.withLive(ctx, in.Cluster, func(p *retention.Purger, conn *pgx.Conn) error {
		if doc.Preview, err = p.Preview(ctx, conn, in.Project); err != nil {
			return err
		}
		return tenancy.Sizes(ctx, conn, p.Layout, []string{in.Project}, func(list []tenancy.Size) {
			doc.Sizes = list
			_, doc.Bytes = totals(list)
		})
	})
	return doc, err
}

// projectDelete records the tombstone first: whatever happens then, no restore
// brings the project back.
func (n *node) projectDelete(ctx context.Context, in projectDelete) (doc deletedDoc, err error) {
	ctx = asHuman(ctx)
	err = n.withProjects(ctx, in.Cluster, func(p *retention.Purger, conn *pgx.Conn) error {
		t, err := p.Request(ctx, conn, in.Project, in.Body.Typed)
		if err != nil {
			return keepFault(err)
		}
		doc = deletedDoc{Tombstone: t.ID, Deadline: t.Deadline, State: retention.PurgeRequested}
		if in.Body.InLive {
			if doc.InLive, err = p.DeleteInLive(ctx, conn, in.Project, in.Body.Typed, nil); err != nil {
				return keepFault(fmt.Errorf("tombstone %s is recorded, so no restore brings the project back, but live has it still: %w", t.ID, err))
			}
		}
		list, err := p.Advance(ctx, conn)
		for _, one := range list {
			if one.Project == t.ID {
				doc.State, doc.Suspended = one.State, one.SuspendedBy
			}
		}
		return err
	})
	return doc, err
}

// purges tells where every purge stands.
func (n *node) purges(ctx context.Context, in purgeQuery) (purgesDoc, error) {
	doc := purgesDoc{[]retention.Purge{}}
	n.keeping.Lock()
	defer n.keeping.Unlock()
	for _, c := range n.cfg.Clusters {
		if c.Projects == nil {
			continue
		}
		p, err := n.purger(c.Name)
		if err != nil {
			return doc, err
		}
		list, err := p.Show(ctx, in.ID, in.Objects)
		if err != nil {
			return doc, err
		}
		doc.Purges = append(doc.Purges, list...)
	}
	if in.ID != "" && len(doc.Purges) == 0 {
		return doc, usage("there is no purge %q; `holdfast purge list` shows those there are", in.ID)
	}
	return doc, nil
}

// doPurge moves every purge as far as it can go now.
func (n *node) doPurge(ctx context.Context, _ scheduler.Job, o order, _ func(any)) (any, error) {
	var doc purgesDoc
	with := n.withProjects
	if gone, err := n.retired(ctx, o.Cluster); err != nil {
		return nil, err
	} else if gone {
		with = n.withoutLive
	}
	err := with(ctx, o.Cluster, func(p *retention.Purger, conn *pgx.Conn) error {
		list, err := p.Advance(ctx, conn)
		doc.Purges = list
		return err
	})
	for _, one := range doc.Purges {
		key := "purge-overdue/" + one.Project
		switch {
		case one.Certificate != nil:
			n.settle(ctx, key, "its certificate was issued")
		case one.Overdue:
			n.raise(ctx, incident.Incident{
				Key: key, Cluster: one.Cluster, Severity: "critical", Title: "the purge " + one.Project + " is past its deadline",
				Detail: fmt.Sprintf("state %s, due %s", one.State, clock(one.Deadline)), Remedy: "see `holdfast purge show " + one.Project + "`",
			})
		}
	}
	return doc, err
}

func (n *node) serveProjects(s *server.Server) {
	server.Serve(s, opProjectList, n.projectList)
	server.Serve(s, opProjectShow, n.projectShow)
	server.Serve(s, opProjectDelete, n.projectDelete)
	server.Serve(s, opPurgeList, n.purges)
}

// asks carries out an operation that needs the node: by its daemon, or here.
func asks[In, Out any](ctx context.Context, e *env, op server.Op[In, Out], in In, do func(*node, context.Context, In) (Out, error)) (out Out, err error) {
	cfg, err := e.load()
	if err != nil {
		return out, err
	}
	if client, err := server.Dial(ctx, cfg.Node.Socket); err == nil {
		return server.Call(ctx, client, op, in)
	}
	err = e.asNode(ctx, func(ctx context.Context, n *node) error {
		out, err = do(n, ctx, in)
		return err
	})
	return out, err
}

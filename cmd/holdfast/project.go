package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/scheduler"
)

var (
	opProjectList   = server.Op[clusterIn, projectsDoc]{ID: "project-list", Method: http.MethodGet, Path: "/v1/clusters/{cluster}/projects", Summary: "The projects in live"}
	opProjectShow   = server.Op[projectIn, retention.Preview]{ID: "project-show", Method: http.MethodGet, Path: "/v1/clusters/{cluster}/projects/{project}", Summary: "What a project holds, and what its deletion would do"}
	opProjectDelete = server.Op[projectDelete, deletedDoc]{ID: "project-delete", Method: http.MethodPost, Path: "/v1/clusters/{cluster}/projects/{project}/purge", Summary: "Record that a project is to be gone"}
	opPurgeList     = server.Op[purgeQuery, purgesDoc]{ID: "purge-list", Method: http.MethodGet, Path: "/v1/purges", Summary: "Where each purge stands"}
)

type projectsDoc struct {
	Projects []tenancy.Project `json:"projects"`
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
}

type purgeQuery struct {
	ID string `query:"id"`
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
	if c.Projects == nil {
		return nil, usage("cluster %s has no projects in the configuration: see clusters[].projects in `holdfast config example`", cluster)
	}
	if c.Projects.Rows == nil {
		return nil, usage("cluster %s: projects.layout %s is not built in this version; rows is", cluster, c.Projects.Layout)
	}
	k, err := n.keeper(cluster)
	if err != nil {
		return nil, err
	}
	r := c.Projects.Rows
	return &retention.Purger{
		Keeper: k, Layout: tenancy.Layout{Kind: c.Projects.Layout, Database: r.Database, Root: r.Root, Key: r.Key},
		Registry: c.Projects.Registry, Within: c.Projects.Purge.Within.Std(), Epoch: n.keys.Epoch, Origin: n.ledger.Origin(),
		Keys:   func(epoch int) (seal.DigestKeys, error) { return n.digestKeys(context.Background(), epoch) },
		Memory: n.state("purge-" + cluster + ".json"),
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
	cfg, err := pgx.ParseConfig(p.dsn)
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

// withProjects calls do with a cluster's purger and a connection to live, alone.
func (n *node) withProjects(ctx context.Context, cluster string, do func(*retention.Purger, *pgx.Conn) error) error {
	n.keeping.Lock()
	defer n.keeping.Unlock()
	p, err := n.purger(cluster)
	if err != nil {
		return err
	}
	conn, err := n.liveConn(ctx, cluster, p.Layout.Database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return do(p, conn)
}

func (n *node) projectList(ctx context.Context, in clusterIn) (doc projectsDoc, err error) {
	err = n.withProjects(ctx, in.Cluster, func(p *retention.Purger, conn *pgx.Conn) error {
		doc.Projects, err = tenancy.Projects(ctx, conn, p.Registry)
		return err
	})
	return doc, err
}

func (n *node) projectShow(ctx context.Context, in projectIn) (v retention.Preview, err error) {
	err = n.withProjects(ctx, in.Cluster, func(p *retention.Purger, conn *pgx.Conn) error {
		v, err = p.Preview(ctx, conn, in.Project)
		return err
	})
	return v, err
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
				return keepFault(err)
			}
		}
		list, err := p.Advance(ctx, conn)
		for _, one := range list {
			if one.Project == t.ID {
				doc.State = one.State
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
		if c.Projects == nil || c.Projects.Rows == nil {
			continue
		}
		p, err := n.purger(c.Name)
		if err != nil {
			return doc, err
		}
		list, err := p.Show(ctx, in.ID)
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
	err := n.withProjects(ctx, o.Cluster, func(p *retention.Purger, conn *pgx.Conn) error {
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

func (e *env) projectCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "project", Short: "The tenants inside a cluster: list, show, delete"}
	list := &cobra.Command{Use: "list CLUSTER", Short: "List the projects in live", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		doc, err := asks(c.Context(), e, opProjectList, clusterIn{args[0]}, (*node).projectList)
		if err != nil {
			return err
		}
		return e.print(doc, func(out io.Writer) {
			var rows [][]string
			for _, p := range doc.Projects {
				rows = append(rows, []string{p.ID, p.Name})
			}
			table(out, "ID\tNAME", rows)
		})
	}}
	show := &cobra.Command{Use: "show CLUSTER PROJECT", Short: "What a project holds, and what its deletion would do", Args: cobra.ExactArgs(2), RunE: func(c *cobra.Command, args []string) error {
		v, err := asks(c.Context(), e, opProjectShow, projectIn{args[0], args[1]}, (*node).projectShow)
		if err != nil {
			return err
		}
		return e.print(v, func(out io.Writer) { previewText(out, v) })
	}}
	cmd.AddCommand(list, show, e.projectDeleteCommand())
	return cmd
}

func (e *env) projectDeleteCommand() *cobra.Command {
	var inLive, yes bool
	cmd := &cobra.Command{
		Use: "delete CLUSTER PROJECT", Short: "Record that a project is to be gone everywhere; --in-live deletes it there too", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return e.deleteProject(c.Context(), args[0], args[1], inLive, yes)
		},
	}
	cmd.Flags().BoolVar(&inLive, "in-live", false, "delete in live as well, in one transaction")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask for the project's name")
	return cmd
}

func (e *env) deleteProject(ctx context.Context, cluster, project string, inLive, yes bool) error {
	v, err := asks(ctx, e, opProjectShow, projectIn{cluster, project}, (*node).projectShow)
	if err != nil {
		return err
	}
	var in projectDelete
	in.Cluster, in.Project, in.Body.InLive, in.Body.Typed = cluster, project, inLive, v.ID
	if e.output == "text" {
		previewText(e.out, v)
	}
	if !yes {
		fmt.Fprintf(e.err, "This cannot be undone. Type the project's name to go on: ")
		line, err := bufio.NewReader(e.in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if in.Body.Typed = strings.TrimSpace(line); in.Body.Typed == "" {
			return refused("type the project's id or name, or give --yes", "deleting project %s: nothing was typed", project)
		}
	}
	doc, err := asks(ctx, e, opProjectDelete, in, (*node).projectDelete)
	if err != nil {
		return keepFault(err)
	}
	return e.print(doc, func(out io.Writer) {
		fmt.Fprintf(out, "tombstone %s: no restore brings it back from now on; by %s no zone holds a copy\n", doc.Tombstone, clock(doc.Deadline))
		for _, c := range doc.InLive {
			fmt.Fprintf(out, "  deleted in live: %d rows of %s\n", c.Rows, c.Table)
		}
		fmt.Fprintf(out, "state: %s; follow it with `holdfast purge show %s`\n", doc.State, doc.Tombstone)
	})
}

func previewText(out io.Writer, v retention.Preview) {
	fmt.Fprintf(out, "project %s (%s), last active %s\n", v.ID, v.Name, clock(v.LastActivity))
	for _, c := range v.Counts {
		fmt.Fprintf(out, "  %8d rows of %s\n", c.Rows, c.Table)
	}
	for _, t := range v.NotCovered {
		fmt.Fprintln(out, "  not covered:", t)
	}
	fmt.Fprintf(out, "  if it were deleted now, its last copy would end by %s\n", clock(v.LastCopyEnds))
}

func (e *env) purgeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "purge", Short: "Follow deleted projects to their certificates"}
	get := func(ctx context.Context, id string) (purgesDoc, error) {
		return asks(ctx, e, opPurgeList, purgeQuery{id}, (*node).purges)
	}
	list := &cobra.Command{Use: "list", Short: "Where each purge stands", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		doc, err := get(c.Context(), "")
		if err != nil {
			return err
		}
		return e.print(doc, func(out io.Writer) {
			var rows [][]string
			for _, p := range doc.Purges {
				rows = append(rows, []string{p.Project, p.Cluster, p.State, clock(p.RequestedAt), clock(p.LastCopyEnds), clock(p.Deadline)})
			}
			table(out, "PURGE\tCLUSTER\tSTATE\tREQUESTED\tLAST COPY ENDS\tDEADLINE", rows)
		})
	}}
	show := &cobra.Command{Use: "show ID", Short: "Where one purge stands, zone by zone", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		doc, err := get(c.Context(), args[0])
		if err != nil {
			return err
		}
		return e.print(doc.Purges[0], func(out io.Writer) { purgeText(out, doc.Purges[0]) })
	}}
	certificate := &cobra.Command{Use: "certificate ID", Short: "The certificate of a purge that is done", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		doc, err := get(c.Context(), args[0])
		if err != nil {
			return err
		}
		p := doc.Purges[0]
		if p.Certificate == nil {
			return notHeld("see `holdfast purge show "+args[0]+"`", "purge %s has no certificate yet: it is %s, and its last copy ends %s", p.Project, p.State, clock(p.LastCopyEnds))
		}
		return e.print(p.Certificate, func(out io.Writer) { certificateText(out, *p.Certificate) })
	}}
	cmd.AddCommand(list, show, certificate)
	return cmd
}

// purgeMeans says what a state comes to, and what it waits for.
var purgeMeans = map[string]string{
	retention.PurgeRequested: "the live database still has rows of it, or was not looked at yet: delete them there (`project delete --in-live` does)",
	retention.PurgeResidue:   "the live database has no row of it; its bytes stay in the tables' files until a vacuum has passed (autovacuum's, or yours)",
	retention.PurgeAgeing:    "the live database is clean; the zones' copies end as retention removes them",
	retention.PurgeDone:      "no zone holds a copy",
}

func purgeText(out io.Writer, p retention.Purge) {
	fmt.Fprintf(out, "purge %s of %s: %s\n  requested %s, deadline %s, last copy ends %s\n", p.Project, p.Cluster, p.State, clock(p.RequestedAt), clock(p.Deadline), clock(p.LastCopyEnds))
	if means := purgeMeans[p.State]; means != "" {
		fmt.Fprintln(out, " ", means)
	}
	for _, t := range p.Waiting {
		fmt.Fprintln(out, "  live must still vacuum", t)
	}
	for _, z := range p.Zones {
		fmt.Fprintf(out, "  zone %-12s %d copies, the last ends %s %s\n", z.Name, z.Copies, clock(z.LastEnds), strings.Join(z.BlockedBy, "; "))
	}
	if p.Reappeared {
		fmt.Fprintln(out, "  the project's key is in use again in live")
	}
	if p.Certificate != nil {
		certificateText(out, *p.Certificate)
	}
}

func certificateText(out io.Writer, c catalog.Certificate) {
	fmt.Fprintf(out, "certificate %s of %s\n  requested %s, absent from live %s\n  method: %s\n", c.ID, clock(c.IssuedAt), clock(c.RequestedAt), clock(c.AbsentAt), c.Method)
	for _, z := range c.Zones {
		fmt.Fprintf(out, "  zone %-12s listed %s: %d versions seen, %d that could hold the project\n", z.Name, clock(z.ListedAt), z.Versions, z.Remaining)
	}
	for _, s := range c.Covers {
		fmt.Fprintln(out, "  covers:", s)
	}
	for _, s := range c.NotCovered {
		fmt.Fprintln(out, "  does not cover:", s)
	}
}

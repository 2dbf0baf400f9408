package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

// projectSource is where the projects of a cluster are, as the configuration says it.
type projectSource struct {
	cfg      *configs.Config
	cluster  configs.Cluster
	layout   tenancy.Layout
	registry string
	database string // where the registry is asked
}

// projectSource reads the configuration for a cluster's projects. Nothing else is opened:
// what only reads live needs no zone.
func (e *env) projectSource(cluster string) (*projectSource, error) {
	cfg, err := e.load()
	if err != nil {
		return nil, err
	}
	c, err := (&world{cfg: cfg}).cluster(cluster)
	if err != nil {
		return nil, err
	}
	return sourceOf(cfg, c)
}

func sourceOf(cfg *configs.Config, c configs.Cluster) (*projectSource, error) {
	l, database, err := layoutOf(c)
	if err != nil {
		return nil, err
	}
	return &projectSource{cfg, c, l, c.Projects.Registry, database}, nil
}

// layoutOf is where a cluster's projects are, and the database where the registry is asked.
func layoutOf(c configs.Cluster) (l tenancy.Layout, database string, err error) {
	p := c.Projects
	if p == nil {
		return l, "", usage("cluster %s has no projects in the configuration: see clusters[].projects in `holdfast config example`", c.Name)
	}
	l.Kind = p.Layout // whoever only reads the repository needs no more
	if r := p.Rows; r != nil {
		return tenancy.Layout{Kind: p.Layout, Database: r.Database, Root: r.Root, Key: r.Key}, r.Database, nil
	}
	if database = p.Database; database == "" {
		if c.Connection == "" {
			return l, "", usage("cluster %s: projects.database is not given, and no connection says it: name the database where the registry is asked", c.Name)
		}
		cfg, err := pgx.ParseConfig(c.Connection)
		if err != nil {
			return l, "", fmt.Errorf("cluster %s: the connection string does not parse", c.Name)
		}
		database = cmp.Or(cfg.Database, cfg.User)
	}
	if l.Kind == tenancy.Schema {
		l.Database = database
	}
	return l, database, nil
}

// connect connects to a database of the live server.
func (t *projectSource) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	if t.cluster.Connection == "" {
		return nil, usage("cluster %s has no connection in this node's configuration: run this on the node that reaches it", t.cluster.Name)
	}
	dsn, err := dsnOf(t.cluster)
	if err != nil {
		return nil, err
	}
	return dialProjects(ctx, t.cluster.Name, dsn, database)
}

// view begins to read a project of live, in one snapshot; end closes it.
func (t *projectSource) view(ctx context.Context, key string) (v *tenancy.View, end func() error, err error) {
	return tenancy.ViewOf(ctx, t.connect, t.layout, key)
}

// listed are the live projects and their names by their keys.
func (t *projectSource) listed(ctx context.Context) (list []tenancy.Project, names map[string]string, err error) {
	conn, err := t.connect(ctx, t.database)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return t.names(ctx, conn)
}

// masks are the configuration's, and those of flags, TABLE.COLUMN=EXPRESSION each,
// which win.
func (t *projectSource) masks(flags []string) (tenancy.Masks, error) {
	m := tenancy.Masks{}
	for _, c := range t.cluster.Projects.Mask {
		m[c.Column] = c.As
	}
	for _, f := range flags {
		within := false // an = between double quotes is part of a name
		at := strings.IndexFunc(f, func(r rune) bool {
			within = within != (r == '"')
			return r == '=' && !within
		})
		if at <= 0 || at == len(f)-1 {
			return nil, usage("--mask %s: want TABLE.COLUMN=EXPRESSION", f)
		}
		m[f[:at]] = f[at+1:]
	}
	return m, nil
}

// names are the live projects' names by their keys.
func (t *projectSource) names(ctx context.Context, conn *pgx.Conn) (list []tenancy.Project, names map[string]string, err error) {
	if list, err = tenancy.Projects(ctx, conn, t.registry); err != nil {
		return nil, nil, fmt.Errorf("cluster %s: %w", t.cluster.Name, err)
	}
	names = map[string]string{}
	for _, p := range list {
		names[p.ID] = p.Name
	}
	return list, names, nil
}

// maxDDL bounds the DDL that is held in memory.
const maxDDL = 64 << 20

// ddl writes the DDL of live's database in the moment of a view, and tells by what.
func (t *projectSource) ddl(ctx context.Context, v *tenancy.View, binaries string, to io.Writer) (by string, err error) {
	if binaries == "" {
		binaries = sandbox.DefaultPattern
	}
	dump, err := postgres.FindDump(ctx, binaries, majorIn(v.At.Server))
	if err != nil {
		return "", err
	}
	args, err := dumpArgs(ctx, v)
	if err != nil {
		return "", err
	}
	return dump.Version, t.dump(ctx, dump, v.Database, args, to)
}

func (t *projectSource) dump(ctx context.Context, dump postgres.Dump, database string, args []string, to io.Writer) error {
	password := ""
	if t.cluster.Password != nil {
		pw, err := t.cluster.Password.Load()
		if err != nil {
			return usage("clusters[%s].password: %w", t.cluster.Name, err)
		}
		password = string(pw)
	}
	return dump.DDL(ctx, t.cluster.Connection, password, database, args, to)
}

func dumpArgs(ctx context.Context, v *tenancy.View) ([]string, error) {
	schemas, err := v.Schemas(ctx)
	if err != nil {
		return nil, err
	}
	extensions, err := v.Extensions(ctx)
	if err != nil {
		return nil, err
	}
	id, err := v.Export(ctx)
	return postgres.DumpArgs(id, schemas, extensions), err
}

// majorIn reads a server_version: "15.18 (Debian …)", "19beta1".
func majorIn(version string) int {
	end := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(version)
	}
	n, _ := strconv.Atoi(version[:end])
	return n
}

// recordProjects writes what was done to projects into this node's ledger, by MACs
// of their keys: the ledger outlives a project, and must not name it. What was done
// does not wait for that.
func (e *env) recordProjects(ctx context.Context, t *projectSource, typ string, keys []string, about map[string]any) {
	ctx = context.WithoutCancel(ctx)
	err := func() error {
		if t.cfg.Repository.IndexIdentity == nil {
			return errors.New("this configuration has no index identity, which opens the digest keys")
		}
		w, err := e.open(ctx)
		if err != nil {
			return err
		}
		defer w.close()
		k, err := w.digestKeys(ctx, 0)
		if err != nil {
			return err
		}
		macs := []string{}
		for _, key := range keys {
			macs = append(macs, tenancy.MAC(k, t.cluster.Name, t.layout, key))
		}
		about["projects"], about["digest_epoch"] = macs, k.Epoch
		return e.tryRecord(ctx, w, typ, t.cluster.Name, about)
	}()
	if err != nil {
		fmt.Fprintf(e.err, "holdfast: this is not written into a ledger: %v\n", err)
	}
}

// projectFault gives what stands in a project's way its exit code.
func projectFault(cluster, project string, err error) error {
	switch {
	case errors.Is(err, tenancy.ErrNoProject):
		return failed("`holdfast project list "+cluster+"` shows those there are", "cluster %s, project %s: %w", cluster, project, err)
	case errors.Is(err, tenancy.ErrMask):
		return &fault{exit: exitUsage, err: err, remedy: "--mask schema.table.column=EXPRESSION, or clusters[].projects.mask; names as SQL writes them"}
	}
	return err
}

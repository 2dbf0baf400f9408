package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

// newDoc is a project in a database of its own: what `project clone` and
// `project restore --into new` print.
type newDoc struct {
	To         string              `json:"to"` // where the database is; no password
	Cluster    string              `json:"cluster"`
	Project    string              `json:"project"`
	Moment     tenancy.Moment      `json:"moment"`
	Plan       string              `json:"plan,omitempty"`
	Rows       int64               `json:"rows"`
	Tables     []tenancy.Digest    `json:"tables"`
	Masked     []string            `json:"masked"`
	References []tenancy.Reference `json:"references"`
	NotCovered []string            `json:"not_covered"`
	Views      []string            `json:"views_not_filled"`
	Seconds    float64             `json:"seconds"`
}

func (e *env) projectCloneCommand() *cobra.Command {
	var on, binaries string
	var masks []string
	cmd := &cobra.Command{
		Use: "clone CLUSTER PROJECT --on CONNECTION", Short: "Copy one project of live into a fresh database", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			t, err := e.projectSource(args[0])
			if err != nil {
				return err
			}
			m, err := t.masks(masks)
			if err == nil {
				err = environmentOn(t.cfg, on)
			}
			if err != nil {
				return err
			}
			doc, err := e.cloneProject(c.Context(), t, args[1], on, binaries, m)
			if err != nil {
				return projectFault(args[0], args[1], err)
			}
			return e.print(doc, func(w io.Writer) { newText(w, "cloned", doc) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&on, "on", "", "`CONNECTION` string of a database that is absent or empty, as a superuser; its password from PGPASSWORD or a password file")
	f.StringVar(&binaries, "binaries", "", "where pg_dump is, as /usr/lib/postgresql/{major}/bin")
	f.StringArrayVar(&masks, "mask", nil, "copy `TABLE.COLUMN=EXPRESSION` instead of a column's values (repeat)")
	if err := cmd.MarkFlagRequired("on"); err != nil {
		panic(err)
	}
	return cmd
}

func (e *env) cloneProject(ctx context.Context, t *projectSource, key, on, binaries string, masks tenancy.Masks) (doc newDoc, err error) {
	v, end, err := t.view(ctx, key)
	if err != nil {
		return doc, err
	}
	defer func() { err = errors.Join(err, end()) }()
	doc, err = e.intoNew(ctx, t, v, key, on, masks, func(to io.Writer) error {
		_, err := t.ddl(ctx, v, binaries, to)
		return err
	})
	if err == nil {
		e.recordProjects(ctx, t, "project.cloned", []string{key}, map[string]any{"moment": v.At, "masked": doc.Masked})
	}
	return doc, err
}

// intoNew loads a project of a view into a fresh database.
func (e *env) intoNew(ctx context.Context, t *projectSource, v *tenancy.View, key, on string, masks tenancy.Masks, ddl func(io.Writer) error) (doc newDoc, err error) {
	began := time.Now()
	if err := v.Keep(ctx, t.registry, key); err != nil {
		return doc, err
	}
	s, err := v.Project(ctx, key)
	if err == nil {
		err = masks.Check(ctx, s)
	}
	if err != nil {
		return doc, err
	}
	doc = newDoc{Cluster: t.cluster.Name, Project: key, Moment: v.At, Masked: masked(masks), References: orEmpty(s.References)}
	if doc.NotCovered, err = v.NotCovered(ctx); err != nil {
		return doc, err
	}
	var text bytes.Buffer
	if err := ddl(&limit{&text, maxDDL}); err != nil {
		return doc, err
	}
	own, left := v.Alone(text.Bytes())
	doc.NotCovered = append(doc.NotCovered, left...)
	fresh, err := makeFresh(ctx, on, v.At)
	if err != nil {
		return doc, err
	}
	doc.To = fresh.where
	bar := e.progress("project into " + fresh.where)
	var loaded tenancy.Loaded
	if err = tenancy.Define(ctx, fresh.conn, own); err == nil {
		loaded, err = tenancy.Load(ctx, fresh.conn, s, masks, func(table string, rows int64) {
			bar.show(fmt.Sprintf("%d rows of %s", rows, table), 0, 0)
		})
	}
	bar.end()
	doc.Rows, doc.Tables, doc.Views, doc.Seconds = loaded.Rows, loaded.Tables, loaded.Views, time.Since(began).Seconds()
	return doc, errors.Join(err, fresh.end(ctx, err))
}

// limit writes no more than left bytes.
type limit struct {
	to   io.Writer
	left int
}

func (l *limit) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, fmt.Errorf("it is larger than %s", size(maxDDL))
	}
	l.left -= len(p)
	return l.to.Write(p)
}

// closed lets nobody but superusers in until [freshDatabase.open].
func (f *freshDatabase) closed(ctx context.Context) error {
	name := pgx.Identifier{f.cfg.Database}.Sanitize()
	if err := f.conn.QueryRow(ctx, `SELECT datconnlimit FROM pg_catalog.pg_database WHERE datname = current_database()`).Scan(&f.limit); err != nil {
		return fmt.Errorf("closing %s: %w", f.where, err)
	}
	if _, err := f.conn.Exec(ctx, `ALTER DATABASE `+name+` CONNECTION LIMIT 0`); err != nil {
		return fmt.Errorf("closing %s: %w", f.where, err)
	}
	f.shut = true
	return nil
}

// open lets in whoever was let in before.
func (f *freshDatabase) open(ctx context.Context) error {
	if _, err := f.conn.Exec(ctx, fmt.Sprintf(`ALTER DATABASE %s CONNECTION LIMIT %d`, pgx.Identifier{f.cfg.Database}.Sanitize(), f.limit)); err != nil {
		return fmt.Errorf("opening %s: %w", f.where, err)
	}
	return nil
}

// freshDatabase is a database that a project goes into.
type freshDatabase struct {
	conn  *pgx.Conn
	cfg   *pgx.ConnConfig
	where string
	made  bool // by us
	shut  bool // to all but superusers
	limit int  // of connections, before it was shut
}

// makeFresh connects to a database that must be empty, and makes it where it is not there.
func makeFresh(ctx context.Context, dsn string, at tenancy.Moment) (*freshDatabase, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, usage("--on: the connection string does not parse; it looks like \"host=… user=… dbname=NEW\"")
	}
	if cfg.Database == "" {
		return nil, usage("--on: the connection string names no database: add dbname=NEW")
	}
	f := &freshDatabase{cfg: cfg, where: fmt.Sprintf("database %s on %s port %d", cfg.Database, cfg.Host, cfg.Port)}
	f.conn, err = pgx.ConnectConfig(ctx, cfg)
	if tenancy.IsNoDatabase(err) {
		if err = f.create(ctx, at); err == nil {
			f.conn, err = pgx.ConnectConfig(ctx, cfg)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", f.where, err)
	}
	if err := tenancy.Fresh(ctx, f.conn); err != nil {
		err = errors.Join(fmt.Errorf("%s: %w", f.where, err), f.conn.Close(context.WithoutCancel(ctx)))
		if errors.Is(err, tenancy.ErrNotFresh) {
			return nil, refused("name a database that is not there: it will be made", "%w", err)
		}
		return nil, err
	}
	return f, nil
}

// create makes the database with the source's encoding and locale.
func (f *freshDatabase) create(ctx context.Context, at tenancy.Moment) error {
	sql := fmt.Sprintf(`CREATE DATABASE %s TEMPLATE template0 ENCODING %s LC_COLLATE %s LC_CTYPE %s`,
		pgx.Identifier{f.cfg.Database}.Sanitize(), quoteLiteral(at.Encoding), quoteLiteral(at.Collate), quoteLiteral(at.Ctype))
	if err := f.elsewhere(ctx, sql); err != nil {
		return fmt.Errorf("making it: %w", err)
	}
	f.made = true
	return nil
}

// own gives the database to the role that owned it.
func (f *freshDatabase) own(ctx context.Context, role string) error {
	if _, err := f.conn.Exec(ctx, `ALTER DATABASE `+pgx.Identifier{f.cfg.Database}.Sanitize()+` OWNER TO `+pgx.Identifier{role}.Sanitize()); err != nil {
		return fmt.Errorf("giving %s to its owner: %w", f.where, err)
	}
	return nil
}

// elsewhere runs a statement in the server's database postgres.
func (f *freshDatabase) elsewhere(ctx context.Context, sql string) error {
	cfg := f.cfg.Copy()
	cfg.Database = "postgres"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql)
	return err
}

// end closes the connection; after a failure a database that was made is dropped.
func (f *freshDatabase) end(ctx context.Context, failed error) error {
	ctx = context.WithoutCancel(ctx)
	err := f.conn.Close(ctx)
	switch {
	case failed == nil:
		return err
	case !f.made && f.shut:
		return fmt.Errorf("%s may have rows of deleted projects by now, and lets superusers alone in: drop it, or what is in it, and set its connection limit to %d", f.where, f.limit)
	case !f.made:
		return fmt.Errorf("%s may have tables without rows by now: drop it, or what is in it", f.where)
	}
	return errors.Join(err, f.elsewhere(ctx, `DROP DATABASE `+pgx.Identifier{f.cfg.Database}.Sanitize()))
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// environmentOn refuses an environment's name, which --on does not take in this version.
func environmentOn(cfg *configs.Config, on string) error {
	for _, env := range cfg.Environments {
		if env.Name == on {
			return usage("--on %s: this environment is a directory without a server: give the connection string of a database", on)
		}
	}
	return nil
}

func newText(w io.Writer, did string, d newDoc) {
	fmt.Fprintf(w, "%s project %s of %s, as of %s, into %s: %d rows in %.1f s\n", did, d.Project, d.Cluster, clock(d.Moment.Time), d.To, d.Rows, d.Seconds)
	for _, t := range d.Tables {
		fmt.Fprintf(w, "  %8d rows of %s\n", t.Rows, t.Table)
	}
	for _, m := range d.Masked {
		fmt.Fprintln(w, "  masked:", m)
	}
	for _, r := range d.References {
		fmt.Fprintf(w, "  %d rows of %s refer by (%s) to rows of %s that are not here\n", r.Rows, r.From, strings.Join(r.Columns, ", "), r.To)
	}
	for _, s := range d.NotCovered {
		fmt.Fprintln(w, "  not covered:", s)
	}
	for _, s := range d.Views {
		fmt.Fprintln(w, "  materialized view not filled:", s)
	}
}

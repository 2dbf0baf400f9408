package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/restore"
)

// putBack is one run of `project restore`.
type putBack struct {
	*projectSource
	e           *env
	flags       targetFlags
	key         string
	into, on    string
	dryRun, yes bool
	deleted     func(context.Context) error // refuses a project that is deleted by now
}

// putBackDoc is what `project restore --into live` prints.
type putBackDoc struct {
	Cluster  string           `json:"cluster"`
	Project  string           `json:"project"`
	Plan     string           `json:"plan"`
	Reached  restore.End      `json:"reached"`
	Applied  bool             `json:"applied"`
	Changes  []tenancy.Change `json:"changes"`
	Expected []tenancy.Change `json:"expected,omitempty"` // what was shown before, where live has changed since
	*tenancy.Merged
	NotCovered []string `json:"not_covered"`
	Seconds    float64  `json:"seconds"`
}

func (e *env) projectRestoreCommand() *cobra.Command {
	p := &putBack{e: e}
	cmd := &cobra.Command{
		Use: "restore CLUSTER PROJECT --into live|new", Short: "Bring one project back as it was at a moment: restored beside, compared, and put into live or a fresh database", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if p.projectSource, err = e.projectSource(args[0]); err != nil {
				return err
			}
			p.key = args[1]
			return p.run(c.Context())
		},
	}
	p.flags.add(cmd)
	f := cmd.Flags()
	f.Lookup("to").Usage = "directory `DIR` to restore the cluster into meanwhile, absent or empty (one in the first environment's directory); it is removed at the end"
	f.StringVar(&p.into, "into", "", "`live`, in place of what live has of it, or new: a fresh database named by --on")
	f.StringVar(&p.on, "on", "", "with --into new: `CONNECTION` string of a database that is absent or empty, as a superuser")
	f.BoolVar(&p.dryRun, "dry-run", false, "with --into live: end when the difference is shown")
	f.BoolVar(&p.yes, "yes", false, "with --into live: do not ask for the project's name")
	f.StringVar(&p.flags.binaries, "binaries", "", "PostgreSQL's programs, as /usr/lib/postgresql/{major}/bin")
	f.StringVar(&p.flags.user, "user", "", "operating system user that runs the copy when Holdfast is root (postgres)")
	if err := cmd.MarkFlagRequired("into"); err != nil {
		panic(err)
	}
	return cmd
}

// check refuses flags that do not go together.
func (p *putBack) check() error {
	switch {
	case p.into != "live" && p.into != "new":
		return usage("--into %s: want live or new", p.into)
	case p.into == "new" && p.on == "":
		return usage("--into new: give the database's connection string with --on")
	case p.into == "live" && p.on != "":
		return usage("--on goes with --into new: live is the cluster's connection")
	case p.into == "new" && (p.dryRun || p.yes):
		return usage("--dry-run and --yes go with --into live: a new database replaces nothing")
	}
	return environmentOn(p.cfg, p.on)
}

func (p *putBack) run(ctx context.Context) error {
	if err := p.check(); err != nil {
		return err
	}
	target, err := p.flags.target()
	if err != nil {
		return err
	}
	if p.into == "live" { // hours of restoring must not end in a refusal that was known before
		if err := p.mayWrite(ctx); err != nil {
			return err
		}
	}
	w, repo, err := p.e.openForRestore(ctx, &p.flags)
	if err != nil {
		return err
	}
	defer w.close()
	plan, err := w.plan(ctx, repo, p.cluster.Name, target)
	if err != nil {
		return err
	}
	p.deleted = func(ctx context.Context) error {
		err := restore.Deleted(ctx, repo, plan, p.layout, p.key, func(ctx context.Context, epoch int) (seal.DigestKeys, error) {
			return w.digestKeys(ctx, epoch, repo.Data...)
		})
		if errors.Is(err, restore.ErrDeleted) {
			return refused("a request to delete cannot be taken back: `holdfast purge list` tells how far it is", "restoring project %s of %s: %w", p.key, p.cluster.Name, err)
		}
		return err
	}
	if err := p.deleted(ctx); err != nil {
		return err
	}
	return p.beside(ctx, w, repo, plan)
}

// mayWrite tries what the merge will need of live.
func (p *putBack) mayWrite(ctx context.Context) error {
	conn, err := p.connect(ctx, p.database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `SET session_replication_role = replica`); err != nil {
		return failed("connect as a superuser, or grant the role SET on session_replication_role (PostgreSQL 15 or later)", "looking whether rows can be put into live with triggers off: %w", err)
	}
	return nil
}

// beside restores the cluster into a room, does what is asked with the project in
// it, and removes the copy.
func (p *putBack) beside(ctx context.Context, w *world, repo restore.Repo, plan restore.Plan) (err error) {
	if err := p.place(); err != nil {
		return err
	}
	opt, err := p.e.restoreOptions(ctx, w, repo, plan, &p.flags)
	if err != nil {
		return err
	}
	if !p.e.quiet && p.e.output == "text" {
		fmt.Fprintf(p.e.err, "restoring %s to %s from snapshot %s beside, into %s\n", plan.Cluster, plan.Target, plan.Snapshot, opt.To)
	}
	bar := p.e.progress("restore of " + plan.Cluster)
	opt.Progress = bar.restore
	var room *restore.Room
	err = p.e.recordRun(ctx, w, plan, opt, func() (err error) {
		room, err = restore.Prepare(ctx, repo, plan, opt)
		return err
	})
	bar.end()
	if err != nil {
		return restoreFault(err)
	}
	defer func() {
		if derr := room.Discard(context.WithoutCancel(ctx)); derr != nil {
			err = errors.Join(err, fmt.Errorf("removing the copy: %w", derr))
		}
	}()
	if room.Result.Quarantined {
		return notHeld("bring more zones back", "restoring a project: %w", restore.ErrTombstones)
	}
	v, end, err := room.View(ctx, p.layout, p.key)
	if err != nil {
		return p.explain(plan, err)
	}
	if p.into == "new" {
		err = p.intoNew(ctx, room, v)
	} else {
		err = p.intoLive(ctx, room, v)
	}
	return errors.Join(p.explain(plan, err), end())
}

// place chooses where the copy goes, when nobody did.
func (p *putBack) place() error {
	if p.flags.to != "" {
		return nil
	}
	if len(p.cfg.Environments) == 0 {
		return usage("name a directory that the cluster is restored into meanwhile: --to DIR; or configure an environment")
	}
	env := p.cfg.Environments[0]
	if err := durable.MkdirAll(env.Directory, 0o755); err != nil {
		return fmt.Errorf("making the directory of environment %s: %w", env.Name, err)
	}
	var id [6]byte
	_, _ = rand.Read(id[:])
	p.flags.to = filepath.Join(env.Directory, "project-"+hex.EncodeToString(id[:]))
	if p.flags.binaries == "" {
		p.flags.binaries = env.Binaries
	}
	if p.flags.user == "" {
		p.flags.user = env.User
	}
	return nil
}

func (p *putBack) explain(plan restore.Plan, err error) error {
	switch {
	case errors.Is(err, tenancy.ErrNoProject):
		return failed("choose another moment: the project was not there then", "restoring project %s of %s to %s: %w", p.key, p.cluster.Name, plan.Target, err)
	case errors.Is(err, tenancy.ErrShape):
		return refused("restore it into a database of its own (--into new --on CONNECTION), and bring its rows over by hand", "%w", err)
	case errors.Is(err, tenancy.ErrMerge):
		return refused("look at what is named; --into new --on CONNECTION puts the project beside", "%w", err)
	}
	return err
}

func (p *putBack) intoNew(ctx context.Context, room *restore.Room, v *tenancy.View) error {
	if err := p.deleted(ctx); err != nil { // meanwhile
		return err
	}
	doc, err := p.e.intoNew(ctx, p.projectSource, v, p.key, p.on, nil, func(to io.Writer) error { return room.DDL(ctx, v, to) })
	if err != nil {
		return err
	}
	doc.Plan, doc.Moment.Time, doc.Moment.LSN = room.Plan.Hash, room.Result.Reached.Time, room.Result.Reached.LSN
	p.e.recordProjects(ctx, p.projectSource, "project.restored", []string{p.key}, map[string]any{"into": "new", "plan": room.Plan.Hash, "reached": room.Result.Reached})
	return p.e.print(doc, func(w io.Writer) { newText(w, "restored", doc) })
}

func (p *putBack) intoLive(ctx context.Context, room *restore.Room, v *tenancy.View) error {
	began := time.Now()
	if err := v.Keep(ctx, p.registry, p.key); err != nil {
		return err
	}
	s, err := v.Project(ctx, p.key)
	if err != nil {
		return err
	}
	doc := putBackDoc{Cluster: p.cluster.Name, Project: p.key, Plan: room.Plan.Hash, Reached: room.Result.Reached}
	if doc.NotCovered, err = v.NotCovered(ctx); err != nil {
		return err
	}
	conn, err := p.connect(ctx, p.layout.In(p.key))
	if kind := p.layout.Kind; kind == tenancy.Schema || kind == tenancy.Database {
		doc.NotCovered = append(doc.NotCovered, "views, functions, triggers and tables without rows that its "+kind+" in live has lost, where that is there: rows are put back")
	}
	if p.layout.Kind == tenancy.Database && tenancy.IsNoDatabase(err) {
		doc.Changes = s.Additions()
	} else if err != nil {
		return err
	} else {
		defer conn.Close(context.WithoutCancel(ctx))
		if doc.Changes, err = tenancy.Compare(ctx, conn, p.layout, s); err != nil {
			return err
		}
	}
	if p.e.output == "text" {
		putBackText(p.e.out, doc)
	}
	if p.dryRun {
		return p.e.print(doc, func(io.Writer) {})
	}
	if err := p.confirm(ctx, room); err != nil {
		return err
	}
	return p.apply(ctx, room, v, conn, s, doc, began)
}

// confirm asks for the project's id, or its name as the copy has it.
func (p *putBack) confirm(ctx context.Context, room *restore.Room) error {
	if p.yes {
		return nil
	}
	conn, err := room.Server.Conn(ctx, p.database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, names, err := p.names(ctx, conn)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.e.err, "This replaces what live has of the project. Type its name to go on: ")
	line, err := bufio.NewReader(p.e.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if typed := strings.TrimSpace(line); typed == "" || typed != p.key && typed != names[p.key] {
		return refused("type the project's id or name, or give --yes", "restoring project %s into live: what was typed is neither its id nor its name", p.key)
	}
	return nil
}

// apply puts the project into live; conn is nil where it is a database that live has not.
func (p *putBack) apply(ctx context.Context, room *restore.Room, v *tenancy.View, conn *pgx.Conn, s *tenancy.Slice, doc putBackDoc, began time.Time) error {
	if err := p.deleted(ctx); err != nil { // meanwhile
		return err
	}
	ddl := func() ([]byte, error) {
		var text bytes.Buffer
		schema := p.key
		if p.layout.Kind == tenancy.Database {
			schema = ""
		}
		err := room.OwnDDL(ctx, v, schema, &limit{&text, maxDDL})
		return text.Bytes(), err
	}
	var done tenancy.Merged
	var err error
	if conn == nil {
		done, err = p.remake(ctx, v, s, ddl)
	} else {
		done, err = tenancy.Merge(ctx, conn, p.layout, s, ddl)
	}
	if err != nil {
		return err
	}
	if fmt.Sprint(done.Changes) != fmt.Sprint(doc.Changes) {
		doc.Expected = doc.Changes
	}
	doc.Applied, doc.Changes, doc.Merged, doc.Seconds = true, done.Changes, &done, time.Since(began).Seconds()
	unnamed := slices.Clone(done.Changes)
	for i := range unnamed {
		unnamed[i].Table = p.layout.Unnamed(p.key, unnamed[i].Table)
	}
	p.e.recordProjects(ctx, p.projectSource, "project.restored", []string{p.key}, map[string]any{
		"into": "live", "plan": doc.Plan, "reached": doc.Reached, "changes": unnamed, "others": done.Others,
	})
	return p.e.print(doc, func(w io.Writer) {
		if doc.Expected != nil {
			fmt.Fprintln(w, "live had changed meanwhile; what was done:")
			changesText(w, doc.Changes)
		}
		switch {
		case done.Made:
			fmt.Fprintf(w, "project %s is in live as it was: its %s was made anew, with owners and grants\n", doc.Project, p.layout.Kind)
		case p.layout.Kind == tenancy.Schema || p.layout.Kind == tenancy.Database:
			fmt.Fprintf(w, "project %s is in live as it was; nothing was written outside its %s\n", doc.Project, p.layout.Kind)
		default:
			fmt.Fprintf(w, "project %s is in live as it was; the other rows of %d tables are as they were, by digests before and after\n", doc.Project, len(done.Others))
		}
		for _, q := range done.Sequences {
			fmt.Fprintf(w, "  sequence %s moved from %d to %d\n", q.Name, q.From, q.To)
		}
		for _, v := range done.Views {
			fmt.Fprintln(w, "  materialized view not renewed, it shows what live had before:", v)
		}
	})
}

// remake makes a database anew in live and fills it; what fails on the way leaves none.
func (p *putBack) remake(ctx context.Context, v *tenancy.View, s *tenancy.Slice, ddl func() ([]byte, error)) (done tenancy.Merged, err error) {
	dsn, err := dsnOf(p.cluster)
	if err != nil {
		return done, err
	}
	text, err := ddl()
	if err != nil {
		return done, err
	}
	conn, err := p.connect(ctx, p.database)
	if err == nil {
		err = errors.Join(v.SameSystem(ctx, conn), conn.Close(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return done, err
	}
	fresh, err := makeFresh(ctx, postgres.InDatabase(dsn, p.key), v.At)
	if err != nil {
		return done, err
	}
	done = tenancy.Merged{Changes: s.Additions(), Sequences: []tenancy.Moved{}, Others: []tenancy.Digest{}, Made: true}
	var loaded tenancy.Loaded
	if err = tenancy.Define(ctx, fresh.conn, text); err == nil {
		loaded, err = tenancy.Load(ctx, fresh.conn, s, nil, func(string, int64) {})
	}
	if err == nil {
		err = fresh.own(ctx, v.Owner)
	}
	done.Restored, done.Views = loaded.Tables, loaded.Views
	return done, errors.Join(err, fresh.end(ctx, err))
}

func putBackText(w io.Writer, d putBackDoc) {
	fmt.Fprintf(w, "project %s of %s as it was at %s (%s), against live:\n", d.Project, d.Cluster, d.Reached.LSN, clock(d.Reached.Time))
	changesText(w, d.Changes)
	for _, s := range d.NotCovered {
		fmt.Fprintln(w, "  not covered:", s)
	}
}

func changesText(w io.Writer, list []tenancy.Change) {
	var rows [][]string
	for _, c := range list {
		rows = append(rows, []string{c.Table, fmt.Sprint("+", c.Added), fmt.Sprint("~", c.Changed), fmt.Sprint("-", c.Removed), fmt.Sprint("=", c.Kept)})
	}
	table(w, "TABLE\tADDED\tCHANGED\tREMOVED\tEQUAL", rows)
}

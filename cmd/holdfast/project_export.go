package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
)

// exporting is one run of `project export`.
type exporting struct {
	*projectSource
	e        *env
	out      *portable.Writer // nil: files go to another place
	to       portable.Adder
	form     string
	binaries string
	masks    tenancy.Masks
	view     *tenancy.View
	ddl      *portable.DDL
	noDDL    string // why there is none
	common   []string
	madeAt   time.Time
}

// exportDoc is what `project export` prints.
type exportDoc struct {
	To       string                `json:"exported_to"`
	Cluster  string                `json:"cluster"`
	Moment   tenancy.Moment        `json:"moment"`
	Form     string                `json:"form"`
	DDL      *portable.DDL         `json:"ddl,omitempty"`
	Projects []portable.IndexEntry `json:"projects"`
	// NotCovered is what may belong to them and is not in the export.
	NotCovered []string `json:"not_covered"`
	Seconds    float64  `json:"seconds"`
}

func (e *env) projectExportCommand() *cobra.Command {
	var out, format, binaries string
	var all bool
	var masks []string
	cmd := &cobra.Command{
		Use: "export CLUSTER [PROJECT …] --out DIR|FILE.tar", Short: "Write projects of live into a directory or an archive, in one snapshot", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if format != tenancy.Copy && format != tenancy.Lines {
				return usage("--format %s: want copy or jsonl", format)
			}
			if all == (len(args) > 1) {
				return usage("name projects, or give --all")
			}
			t, err := e.projectSource(args[0])
			if err != nil {
				return err
			}
			x := &exporting{projectSource: t, e: e, form: format, binaries: binaries, madeAt: time.Now().UTC()}
			if x.masks, err = t.masks(masks); err != nil {
				return err
			}
			doc, err := x.run(c.Context(), out, args[1:], all)
			if errors.Is(err, portable.ErrExists) {
				return refused("name a target that is not there", "%w", err)
			}
			if err != nil {
				return err
			}
			return e.print(doc, func(w io.Writer) { exportText(w, doc) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "directory to make, or `DIR|FILE.tar`; it must not exist")
	f.StringVar(&format, "format", tenancy.Copy, "copy (PostgreSQL's text form) or jsonl (a JSON object a line)")
	f.BoolVar(&all, "all", false, "every project that projects.registry lists")
	f.StringVar(&binaries, "binaries", "", "where pg_dump is, as /usr/lib/postgresql/{major}/bin")
	f.StringArrayVar(&masks, "mask", nil, "write `TABLE.COLUMN=EXPRESSION` instead of a column's values (repeat)")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err)
	}
	return cmd
}

// run exports projects; what is not whole is not there.
func (x *exporting) run(ctx context.Context, target string, keys []string, all bool) (doc exportDoc, err error) {
	began := time.Now()
	list, names, err := x.listed(ctx)
	if err != nil {
		return doc, err
	}
	if all {
		for _, p := range list {
			keys = append(keys, p.ID)
		}
	}
	if x.out, err = portable.Create(target); err != nil {
		return doc, err
	}
	x.to = x.out
	doc = exportDoc{To: target, Cluster: x.cluster.Name, Form: x.form}
	if x.layout.Kind == tenancy.Database {
		err = x.apart(ctx, &doc, keys, names, all)
	} else {
		err = x.open(ctx, "", keys, func() error {
			doc.Moment = x.view.At
			return x.fill(ctx, &doc, keys, names, all)
		})
	}
	if err == nil {
		err = x.out.Commit()
	} else {
		err = errors.Join(err, x.out.Abort())
	}
	if err != nil {
		return doc, err
	}
	doc.Seconds = time.Since(began).Seconds()
	x.e.recordProjects(ctx, x.projectSource, "project.exported", keys, map[string]any{"moment": doc.Moment, "form": x.form})
	return doc, nil
}

// open calls do while a view is open: of the database of key, for projects.
func (x *exporting) open(ctx context.Context, key string, keys []string, do func() error) error {
	v, end, err := x.projectSource.view(ctx, key)
	if err != nil {
		return err
	}
	x.view = v
	err = v.Keep(ctx, x.registry, keys...)
	if err == nil {
		err = do()
	}
	return errors.Join(err, end())
}

// apart exports projects that are databases, each in a moment of its own: no snapshot
// is of two databases.
func (x *exporting) apart(ctx context.Context, doc *exportDoc, keys []string, names map[string]string, all bool) error {
	single := len(keys) == 1 && !all
	doc.NotCovered = []string{}
	err := x.each(doc, keys, single, func(key, dir string, tell func(string)) (entry portable.IndexEntry, err error) {
		err = x.open(ctx, key, nil, func() error {
			if err := x.prepare(ctx, dir); err != nil {
				return err
			}
			doc.Moment = x.view.At
			entry, err = x.one(ctx, key, names[key], dir, true, tell)
			return err
		})
		for _, s := range x.common {
			if !slices.Contains(doc.NotCovered, s) {
				doc.NotCovered = append(doc.NotCovered, s)
			}
		}
		return entry, err
	})
	if err != nil {
		return err
	}
	if single {
		doc.DDL = x.ddl
	}
	return x.index(doc, single, nil)
}

func (x *exporting) fill(ctx context.Context, doc *exportDoc, keys []string, names map[string]string, all bool) error {
	single := len(keys) == 1 && !all
	if err := x.prepare(ctx, ""); err != nil {
		return err
	}
	doc.DDL, doc.NotCovered = x.ddl, x.common
	err := x.each(doc, keys, single, func(key, dir string, tell func(string)) (portable.IndexEntry, error) {
		return x.one(ctx, key, names[key], dir, single, tell)
	})
	if err != nil {
		return err
	}
	return x.index(doc, single, x.view.At)
}

// each exports project after project below a directory of its own, a single one on top.
func (x *exporting) each(doc *exportDoc, keys []string, single bool, one func(key, dir string, tell func(table string)) (portable.IndexEntry, error)) error {
	bar := x.e.progress("export of " + x.cluster.Name)
	defer bar.end()
	var bytes int64
	for i, key := range keys {
		dir := ""
		if !single {
			dir = "projects/" + folder(key, i) + "/"
		}
		entry, err := one(key, dir, func(table string) {
			bar.show(fmt.Sprintf("project %d of %d, %s written, now %s", i+1, len(keys), size(bytes), table), 0, 0)
		})
		if err != nil {
			return projectFault(x.cluster.Name, key, err)
		}
		bytes += entry.Bytes
		doc.Projects = append(doc.Projects, entry)
	}
	return nil
}

// index writes the manifest of several projects; one of them has its own alone.
func (x *exporting) index(doc *exportDoc, single bool, moment any) error {
	if single {
		return nil
	}
	_, err := portable.AddJSON(x.to, portable.ManifestName, portable.Index{
		Format: portable.Format, Cluster: x.cluster.Name, Moment: moment, Software: version, MadeAt: x.madeAt, DDL: doc.DDL, Projects: doc.Projects,
	})
	return err
}

// prepare writes what all projects below dir have in common: the DDL, and what is not
// covered.
func (x *exporting) prepare(ctx context.Context, dir string) (err error) {
	x.common, x.ddl, x.noDDL = []string{}, nil, ""
	var by string
	f, err := x.to.Add(dir+"schema.sql", func(to io.Writer) error {
		var text bytes.Buffer
		if by, err = x.projectSource.ddl(ctx, x.view, x.binaries, &limit{&text, maxDDL}); err == nil {
			own, left := x.view.Alone(text.Bytes())
			x.common = append(x.common, left...)
			_, err = to.Write(own)
		}
		if errors.Is(err, postgres.ErrNoDump) && x.out != nil {
			x.noDDL = err.Error()
			_, err = fmt.Fprintf(to, "-- The DDL of these tables is not here: %s.\n", strings.ReplaceAll(x.noDDL, "\n", " "))
		}
		return err
	})
	if err != nil {
		return err
	}
	if x.noDDL == "" {
		f.Name = "schema.sql"
		x.ddl = &portable.DDL{By: by, File: f}
	} else {
		x.common = append(x.common, "the tables' DDL: "+x.noDDL)
	}
	more, err := x.view.NotCovered(ctx)
	x.common = append(x.common, more...)
	switch {
	case x.out == nil:
		x.common = append(x.common, "files outside PostgreSQL: `project export` fetches them")
	case x.cluster.Projects.Media == nil:
		x.common = append(x.common, "files outside PostgreSQL: projects.media names no command that fetches them")
	}
	return err
}

// plain are keys that can name a directory anywhere.
var plain = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,62}$`)

// folder is the directory of a project among several.
func folder(key string, i int) string {
	if plain.MatchString(key) {
		return key
	}
	return fmt.Sprintf("_%06d", i+1)
}

// one writes one project below dir.
func (x *exporting) one(ctx context.Context, key, name, dir string, single bool, tell func(table string)) (entry portable.IndexEntry, err error) {
	s, err := x.view.Project(ctx, key)
	if err == nil {
		err = x.masks.Check(ctx, s)
	}
	if err != nil {
		return entry, err
	}
	m := portable.Manifest{
		Format: portable.Format, Cluster: x.cluster.Name, Project: portable.Project{ID: key, Name: name},
		Layout: portable.Layout{Kind: x.layout.Kind, Database: x.layout.Database, Root: x.layout.Root, Key: x.layout.Key},
		Moment: x.view.At, Software: version, MadeAt: x.madeAt, Form: x.form, Masked: masked(x.masks), DDL: x.ddl,
		Sequences: orEmpty(s.Sequences), References: orEmpty(s.References), NotCovered: x.common,
	}
	if !single && m.DDL != nil {
		up := *m.DDL
		up.File.Name = "../../" + up.File.Name
		m.DDL = &up
	}
	for i, p := range s.Parts {
		tell(p.Name)
		t, err := x.table(ctx, s, p, dir, fmt.Sprintf("data/%04d.%s", i+1, x.form))
		if err != nil {
			return entry, err
		}
		m.Tables = append(m.Tables, t)
	}
	if m.Media, err = x.media(ctx, key, name, dir); err != nil {
		return entry, err
	}
	if x.form == tenancy.Copy {
		_, err = x.to.Add(dir+"load.sql", func(to io.Writer) error { return m.LoadScript(to, x.view.ClientEncoding(), s.Advance()) })
	}
	if err == nil {
		entry.File, err = portable.AddJSON(x.to, dir+portable.ManifestName, m)
	}
	entry.Project = m.Project
	entry.Rows, entry.Bytes = m.Rows()
	return entry, err
}

func (x *exporting) table(ctx context.Context, s *tenancy.Slice, p tenancy.Part, dir, file string) (portable.Table, error) {
	t := tableOf(p)
	if p.Rows == 0 {
		return t, nil
	}
	f, err := x.to.Add(dir+file, func(to io.Writer) error {
		_, err := s.Write(ctx, p, x.form, x.masks, to)
		return err
	})
	t.File = f
	t.File.Name = file
	return t, err
}

// tableOf describes the table of a part.
func tableOf(p tenancy.Part) portable.Table {
	t := portable.Table{Schema: p.Schema, Table: p.Table, Name: p.Name, Rows: p.Rows, Shared: p.Shared, Columns: []portable.Column{}}
	for _, c := range p.Columns {
		if !c.Generated {
			t.Columns = append(t.Columns, portable.Column{Name: c.Name, Type: c.Type})
		}
	}
	return t
}

func masked(m tenancy.Masks) []string { return orEmpty(slices.Sorted(maps.Keys(m))) }

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func exportText(w io.Writer, d exportDoc) {
	fmt.Fprintf(w, "exported to %s, as of %s (%s), form %s, in %.1f s\n", d.To, clock(d.Moment.Time), d.Moment.LSN, d.Form, d.Seconds)
	var rows, bytes int64
	for _, p := range d.Projects {
		rows, bytes = rows+p.Rows, bytes+p.Bytes
		if len(d.Projects) <= 20 {
			fmt.Fprintf(w, "  project %s (%s): %d rows, %s; %s\n", p.ID, p.Project.Name, p.Rows, size(p.Bytes), p.File.Name)
		}
	}
	fmt.Fprintf(w, "%s, %d rows, %s\n", count(len(d.Projects), "project"), rows, size(bytes))
	for _, s := range d.NotCovered {
		fmt.Fprintln(w, "  not covered:", s)
	}
}

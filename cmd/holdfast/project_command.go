package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/retention"
)

func (e *env) projectCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "project", Short: "The tenants inside a cluster: list, show, delete"}
	var in projectsIn
	list := &cobra.Command{Use: "list CLUSTER", Short: "List the projects in live", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		in.Cluster = args[0]
		doc, err := asks(c.Context(), e, opProjectList, in, (*node).projectList)
		if err != nil {
			return err
		}
		return e.print(doc, func(out io.Writer) { projectsText(out, doc, in.Sizes) })
	}}
	list.Flags().BoolVar(&in.Sizes, "sizes", false, "count and measure each project's rows")
	show := &cobra.Command{Use: "show CLUSTER PROJECT", Short: "What a project holds, and what its deletion would do", Args: cobra.ExactArgs(2), RunE: func(c *cobra.Command, args []string) error {
		v, err := asks(c.Context(), e, opProjectShow, projectIn{args[0], args[1]}, (*node).projectShow)
		if err != nil {
			return err
		}
		return e.print(v, func(out io.Writer) { projectText(out, v) })
	}}
	cmd.AddCommand(list, show, e.projectExportCommand(), e.projectCloneCommand(), e.projectRestoreCommand(), e.projectDeleteCommand())
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
		projectText(e.out, v)
	}
	if !yes {
		if in.Body.Typed, err = e.typed("This cannot be undone. Type the project's name to go on: "); err != nil {
			return err
		}
		if in.Body.Typed == "" {
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
			fmt.Fprintf(out, "  deleted in live: %s of %s\n", count(int(c.Rows), "row"), c.Table)
		}
		for _, h := range doc.Suspended {
			fmt.Fprintln(out, "SUSPENDED by", h)
		}
		fmt.Fprintf(out, "state: %s; follow it with `holdfast purge show %s`\n", doc.State, doc.Tombstone)
	})
}

// typed asks for a line; nothing is what nobody typed.
func (e *env) typed(question string) (string, error) {
	fmt.Fprint(e.err, question)
	line, err := bufio.NewReader(e.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSpace(line), nil
}

func projectsText(out io.Writer, doc projectsDoc, sizes bool) {
	var rows [][]string
	heading := "ID\tNAME"
	if sizes {
		heading += "\tROWS\tBYTES"
	}
	for _, p := range doc.Projects {
		row := []string{p.ID, p.Name}
		if sizes {
			row = append(row, fmt.Sprint(*p.Rows), size(*p.Bytes))
		}
		rows = append(rows, row)
	}
	table(out, heading, rows)
}

func projectText(out io.Writer, v projectDoc) {
	fmt.Fprintf(out, "project %s (%s), %s, last active %s\n", v.ID, v.Name, size(v.Bytes), clock(v.LastActivity))
	for _, s := range v.Sizes {
		fmt.Fprintf(out, "  %8d rows of %s, %s\n", s.Rows, s.Table, size(s.Bytes))
	}
	for _, t := range v.NotCovered {
		fmt.Fprintln(out, "  not covered:", t)
	}
	fmt.Fprintf(out, "  if it were deleted now, its last copy would end by %s\n", clock(v.LastCopyEnds))
}

func (e *env) purgeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "purge", Short: "Follow deleted projects to their certificates"}
	get := func(ctx context.Context, id string) (purgesDoc, error) {
		return asks(ctx, e, opPurgeList, purgeQuery{ID: id}, (*node).purges)
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
	cmd.AddCommand(list, e.purgeShowCommand(), e.purgeCertificateCommand())
	return cmd
}

func (e *env) purgeShowCommand() *cobra.Command {
	var in purgeQuery
	cmd := &cobra.Command{Use: "show ID", Short: "Where one purge stands, zone by zone", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		in.ID = args[0]
		doc, err := asks(c.Context(), e, opPurgeList, in, (*node).purges)
		if err != nil {
			return err
		}
		return e.print(doc.Purges[0], func(out io.Writer) { purgeText(out, doc.Purges[0]) })
	}}
	cmd.Flags().BoolVar(&in.Objects, "objects", false, "name every object that may hold the project, and when it ends")
	return cmd
}

// purgeMeans says what a state comes to, and what it waits for.
var purgeMeans = map[string]string{
	retention.PurgeRequested: "the live database still has rows of it, or was not looked at yet: delete them there (`project delete --in-live` does)",
	retention.PurgeResidue:   "the live database has no row of it; its bytes stay in the files of tables, or of the catalogues that told of it, until a vacuum has passed (autovacuum's, or yours: VACUUM in that database)",
	retention.PurgeAgeing:    "the live database is clean; the zones' copies end as retention removes them",
	retention.PurgeDone:      "no zone holds a copy",
}

// waitingLines is how many things that a purge waits for have a line each.
const waitingLines = 8

// waitingText is one of the things that a purge waits for: mostly a table.
func waitingText(what string) string {
	if strings.HasPrefix(what, "the end of ") || strings.HasPrefix(what, "a look at ") {
		return "waiting for " + what
	}
	return "live must still vacuum " + what
}

func purgeText(out io.Writer, p retention.Purge) {
	fmt.Fprintf(out, "purge %s of %s: %s\n  requested %s, deadline %s, last copy ends %s\n", p.Project, p.Cluster, p.State, clock(p.RequestedAt), clock(p.Deadline), clock(p.LastCopyEnds))
	if means := purgeMeans[p.State]; means != "" {
		fmt.Fprintln(out, " ", means)
	}
	if len(p.Waiting) > waitingLines {
		fmt.Fprintln(out, " ", strings.Replace(waitingText(strings.Join(p.Waiting, ", ")), "; then, ", "; then a vacuum of ", 1))
	} else {
		for _, t := range p.Waiting {
			fmt.Fprintln(out, " ", waitingText(t))
		}
	}
	for _, z := range p.Zones {
		fmt.Fprintf(out, "  zone %-12s %d copies, the last ends %s %s\n", z.Name, z.Copies, clock(z.LastEnds), strings.Join(z.BlockedBy, "; "))
		for _, o := range z.Objects {
			fmt.Fprintf(out, "    ends %s  %s %s\n", clock(o.EndsAt), o.Name, o.Version)
		}
	}
	for _, h := range p.SuspendedBy {
		fmt.Fprintln(out, "  SUSPENDED by", h)
	}
	if p.Early != nil {
		earlyText(out, *p.Early, p.Cluster)
	}
	if p.Reappeared {
		fmt.Fprintln(out, "  the project's key is in use again in live")
	}
	if p.Certificate != nil {
		certificateText(out, *p.Certificate)
	}
}

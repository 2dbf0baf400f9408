package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (e *env) holdCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "hold", Short: "Keep a snapshot, a span of time or a project, whatever the policy says"}
	cmd.AddCommand(e.holdAddCommand(), e.holdReleaseCommand(), e.holdListCommand())
	return cmd
}

func (e *env) holdAddCommand() *cobra.Command {
	var in holdAdd
	var from, to, review string
	cmd := &cobra.Command{
		Use: "add CLUSTER", Short: "Place a hold; it stays in force until it is released", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			in.Cluster = args[0]
			for flag, s := range map[string]struct {
				text string
				into *time.Time
			}{"--from": {from, &in.Body.From}, "--to": {to, &in.Body.To}} {
				if s.text == "" {
					continue
				}
				if *s.into, err = time.Parse(time.RFC3339, s.text); err != nil {
					return usage("%s %s: want a time with its zone, as 2026-01-31T12:00:00+01:00", flag, s.text)
				}
			}
			if in.Body.ReviewBy, err = reviewTime(review, time.Now()); err != nil {
				return err
			}
			return e.addHold(c.Context(), in)
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.Body.Snapshot, "snapshot", "", "the snapshot `ID`, with the WAL that it needs")
	f.StringVar(&from, "from", "", "with --to: every moment from `TIME` on")
	f.StringVar(&to, "to", "", "up to `TIME`")
	f.StringVar(&in.Body.Project, "project", "", "the project `ID` of live: its purge waits, and a copy from before stays")
	f.StringVar(&in.Body.Purge, "purge", "", "the project of the purge `ID`")
	f.StringVar(&in.Body.Reason, "reason", "", "why, without personal data: a case number")
	f.StringVar(&in.Body.By, "by", "", "who wants it, without personal data: a role")
	f.StringVar(&review, "review-by", "", "when it is to be looked at again: a `DAY`, a time, or a span from now")
	cmd.MarkFlagsMutuallyExclusive("snapshot", "from", "project", "purge")
	cmd.MarkFlagsOneRequired("snapshot", "from", "project", "purge")
	cmd.MarkFlagsRequiredTogether("from", "to")
	for _, name := range []string{"reason", "by", "review-by"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

func (e *env) addHold(ctx context.Context, in holdAdd) error {
	doc, err := asks(ctx, e, opHoldAdd, in, (*node).holdAdd)
	if err != nil {
		return err
	}
	return e.print(doc, func(out io.Writer) {
		fmt.Fprintf(out, "hold %s on %s of %s is in force, to be reviewed by %s; `holdfast hold release %s` ends it\n", doc.ID, doc.about(), doc.Cluster, clock(doc.ReviewBy), doc.ID)
	})
}

// about says what a hold is on.
func (d holdDoc) about() string {
	switch {
	case d.Snapshot != "":
		return "snapshot " + d.Snapshot
	case !d.From.IsZero():
		return clock(d.From) + " to " + clock(d.To)
	case len(d.Purges) > 0:
		return "a project, purge " + strings.Join(d.Purges, ", ")
	}
	return "a project"
}

func (e *env) holdReleaseCommand() *cobra.Command {
	var in holdRelease
	cmd := &cobra.Command{
		Use: "release ID", Short: "End a hold: what it kept goes by the policy from then on", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in.ID = args[0]
			doc, err := asks(c.Context(), e, opHoldRelease, in, (*node).holdRelease)
			if err != nil {
				return err
			}
			return e.print(doc, func(out io.Writer) {
				fmt.Fprintf(out, "hold %s on %s of %s is released; its record stays\n", doc.ID, doc.about(), doc.Cluster)
			})
		},
	}
	cmd.Flags().StringVar(&in.Body.Reason, "reason", "", "why, without personal data")
	cmd.Flags().StringVar(&in.Body.By, "by", "", "who releases it, without personal data: a role")
	_ = cmd.MarkFlagRequired("reason")
	_ = cmd.MarkFlagRequired("by")
	return cmd
}

func (e *env) holdListCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list [CLUSTER]", Short: "List the holds in force", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			doc, err := call(c.Context(), e, opHoldList, optionalCluster(args), (*world).holdList)
			if err != nil {
				return err
			}
			list := []holdDoc{}
			for _, h := range doc.Holds {
				if all || h.Released == nil {
					list = append(list, h)
				}
			}
			doc.Holds = list
			return e.print(doc, doc.text)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "released ones as well")
	return cmd
}

func (d holdsDoc) text(out io.Writer) {
	var rows [][]string
	for _, h := range d.Holds {
		state := "in force"
		switch {
		case h.Released != nil:
			state = "released " + clock(h.Released.At) + " by " + h.Released.By
		case h.Overdue:
			state = "PAST ITS REVIEW"
		}
		rows = append(rows, []string{h.ID, h.Cluster, h.about(), h.Reason, h.By, clock(h.PlacedAt), clock(h.ReviewBy), state, strings.Join(h.Keeps, " ")})
	}
	if len(rows) == 0 {
		fmt.Fprintln(out, "no holds")
	} else {
		table(out, "ID\tCLUSTER\tON\tREASON\tBY\tPLACED\tREVIEW BY\tSTATE\tKEEPS", rows)
	}
	if !d.Complete {
		fmt.Fprintln(out, "too few zones answered to know that none is missing")
	}
	for _, f := range d.Faults {
		fmt.Fprintln(out, "not believed:", f)
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/drills"
)

func (e *env) drillCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "drill", Short: "Rehearse recovery, and read what came of it"}
	run := &cobra.Command{Use: "run NAME", Short: "Run a drill now", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		return e.runDrill(c.Context(), args[0])
	}}
	list := &cobra.Command{Use: "list [NAME]", Short: "List the drills that were due or asked for", Args: cobra.MaximumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
		in := drillQuery{}
		if len(args) > 0 {
			in.Name = args[0]
		}
		doc, err := call(c.Context(), e, opDrillList, in, (*world).drillList)
		if err != nil {
			return err
		}
		return e.print(doc, doc.text)
	}}
	show := &cobra.Command{Use: "show ID", Short: "Show one drill's record", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		rec, err := call(c.Context(), e, opDrillShow, drillShowIn{args[0]}, (*world).drillShow)
		if err != nil {
			return err
		}
		return e.print(rec, func(out io.Writer) { drillText(out, rec) })
	}}
	cmd.AddCommand(run, list, show, e.drillReportCommand())
	return cmd
}

func (e *env) runDrill(ctx context.Context, name string) error {
	cfg, err := e.load()
	if err != nil {
		return err
	}
	d, err := (&world{cfg: cfg}).drill(name)
	if err != nil {
		return err
	}
	out, err := act(ctx, e, opDrillRun, drillIn{name}, jobDrill, "drill/"+d.Environment, order{Drill: name, Human: true}, "drill "+name)
	if err != nil {
		return err
	}
	var rec drills.Record
	if err := json.Unmarshal(out, &rec); err != nil {
		return fmt.Errorf("reading the drill's record: %w", err)
	}
	if err := e.print(rec, func(out io.Writer) { drillText(out, rec) }); err != nil {
		return err
	}
	switch rec.Outcome.Outcome {
	case "pass", "pass_with_gaps":
		return nil
	case "fail":
		return silent{exitNotHeld}
	}
	return silent{exitFailed}
}

func (d drillsDoc) text(w io.Writer) {
	var rows [][]string
	for _, r := range d.Drills {
		rows = append(rows, []string{r.ID, r.Name, clock(r.FinishedAt), r.Trigger, r.Outcome.Outcome, r.Level, r.Snapshot, secondsText(r.RTO.Measured)})
	}
	if len(rows) == 0 {
		fmt.Fprintln(w, "no drill was due or asked for yet")
		return
	}
	table(w, "ID\tDRILL\tFINISHED\tBY\tOUTCOME\tLEVEL\tSNAPSHOT\tRTO", rows)
}

func secondsText(s *float64) string {
	if s == nil {
		return "-"
	}
	return span(time.Duration(*s * float64(time.Second)))
}

func drillText(out io.Writer, r drills.Record) {
	fmt.Fprintf(out, "drill %s (%s of %s): %s", r.ID, r.Name, r.Cluster, strings.ToUpper(r.Outcome.Outcome))
	if r.Level != "" {
		fmt.Fprintf(out, ", level %s of %s", r.Level, r.Wanted)
	}
	fmt.Fprintln(out)
	if r.Reason != "" {
		fmt.Fprintf(out, "  because     %s (%s)\n", r.Reason, r.Class)
	}
	if r.Target != nil {
		fmt.Fprintf(out, "  restored    snapshot %s to %s\n", r.Snapshot, r.Target)
	}
	if r.Selection != nil {
		fmt.Fprintf(out, "  chosen      %s\n", r.Selection.Select)
	}
	if r.Expected != nil && r.Reached != nil {
		fmt.Fprintf(out, "  reached     %s (%s), expected %s\n", r.Reached.LSN, clock(r.Reached.Time), r.Expected.LSN)
	}
	fmt.Fprintf(out, "  RTO         %s (objective %s)\n  RPO         %s (objective %s)\n", secondsText(r.RTO.Measured), secondsText(r.RTO.Objective), secondsText(r.RPO.Measured), secondsText(r.RPO.Objective))
	for _, p := range r.Phases {
		fmt.Fprintf(out, "  phase       %-19s %6.2f s  %s\n", p.Name, p.Seconds, p.Outcome)
	}
	for _, c := range r.Checks {
		fmt.Fprintf(out, "  check       %-12s %-5s %s\n", c.ID, c.Verdict, c.Observed)
	}
	for _, n := range r.NotAssessed {
		fmt.Fprintf(out, "  not assessed  %s: %s\n", n.What, n.Why)
	}
	cleaned := "everything, seen " + clock(r.Cleanup.VerifiedAt)
	if !r.Cleanup.Verified {
		cleaned = "NOT everything: left " + strings.Join(r.Cleanup.Left, ", ")
	}
	fmt.Fprintf(out, "  cleaned up  %s\n", cleaned)
	if r.Ledger != nil {
		fmt.Fprintf(out, "  ledger      %s, entry %d\n", r.Ledger.Origin, r.Ledger.Index)
	}
}

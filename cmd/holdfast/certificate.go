package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/retention"
)

func (e *env) purgeCertificateCommand() *cobra.Command {
	var phase int
	var format string
	cmd := &cobra.Command{
		Use: "certificate ID", Short: "The certificate of a purge: its final phase, or the first with --phase 1", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if phase != catalog.PhaseLogical && phase != catalog.PhaseFinal {
				return usage("--phase %d: want 1 (live is without the project) or 2 (no zone holds a copy)", phase)
			}
			if format == "" {
				format = e.output
			}
			if format != "text" && format != "json" && format != "html" {
				return usage("--format %s: want text, json or html", format)
			}
			doc, err := asks(c.Context(), e, opPurgeList, purgeQuery{ID: args[0]}, (*node).purges)
			if err != nil {
				return err
			}
			cert, err := phaseOf(doc.Purges[0], phase)
			if err != nil {
				return err
			}
			switch format {
			case "html":
				return certificatePage.Execute(e.out, cert)
			case "json":
				return printJSON(e.out, cert)
			}
			certificateText(e.out, cert)
			return nil
		},
	}
	cmd.Flags().IntVar(&phase, "phase", catalog.PhaseFinal, "`1` when live was seen without the project, 2 when no zone holds a copy")
	cmd.Flags().StringVar(&format, "format", "", "text, json or html (default what --output says)")
	return cmd
}

func phaseOf(p retention.Purge, phase int) (catalog.Certificate, error) {
	switch {
	case phase == catalog.PhaseFinal && p.Certificate != nil:
		return *p.Certificate, nil
	case phase == catalog.PhaseLogical && p.Statement != nil:
		return *p.Statement, nil
	}
	where, hint := fmt.Sprintf("it is %s", p.State), "see `holdfast purge show "+p.Project+"`"
	if phase == catalog.PhaseFinal {
		where += ", and its last copy ends " + clock(p.LastCopyEnds)
		if p.Statement != nil {
			hint += "; its first phase is there: --phase 1"
		}
	}
	return catalog.Certificate{}, notHeld(hint, "purge %s has no certificate of phase %d yet: %s", p.Project, phase, where)
}

// phaseText says what a phase comes to.
func phaseText(c catalog.Certificate) string {
	if c.Phase == catalog.PhaseLogical {
		return "phase 1 of 2: deleted in live; copies end by " + clock(c.LastCopyEnds)
	}
	return "final: no zone holds a copy"
}

func certificateText(out io.Writer, c catalog.Certificate) {
	fmt.Fprintf(out, "certificate %s of cluster %s, %s: %s\n  requested %s, absent from live %s, due %s\n  method: %s\n", c.ID, c.Cluster, clock(c.IssuedAt), phaseText(c), clock(c.RequestedAt), clock(c.AbsentAt), clock(c.Deadline), c.Method)
	for _, z := range c.Zones {
		fmt.Fprintf(out, "  zone %-12s listed %s: %d versions seen, %d that could hold the project%s\n", z.Name, clock(z.ListedAt), z.Versions, z.Remaining, ends(z))
	}
	for _, m := range c.Copies {
		fmt.Fprintf(out, "  copy made by Holdfast: %s, entry %d of ledger %s\n", madeText(m), m.Index, m.Origin)
	}
	for _, s := range c.Controls {
		fmt.Fprintln(out, "  until then:", s)
	}
	for _, s := range c.Covers {
		fmt.Fprintln(out, "  covers:", s)
	}
	for _, s := range c.NotCovered {
		fmt.Fprintln(out, "  does not cover:", s)
	}
	fmt.Fprintf(out, "  signed, and entry %d of ledger %s", c.LedgerIndex, c.LedgerLog)
	if c.Supersedes != "" {
		fmt.Fprintf(out, "; supersedes entry %s", c.Supersedes)
	}
	fmt.Fprintln(out)
}

func ends(z catalog.CertificateZone) string {
	if z.Remaining == 0 {
		return ""
	}
	return ", the last until " + clock(z.LastEnds)
}

func madeText(m catalog.Made) string {
	text := fmt.Sprintf("%s %s, %s", m.What, clock(m.At), m.State)
	if !m.RemovedAt.IsZero() {
		text += " " + clock(m.RemovedAt)
	}
	return text
}

//go:embed certificate.html.tmpl
var certificateHTML string

// certificatePage is one page that asks nobody for anything.
var certificatePage = template.Must(template.New("certificate").Funcs(template.FuncMap{"clock": clock, "phase": phaseText, "rows": func(n int64) string { return count(int(n), "row") }}).Parse(certificateHTML))

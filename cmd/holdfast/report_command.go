package main

import (
	_ "embed" // the page
	"encoding/csv"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (e *env) reportCommand() *cobra.Command {
	var format, from, to string
	cmd := &cobra.Command{
		Use: "report [CLUSTER]", Short: "What every zone was seen to hold, against the policy; exit 4 where something is too old, too young or missing", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if format == "" {
				format = e.output
			}
			write, ok := reportFormats[format]
			if !ok {
				return usage("--format %s: want text, json, csv or html", format)
			}
			var in reportIn
			var err error
			if in.From, err = reportTime("--from", from); err != nil {
				return err
			}
			if in.To, err = reportTime("--to", to); err != nil {
				return err
			}
			names, err := e.configured(args)
			if err != nil {
				return err
			}
			list := []retentionReport{}
			ok = true
			for _, name := range names {
				in.Cluster = name
				doc, err := call(c.Context(), e, opRetentionReport, in, (*world).retentionReport)
				if err != nil {
					return err
				}
				list, ok = append(list, doc), ok && doc.OK
			}
			if err := write(e.out, list); err != nil || ok {
				return err
			}
			return silent{exitNotHeld}
		},
	}
	f := cmd.Flags()
	f.StringVar(&format, "format", "", "text, json, csv or html (default what --output says)")
	f.StringVar(&from, "from", "", "`DAY` or time from which on deletions are told (default 30 days before the end)")
	f.StringVar(&to, "to", "", "`DAY` or time up to which (default now)")
	return cmd
}

func reportTime(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usage("%s %s: want a day (2027-03-01) or a time (2027-03-01T12:00:00+01:00)", flag, text)
	}
	return t, nil
}

var reportFormats = map[string]func(io.Writer, []retentionReport) error{
	"text": reportText, "csv": reportCSV, "html": reportHTML,
	"json": func(out io.Writer, list []retentionReport) error {
		return printJSON(out, map[string]any{"reports": list})
	},
}

func reportText(out io.Writer, list []retentionReport) error {
	for _, d := range list {
		fmt.Fprintf(out, "%s at %s: %s\n", d.Cluster, clock(d.At), d.verdict())
		if !d.RetiredAt.IsZero() {
			fmt.Fprintf(out, "RETIRED since %s: all of it goes, and nothing of it is taken any more\n", clock(d.RetiredAt))
		}
		for _, f := range d.Failures {
			fmt.Fprintf(out, "  FAIL %s%s: %s\n", f.Kind, after(" in zone ", f.Zone), f.What)
		}
		fmt.Fprintf(out, "policy: window %s, keep_at_least %s, keep_at_most %s; %s kept, every moment from %s to %s\n",
			secs(d.Policy.Window), secs(d.Policy.KeepAtLeast), secs(d.Policy.KeepAtMost), count(d.Kept, "snapshot"), clock(d.Window.From), clock(d.Window.To))
		var rows [][]string
		for _, h := range d.Inventory {
			rows = append(rows, []string{h.Zone, h.Class, fmt.Sprint(h.Versions), size(h.Bytes), clock(h.Oldest), clock(h.Newest), fmt.Sprint(h.TooOld), fmt.Sprint(h.OnHold), h.Locks.text()})
		}
		table(out, "ZONE\tCLASS\tVERSIONS\tBYTES\tOLDEST\tNEWEST\tTOO OLD\tTOO OLD, HELD\tLOCKED", rows)
		fmt.Fprintf(out, "deletions from %s to %s: %s\n", clock(d.Period.From), clock(d.Period.To), count(len(d.Deletions), "mark"))
		for _, x := range d.Deletions {
			fmt.Fprintf(out, "  %s by %s: %s, %d stretches of WAL, %d objects removed; done %s; %s\n", x.Mark, x.By, count(len(x.Snapshots), "snapshot"), x.WAL, x.Removed, clock(x.DoneAt), strings.Join(x.Reasons, "; "))
		}
		for _, x := range d.Refused {
			fmt.Fprintf(out, "  REFUSED %s: %s\n", clock(x.At), x.Why)
		}
		for _, h := range d.Holds {
			fmt.Fprintf(out, "hold %s on %s since %s, review by %s: keeps %s\n", h.ID, h.about(), clock(h.PlacedAt), clock(h.ReviewBy), strings.Join(h.Keeps, " "))
		}
		for _, z := range d.Residency.Zones {
			fmt.Fprintf(out, "zone %s (%s): %s, %s\n", z.Zone, z.Jurisdiction, either(z.Allowed, "allowed", "NOT ALLOWED"), count(int(z.Versions), "version"))
		}
		fmt.Fprintf(out, "purges: %d requested, %d absent from live, %d certified, %d overdue\n", d.Purges.Requested, d.Purges.Absent, d.Purges.Certified, len(d.Purges.Overdue))
		for _, n := range d.NotAssessed {
			fmt.Fprintln(out, "not assessed:", n)
		}
	}
	return nil
}

func (d retentionReport) verdict() string {
	if d.OK {
		return "as the policy says"
	}
	return count(len(d.Failures), "failure")
}

func secs(s float64) string { return span(time.Duration(s * float64(time.Second))) }

func (l *locksDoc) text() string {
	if l == nil {
		return "-"
	}
	return fmt.Sprintf("%d of %d sampled (%s)", l.Locked, l.Sampled, l.Configured)
}

// reportCSV is one table: each line a fact, by section.
func reportCSV(out io.Writer, list []retentionReport) error {
	w := csv.NewWriter(out)
	_ = w.Write([]string{"cluster", "observed_at", "section", "zone", "subject", "field", "value"}) // told by Error
	for _, d := range list {
		fact := func(section, zone, subject string, fields ...string) {
			for i := 0; i < len(fields); i += 2 {
				_ = w.Write([]string{d.Cluster, d.At.Format(time.RFC3339), section, zone, subject, fields[i], fields[i+1]})
			}
		}
		fact("verdict", "", "", "ok", strconv.FormatBool(d.OK))
		for _, f := range d.Failures {
			fact("failure", f.Zone, f.Kind, "what", f.What)
		}
		for _, h := range d.Inventory {
			fact("inventory", h.Zone, h.Class, "versions", fmt.Sprint(h.Versions), "bytes", fmt.Sprint(h.Bytes), "oldest", stampOf(h.Oldest), "oldest_object", h.OldestObject,
				"newest", stampOf(h.Newest), "newest_object", h.NewestObject, "too_old", fmt.Sprint(h.TooOld), "on_hold", fmt.Sprint(h.OnHold), "locks", h.Locks.text())
		}
		for _, x := range d.Deletions {
			fact("deletion", "", x.Mark, "marked_at", stampOf(x.MarkedAt), "done_at", stampOf(x.DoneAt), "by", x.By, "snapshots", strings.Join(x.Snapshots, " "),
				"wal_stretches", fmt.Sprint(x.WAL), "objects_removed", fmt.Sprint(x.Removed), "reasons", strings.Join(x.Reasons, "; "))
		}
		for _, x := range d.Refused {
			fact("refused", "", x.What, "at", stampOf(x.At), "why", x.Why)
		}
		for _, h := range d.Holds {
			fact("hold", "", h.ID, "on", h.about(), "placed_at", stampOf(h.PlacedAt), "review_by", stampOf(h.ReviewBy), "keeps", strings.Join(h.Keeps, " "))
		}
		for _, z := range d.Residency.Zones {
			fact("residency", z.Zone, z.Jurisdiction, "allowed", strconv.FormatBool(z.Allowed), "versions", fmt.Sprint(z.Versions))
		}
		for _, n := range d.NotAssessed {
			fact("not_assessed", "", "", "what", n)
		}
	}
	w.Flush()
	return w.Error()
}

func stampOf(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

//go:embed report.html.tmpl
var reportPage string

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"clock": clock, "size": size, "secs": secs, "join": func(s []string) string { return strings.Join(s, "; ") },
	"locks": (*locksDoc).text, "about": holdDoc.about, "verdict": retentionReport.verdict,
}).Parse(reportPage))

// reportHTML is one page that asks nobody for anything.
func reportHTML(out io.Writer, list []retentionReport) error {
	return reportTemplate.Execute(out, list)
}

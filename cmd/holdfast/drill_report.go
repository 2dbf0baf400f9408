package main

import (
	"context"
	_ "embed" // the page
	"encoding/csv"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/drills/evidence"
	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// drillReport is the document of `drill report`.
type drillReport struct {
	OK         bool            `json:"ok"`
	At         time.Time       `json:"at"`
	Repository string          `json:"repository"`
	Period     evidence.Period `json:"period"`
	Summary    drillSummary    `json:"summary"`
	ByDrill    []drillTrend    `json:"by_drill"`
	Controls   []controlDoc    `json:"controls"`
	evidence.Findings
}

// drillSummary counts the slots of the period: each is in exactly one outcome.
type drillSummary struct {
	Due      int            `json:"due"`
	Outcomes map[string]int `json:"outcomes"`
	Open     int            `json:"open"` // did not pass, and no later run of the drill did
}

// drillTrend is one drill over the period.
type drillTrend struct {
	Name      string    `json:"name"`
	Cluster   string    `json:"cluster"`
	Due       int       `json:"due"`
	Passed    int       `json:"passed"`
	RTO       *spread   `json:"rto,omitempty"`
	RPO       *spread   `json:"rpo,omitempty"`
	LastPass  time.Time `json:"last_pass,omitzero"`
	Snapshots int       `json:"snapshots"` // that it restored, each once
}

// spread is of measured seconds; Points are in the order of the slots.
type spread struct {
	Objective *float64  `json:"objective,omitempty"`
	Best      float64   `json:"best"`
	Median    float64   `json:"median"`
	Worst     float64   `json:"worst"`
	Points    []float64 `json:"points"`
}

func (e *env) drillReportCommand() *cobra.Command {
	var format string
	var period periodFlags
	cmd := &cobra.Command{
		Use: "report", Short: "Which drills were due, what came of each, and how fast recovery was; exit 4 where one is missing", Args: cobra.NoArgs,
		Long: "The report is of every ledger that the zones hold, and lists every slot that was due in the period:\nthose that were missed, skipped or are missing, too. `evidence export` makes what proves it.",
		RunE: func(c *cobra.Command, _ []string) error {
			if format == "" {
				format = e.output
			}
			write, ok := drillFormats[format]
			if !ok {
				return usage("--format %s: want text, json, csv, html, pdf or oscal", format)
			}
			w, err := e.open(c.Context())
			if err != nil {
				return err
			}
			defer w.close()
			p, err := period.read(w.now())
			if err != nil {
				return err
			}
			doc, err := w.drillReport(c.Context(), p)
			if err != nil {
				return err
			}
			if err := write(e.out, doc); err != nil || doc.OK {
				return err
			}
			return silent{exitNotHeld}
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "text, json, csv, html, pdf or oscal (default what --output says)")
	period.add(cmd)
	return cmd
}

// drillReport reads the entries of every ledger; they are believed as far as a
// checkpoint of a trusted key proves them.
func (w *world) drillReport(ctx context.Context, p evidence.Period) (drillReport, error) {
	doc := drillReport{At: w.now().UTC(), Repository: w.repoID, Period: p}
	tails, left, err := evidence.Tails(ctx, ledger.FromReader(w.vault.Reader()), w.trust, w.repoID, p.From)
	if err != nil {
		return doc, err
	}
	var logs [][]ledger.Record
	for _, t := range tails {
		logs = append(logs, t.Records)
	}
	doc.Findings = evidence.Judge(logs, p, slotsOf)
	if doc.Drills == nil {
		doc.Drills = []evidence.Drill{}
	}
	if doc.Faults == nil {
		doc.Faults = []ledger.Fault{}
	}
	doc.NotAssessed = append(doc.NotAssessed, evidence.LeftOut(left)...)
	doc.NotAssessed = append(doc.NotAssessed, ledger.NotAssessed{What: "signatures and hashes of the whole ledgers", Why: "`evidence export` and `ledger verify` do that"})
	doc.OK = len(doc.Faults) == 0
	doc.Summary, doc.ByDrill = summed(doc.Drills), trends(doc.Drills)
	doc.Controls = controls(doc)
	return doc, nil
}

func summed(list []evidence.Drill) drillSummary {
	s := drillSummary{Due: len(list), Outcomes: map[string]int{}}
	for _, d := range list {
		s.Outcomes[d.Outcome]++
		if !drills.Passed(d.Outcome) && d.Outcome != evidence.Pending && d.Followed == nil {
			s.Open++
		}
	}
	return s
}

// trends gathers the slots by drill, in the order of names.
func trends(list []evidence.Drill) []drillTrend {
	by, seen := map[string]*drillTrend{}, map[string]bool{}
	for _, d := range list {
		t := by[d.Name]
		if t == nil {
			t = &drillTrend{Name: d.Name, Cluster: d.Cluster, RTO: &spread{}, RPO: &spread{}}
			by[d.Name] = t
		}
		t.Due++
		r := d.Record
		if r == nil {
			continue
		}
		if drills.Passed(d.Outcome) {
			t.Passed, t.LastPass = t.Passed+1, r.FinishedAt
		}
		if key := d.Name + "/" + r.Snapshot; r.Snapshot != "" && !seen[key] {
			seen[key] = true
			t.Snapshots++
		}
		t.RTO.add(r.RTO)
		t.RPO.add(r.RPO)
	}
	out := []drillTrend{}
	for _, t := range by {
		t.RTO, t.RPO = t.RTO.whole(), t.RPO.whole()
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b drillTrend) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (s *spread) add(m drills.Measure) {
	if m.Objective != nil {
		s.Objective = m.Objective
	}
	if m.Measured != nil {
		s.Points = append(s.Points, *m.Measured)
	}
}

// whole is s, or nil where nothing was measured.
func (s *spread) whole() *spread {
	if len(s.Points) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(s.Points))
	s.Best, s.Median, s.Worst = sorted[0], sorted[len(sorted)/2], sorted[len(sorted)-1]
	return s
}

var drillFormats = map[string]func(io.Writer, drillReport) error{
	"text": func(out io.Writer, d drillReport) error { drillReportText(out, d); return nil },
	"json": func(out io.Writer, d drillReport) error { return printJSON(out, d) },
	"csv":  drillReportCSV, "html": drillReportHTML, "pdf": drillReportPDF, "oscal": drillReportOSCAL,
}

func drillReportText(out io.Writer, d drillReport) {
	drillsText(out, d.Period, d.Findings)
	for _, t := range d.ByDrill {
		fmt.Fprintf(out, "drill %s of %s: %d of %d passed, last %s; recovery %s\n", t.Name, t.Cluster, t.Passed, t.Due, clock(t.LastPass), spreadText(t.RTO))
	}
}

func spreadText(s *spread) string {
	if s == nil {
		return "was not measured"
	}
	text := "took " + secs(s.Best)
	if len(s.Points) > 1 {
		text = fmt.Sprintf("took %s to %s, half of them at most %s", secs(s.Best), secs(s.Worst), secs(s.Median))
	}
	if s.Objective != nil {
		text += " (objective " + secs(*s.Objective) + ")"
	}
	return text
}

// drillsText lists the slots of a period, and what is wrong.
func drillsText(out io.Writer, p evidence.Period, f evidence.Findings) {
	var rows [][]string
	for _, d := range f.Drills {
		id, level, took, next := "-", "-", "-", ""
		if r := d.Record; r != nil {
			id, level, took = r.ID, r.Level+" of "+r.Wanted, secondsText(r.RTO.Measured)
		}
		if d.Followed != nil {
			next = " (passed again " + clock(d.Followed.FinishedAt) + ")"
		}
		if d.Late && d.Record != nil && drills.Passed(d.Outcome) {
			next = " (LATE: announced " + clock(d.Told) + ")" + next
		}
		rows = append(rows, []string{clock(d.DueAt), d.Name, strings.ToUpper(d.Outcome), level, took, id, d.Why + next})
	}
	table(out, "DUE\tDRILL\tOUTCOME\tLEVEL\tRTO\tID\tWHY", rows)
	s := summed(f.Drills)
	fmt.Fprintf(out, "from %s to %s: %s due; %s; %d not passed since\n", clock(p.From), clock(p.To), count(s.Due, "drill"), outcomeCounts(s.Outcomes), s.Open)
	for _, n := range f.NotAssessed {
		fmt.Fprintf(out, "not assessed: %s: %s\n", n.What, n.Why)
	}
	for _, x := range f.Faults {
		where := ""
		if x.Origin != "" {
			where = fmt.Sprintf(" in %s, entry %d", x.Origin, x.Index)
		}
		fmt.Fprintf(out, "FAULT %s%s: %s\n", x.Code, where, x.What)
	}
}

// reportOrder are the outcomes, and the states of slots without one.
var reportOrder = append(slices.Clone(ledger.Outcomes), evidence.Abandoned, evidence.Missing, evidence.Pending)

func outcomeCounts(counts map[string]int) string {
	var parts []string
	for _, o := range reportOrder {
		if n := counts[o]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, o))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// drillReportCSV is one table, a line for each slot.
func drillReportCSV(out io.Writer, d drillReport) error {
	w := csv.NewWriter(out)
	_ = w.Write([]string{
		"slot", "drill", "cluster", "trigger", "due_at", "outcome", "class", "why", "level", "level_wanted", "snapshot", "zone", "started_at", "finished_at",
		"rto_seconds", "rto_objective", "rpo_seconds", "rpo_objective", "id", "ledger_origin", "ledger_index", "passed_again_at",
	}) // told by Error
	for _, x := range d.Drills {
		var r drills.Record
		if x.Record != nil {
			r = *x.Record
		}
		row := []string{
			x.Slot, x.Name, x.Cluster, x.Trigger, stampOf(x.DueAt), x.Outcome, r.Class, x.Why, r.Level, r.Wanted, r.Snapshot, r.Zone, stampOf(r.StartedAt), stampOf(r.FinishedAt),
			number(r.RTO.Measured), number(r.RTO.Objective), number(r.RPO.Measured), number(r.RPO.Objective), r.ID, "", "", "",
		}
		if r.Ledger != nil {
			row[19], row[20] = r.Ledger.Origin, strconv.FormatInt(r.Ledger.Index, 10)
		}
		if x.Followed != nil {
			row[21] = stampOf(x.Followed.FinishedAt)
		}
		for i, cell := range row {
			if strings.HasPrefix(cell, "=") || strings.HasPrefix(cell, "+") || strings.HasPrefix(cell, "@") || strings.HasPrefix(cell, "-") {
				row[i] = "'" + cell // a spreadsheet would take it for a formula
			}
		}
		_ = w.Write(row)
	}
	w.Flush()
	return w.Error()
}

func number(f *float64) string {
	if f == nil {
		return ""
	}
	return strconv.FormatFloat(*f, 'f', -1, 64)
}

//go:embed drill_report.html.tmpl
var drillPage string

var drillTemplate = template.Must(template.New("drills").Funcs(template.FuncMap{
	"clock": clock, "secs": secs, "spread": spreadText, "seconds": secondsText, "counts": outcomeCounts, "passed": drills.Passed, "chart": chart, "title": func(d drillReport) string { return capital(titleOf(d)) },
	"snapshots": func(n int) string { return count(n, "different snapshot") },
}).Parse(drillPage))

// drillReportHTML is one page that asks nobody for anything.
func drillReportHTML(out io.Writer, d drillReport) error { return drillTemplate.Execute(out, d) }

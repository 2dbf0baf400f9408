package main

import (
	"fmt"
	"html/template"
	"io"
	"strings"

	"codeberg.org/go-pdf/fpdf"

	"github.com/holdfast-dr/holdfast/drills/evidence"
)

// chart draws measured seconds over the slots, and the objective as a broken line.
func chart(s *spread) template.HTML {
	if s == nil || len(s.Points) < 2 {
		return ""
	}
	top := s.Worst
	if s.Objective != nil {
		top = max(top, *s.Objective)
	}
	if top <= 0 {
		return ""
	}
	y := func(v float64) float64 { return 96 - 90*v/top }
	var points strings.Builder
	for i, v := range s.Points {
		fmt.Fprintf(&points, "%.2f,%.2f ", 100*float64(i)/float64(len(s.Points)-1), y(v))
	}
	line := ""
	if s.Objective != nil {
		line = fmt.Sprintf(`<line x1="0" x2="100" y1="%[1]f" y2="%[1]f"/>`, y(*s.Objective))
	}
	return template.HTML(fmt.Sprintf(`<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"><title>recovery %s</title>%s<polyline points="%s"/></svg>`, //nolint:gosec // numbers alone
		template.HTMLEscapeString(spreadText(s)), line, points.String()))
}

// sheet is the report on paper. Its letters are those of Windows-1252; others are
// shown as dots, and JSON has them.
type sheet struct {
	*fpdf.Fpdf
	latin func(string) string
}

// drillReportPDF is the report as a PDF with neither fonts nor links of others.
func drillReportPDF(out io.Writer, d drillReport) error {
	p := sheet{Fpdf: fpdf.New("L", "mm", "A4", "")}
	p.latin = p.UnicodeTranslatorFromDescriptor("")
	p.SetTitle("Restore drills", false)
	p.SetCreationDate(d.At)
	p.SetModificationDate(d.At)
	p.SetMargins(12, 12, 12)
	p.SetAutoPageBreak(true, 14)
	p.SetFooterFunc(func() {
		p.SetY(-10)
		p.SetFont("Helvetica", "", 7)
		p.CellFormat(0, 4, p.latin(fmt.Sprintf("repository %s · page %d", d.Repository, p.PageNo())), "", 0, "R", false, 0, "")
	})
	p.AddPage()
	p.head(d)
	p.slots(d.Drills)
	p.controls(d.Controls)
	p.title("Not assessed")
	for _, n := range d.NotAssessed {
		p.line("- " + n.What + ": " + n.Why)
	}
	if err := p.Output(out); err != nil {
		return fmt.Errorf("writing the report as PDF: %w", err)
	}
	return nil
}

func (p sheet) title(text string) {
	p.Ln(3)
	p.SetFont("Helvetica", "B", 11)
	p.MultiCell(0, 6, p.latin(text), "", "L", false)
}

func (p sheet) line(text string) {
	p.SetFont("Helvetica", "", 8)
	p.MultiCell(0, 4, p.latin(text), "", "L", false)
}

func (p sheet) head(d drillReport) {
	p.SetFont("Helvetica", "B", 16)
	p.MultiCell(0, 8, "Restore drills", "", "L", false)
	p.line(fmt.Sprintf("Repository %s, from %s to %s, as the ledgers said on %s.", d.Repository, clock(d.Period.From), clock(d.Period.To), clock(d.At)))
	p.line(capital(titleOf(d)) + ".")
	p.line(fmt.Sprintf("%d due: %s. %d did not pass and were not followed by a run that did.", d.Summary.Due, outcomeCounts(d.Summary.Outcomes), d.Summary.Open))
	for _, t := range d.ByDrill {
		p.line(fmt.Sprintf("Drill %s of %s: %d of %d passed, the last %s; recovery %s.", t.Name, t.Cluster, t.Passed, t.Due, clock(t.LastPass), spreadText(t.RTO)))
	}
	if len(d.Faults) == 0 {
		return
	}
	p.title("Faults")
	for _, f := range d.Faults {
		p.line(fmt.Sprintf("%s, %s entry %d: %s", f.Code, f.Origin, f.Index, f.What))
	}
}

func (p sheet) slots(list []evidence.Drill) {
	p.title("Every slot that was due")
	rows := [][]string{}
	for _, x := range list {
		level, took, id, why := "-", "-", "-", x.Why
		if r := x.Record; r != nil {
			level, took, id = r.Level+" of "+r.Wanted, secondsText(r.RTO.Measured), r.ID
		}
		if x.Followed != nil {
			why += "; passed again " + clock(x.Followed.FinishedAt)
		}
		rows = append(rows, []string{clock(x.DueAt), x.Name, x.Outcome, level, took, id, strings.TrimPrefix(why, "; ")})
	}
	p.table([]float64{36, 34, 26, 20, 22, 46, 89}, []string{"Due", "Drill", "Outcome", "Level", "Recovery", "Record", "Why, and what was done"}, rows)
}

func (p sheet) controls(list []controlDoc) {
	p.title("What the records show, by control")
	rows := [][]string{}
	for _, c := range list {
		rows = append(rows, []string{c.Standard, c.ID + ": " + c.About, joined(c.Shows), joined(c.Not)})
	}
	p.table([]float64{38, 42, 118, 75}, []string{"Standard", "Control", "Shown", "Not shown"}, rows)
}

// table writes rows whose cells break into lines; a row is never cut by a page.
func (p sheet) table(widths []float64, heading []string, rows [][]string) {
	const height = 3.6
	row := func(cells []string, style string) {
		p.SetFont("Helvetica", style, 7)
		lines := 1
		for i, c := range cells {
			lines = max(lines, len(p.SplitText(p.latin(c), widths[i]-2)))
		}
		_, page := p.GetPageSize()
		if p.GetY()+float64(lines)*height > page-14 {
			p.AddPage()
		}
		x, y := p.GetXY()
		for i, c := range cells {
			p.SetXY(x, y)
			p.MultiCell(widths[i], height, p.latin(c), "", "L", false)
			x += widths[i]
		}
		left, _, _, _ := p.GetMargins()
		p.SetXY(left, y+float64(lines)*height)
		p.Line(left, p.GetY(), x, p.GetY())
		p.Ln(0.8)
	}
	row(heading, "B")
	for _, r := range rows {
		row(r, "")
	}
}

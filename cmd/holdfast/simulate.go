package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/scheduler"
)

var opRetentionSimulate = server.Op[simulateIn, simulationDoc]{ID: "retention-simulate", Method: http.MethodGet, Path: "/v1/clusters/{cluster}/retention/simulation", Summary: "What will exist when, by the schedule and the policy"}

type simulateIn struct {
	Cluster string `path:"cluster"`
	Days    int    `query:"days"`
	Nothing bool   `query:"from_nothing" doc:"Begin without the snapshots that there are."`
}

type simulationDoc struct {
	retention.Simulation
	Schedule string `json:"schedule"`
}

// maxDays bounds a simulation, maxSlots the snapshots in it.
const (
	maxDays  = 4000
	maxSlots = 100_000
)

func (w *world) retentionSimulate(ctx context.Context, in simulateIn) (doc simulationDoc, err error) {
	if in.Days < 1 || in.Days > maxDays {
		return doc, usage("--days %d: want 1 to %d", in.Days, maxDays)
	}
	c, err := w.cluster(in.Cluster)
	if err != nil {
		return doc, err
	}
	k, err := w.keeper(in.Cluster)
	if err != nil {
		return doc, err
	}
	from := retention.Inputs{Cluster: in.Cluster, Now: w.now(), Policy: k.Policy, Complete: true}
	if !in.Nothing {
		if from, err = k.Gather(ctx); err != nil {
			return doc, err
		}
	}
	until := from.Now.AddDate(0, 0, in.Days)
	var slots []time.Time
	if c.Snapshots.Schedule != "" {
		cron, err := scheduler.ParseCron(string(c.Snapshots.Schedule))
		if err != nil {
			return doc, err
		}
		slots = cron.Slots(from.Now, until, maxSlots)
	}
	doc.Schedule = string(c.Snapshots.Schedule)
	doc.Simulation, err = retention.Simulate(from, slots, until)
	return doc, keepFault(err)
}

func (e *env) simulateCommand() *cobra.Command {
	var in simulateIn
	cmd := &cobra.Command{
		Use: "simulate [CLUSTER]", Short: "Draw what will exist when, by the schedule and the policy; changes nothing", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			names, err := e.configured(args)
			if err != nil {
				return err
			}
			out := struct {
				Simulations []simulationDoc `json:"simulations"`
			}{}
			for _, name := range names {
				in.Cluster = name
				doc, err := call(c.Context(), e, opRetentionSimulate, in, (*world).retentionSimulate)
				if err != nil {
					return fmt.Errorf("simulating the retention of %s: %w", name, err)
				}
				out.Simulations = append(out.Simulations, doc)
			}
			return e.print(out, func(w io.Writer) {
				for _, doc := range out.Simulations {
					doc.draw(w)
				}
			})
		},
	}
	cmd.Flags().IntVar(&in.Days, "days", 400, "how many `DAYS` ahead")
	cmd.Flags().BoolVar(&in.Nothing, "from-nothing", false, "begin without the snapshots that there are")
	return cmd
}

// configured are the cluster that was named, or all of the configuration.
func (e *env) configured(args []string) ([]string, error) {
	if len(args) > 0 {
		return args, nil
	}
	cfg, err := e.load()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(cfg.Clusters))
	for i, c := range cfg.Clusters {
		names[i] = c.Name
	}
	return names, nil
}

// ages are where the columns of the drawing begin: finer near the present.
var ages = func() (out []time.Duration) {
	const hour, day = time.Hour, 24 * time.Hour
	for _, step := range []struct{ from, to, by time.Duration }{
		{0, day, 6 * hour}, {day, 8 * day, day}, {8 * day, 36 * day, 7 * day}, {36 * day, 396 * day, 30 * day}, {396 * day, 4000 * day, 365 * day},
	} {
		for at := step.from; at < step.to; at += step.by {
			out = append(out, at)
		}
	}
	return out
}()

// draw shows a row for each of some days, with the snapshots that can be restored
// then by their age: a digit says how many, + more than nine.
func (d simulationDoc) draw(out io.Writer) {
	fmt.Fprintf(out, "%s, snapshots at %q: what can be restored, by age\n\n", d.Cluster, d.Schedule)
	columns := len(ages)
	for columns > 1 && !d.reaches(ages[columns-1]) {
		columns--
	}
	d.axis(out, columns)
	step := max(1, (len(d.Days)-1)/20)
	for i, day := range d.Days {
		if i%step == 0 || i == len(d.Days)-1 {
			fmt.Fprintf(out, "%s  %s %4d  %s\n", day.At.Format(time.DateOnly), d.row(day.At, columns), day.Snapshots, rules(day.Rules))
		}
	}
	fmt.Fprintln(out)
	for _, r := range d.Refused {
		fmt.Fprintf(out, "REFUSED %s, and carried out here all the same: %s\n", r.At.Format(time.DateOnly), strings.Join(r.Why, "; "))
	}
	for _, o := range d.Over {
		fmt.Fprintf(out, "OVER-RETAINED %s from %s on; needs %s\n", o.ID, o.At.Format(time.DateOnly), strings.Join(o.Needs, ", "))
	}
}

// reaches says whether a snapshot ever gets so old.
func (d simulationDoc) reaches(age time.Duration) bool {
	return slices.ContainsFunc(d.Snapshots, func(l retention.Lifetime) bool {
		end := d.To
		if !l.Marked.IsZero() {
			end = l.Marked
		}
		return end.Sub(l.At) >= age
	})
}

func (d simulationDoc) axis(out io.Writer, columns int) {
	line := []byte(strings.Repeat(" ", columns+8))
	for _, tick := range []struct {
		at   time.Duration
		text string
	}{{0, "now"}, {24 * time.Hour, "1d"}, {8 * 24 * time.Hour, "8d"}, {36 * 24 * time.Hour, "36d"}, {216 * 24 * time.Hour, "216d"}, {396 * 24 * time.Hour, "396d"}} {
		if i := slices.Index(ages, tick.at); i+len(tick.text) <= columns {
			copy(line[i:], tick.text)
		}
	}
	fmt.Fprintf(out, "            %s  all  by rule\n", string(line[:columns]))
}

func (d simulationDoc) row(at time.Time, columns int) string {
	counts := make([]int, columns)
	for _, l := range d.Snapshots {
		age := at.Sub(l.At)
		if age < 0 || !l.Marked.IsZero() && !l.Marked.After(at) {
			continue
		}
		i, found := slices.BinarySearch(ages, age)
		if !found {
			i--
		}
		counts[min(i, columns-1)]++
	}
	row := make([]byte, columns)
	for i, n := range counts {
		switch {
		case n == 0:
			row[i] = '.'
		case n > 9:
			row[i] = '+'
		default:
			row[i] = byte('0' + n)
		}
	}
	return string(row)
}

// rules lists how many snapshots each rule keeps.
func rules(by map[string]int) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(by)) {
		out = append(out, fmt.Sprintf("%s %d", name, by[name]))
	}
	return strings.Join(out, ", ")
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/retention"
)

// nextText is what happens to a plan that has its approvals, by kind.
var nextText = map[string]string{
	retention.PlanChange: "the daemon carries the policy out when it looks next, `holdfast retention apply` at once",
	retention.PlanEarly:  "the daemon marks what goes when it looks next, `holdfast retention apply` at once; the objects go after the grace",
	retention.PlanRetire: "`holdfast cluster retire` carries it out",
}

// doesText says what a plan would do, by its hashed words alone: what the node that asks
// says beside them may be wrong. A plan that is not understood whole is not shown.
func doesText(w approval.Waiting) ([]string, error) {
	var about struct {
		Kind    string `json:"kind"`
		Cluster string `json:"cluster"`
	}
	if err := json.Unmarshal(w.Plan, &about); err != nil || about.Kind != w.What || about.Cluster != w.Cluster {
		return nil, refused("do not approve it: look who signs for this node", "plan %s says that it is a %q of cluster %q, and was asked for as a %q of %q", w.PlanHash, about.Kind, about.Cluster, w.What, w.Cluster)
	}
	switch about.Kind {
	case retention.PlanChange:
		return words(w, changeWords)
	case retention.PlanEarly:
		return words(w, earlyWords)
	case retention.PlanRetire:
		return words(w, func(p retention.RetirePlan) ([]string, error) { return retireLines(p), nil })
	}
	return nil, failed("use a newer holdfast", "plan %s is a %q, which this version does not know", w.PlanHash, about.Kind)
}

// printable keeps what a node wrote from moving a terminal's cursor over what it hides.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func words[T any](w approval.Waiting, say func(T) ([]string, error)) ([]string, error) {
	var plan T
	d := json.NewDecoder(bytes.NewReader(w.Plan))
	d.DisallowUnknownFields()
	if err := d.Decode(&plan); err != nil {
		return nil, failed("use a newer holdfast", "reading plan %s: %w", w.PlanHash, err)
	}
	return say(plan)
}

// spanOf shows a duration of a plan as others are shown; one that is none stays as it is.
func spanOf(text string) string {
	d, err := time.ParseDuration(text)
	if err != nil {
		return text
	}
	return span(d)
}

func changeWords(p retention.ChangePlan) ([]string, error) {
	shorter, err := p.Shorter()
	if err != nil {
		return nil, err
	}
	out := []string{"the retention policy keeps less, from the approval on; objects go removal_grace " + spanOf(p.After.RemovalGrace) + " after they are marked"}
	for _, s := range shorter {
		out = append(out, "it keeps less: "+s)
	}
	for _, class := range []struct {
		name string
		retention.ClassTerms
	}{{"logical", p.After.Logical}, {"project", p.After.Project}} {
		if class.KeepAtLeast != "" {
			out = append(out, fmt.Sprintf("of %s snapshots then: keep_at_least %s, hourly %d, daily %d, weekly %d, monthly %d, yearly %d", class.name, class.KeepAtLeast, class.Hourly, class.Daily, class.Weekly, class.Monthly, class.Yearly))
		}
	}
	return append(out, fmt.Sprintf("then: window %s, keep_at_least %s, keep_at_most %s, hourly %d, daily %d, weekly %d, monthly %d, yearly %d (%s)",
		p.After.Window, p.After.KeepAtLeast, p.After.KeepAtMost, p.After.Hourly, p.After.Daily, p.After.Weekly, p.After.Monthly, p.After.Yearly, p.After.TimeZone)), nil
}

func earlyWords(p retention.EarlyPlan) ([]string, error) {
	return append([]string{"snapshots and WAL that hold deleted projects (purge " + strings.Join(p.Purges, ", ") + ") are removed ahead of retention"}, earlyPlanLines(p)...), nil
}

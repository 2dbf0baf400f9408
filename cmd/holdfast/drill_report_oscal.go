package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"

	"github.com/holdfast-dr/holdfast/drills/evidence"
)

// oscalVersion is the version of NIST's Open Security Controls Assessment Language
// whose assessment-results model this follows.
const oscalVersion = "1.1.2"

// oscalNS is whose names the properties are.
const oscalNS = "https://github.com/holdfast-dr/holdfast"

// oscalControls are the controls of NIST SP 800-53 that OSCAL's catalogue names.
var oscalControls = map[string]string{"CP-4": "cp-4", "CP-9": "cp-9", "CP-10": "cp-10"}

// drillReportOSCAL writes the report as OSCAL assessment results: an observation
// for each slot that was due, and a finding for each control of SP 800-53. A
// finding is what the records show; whether the control is satisfied it leaves to
// the assessor, but for a population with faults or open drills, which is not.
func drillReportOSCAL(out io.Writer, d drillReport) error {
	id := func(parts ...any) string {
		return uuidOf(d.Repository, d.Period.From, d.Period.To, fmt.Sprint(parts...))
	}
	var include, findings, observations []map[string]any
	var related []map[string]string
	for _, x := range d.Drills {
		o := oscalObservation(id("observation", x.Slot), x)
		observations, related = append(observations, o), append(related, map[string]string{"observation-uuid": o["uuid"].(string)})
	}
	for _, c := range d.Controls {
		name, ok := oscalControls[c.ID]
		if !ok {
			continue
		}
		include = append(include, map[string]any{"control-id": name})
		findings = append(findings, map[string]any{
			"uuid": id("finding", name), "title": c.Standard + " " + c.ID, "description": capital(joined(c.Shows)) + ".",
			"target":  map[string]any{"type": "objective-id", "target-id": name + "_obj", "status": map[string]any{"state": oscalState(d), "remarks": "Not shown: " + joined(c.Not) + "."}},
			"remarks": titleOf(d), "related-observations": related,
		})
	}
	result := map[string]any{
		"uuid": id("result"), "title": "Restore drills", "description": capital(titleOf(d)) + ".", "start": stampOf(d.Period.From), "end": stampOf(d.Period.To),
		"reviewed-controls": map[string]any{"control-selections": []map[string]any{{"include-controls": include}}}, "findings": findings,
	}
	if len(observations) > 0 { // OSCAL knows no empty lists
		result["observations"] = observations
	}
	return printJSON(out, map[string]any{"assessment-results": map[string]any{
		"uuid":     id("results"),
		"metadata": map[string]any{"title": "Restore drills of repository " + d.Repository, "last-modified": stampOf(d.At), "version": stampOf(d.At), "oscal-version": oscalVersion},
		// The plan is what the ledgers say was configured: it stands in no file of its own.
		"import-ap": map[string]any{"href": "#" + id("plan")},
		"results":   []map[string]any{result},
		"back-matter": map[string]any{"resources": []map[string]any{{
			"uuid": id("plan"), "title": "The drills that the ledgers say were configured", "description": "Entries of type drill.plans; `holdfast evidence export` has them, and what proves them.",
		}}},
	}})
}

func oscalState(d drillReport) string {
	if len(d.Faults) > 0 || d.Summary.Open > 0 || d.Summary.Due == 0 {
		return "not-satisfied"
	}
	return "satisfied"
}

func oscalObservation(id string, x evidence.Drill) map[string]any {
	props := []map[string]string{{"name": "outcome", "ns": oscalNS, "value": x.Outcome}}
	collected, about := x.DueAt, fmt.Sprintf("Drill %s of %s, due %s: %s", x.Name, x.Cluster, stampOf(x.DueAt), x.Outcome)
	if r := x.Record; r != nil {
		collected = r.FinishedAt
		about += fmt.Sprintf(", level %s of %s", r.Level, r.Wanted)
		if r.RTO.Measured != nil {
			props = append(props, map[string]string{"name": "rto-seconds", "ns": oscalNS, "value": number(r.RTO.Measured)})
		}
		props = append(props, map[string]string{"name": "ledger-entry", "ns": oscalNS, "value": fmt.Sprintf("%s/%d", r.Ledger.Origin, r.Ledger.Index)})
	}
	if x.Why != "" {
		about += ": " + x.Why
	}
	if x.Followed != nil {
		about += "; passed again " + stampOf(x.Followed.FinishedAt)
	}
	return map[string]any{"uuid": id, "title": x.Slot, "description": about + ".", "methods": []string{"TEST"}, "types": []string{"control-objective"}, "collected": stampOf(collected), "props": props}
}

// uuidOf is a UUID of version 8 (RFC 9562): equal reports have equal ones.
func uuidOf(parts ...any) string {
	var text strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&text, "%v\x00", p)
	}
	sum := sha256.Sum256([]byte(text.String()))
	b := sum[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

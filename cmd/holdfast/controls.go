package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/drills/evidence"
)

// controlDoc says what the records of the period show about a control, and what
// they do not: never that the control is met, which is for the reviewer to say.
// Standards are cited by number; their text is their publishers'.
type controlDoc struct {
	Standard string   `json:"standard"`
	ID       string   `json:"id"`
	About    string   `json:"about"`
	Shows    []string `json:"shows"`
	Not      []string `json:"does_not_show"`
}

// facts are what all controls draw from.
type facts struct {
	due, ran, passed, failed, other        int
	pending, followed, snapshots           int
	timely, measured                       int
	walled, applied, found, residual, left int
	zones, badCopies                       int
	rto                                    string
}

func factsOf(d drillReport) facts {
	f := facts{due: len(d.Drills), rto: "no recovery time was measured"}
	snapshots, zones := map[string]bool{}, map[string]bool{}
	var times spread
	for _, x := range d.Drills {
		if x.Followed != nil {
			f.followed++
		}
		switch {
		case drills.Passed(x.Outcome):
			f.passed++
		case x.Outcome == drills.Fail:
			f.failed++
		case x.Outcome == evidence.Pending:
			f.pending++
		default:
			f.other++
		}
		if r := x.Record; r != nil && !r.StartedAt.IsZero() {
			f.record(*r)
			snapshots[r.Snapshot], zones[r.Zone] = true, true
			times.add(r.RTO)
		}
	}
	delete(snapshots, "")
	delete(zones, "")
	f.snapshots, f.zones = len(snapshots), len(zones)
	if s := times.whole(); s != nil {
		f.rto = "recovery " + spreadText(s)
	}
	return f
}

func (f *facts) record(r drills.Record) {
	f.ran++
	if r.RTO.Met != nil {
		f.measured++
		if *r.RTO.Met {
			f.timely++
		}
	}
	if r.Place.Room != nil && r.Place.Room.NoEgress {
		f.walled++
	}
	if p := r.Tombstones; p != nil {
		f.applied, f.found, f.residual = f.applied+p.Applied, f.found+p.Found, f.residual+p.Residual
	}
	if !r.Cleanup.Verified {
		f.left++
	}
	f.badCopies += len(r.BadCopies)
}

// sentences that more than one control needs.
func (f facts) population() string {
	return fmt.Sprintf("%s due: %d passed, %d failed, %d ended otherwise, %d pending; every slot that was announced or that a recorded schedule made is listed", count(f.due, "drill"), f.passed, f.failed, f.other, f.pending)
}

func (f facts) restored() string {
	return fmt.Sprintf("%s really restored, of %s, by a reader that can neither write to the zones nor delete there", count(f.ran, "run"), count(f.snapshots, "distinct snapshot"))
}

func (f facts) recovery() string {
	return fmt.Sprintf("%s; %d of %d runs with an objective met it", f.rto, f.timely, f.measured)
}

func (f facts) follow() string {
	return fmt.Sprintf("%d of %d drills that did not pass were followed by a run of the same drill that did", f.followed, f.failed+f.other)
}

func (f facts) isolation() string {
	return fmt.Sprintf("%d of %d runs behind a wall against the network that was seen to stand; %d left something behind", f.walled, f.ran, f.left)
}

func (f facts) purged() string {
	return fmt.Sprintf("deleted projects: %d tombstones were applied in restored copies, %d projects were still in the snapshot and removed, %d rows or objects of theirs were found afterwards", f.applied, f.found, f.residual)
}

func (f facts) places() string {
	return fmt.Sprintf("%s drilled alone; copies that were missing or wrong and passed over for another zone's: %d", count(f.zones, "zone"), f.badCopies)
}

const (
	notTrue     = "that what was recorded was true when it was recorded"
	notProcess  = "people, suppliers and processes around the database"
	notSufficed = "whether the objectives are the right ones"
	notMedia    = "media below the stores' own interface"
)

// controls maps the records to the clauses that auditors ask about.
func controls(d drillReport) []controlDoc {
	f := factsOf(d)
	c := func(standard, id, about string, shows []string, not ...string) controlDoc {
		return controlDoc{standard, id, about, shows, append(not, notTrue)}
	}
	restores := []string{f.population(), f.restored(), f.recovery()}
	iso, soc, dora, nist, gdpr := "ISO/IEC 27001:2022", "SOC 2 (TSC 2017)", "Regulation (EU) 2022/2554 (DORA)", "NIST SP 800-53 r5", "GDPR"
	return []controlDoc{
		c(iso, "A.5.30", "readiness for continuity", append(slices.Clone(restores), f.follow()), notProcess, notSufficed),
		c(iso, "A.8.10", "deletion of information", []string{f.purged()}, "deletion in live and in the zones: purge certificates show that", notMedia),
		c(iso, "A.8.13", "backup, and tests of it", append(slices.Clone(restores), f.follow()), "configuration kept outside the database"),
		c(iso, "A.8.14", "redundancy", []string{f.places()}, "redundancy of live itself"),
		c(soc, "A1.2", "backup and recovery infrastructure", []string{f.restored(), f.places(), f.isolation()}, notProcess),
		c(soc, "A1.3", "tests of recovery", append(slices.Clone(restores), f.follow()), "scenarios with people, such as the absence of key personnel"),
		c(soc, "C1.2", "disposal of confidential information", []string{f.purged(), f.isolation()}, notMedia),
		c(dora, "Article 11", "response and recovery", append(slices.Clone(restores), f.follow()), notProcess, "tests at the level of the whole entity"),
		c(dora, "Article 12", "backup, restoration and recovery", []string{f.population(), f.recovery(), f.isolation(), f.places()}, "that the restoring systems are physically segregated from the source", notSufficed),
		c(nist, "CP-4", "tests of the contingency plan", append(slices.Clone(restores), f.follow()), notProcess),
		c(nist, "CP-9", "system backup, and tests of its reliability", []string{f.population(), f.restored(), f.places()}, "protection of the keys in escrow"),
		c(nist, "CP-10", "recovery and reconstitution", []string{f.recovery(), f.restored(), f.isolation()}, "return to production after a real loss"),
		c(gdpr, "Article 17", "erasure", []string{f.purged()}, "the request, and its answer to the person", notMedia),
		c(gdpr, "Article 32", "security of processing: restoring in time, and testing it", []string{f.population(), f.recovery(), f.isolation()}, notSufficed),
	}
}

// titleOf is a report's one sentence.
func titleOf(d drillReport) string {
	switch {
	case len(d.Faults) > 0:
		return count(len(d.Faults), "fault") + " in the ledgers: see below"
	case d.Summary.Due == 0:
		return "no drill was due"
	case d.Summary.Open > 0:
		return count(d.Summary.Open, "drill") + " did not pass and no later run did"
	case d.Summary.Outcomes[evidence.Pending] == d.Summary.Due:
		return "every drill is still pending"
	case passes(d) == d.Summary.Due:
		return "every drill that was due passed"
	case passes(d)+d.Summary.Outcomes[evidence.Pending] == d.Summary.Due:
		return "every drill that was due passed, or is pending"
	}
	return "every drill that did not pass was followed by one that did"
}

func joined(list []string) string { return strings.Join(list, "; ") }

func passes(d drillReport) (n int) {
	for outcome, times := range d.Summary.Outcomes {
		if drills.Passed(outcome) {
			n += times
		}
	}
	return n
}

// capital begins a sentence.
func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

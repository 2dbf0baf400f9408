package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/drills/evidence"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// A reviewer with a file and the keys alone reads what was due, what failed, what
// was done about it and how fast recovery was, and finds what was forged.
func TestAReviewerReadsAndVerifiesTheEvidence(t *testing.T) {
	r := newRig(t, pgtest.Start(t), false)
	r.configure()
	r.write("drill/holdfast.yaml", r.repository("drill", "drill")+`clusters:
  - {name: cms}
environments:
  - {name: rooms, directory: `+r.mkdir("drill/rooms")+`, identity: {file: `+r.path("drill/data.key")+`}}
drills:
  - {name: weekly, cluster: cms, environment: rooms, select: latest, level: L2}
  - {name: yearly, cluster: cms, environment: rooms, select: oldest, level: L1, schedule: "0 3 1 1 *"}
`)
	daemon := r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	r.archived("a", "b", "c")
	daemon.stop()

	drilling := r.daemon("drill")
	r.hold("drill", 0, "drill", "run", "weekly")
	packs, err := filepath.Glob(r.path("zones/*/clusters/cms/snapshots/*/packs/*.age"))
	if err != nil || len(packs) < 3 {
		t.Fatalf("%v packs: %v", packs, err)
	}
	damage := func() {
		for _, p := range packs {
			data, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			if err := os.WriteFile(p, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	damage()
	r.hold("drill", 4, "drill", "run", "weekly")
	damage() // and back
	r.hold("drill", 0, "drill", "run", "weekly")
	if shown := r.hold("drill", 0, "ledger", "show", "--type", "drill.plans"); strings.Count(shown, "drill.plans") < 1 {
		t.Errorf("the ledger does not say which drills are configured:\n%s", shown)
	}
	drilling.stop()

	doc := ask[drillReport](r, "drill", "drill", "report")
	if !doc.OK || doc.Summary.Due != 3 || doc.Summary.Outcomes[drills.Fail] != 1 || doc.Summary.Open != 0 || doc.Drills[1].Followed == nil || len(doc.Controls) < 10 {
		t.Fatalf("the report: %+v", doc)
	}
	if rto := doc.ByDrill[0].RTO; doc.ByDrill[0].Name != "weekly" || doc.ByDrill[0].Passed != 2 || rto != nil {
		t.Errorf("the drill over the period: %+v", doc.ByDrill[0])
	}
	page := r.hold("drill", 0, "drill", "report", "--format", "html")
	if !strings.Contains(page, "Restore drills") || strings.Contains(page, "http") && !strings.Contains(page, "http-equiv") || strings.Contains(page, "<script") || strings.Contains(page, "://") {
		t.Errorf("the page:\n%s", page)
	}
	if pdf := r.hold("drill", 0, "drill", "report", "--format", "pdf"); !strings.HasPrefix(pdf, "%PDF-") || !strings.HasSuffix(pdf, "%%EOF") {
		t.Errorf("no PDF: %q", pdf[:min(len(pdf), 60)])
	}
	lines, err := csv.NewReader(strings.NewReader(r.hold("drill", 0, "drill", "report", "--format", "csv"))).ReadAll()
	if err != nil || len(lines) != 4 || lines[2][5] != drills.Fail {
		t.Errorf("%q: %v", lines, err)
	}
	var oscal struct {
		Results struct {
			UUID    string `json:"uuid"`
			Results []struct {
				Observations []struct{ UUID, Description string }
				Findings     []struct {
					Target struct{ Status struct{ State string } }
				}
			}
		} `json:"assessment-results"`
	}
	if err := json.Unmarshal([]byte(r.hold("drill", 0, "drill", "report", "--format", "oscal")), &oscal); err != nil {
		t.Fatal(err)
	}
	if res := oscal.Results.Results; len(oscal.Results.UUID) != 36 || len(res) != 1 || len(res[0].Observations) != 3 || len(res[0].Findings) != 3 || res[0].Findings[0].Target.Status.State != "satisfied" {
		t.Errorf("OSCAL: %+v", oscal)
	}
	r.hold("drill", 2, "drill", "report", "--format", "odt")
	r.hold("drill", 2, "drill", "report", "--from", "2027-01-01", "--to", "2026-01-01")
	if empty := ask[drillReport](r, "drill", "drill", "report", "--from", "2020-01-01", "--to", "2020-02-01"); empty.Summary.Due != 0 {
		t.Errorf("a period of before: %+v", empty.Summary)
	}

	file := r.path("evidence.tar")
	r.hold("drill", 0, "evidence", "export", "--out", file)
	r.hold("drill", 3, "evidence", "export", "--out", file)
	r.hold("drill", 0, "evidence", "verify", file)
	keys := []string{"--key", r.keys["db"], "--key", r.keys["drill"]}
	stranger := func(want int, args ...string) {
		t.Helper()
		r.hold("", want, append([]string{"evidence", "verify"}, args...)...)
		cmd := exec.CommandContext(t.Context(), "python3", append([]string{"-I", r.write("verify.py", string(evidence.Script()))}, args...)...)
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("verify.py %q: exit %d (%v), want %d\n%s", args, got, err, want, out)
		}
	}
	with := func(args ...string) []string { return append(args, keys...) }
	stranger(0, with(file)...)
	stranger(0, with(file, "--known", file)...)
	stranger(4, file, "--key", r.keys["db"])
	stranger(4, with(file, "--from", "2026-01-01", "--to", "2099-01-01")...)
	stranger(2, file)
	stranger(2, file, "--key", "nonsense")
	stranger(2, with(r.path("nothing.tar"))...)
	whole, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(whole, []byte(`"outcome":"fail"`)) {
		t.Fatalf("the evidence tells no failure: %v", err)
	}
	stranger(4, with(r.write("forged.tar", string(bytes.Replace(whole, []byte(`"outcome":"fail"`), []byte(`"outcome":"pass"`), 1))))...)
}

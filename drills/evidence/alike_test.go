package evidence_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/drills/evidence"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// ask has a line of Python answer about each question with what verify.py defines.
func ask[Q, A any](t *testing.T, questions []Q, answer string) []A {
	t.Helper()
	program := filepath.Join(t.TempDir(), "verify.py")
	if err := os.WriteFile(program, evidence.Script(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-I", "-c",
		"import json, runpy, sys\nglobals().update(runpy.run_path(sys.argv[1]))\nprint(json.dumps([("+answer+") for q in json.load(sys.stdin)]))", program)
	cmd.Stdin = bytes.NewReader(must[[]byte](t)(json.Marshal(questions)))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3: %v\n%s", err, errs.String())
	}
	var answers []A
	if err := json.Unmarshal(out, &answers); err != nil || len(answers) != len(questions) {
		t.Fatalf("%d answers to %d questions: %v", len(answers), len(questions), err)
	}
	return answers
}

// The slots of schedules, over every kind of change of daylight saving.
func TestBothVerifiersReadSchedulesAlike(t *testing.T) {
	type question struct {
		Spec         string
		After, Until int64
	}
	r := rand.New(rand.NewPCG(1, 2))
	field := func(low, high int) string {
		n := low + r.IntN(high-low+1)
		switch r.IntN(6) {
		case 0:
			return strconv.Itoa(n)
		case 1:
			return fmt.Sprintf("%d-%d", n, n+r.IntN(high-n+1))
		case 2:
			return fmt.Sprintf("*/%d", 1+r.IntN(high))
		case 3:
			return fmt.Sprintf("%d,%d/%d", low, n, 1+r.IntN(9))
		}
		return "*"
	}
	zones := []string{"", "UTC", "Europe/Rome", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo", "Asia/Kathmandu", "Africa/Casablanca"}
	questions := []question{}
	for i := range 400 {
		spec := fmt.Sprintf("%d %s %s %s %s", r.IntN(60), field(0, 23), field(1, 31), field(1, 12), field(0, 6))
		switch i % 20 {
		case 0:
			spec = []string{"@daily", "@weekly", "@monthly", "@hourly", "15 2 * mar,OCT sun", "*/20 1-3 * * mon-fri", "0 0 1,15 * 1", "0 0 */2 * 1", "5 4 ? * ?"}[r.IntN(9)]
		case 1:
			spec = "*/15 0-3 * * *"
		}
		if z := zones[i%len(zones)]; z != "" {
			spec = "CRON_TZ=" + z + " " + spec
		}
		from := time.Date(2010+r.IntN(18), time.Month(1+r.IntN(12)), 1+r.IntN(28), r.IntN(24), r.IntN(60), 0, r.IntN(2), time.UTC)
		questions = append(questions, question{spec, from.UnixNano(), from.Add(40 * day).UnixNano()})
	}
	answers := ask[question, []int64](t, questions, `Cron(q["Spec"]).slots(q["After"], q["Until"])`)
	slots := 0
	for i, q := range questions {
		want := []int64{}
		for _, at := range must[[]time.Time](t)(schedule(q.Spec, time.Unix(0, q.After), time.Unix(0, q.Until))) {
			want = append(want, at.UnixNano())
		}
		if slots += len(want); !slices.Equal(want, answers[i]) {
			t.Errorf("%+v: %d slots, verify.py finds %d", q, len(want), len(answers[i]))
		}
	}
	if slots < 10_000 {
		t.Errorf("%d slots are no test", slots)
	}
}

// Canonical JSON: numbers above all, and keys that sort otherwise in UTF-16.
func TestBothVerifiersWriteCanonicalJSONAlike(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	questions := []json.RawMessage{}
	for range 3000 {
		f := math.Float64frombits(r.Uint64())
		if math.IsNaN(f) || math.IsInf(f, 0) {
			f = float64(r.IntN(1 << 30))
		}
		if r.IntN(2) == 0 {
			f = math.Round(r.Float64()*1e6) / math.Pow10(r.IntN(16)) * math.Pow10(r.IntN(12))
		}
		questions = append(questions, json.RawMessage(strconv.FormatFloat(f, 'e', -1, 64)))
	}
	for _, text := range []string{`{"\ufb33":1,"\ud83d\ude00":2,"é":3,"a":4,"A":5,"":6}`, `["\u0000\u001f\b\t\n\f\r\"\\/\u007f\u2028<>&"]`, `[1e21,1e20,1.2345678901234568e20,1e-6,1e-7,-0,0.0,5e-324,true,null]`} {
		questions = append(questions, json.RawMessage(text))
	}
	for i, got := range ask[json.RawMessage, string](t, questions, `canonical(q)`) {
		want := must[[]byte](t)(seal.CanonicalJSON(questions[i]))
		if string(want) != got {
			t.Errorf("%s: want %s, verify.py says %s", questions[i], want, got)
		}
	}
}

// What follows from a record, and from a slot's entry.
func TestBothVerifiersJudgeRecordsAlike(t *testing.T) {
	type question struct {
		Record drills.Record
		Plan   string
		Slot   string
		Pick   drills.Pick
	}
	r := rand.New(rand.NewPCG(5, 6))
	maybe := func(n int) bool { return r.IntN(n) == 0 }
	selectors := []string{drills.Random, drills.RandomTime, drills.Latest, drills.Oldest, drills.Stalest}
	questions := []question{}
	for i := range 1000 {
		at := begins.Add(time.Duration(r.Int64N(int64(300 * day))))
		q := question{Plan: fmt.Sprint(i), Slot: drills.SlotKey("nightly", at), Pick: picks(selectors[i%5], at)}
		rec := record(0, drills.Choice{}, drills.Announcement{Pick: &q.Pick}, at)
		for c := range rec.Checks {
			if maybe(12) {
				rec.Checks[c].Verdict, rec.Checks[c].Class = []string{"fail", "gap"}[r.IntN(2)], drills.ClassBackup
			}
		}
		rec.Checks = rec.Checks[:len(rec.Checks)-r.IntN(3)*r.IntN(3)]
		no := false
		if maybe(8) {
			rec.RTO.Met, rec.RTO.Objective = &no, rec.RTO.Measured
		}
		if maybe(8) {
			rec.RPO.Met, rec.RPO.Objective, rec.RPO.Measured = &no, rec.RTO.Measured, rec.RTO.Measured
		}
		if maybe(6) {
			rec.Place.Room = nil
		} else if maybe(6) {
			rec.Place.Room = &sandbox.Room{}
		}
		if rec.Cleanup.Verified = !maybe(10); maybe(10) {
			rec.Failure = &drills.Failure{Stage: "plan", Outcome: drills.Inconclusive, Class: drills.ClassZone}
		}
		settle(&rec)
		q.Record = rec
		questions = append(questions, q)
	}
	type answer struct {
		Level, Outcome, Class, Snapshot string
		Target                          json.RawMessage
	}
	seen := map[string]int{}
	for i, got := range ask[question, answer](t, questions,
		`(lambda s, v, c: {"level": s, "outcome": v[0], "class": v[1], "snapshot": c[0], "target": c[1]})(reached(q["Record"]["checks"]), verdict(q["Record"]), choose(q["Plan"], q["Slot"], q["Pick"]))`) {
		rec := questions[i].Record
		choice := must[drills.Choice](t)(drills.Choose(questions[i].Plan, questions[i].Slot, questions[i].Pick))
		want := answer{rec.Level, rec.Outcome.Outcome, rec.Class, choice.Snapshot, must[[]byte](t)(seal.CanonicalJSON(choice.Target))}
		got.Target = must[[]byte](t)(seal.CanonicalJSON(got.Target))
		if fmt.Sprint(want) != fmt.Sprint(got) {
			t.Errorf("record %d: want %s, verify.py says %s", i, pretty(want), pretty(got))
		}
		seen[want.Outcome+" "+want.Level]++
	}
	if len(seen) < 12 {
		t.Errorf("too few kinds of record: %v", seen)
	}
}

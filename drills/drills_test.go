package drills_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// sound checks what holds of every drill: its outcome follows from the record, the
// record is in the ledger once, what was chosen can be computed again, and nothing
// is left behind.
func (w *world) sound(rec drills.Record) {
	t := w.t
	t.Helper()
	if err := drills.Entails(rec); err != nil {
		t.Error(err)
	}
	if !rec.Cleanup.Verified {
		t.Errorf("cleanup: %+v", rec.Cleanup)
	}
	if len(rec.NotAssessed) == 0 {
		t.Error("nothing is listed as not assessed")
	}
	left, err := os.ReadDir(w.env.Directory)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the environment: %v, %v", left, err)
	}
	outcomes := 0
	var due, outcome ledger.Record
	for _, e := range must[[]ledger.Record](t)(w.log.Entries(t.Context(), 0, -1)) {
		var o ledger.Outcome
		if err := json.Unmarshal(e.Body, &o); err != nil {
			t.Fatal(err)
		}
		switch {
		case o.Slot == rec.Slot && e.Type == ledger.TypeDrillDue:
			due = e
		case o.Slot == rec.Slot && e.Type == ledger.TypeDrillOutcome:
			outcome = e
			outcomes++
		}
	}
	if outcomes != 1 || due.Index >= outcome.Index || rec.Ledger == nil || rec.Ledger.Index != outcome.Index {
		t.Errorf("the ledger has %d outcomes of %s, due %d, outcome %d, record %+v", outcomes, rec.Slot, due.Index, outcome.Index, rec.Ledger)
	}
	shown := must[drills.Record](t)(drills.Show(t.Context(), w.log, rec.ID))
	if err := drills.Entails(shown); err != nil {
		t.Errorf("as shown: %v", err)
	}
	if shown.Target != nil && rec.Snapshot != "" {
		if err := drills.VerifyChoice(due, shown); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.Logf("%s", must[[]byte](t)(json.MarshalIndent(rec, "", " ")))
	}
}

// expect checks the outcome and its class, and the level unless it is "-".
func expect(t *testing.T, rec drills.Record, outcome, class, level string) {
	t.Helper()
	if rec.Outcome.Outcome != outcome || rec.Class != class || level != "-" && rec.Level != level {
		t.Errorf("%s (%s) up to %q because of %q; want %s (%s) up to %q\n%s", rec.Outcome.Outcome, rec.Class, rec.Level, rec.Reason, outcome, class, level,
			must[[]byte](t)(json.MarshalIndent(rec, "", " ")))
	}
}

func verdict(rec drills.Record, id string) drills.Check {
	i := slices.IndexFunc(rec.Checks, func(c drills.Check) bool { return c.ID == id })
	if i < 0 {
		return drills.Check{}
	}
	return rec.Checks[i]
}

func TestADrillPassesForEverySelector(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	first := w.take()
	w.pg.Exec("INSERT INTO page SELECT i, 'later' FROM generate_series(2001, 2100) i")
	second := w.take()
	w.pg.Exec("INSERT INTO page VALUES (3000, 'last')")
	w.flush()
	proven := map[string]bool{}
	for _, selector := range []string{drills.Latest, drills.Oldest, drills.Random, drills.Stalest, drills.RandomTime} {
		t.Run(selector, func(t *testing.T) {
			w := *w
			w.t = t
			def := w.definition(selector)
			want := map[string]string{drills.Latest: second.ID, drills.Oldest: first.ID}[selector]
			if selector == drills.Latest {
				def.Checks = append(def.Checks, drills.Question{Name: "last", Database: "postgres", SQL: "SELECT body FROM page WHERE id = 3000", Expect: "last"})
			}
			rec := w.run(def)
			expect(t, rec, drills.Pass, "", "L8")
			if want != "" && rec.Snapshot != want {
				t.Errorf("restored %s, want %s", rec.Snapshot, want)
			}
			if !rec.Selection.Anchored || rec.Selection.Choice != "self-attested" || rec.Selection.Candidates != 2 {
				t.Errorf("selection: %+v", rec.Selection)
			}
			if m := rec.RTO; m.Measured == nil || *m.Measured <= 0.1 || *m.Measured > 60 || m.Met == nil || !*m.Met {
				t.Errorf("RTO: %+v", m)
			}
			if m := rec.RPO; m.Measured == nil || *m.Measured < 0 || *m.Measured > 120 || !*m.Met {
				t.Errorf("RPO: %+v", m)
			}
			proven[rec.Snapshot] = true
		})
	}
	proofs := must[catalog.Notes[catalog.Proof]](t)(w.repo().Catalog.Proofs(t.Context(), "cms"))
	for _, p := range proofs.Bodies() {
		if p.RTO == nil || *p.RTO <= 0 {
			t.Errorf("the proof of %s does not say how long it took", p.Snapshot)
		}
		if !proven[p.Snapshot] || p.Level != "L8" || p.Outcome != drills.Pass || p.Origin != w.log.Origin() {
			t.Errorf("proof: %+v", p)
		}
	}
	if len(proofs.List) != 5 || !proven[first.ID] || !proven[second.ID] {
		t.Errorf("%d proofs of %v", len(proofs.List), proven)
	}
	rep := must[ledger.Report](t)(ledger.Verify(t.Context(), ledger.FromReader(w.vault.Reader()), w.trust, ledger.VerifyOptions{Repository: "test", Now: time.Now().Add(24 * time.Hour)}))
	if len(rep.Faults) > 0 || rep.Slots.Outcomes[drills.Pass] != 5 {
		t.Errorf("ledger: %+v", rep)
	}
}

// rot flips a byte in the middle of every object of a snapshot in a zone.
func (w *world) rot(s catalog.Snapshot, zone int) {
	w.t.Helper()
	refs := must[[]byte](w.t)(w.vault.Reader().Get(w.t.Context(), s.Objects.Name, s.Objects.Size, s.Objects.SHA256))
	for _, ref := range must[[]catalog.Ref](w.t)(catalog.DecodeObjects(strings.NewReader(string(refs)))) {
		if !strings.Contains(ref.Name, "/packs/") {
			continue
		}
		path := w.keys.Dirs[zone] + "/" + ref.Name
		data := must[[]byte](w.t)(os.ReadFile(path))
		data[len(data)/2] ^= 1
		if err := os.Chmod(path, 0o600); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestRotInOneZoneIsPassedOverAndToldRotInAllFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	s := w.take()
	w.flush()
	for zone := range 2 {
		w.rot(s, zone)
	}
	// Which zone is asked first depends on how quick each was before.
	rec := w.run(w.definition(drills.Latest))
	want := drills.Pass
	if len(rec.BadCopies) > 0 {
		want = drills.PassWithGaps
	}
	expect(t, rec, want, "", "L8")
	rotten := w.definition(drills.Latest)
	rotten.Zone = "a"
	rec = w.run(rotten)
	expect(t, rec, drills.Fail, drills.ClassBackup, "L0")
	if len(rec.BadCopies) == 0 {
		t.Error("from a rotten zone alone, no bad copies are told of")
	}
	w.rot(s, 2)
	rec = w.run(w.definition(drills.Latest))
	expect(t, rec, drills.Fail, drills.ClassBackup, "L0")
	open := must[bool](t)(w.alarm())
	if !open {
		t.Error("the failure opened no incident")
	}
}

// alarm says whether the drill's incident is open.
func (w *world) alarm() (bool, error) {
	all, err := w.alarms.List()
	return slices.ContainsFunc(all, func(i incident.Incident) bool { return i.Key == drills.IncidentKey("weekly") && i.Open() }), err
}

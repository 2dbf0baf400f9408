package drills_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/restore"
)

// Promise 8: every slot has exactly one outcome, whatever happens to its drill.
func TestASlotHasExactlyOneOutcome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.take()
	w.flush()
	def := w.definition(drills.Random)
	def.Level = "L4"

	t.Run("one that was stopped runs again with its choice", func(t *testing.T) {
		w := *w
		w.t = t
		s := slot()
		ctx, cancel := context.WithCancelCause(t.Context())
		deps := w.deps()
		deps.Progress = func(_ string, p restore.Progress) {
			if p.Phase == "replay" {
				cancel(drills.ErrStopping)
			}
		}
		if rec, err := drills.Run(ctx, deps, def, s); !errors.Is(err, drills.ErrStopping) {
			t.Fatalf("%+v, %v", rec, err)
		}
		owed := must[[]drills.Owing](t)(drills.Owed(t.Context(), w.log, time.Time{}))
		if len(owed) != 1 || owed[0].Slot != s.Key || owed[0].Drill != def.Name {
			t.Fatalf("owed: %+v", owed)
		}
		due := must[[]ledger.Record](t)(w.log.Entries(t.Context(), owed[0].Index, owed[0].Index+1))[0]
		rec := must[drills.Record](t)(drills.Run(t.Context(), w.deps(), def, s))
		w.sound(rec)
		expect(t, rec, drills.Pass, "", "L4")
		if err := drills.VerifyChoice(due, rec); err != nil || !rec.Selection.Again {
			t.Errorf("%v, %+v", err, rec.Selection)
		}
		again := must[drills.Record](t)(drills.Run(t.Context(), w.deps(), def, s))
		if again.ID != rec.ID || again.Outcome != rec.Outcome {
			t.Errorf("a slot with an outcome ran again: %s then %s", rec.ID, again.ID)
		}
		late := must[drills.Record](t)(drills.Missed(t.Context(), w.deps(), def, s, "late"))
		if late.ID != rec.ID {
			t.Errorf("a slot with an outcome was missed: %+v", late)
		}
	})
	t.Run("one that was cancelled is aborted", func(t *testing.T) {
		w := *w
		w.t = t
		ctx, cancel := context.WithCancel(t.Context())
		deps := w.deps()
		deps.Progress = func(_ string, p restore.Progress) {
			if p.Phase == "replay" {
				cancel()
			}
		}
		rec := must[drills.Record](t)(drills.Run(ctx, deps, def, slot()))
		w.sound(rec)
		expect(t, rec, drills.Aborted, drills.ClassHarness, "-")
	})
	t.Run("one that nobody ran is missed", func(t *testing.T) {
		w := *w
		w.t = t
		rec := must[drills.Record](t)(drills.Missed(t.Context(), w.deps(), def, slot(), "the daemon was down"))
		w.sound(rec)
		expect(t, rec, drills.MissedSlot, drills.ClassHarness, "")
		if !must[bool](t)(w.alarm()) {
			t.Error("a missed drill opened no incident")
		}
	})
	t.Run("one that somebody asked for has a slot of its own", func(t *testing.T) {
		w := *w
		w.t = t
		deps := w.deps()
		deps.Actor = ledger.Actor{Kind: "human"}
		rec := must[drills.Record](t)(drills.Run(t.Context(), deps, def, drills.Slot{Trigger: "human"}))
		w.sound(rec)
		if rec.Slot == "" || rec.Trigger != "human" {
			t.Errorf("slot %q, trigger %q", rec.Slot, rec.Trigger)
		}
	})
	if owed := must[[]drills.Owing](t)(drills.Owed(t.Context(), w.log, time.Time{})); len(owed) != 0 {
		t.Errorf("still owed: %+v", owed)
	}
	rep := must[ledger.Report](t)(ledger.Verify(t.Context(), ledger.FromReader(w.vault.Reader()), w.trust, ledger.VerifyOptions{Repository: "test", Now: time.Now().Add(24 * time.Hour)}))
	if len(rep.Faults) > 0 || rep.Slots.Due != 4 {
		t.Errorf("ledger: %+v", rep)
	}
}

// The record is in the ledger alone: another process that opens it shows the same.
func TestARecordIsReadBackFromTheLedgerAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.flush()
	rec := w.run(w.definition(drills.Latest))
	if err := w.log.Close(); err != nil {
		t.Fatal(err)
	}
	w.log = must[*ledger.Ledger](t)(w.ledger(w.logDir))
	shown := must[drills.Record](t)(drills.Show(t.Context(), w.log, rec.ID))
	var doc map[string]any
	if err := json.Unmarshal(must[[]byte](t)(json.Marshal(shown)), &doc); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{
		"id", "name", "slot", "outcome", "level", "started_at", "finished_at", "snapshot", "target", "rto", "rpo", "phases", "checks", "not_assessed", "cleanup", "ledger",
	} {
		if doc[field] == nil {
			t.Errorf("drill show has no %q", field)
		}
	}
	if _, ok := doc["class"]; ok {
		t.Error("a drill that passed has a class of fault")
	}
	place, _ := doc["ledger"].(map[string]any)
	if place["index"] == nil || place["checkpoint"] == nil {
		t.Errorf("ledger: %v", place)
	}
	list := must[[]drills.Record](t)(drills.List(t.Context(), w.log, "weekly", 10))
	if len(list) != 1 || list[0].ID != rec.ID {
		t.Errorf("list: %+v", list)
	}
	if list := must[[]drills.Record](t)(drills.List(t.Context(), w.log, "other", 10)); len(list) != 0 {
		t.Errorf("another drill's list: %+v", list)
	}
	if _, err := drills.Show(t.Context(), w.log, "nothing"); !errors.Is(err, drills.ErrUnknown) {
		t.Error(err)
	}
}

// failing is a ledger or a store of proofs that does not take what it is given.
type failing struct{ drills.Log }

func (failing) AppendAnchored(context.Context, ledger.Entry) (int64, error) { return 0, errTest }
func (failing) Prove(context.Context, catalog.Proof) error                  { return errTest }

func TestWithoutALedgerNoDrillStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.flush()
	deps := w.deps()
	deps.Log = failing{w.log}
	deps.Progress = func(string, restore.Progress) { t.Error("it restored what no slot announced") }
	if rec, err := drills.Run(t.Context(), deps, w.definition(drills.Latest), slot()); !errors.Is(err, errTest) {
		t.Errorf("%+v, %v", rec, err)
	}
	deps = w.deps()
	deps.Proofs = failing{}
	rec, err := drills.Run(t.Context(), deps, w.definition(drills.Latest), slot())
	if !errors.Is(err, errTest) {
		t.Errorf("a proof that was not kept is silent: %v", err)
	}
	w.sound(rec)
	expect(t, rec, drills.Pass, "", "L8")
}

package drills

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// Reader reads a ledger: *ledger.Ledger.
type Reader interface {
	Entries(ctx context.Context, from, to int64) ([]ledger.Record, error)
	Status() ledger.Status
}

// ErrUnknown means that the ledger has no drill of that id.
var ErrUnknown = errors.New("no such drill in this node's ledger")

// batch is how many entries are read at a time.
const batch = 512

// back gives each the entries about drills, the newest first, until it says stop.
func back(ctx context.Context, log Reader, each func(ledger.Record) (more bool, err error)) error {
	for to := log.Status().Size; to > 0; to -= batch {
		records, err := log.Entries(ctx, max(to-batch, 0), to)
		if err != nil {
			return err
		}
		for _, rec := range slices.Backward(records) {
			more, err := each(rec)
			if err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// decode reads the record of an outcome's entry, and what its envelope adds.
func decode(e ledger.Record, anchored ledger.Checkpoint) (Record, error) {
	var r Record
	if err := json.Unmarshal(e.Body, &r); err != nil {
		return r, fmt.Errorf("reading entry %d of ledger %s: %w", e.Index, e.Origin, err)
	}
	r.NotAssessed = e.NotAssessed
	r.Ledger = &Entry{Origin: e.Origin, Index: e.Index, RecordID: e.RecordID}
	if anchored.Size > e.Index {
		r.Ledger.Checkpoint = checkpoint(anchored)
	}
	return r, nil
}

// Told reads the record of an entry of type "drill.outcome".
func Told(e ledger.Record) (Record, error) { return decode(e, ledger.Checkpoint{}) }

// Announced reads the body of an entry of type "drill.due".
func Announced(e ledger.Record) (Announcement, error) { return dueOf(e) }

func dueOf(e ledger.Record) (b Announcement, err error) {
	if err = json.Unmarshal(e.Body, &b); err != nil {
		err = fmt.Errorf("reading entry %d of ledger %s: %w", e.Index, e.Origin, err)
	}
	return b, err
}

// List gives the records of at most limit drills, the newest first; drill "" is
// all of them.
func List(ctx context.Context, log Reader, drill string, limit int) ([]Record, error) {
	out := []Record{}
	anchored := log.Status().Anchored
	err := back(ctx, log, func(e ledger.Record) (bool, error) {
		if e.Type != ledger.TypeDrillOutcome {
			return true, nil
		}
		r, err := decode(e, anchored)
		if err == nil && (drill == "" || r.Name == drill) {
			out = append(out, r)
		}
		return len(out) < limit, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing drills: %w", err)
	}
	return out, nil
}

// Show gives the record of one drill.
func Show(ctx context.Context, log Reader, id string) (Record, error) {
	var found *Record
	anchored := log.Status().Anchored
	err := back(ctx, log, func(e ledger.Record) (bool, error) {
		if e.Type != ledger.TypeDrillOutcome {
			return true, nil
		}
		r, err := decode(e, anchored)
		if err == nil && r.ID == id {
			found = &r
		}
		return found == nil, err
	})
	if err == nil && found == nil {
		err = ErrUnknown
	}
	if err != nil {
		return Record{}, fmt.Errorf("drill %s: %w", id, err)
	}
	return *found, nil
}

// Owing is a slot that has no outcome yet.
type Owing struct {
	ledger.Due
	Drill string `json:"drill"`
	Index int64  `json:"index"`
}

// Owed gives the slots without an outcome that were announced after since, the
// oldest first: those that run, and those that were cut off. What is past its
// deadline wants [Missed].
func Owed(ctx context.Context, log Reader, since time.Time) ([]Owing, error) {
	var out []Owing
	done := map[string]bool{}
	err := back(ctx, log, func(e ledger.Record) (bool, error) {
		b, err := dueOf(e)
		switch {
		case e.Type == ledger.TypeDrillOutcome && err == nil:
			done[b.Slot] = true
		case e.Type == ledger.TypeDrillDue && err == nil && !done[b.Slot]:
			done[b.Slot] = true
			out = append(out, Owing{b.Due, b.Drill, e.Index})
		case e.Type == ledger.TypeDrillOutcome, e.Type == ledger.TypeDrillDue:
			return err == nil, err
		}
		return e.Time.Wall.After(since), nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for slots that are owed an outcome: %w", err)
	}
	slices.Reverse(out)
	return out, nil
}

// told is what the ledger says of a slot.
type told struct {
	due     *ledger.Record
	outcome *Record
}

// before is how much older than its due time a slot's entry can be: clocks jump.
const before = 48 * time.Hour

// told looks for the slot in the ledger.
func (r *run) told(ctx context.Context) (t told, err error) {
	anchored := r.deps.Log.Status().Anchored
	err = back(ctx, r.deps.Log, func(e ledger.Record) (bool, error) {
		if e.Type != ledger.TypeDrillDue && e.Type != ledger.TypeDrillOutcome {
			return e.Time.Wall.After(r.slot.DueAt.Add(-before)), nil
		}
		b, err := dueOf(e)
		if err != nil {
			return false, err
		}
		if b.Slot == r.slot.Key && e.Type == ledger.TypeDrillDue {
			t.due = &e
			return false, nil
		}
		if b.Slot == r.slot.Key {
			rec, err := decode(e, anchored)
			t.outcome = &rec
			return false, err
		}
		return true, nil
	})
	return t, err
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// restoreRecord is what the state directory keeps of a restore that a command
// began: where it went and how the command ended. What it made says its own marker.
type restoreRecord struct {
	ID       string           `json:"id"`
	Dir      string           `json:"dir"`
	Cluster  string           `json:"cluster"`
	Target   string           `json:"target"`
	Snapshot string           `json:"snapshot"`
	Plan     string           `json:"plan"`
	BeganAt  time.Time        `json:"began_at"`
	EndedAt  time.Time        `json:"ended_at,omitzero"`
	Ended    string           `json:"ended,omitempty"` // done | failed | cancelled; "" while it runs, or was killed
	Error    string           `json:"error,omitempty"`
	Process  *restore.Process `json:"process,omitempty"`
}

// restoreRecords are those of one state directory, a file each; "" keeps none.
type restoreRecords struct{ dir string }

// keptRestores is how many records of restores are kept of which nothing is there
// any more, the newest.
const keptRestores = 64

func (w *world) restores() restoreRecords {
	if w.cfg.Node.State == "" {
		return restoreRecords{}
	}
	return restoreRecords{w.state("restores")}
}

// list reads all records, the newest first. Of a directory only the newest counts:
// the others' restores were gone over.
func (r restoreRecords) list() ([]restoreRecord, error) {
	if r.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the restores of this node: %w", err)
	}
	var out []restoreRecord
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(r.dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) { // discarded meanwhile
			continue
		}
		rec := restoreRecord{}
		if err == nil {
			err = json.Unmarshal(data, &rec)
		}
		if err != nil || rec.ID != id {
			return nil, fmt.Errorf("reading what is kept of restore %s in %s: it says %q: %w", id, r.dir, rec.ID, err)
		}
		out = append(out, rec)
	}
	slices.SortFunc(out, func(a, b restoreRecord) int { return cmp.Compare(b.ID, a.ID) })
	return out, nil
}

// of is the newest record of a directory.
func (r restoreRecords) of(dir string) (restoreRecord, bool, error) {
	all, err := r.list()
	i := slices.IndexFunc(all, func(rec restoreRecord) bool { return rec.Dir == dir })
	if err != nil || i < 0 {
		return restoreRecord{}, false, err
	}
	return all[i], true, nil
}

func (r restoreRecords) write(rec restoreRecord) error {
	if err := durable.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(rec, "", " ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(r.dir, rec.ID+".json"), append(data, '\n'), 0o600)
}

// begin records a restore before it does anything; one that is gone on with keeps
// its record. undo puts things back where it was refused and made nothing.
func (r restoreRecords) begin(p restore.Plan, opt restore.Options, now time.Time) (rec restoreRecord, undo func() error, err error) {
	before, known, err := r.of(opt.To)
	if err != nil {
		return rec, nil, err
	}
	rec = restoreRecord{ID: snapshot.NewID(now), Dir: opt.To, Cluster: p.Cluster, Target: p.Target.String(), Snapshot: p.Snapshot, Plan: p.Hash, BeganAt: now.UTC(), Process: opt.Process}
	undo = func() error { return durable.Remove(filepath.Join(r.dir, rec.ID+".json")) }
	if known && opt.Resume && before.Plan == p.Hash && !alive(before.Process) {
		rec.ID = before.ID
		undo = func() error { return r.write(before) }
	}
	return rec, undo, r.write(rec)
}

func alive(p *restore.Process) bool { return p != nil && p.Alive() }

// forget removes the records of a directory that was discarded.
func (r restoreRecords) forget(dir string) error {
	all, err := r.list()
	for _, rec := range all {
		if rec.Dir == dir && !alive(rec.Process) {
			err = errors.Join(err, durable.Remove(filepath.Join(r.dir, rec.ID+".json")))
		}
	}
	return err
}

// prune removes the oldest records of which nothing is there any more.
func (r restoreRecords) prune() error {
	all, err := r.list()
	gone := 0
	for _, rec := range all {
		if _, e := os.Lstat(rec.Dir); e == nil || alive(rec.Process) {
			continue
		}
		if gone++; gone > keptRestores {
			err = errors.Join(err, durable.Remove(filepath.Join(r.dir, rec.ID+".json")))
		}
	}
	return err
}

// recordRun keeps a record of a restore while do carries it out; a restore does not
// wait for that, nor fail by it.
func (e *env) recordRun(ctx context.Context, w *world, p restore.Plan, opt restore.Options, do func() error) error {
	r := w.restores()
	if r.dir == "" {
		return do()
	}
	rec, undo, err := r.begin(p, opt, w.now())
	if err != nil {
		e.unkept(err)
		return do()
	}
	done := do()
	rec.EndedAt, rec.Ended = w.now().UTC(), "done"
	switch {
	case neverBegan(done):
		if err := undo(); err != nil {
			e.unkept(err)
		}
		return done
	case done != nil && ctx.Err() != nil:
		rec.Ended = "cancelled"
	case done != nil:
		rec.Ended, rec.Error = "failed", done.Error()
	}
	if err := errors.Join(r.write(rec), r.prune()); err != nil {
		e.unkept(err)
	}
	return done
}

// neverBegan says that a restore was refused before it touched its directory.
func neverBegan(err error) bool {
	return errors.Is(err, restore.ErrNotEmpty) || errors.Is(err, restore.ErrRunning) || errors.Is(err, durable.ErrHeld)
}

func (e *env) unkept(err error) {
	fmt.Fprintf(e.err, "holdfast: `restore list` will not tell of this restore as it is: %v\n", err)
}

// failedRestore is what the ledger is told of a restore that failed: where it may have
// left something, unless it never began.
func failedRestore(p restore.Plan, opt restore.Options, err error) map[string]string {
	body := map[string]string{"plan": p.Hash, "error": err.Error()}
	if !neverBegan(err) {
		body["restored_to"] = opt.To
	}
	return body
}

// recordDiscard tells the ledger that a copy is no more: certificates of deleted projects
// ask for that.
func (e *env) recordDiscard(ctx context.Context, rec restoreRecord) {
	w, err := e.open(ctx)
	if err != nil {
		fmt.Fprintf(e.err, "holdfast: that this copy is gone is not written into a ledger: %v\n", err)
		return
	}
	e.recordRestore(ctx, w, ledger.TypeRestoreGone, rec.Cluster, map[string]string{"restored_to": rec.Dir, "plan": rec.Plan})
	if err := w.close(); err != nil {
		fmt.Fprintf(e.err, "holdfast: closing the repository: %v\n", err)
	}
}

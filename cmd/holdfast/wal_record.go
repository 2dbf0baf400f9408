package main

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// walRecord is what the repository itself shows of one cluster's WAL.
type walRecord struct {
	name    string
	entries catalog.WALEntries
	snaps   catalog.Snapshots
	gone    []catalog.WALSpan // let go by retention
	covered []catalog.WALSpan // of which retention lets go the slices, and no byte
	// root is the first epoch of the same database system: WAL that one writer ended
	// and the next went on with is one stretch.
	root     map[int]int
	lineages []catalog.Lineage
}

func (w *world) readWAL(ctx context.Context, name string) (r walRecord, err error) {
	r.name = name
	if r.entries, err = w.catalog.WALEntries(ctx, name, ""); err != nil {
		return r, err
	}
	if r.snaps, err = w.catalog.Snapshots(ctx, name); err != nil {
		return r, err
	}
	r.snaps.List = catalog.OfKind(r.snaps.List, catalog.Physical) // others are no place to go on from
	lineages, err := w.catalog.Lineages(ctx, name)
	if err != nil {
		return r, err
	}
	r.lineages = lineages.Bodies()
	r.root = roots(r.lineages)
	marks, err := w.catalog.Forgotten(ctx, name)
	if err != nil {
		return r, err
	}
	for _, m := range marks.Bodies() {
		if m.OnlyCovered() {
			r.covered = append(r.covered, m.WAL...)
		} else {
			r.gone = append(r.gone, m.WAL...)
		}
	}
	r.gone, r.covered = r.rooted(r.gone), r.rooted(r.covered)
	return r, nil
}

// roots finds the first epoch of each epoch's system.
func roots(lineages []catalog.Lineage) map[int]int {
	first := map[string]int{}
	for _, l := range lineages {
		if have, ok := first[l.SystemID]; !ok || l.Epoch < have {
			first[l.SystemID] = l.Epoch
		}
	}
	root := map[int]int{}
	for _, l := range lineages {
		root[l.Epoch] = first[l.SystemID]
	}
	return root
}

func (r walRecord) rootOf(epoch int) int {
	if first, ok := r.root[epoch]; ok {
		return first
	}
	return epoch
}

func (r walRecord) rooted(spans []catalog.WALSpan) []catalog.WALSpan {
	out := slices.Clone(spans)
	for i := range out {
		out[i].Epoch = r.rootOf(out[i].Epoch)
	}
	return out
}

// held are the entries that a zone holds with the objects they vouch for; zone ""
// is any.
func (r walRecord) held(zone string) (out []catalog.WALEntry) {
	for _, e := range r.entries.List {
		if slices.ContainsFunc(e.Zones, func(z string) bool { return (zone == "" || z == zone) && !slices.Contains(e.Bare, z) }) {
			e.Epoch = r.rootOf(e.Epoch)
			out = append(out, e)
		}
	}
	return out
}

func spansOf(entries []catalog.WALEntry) []catalog.WALSpan {
	var out []catalog.WALSpan
	for _, e := range entries {
		out = append(out, catalog.WALSpan{Epoch: e.Epoch, Timeline: e.Timeline, From: e.From, To: e.To})
	}
	return catalog.JoinWAL(out)
}

// runs tells how a zone stands; zone "" tells of all zones together.
func (r walRecord) runs(zone string, coming []catalog.WALSpan) []catalog.WALRun {
	all := spansOf(r.held(""))
	v := catalog.WALView{Mine: all, Any: all, Coming: r.rooted(coming), Gone: r.gone, Doubt: !r.entries.Complete}
	if zone != "" {
		v.Mine = spansOf(r.held(zone))
	}
	return v.Runs()
}

// holes are the stretches that no zone holds.
func (r walRecord) holes(coming []catalog.WALSpan) []catalog.WALRun {
	return slices.DeleteFunc(r.runs("", coming), func(run catalog.WALRun) bool { return run.State != catalog.WALLost })
}

// end is how far spans go towards the end of all: the newest timeline of the newest
// system. What a dead primary had behind the fork may be farther, and is no end.
func end(spans, all []catalog.WALSpan) (at lsn.LSN) {
	if len(all) == 0 {
		return 0
	}
	newest, fork := all[len(all)-1], ^lsn.LSN(0)
	for _, s := range all {
		if s.Epoch == newest.Epoch && s.Timeline == newest.Timeline {
			fork = min(fork, s.From)
		}
	}
	for _, s := range spans {
		switch {
		case s.Epoch != newest.Epoch:
		case s.Timeline == newest.Timeline:
			at = max(at, s.To)
		default:
			at = max(at, min(s.To, fork))
		}
	}
	return at
}

// window is from the oldest snapshot of a zone from which its WAL goes on without
// a gap to the newest moment that it is known to hold; zone "" is all together.
func (w *world) window(ctx context.Context, r walRecord, zone string) (window, error) {
	var out window
	entries := r.held(zone)
	spans := spansOf(entries)
	if len(spans) == 0 {
		return out, nil
	}
	last := spans[len(spans)-1]
	for _, s := range r.snaps.List {
		if zone != "" && !slices.Contains(s.Zones, zone) {
			continue
		}
		if s.Body.Timeline == last.Timeline && s.Body.StartLSN >= last.From && s.Body.StopLSN <= last.To && !s.Body.Suspect {
			out.From = s.Body.FinishedAt.UTC()
			break
		}
	}
	var newest []catalog.WALEntry
	for _, e := range entries {
		if e.Epoch == last.Epoch && e.Timeline == last.Timeline && e.To == last.To && e.To > e.From {
			newest = append(newest, e)
		}
	}
	notes, _, err := w.catalog.WALNotes(ctx, r.name, newest)
	for _, n := range notes {
		for _, t := range []time.Time{n.Body.LastTime, n.Body.ServerTime} {
			if t.After(out.To) {
				out.To = t.UTC()
			}
		}
	}
	return out, err
}

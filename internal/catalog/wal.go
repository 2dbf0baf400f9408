package catalog

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// WALEntry is what the name of a WAL note tells without opening it. It is a
// claim until the note is read.
type WALEntry struct {
	Epoch    int
	Timeline uint32
	From, To lsn.LSN // To exclusive; equal for files that are no WAL
	Name     string
	Zones    []string
	// Bare are zones that show the note and not the object it vouches for.
	Bare []string
}

// Whole says whether the entry has the shape of a segment: a slice hardly ever does.
func (e WALEntry) Whole() bool {
	n := e.To - e.From
	return n >= 1<<20 && n&(n-1) == 0 && e.From%n == 0
}

// HeldBy says whether every zone that shows e holds other, with its bytes.
func (e WALEntry) HeldBy(other WALEntry) bool {
	return !slices.ContainsFunc(e.Zones, func(z string) bool {
		return !slices.Contains(other.Zones, z) || slices.Contains(other.Bare, z)
	})
}

// WALEntries is an answer about a cluster's WAL notes, by epoch, timeline, From
// and then the longer first.
type WALEntries struct {
	List     []WALEntry
	Complete bool
	Zones    []vault.ZoneAnswer
}

// WALEntries lists the WAL notes of a cluster by name. prefix narrows it: "" for
// all, or one of [WALDir].
func (r *Reader) WALEntries(ctx context.Context, cluster, prefix string) (WALEntries, error) {
	if prefix == "" {
		prefix = WALRoot(cluster)
	}
	listing, err := r.src.List(ctx, prefix)
	if err != nil {
		return WALEntries{}, fmt.Errorf("listing WAL: %w", err)
	}
	out := WALEntries{Complete: listing.Complete, Zones: listing.Zones}
	objects := map[string][]string{}
	for _, o := range listing.Objects {
		if e, ok := ParseWALNote(o.Name); ok {
			e.Zones = o.Zones
			out.List = append(out.List, e)
		} else if strings.HasSuffix(o.Name, ".age") && !strings.HasSuffix(o.Name, ".idx.age") {
			objects[walKey(o.Name)] = append(objects[walKey(o.Name)], o.Zones...)
		}
	}
	for i := range out.List {
		e := &out.List[i]
		held := objects[walKey(e.Name)]
		for _, z := range e.Zones {
			if !slices.Contains(held, z) {
				e.Bare = append(e.Bare, z)
			}
		}
	}
	sort.SliceStable(out.List, func(i, j int) bool { return lessWAL(out.List[i], out.List[j]) })
	return out, nil
}

// Backed are the entries whose objects a zone holds, as far as that is known: all
// of them where too few zones answered.
func (w WALEntries) Backed() []WALEntry {
	if !w.Complete {
		return w.List
	}
	return slices.DeleteFunc(slices.Clone(w.List), func(e WALEntry) bool { return len(e.Bare) >= len(e.Zones) })
}

func lessWAL(a, b WALEntry) bool {
	switch {
	case a.Epoch != b.Epoch:
		return a.Epoch < b.Epoch
	case a.Timeline != b.Timeline:
		return a.Timeline < b.Timeline
	case a.From != b.From:
		return a.From < b.From
	}
	return a.To > b.To
}

// ParseWALNote reads a note's name: clusters/<c>/wal/<epoch>/<timeline>/<from>-<to>-<mac8>.note.
func ParseWALNote(name string) (WALEntry, bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 6 || parts[2] != "wal" {
		return WALEntry{}, false
	}
	base, ok := strings.CutSuffix(parts[5], ".note")
	f := strings.Split(base, "-")
	if !ok || len(f) != 3 || len(f[0]) != 16 || len(f[1]) != 16 {
		return WALEntry{}, false
	}
	epoch, err1 := strconv.Atoi(parts[3])
	timeline, err2 := strconv.ParseUint(parts[4], 16, 32)
	from, err3 := strconv.ParseUint(f[0], 16, 64)
	to, err4 := strconv.ParseUint(f[1], 16, 64)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || to < from {
		return WALEntry{}, false
	}
	return WALEntry{Epoch: epoch, Timeline: uint32(timeline), From: lsn.LSN(from), To: lsn.LSN(to), Name: name}, true
}

// WALNotes opens the notes of entries.
func (r *Reader) WALNotes(ctx context.Context, cluster string, entries []WALEntry) ([]Noted[WAL], []Fault, error) {
	list := make([]vault.Entry, len(entries))
	for i, e := range entries {
		list[i] = vault.Entry{Name: e.Name, Zones: e.Zones}
	}
	return openAll[WAL](ctx, r, list, KindWAL, cluster)
}

// Stretches joins entries into runs without a gap, per epoch and timeline, in
// the entries' order. Slices and full segments overlap; files that are no WAL
// are left out.
func Stretches(entries []WALEntry) []WALSpan {
	var out []WALSpan
	for _, e := range entries {
		if e.From == e.To {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Epoch == e.Epoch && out[n-1].Timeline == e.Timeline && e.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, e.To)
			continue
		}
		out = append(out, WALSpan{Epoch: e.Epoch, Timeline: e.Timeline, From: e.From, To: e.To})
	}
	return out
}

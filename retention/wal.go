package retention

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// File is an archived file by its note. What is known of the name PostgreSQL
// gave it is needed only where From equals To: histories outlive WAL.
type File struct {
	catalog.WALEntry
	File string
}

// WALDecision is about a stretch of WAL files of one lineage and timeline.
type WALDecision struct {
	Epoch    int      `json:"epoch"`
	Timeline uint32   `json:"timeline"`
	From     lsn.LSN  `json:"from_lsn"`
	To       lsn.LSN  `json:"to_lsn"` // exclusive; equal to From for files that are no WAL
	Files    int      `json:"files"`
	Keep     bool     `json:"keep"`
	Reasons  []string `json:"reasons"`
}

// leg is a part of a timeline's history.
type leg struct {
	timeline uint32
	from, to lsn.LSN
}

// base is where the window begins for one timeline.
type base struct {
	snap     catalog.Snapshot
	timeline uint32
	legs     []leg
}

const endless = ^lsn.LSN(0)

// path is the way to the end of a timeline; ok is false where it is not known.
func (p *planner) path(b Branch) (legs []leg, ok bool) {
	history, known := p.Histories[b]
	if !known && b.Timeline > 1 {
		for _, other := range p.branches(b.SystemID) {
			if other < b.Timeline {
				return nil, false
			}
		}
	}
	from := lsn.LSN(0)
	for _, s := range history {
		legs = append(legs, leg{s.Timeline, from, s.LSN})
		from = s.LSN
	}
	return append(legs, leg{b.Timeline, from, endless}), true
}

// branches are the timelines that a system has files or snapshots of.
func (p *planner) branches(system string) []uint32 {
	if known, ok := p.timelines[system]; ok {
		return known
	}
	seen := map[uint32]bool{}
	for _, s := range p.Snapshots {
		if s.SystemID == system {
			seen[s.Timeline] = true
		}
	}
	for _, f := range p.WAL {
		if sys, ok := p.system(f.Epoch); ok && sys == system {
			seen[f.Timeline] = true
		}
	}
	out := make([]uint32, 0, len(seen))
	for t := range seen {
		out = append(out, t)
	}
	slices.Sort(out)
	p.timelines[system] = out
	return out
}

// system tells the database system of a lineage.
func (p *planner) system(epoch int) (string, bool) {
	if len(p.systems) == 0 {
		for _, s := range p.Snapshots {
			p.systems[s.Epoch] = s.SystemID
		}
		for _, l := range p.Lineages {
			p.systems[l.Epoch] = l.SystemID
		}
	}
	system, ok := p.systems[epoch]
	return system, ok
}

// ended says whether another system took over before the window began.
func (p *planner) ended(system string) bool { return p.endedBy(system, p.Now.Add(-p.Policy.Window)) }

// endedBy says whether another system had taken over at a moment.
func (p *planner) endedBy(system string, at time.Time) bool {
	last := 0
	for _, l := range p.Lineages {
		if l.SystemID == system {
			last = max(last, l.Epoch)
		}
	}
	return last > 0 && slices.ContainsFunc(p.Lineages, func(l catalog.Lineage) bool {
		return l.Epoch > last && l.SystemID != system && l.ClaimedAt.Before(at)
	})
}

// keepWindow keeps, for each timeline that was alive in the window, the newest
// good snapshot at or before its beginning (the oldest where there is none), and
// everything since.
func (p *planner) keepWindow() {
	if p.retired() {
		return
	}
	since := p.Now.Add(-p.Policy.Window)
	var systems []string
	for _, s := range p.Snapshots {
		if p.gone(s.ID) || catalog.Exported(s.Kind) {
			continue
		}
		if p.Policy.Window > 0 && s.FinishedAt.After(since) {
			p.insist(s.ID, "in the window of %s", short(p.Policy.Window))
		}
		if !slices.Contains(systems, s.SystemID) && !p.ended(s.SystemID) {
			systems = append(systems, s.SystemID)
		}
	}
	for _, system := range systems {
		first, ok := p.begin(system, p.everywhere(system))
		if !ok {
			continue
		}
		for _, t := range p.branches(system) {
			if t >= first.Timeline {
				p.keepBase(Branch{system, t})
			}
		}
	}
}

func (p *planner) keepBase(b Branch) {
	legs, known := p.path(b)
	if !known {
		for _, s := range p.Snapshots {
			if s.SystemID == b.SystemID {
				p.insist(s.ID, "the history of timeline %d is not known", b.Timeline)
			}
		}
		return
	}
	s, ok := p.begin(b.SystemID, legs)
	if !ok {
		return
	}
	p.insist(s.ID, "the window begins at it")
	p.bases = append(p.bases, base{s, b.Timeline, legs})
	p.plan.Window.From = s.FinishedAt.UTC()
}

// begin chooses among the good snapshots that lie on legs.
func (p *planner) begin(system string, legs []leg) (found catalog.Snapshot, ok bool) {
	return p.beginAt(system, legs, p.Now.Add(-p.Policy.Window))
}

// beginAt is the newest good snapshot on legs that ended by a moment, or the oldest
// where none did.
func (p *planner) beginAt(system string, legs []leg, since time.Time) (found catalog.Snapshot, ok bool) {
	for _, s := range p.good(class{kind: catalog.Physical}) {
		on := slices.ContainsFunc(legs, func(l leg) bool {
			return l.timeline == s.Timeline && s.StopLSN >= l.from && s.StopLSN <= l.to
		})
		if s.SystemID == system && on && (!ok || !s.FinishedAt.After(since)) {
			found, ok = s, true
		}
	}
	return found, ok
}

// overlap says whether [a, b) and [c, d) share a byte.
func overlap(a, b, c, d lsn.LSN) bool { return a < d && c < b }

// first is where the WAL that s needs begins: the header of a segment is read
// before a record in its middle.
func first(s catalog.Snapshot) lsn.LSN { return s.StartLSN.SegmentStart(segSize(s)) }

func segSize(s catalog.Snapshot) int64 {
	if s.SegSize > 0 {
		return s.SegSize
	}
	return 16 << 20
}

// consistent says whether s cannot be restored without the bytes [from, to) of
// timeline t. Those before its start may have been written on an older one.
func consistent(s catalog.Snapshot, t uint32, from, to lsn.LSN) bool {
	if catalog.Exported(s.Kind) {
		return false
	}
	if t == s.Timeline {
		return overlap(from, to, first(s), max(s.StopLSN, s.StartLSN+1))
	}
	return t < s.Timeline && overlap(from, to, first(s), s.StartLSN)
}

// needs says whether the window that begins at b reaches the bytes.
func (b base) needs(t uint32, from, to lsn.LSN) bool {
	for _, l := range b.legs {
		if l.timeline != t {
			continue
		}
		start := max(l.from.SegmentStart(segSize(b.snap)), first(b.snap))
		if t < b.snap.Timeline {
			return overlap(from, to, first(b.snap), b.snap.StartLSN)
		}
		return overlap(from, to, start, max(l.to, start+1))
	}
	return false
}

// walJudge decides about files.
type walJudge struct {
	*planner
	kept    []catalog.Snapshot // whose consistency counts
	longest map[string]bool    // by name
	reach   map[lane][]File    // the files that reach farther than those before them
	unknown map[string]bool    // systems with a timeline of unknown history
	lowest  map[string]uint32
}

// judgeFile gives reasons to keep f, or the reason to remove it.
func (j *walJudge) judgeFile(f File) (keep bool, reasons []string) {
	if len(j.plan.Refused) > 0 || j.Policy.zero() && !j.retired() {
		return true, []string{"nothing is removed"}
	}
	system, ok := j.system(f.Epoch)
	switch {
	case !ok && !j.retired():
		return true, []string{"its lineage is not known"}
	case j.unknown[system]:
		return true, []string{"the history of a timeline is not known"}
	case f.From == f.To:
		return j.judgeOther(f, system)
	case j.covered(f):
		return false, []string{catalog.Covered}
	}
	if reasons = j.reasons(system, f.Timeline, f.From, f.To); len(reasons) > 0 {
		return true, reasons
	}
	if j.retired() {
		return false, []string{"the cluster is retired"}
	}
	return false, []string{"no snapshot and no window needs it"}
}

func (j *walJudge) reasons(system string, t uint32, from, to lsn.LSN) (reasons []string) {
	reached := false
	for _, b := range j.bases {
		if b.snap.SystemID != system {
			continue
		}
		if b.needs(t, from, to) {
			reasons = append(reasons, "the window")
			break
		}
		reached = reached || b.timeline == t
	}
	if !reached && len(reasons) == 0 && !j.retired() && j.orphan(system, t) {
		reasons = append(reasons, "no snapshot lies on its timeline's history yet")
	}
	reasons = append(reasons, j.spanReasons(system, t, from, to)...)
	for _, s := range j.kept {
		if s.SystemID == system && consistent(s, t, from, to) {
			reasons = append(reasons, "snapshot "+s.ID)
		}
	}
	return reasons
}

// orphan says whether a timeline was alive in the window and has no base.
func (j *walJudge) orphan(system string, t uint32) bool {
	lowest, ok := j.lowest[system]
	return !j.ended(system) && (!ok || t >= lowest) &&
		!slices.ContainsFunc(j.bases, func(b base) bool { return b.snap.SystemID == system && b.timeline == t })
}

// judgeOther is for files that are no WAL: a history stays while anything of its
// timeline or a later one does; others go with the WAL around them.
func (j *walJudge) judgeOther(f File, system string) (bool, []string) {
	if f.File == "" {
		return true, []string{"its kind is not known"}
	}
	if !strings.HasSuffix(f.File, ".history") {
		size := lsn.LSN(16 << 20)
		for _, s := range j.Snapshots {
			if s.SystemID == system {
				size = lsn.LSN(segSize(s))
			}
		}
		if r := j.reasons(system, f.Timeline, f.From-min(f.From, size), f.From+size); len(r) > 0 {
			return true, r
		}
		return false, []string{"no snapshot and no window needs the WAL around it"}
	}
	for _, s := range j.kept {
		if s.SystemID == system && s.Timeline >= f.Timeline {
			return true, []string{fmt.Sprintf("snapshot %s is on its timeline or a later one", s.ID)}
		}
	}
	for _, g := range j.WAL {
		sys, _ := j.system(g.Epoch)
		if sys == system && g.Timeline >= f.Timeline && g.From < g.To && len(j.reasons(system, g.Timeline, g.From, g.To)) > 0 {
			return true, []string{"WAL of its timeline or a later one stays"}
		}
	}
	return false, []string{"nothing of its timeline or a later one stays"}
}

func (j *walJudge) covered(f File) bool { return !j.longest[f.Name] }

// newJudge prepares for the files of the inputs.
func (p *planner) newJudge(kept []catalog.Snapshot) *walJudge {
	j := &walJudge{planner: p, kept: kept, longest: map[string]bool{}, reach: map[lane][]File{}, unknown: map[string]bool{}, lowest: map[string]uint32{}}
	for _, b := range p.bases {
		if t, ok := j.lowest[b.snap.SystemID]; !ok || b.snap.Timeline < t {
			j.lowest[b.snap.SystemID] = b.snap.Timeline
		}
	}
	for _, s := range p.Snapshots {
		for _, t := range p.branches(s.SystemID) {
			if _, known := p.path(Branch{s.SystemID, t}); !known && !j.unknown[s.SystemID] {
				j.unknown[s.SystemID] = !p.ended(s.SystemID)
			}
		}
	}
	for _, f := range p.WAL { // by epoch, timeline, From and the longer first
		_, covered := j.longer(f)
		j.longest[f.Name] = !covered || f.From == f.To
		at := lane{f.Epoch, f.Timeline}
		if list := j.reach[at]; f.From < f.To && (len(list) == 0 || f.To > list[len(list)-1].To) {
			j.reach[at] = append(list, f)
		}
	}
	return j
}

func sortFiles(files []File) []File {
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(a, b File) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.From, b.From), cmp.Compare(b.To, a.To), strings.Compare(a.Name, b.Name))
	})
	return files
}

// judgeWAL decides about every file, and tells it by stretches.
func (p *planner) judgeWAL() {
	var kept []catalog.Snapshot
	for i, d := range p.plan.Snapshots {
		if d.Keep {
			kept = append(kept, p.Snapshots[i])
		}
	}
	j := p.newJudge(kept)
	for _, f := range p.WAL {
		keep, reasons := j.judgeFile(f)
		if !keep && (f.Taken(p.Marked) || j.covered(f) && f.Taken(p.Slices)) {
			reasons = []string{"marked"}
		}
		over, _ := j.longer(f)
		p.plan.WAL = join(p.plan.WAL, f, over, keep, reasons)
	}
}

func (d WALDecision) span() catalog.WALSpan {
	return catalog.WALSpan{Epoch: d.Epoch, Timeline: d.Timeline, From: d.From, To: d.To}
}

// join adds a file to the stretches: to the last one of its timeline that says
// the same and ends where it begins, or later. A stretch of covered files never takes in
// one that covers them: the mark that names it must not speak of that.
func join(list []WALDecision, f, over File, keep bool, reasons []string) []WALDecision {
	for i := len(list) - 1; i >= max(0, len(list)-4); i-- {
		d := &list[i]
		if d.Epoch == f.Epoch && d.Timeline == f.Timeline && d.Keep == keep && slices.Equal(d.Reasons, reasons) &&
			f.From <= d.To && (d.From == d.To) == (f.From == f.To) && (keep || over.From == over.To || d.From > over.From || max(d.To, f.To) < over.To) {
			d.To = max(d.To, f.To)
			d.Files++
			return list
		}
	}
	return append(list, WALDecision{f.Epoch, f.Timeline, f.From, f.To, 1, keep, reasons})
}

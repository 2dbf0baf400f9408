package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// sweepMost bounds the names that one sweep removes below a prefix, so that what else is
// due for a cluster does not wait for the slices of a fast day.
const sweepMost = 1024

// Swept is what a sweep did for one mark.
type Swept struct {
	Mark    string            `json:"mark"`
	Removed int               `json:"removed"` // objects that some zone still had
	Kept    int               `json:"kept"`    // objects that snapshots which stay need
	Left    map[string]int    `json:"left"`    // by zone: versions that it retains or could not remove
	Owed    map[string]string `json:"owed"`    // zones that did not answer, and why
	Done    bool              `json:"done"`    // every zone's own listing of versions shows nothing else of it
}

// Sweep is the second act: it removes from every zone what due marks name and
// nothing that stays needs, lists every zone again, and tells the ledger of each
// mark that is done. What is not done stays due: a zone that is away is owed its
// removals by the vault's journal, and the next sweep looks again. What another
// snapshot needs goes when that one does, under the same mark. D3, D4, D7.
func (k *Keeper) Sweep(ctx context.Context) ([]Swept, error) {
	st, err := k.load()
	if err != nil {
		return nil, err
	}
	s := &sweep{Keeper: k, now: k.Now(), kept: map[string]bool{}, needed: map[string]bool{}}
	if err := s.read(ctx, st); err != nil {
		return nil, fmt.Errorf("sweeping %s: %w", k.Cluster, err)
	}
	if len(s.due) == 0 {
		return nil, nil
	}
	removed, err := s.pass(ctx, s.removeAll)
	if err != nil {
		return nil, err
	}
	left, err := s.pass(ctx, nil)
	if err != nil {
		return nil, err
	}
	var out []Swept
	for i, m := range s.due {
		one := Swept{Mark: m.ID, Removed: removed[i].names, Kept: left[i].kept, Left: left[i].zones, Owed: map[string]string{}}
		for z, err := range s.faults {
			one.Owed[z] = err.Error()
		}
		if m.OnlyCovered() {
			st.count(m, one.Removed)
		}
		if one.Done = len(one.Owed) == 0 && len(one.Left) == 0; one.Done {
			if err := s.done(ctx, &st, m, one); err != nil {
				return out, err
			}
		}
		out = append(out, one)
	}
	return out, s.save(st)
}

// removers is how many names of one rank are removed at a time: they share the fsyncs
// of the vault's journal.
const removers = 16

// removeAll removes names, given in the order of removal: all of one rank before the
// first of the next.
func (s *sweep) removeAll(ctx context.Context, names []string) {
	for len(names) > 0 && ctx.Err() == nil {
		n := 1
		for n < len(names) && rank(names[n]) == rank(names[0]) {
			n++
		}
		var group errgroup.Group
		group.SetLimit(removers)
		for _, name := range names[:n] {
			group.Go(func() error {
				s.Remover.RemoveAll(ctx, name) // what fails is journalled, and seen by the listing after it
				return nil
			})
		}
		_ = group.Wait()
		names = names[n:]
	}
}

// done tells the ledger of a mark, and remembers that it is done, or until when
// there is nothing to look for.
func (s *sweep) done(ctx context.Context, st *state, m catalog.Forgotten, one Swept) error {
	if m.OnlyCovered() {
		st.end(m, st.Removed[m.ID], s.listed)
		st.Swept[m.ID] = s.now
		return s.save(*st)
	}
	if _, told := st.Waits[m.ID]; one.Kept == 0 || one.Removed > 0 || !told {
		if err := s.conclude(ctx, m, one, s.listed); err != nil {
			return err
		}
	}
	if delete(st.Waits, m.ID); one.Kept > 0 {
		st.Waits[m.ID] = s.stay
	} else {
		st.Swept[m.ID] = s.now
	}
	return s.save(*st)
}

func (k *Keeper) conclude(ctx context.Context, m catalog.Forgotten, one Swept, listed map[string]time.Time) error {
	body := removal{Mark: m.ID, PlanHash: m.PlanHash, Snapshots: m.Snapshots, WAL: len(m.WAL), Removed: one.Removed, Kept: one.Kept, Zones: map[string]string{}}
	for z, at := range listed {
		body.Zones[z] = stamp(at)
	}
	_, err := k.Ledger.AppendAnchored(ctx, entryResult, k.subject(m), body)
	if err != nil {
		return fmt.Errorf("telling the ledger that mark %s is done: %w", m.ID, err)
	}
	return nil
}

// sweep is one run.
type sweep struct {
	*Keeper
	now    time.Time
	due    []catalog.Forgotten
	kept   map[string]bool // names of objects
	needed map[string]bool // ids of snapshots in whose directories some of them are
	dirs   []string        // of snapshots that stay or may be running
	stay   string          // the hash of which these are
	judge  *walJudge
	files  map[string]File // by the name of the note or object
	spans  map[catalog.WALSpan]File
	unread bool // the note of a small file
	faults map[string]error
	listed map[string]time.Time
}

// read reads the catalog afresh: what is due, and what stays whatever is due.
func (s *sweep) read(ctx context.Context, st state) error {
	in, err := s.Gather(ctx)
	if err != nil {
		return err
	}
	p := newPlanner(in)
	if p.guard(); len(p.plan.Refused) > 0 {
		return fmt.Errorf("%w: %s", ErrRefused, strings.Join(p.plan.Refused, "; "))
	}
	marks, err := s.Catalog.Forgotten(ctx, s.Cluster)
	if err != nil {
		return err
	}
	going := map[string]bool{}
	for _, m := range marks.Bodies() {
		if _, done := st.Swept[m.ID]; !done && !s.now.Before(m.NotBefore) {
			s.due = append(s.due, m)
		}
		for _, id := range m.Snapshots {
			going[id] = going[id] || !s.now.Before(m.NotBefore)
		}
	}
	if len(s.due) == 0 {
		return nil
	}
	snaps, err := s.Catalog.Snapshots(ctx, s.Cluster)
	if err != nil {
		return err
	}
	kept, lists := s.staying(p, snaps, going)
	s.due = slices.DeleteFunc(s.due, func(m catalog.Forgotten) bool { return st.Waits[m.ID] == s.stay })
	if len(s.due) == 0 {
		return nil
	}
	for _, n := range lists {
		if err := s.keepObjects(ctx, n); err != nil {
			return err
		}
	}
	return s.protectWAL(ctx, p, kept)
}

// staying finds the snapshots that stay, and those whose lists say what else does:
// the bases of snapshots that are being taken among them.
func (s *sweep) staying(p *planner, snaps catalog.Snapshots, going map[string]bool) (kept, lists []catalog.Snapshot) {
	bases := map[string]bool{}
	for _, n := range snaps.List { // under no mark, or spared by a hold
		going[n.Body.ID] = false
	}
	for _, id := range p.spared {
		going[id] = false
	}
	for _, i := range p.Intents {
		if p.alive(i) || !going[i.ID] {
			s.dirs = append(s.dirs, catalog.SnapshotDir(s.Cluster, i.ID))
			bases[i.Base] = true
		}
	}
	for _, n := range snaps.All {
		if !going[n.Body.ID] {
			kept = append(kept, n.Body)
		}
		if !going[n.Body.ID] || bases[n.Body.ID] {
			lists = append(lists, n.Body)
			s.dirs = append(s.dirs, catalog.SnapshotDir(s.Cluster, n.Body.ID))
		}
	}
	slices.Sort(s.dirs)
	s.stay = catalog.HashNote([]byte(strings.Join(s.dirs, "\n")))
	return kept, lists
}

// protectWAL judges the WAL by the snapshots that stay.
func (s *sweep) protectWAL(ctx context.Context, p *planner, kept []catalog.Snapshot) error {
	p.Snapshots = kept
	slices.SortStableFunc(p.Snapshots, older)
	p.keepWindow()
	p.keepHolds()
	s.judge = p.newJudge(p.Snapshots)
	s.files, s.spans = map[string]File{}, map[catalog.WALSpan]File{}
	return s.nameFiles(ctx)
}

func (s *sweep) keepObjects(ctx context.Context, n catalog.Snapshot) error {
	refs, err := s.refs(ctx, n)
	for _, r := range refs {
		s.kept[r.Name] = true
		if id, ok := holdingID(s.Cluster, r.Name); ok {
			s.needed[id] = true
		}
	}
	return err
}

// nameFiles ties the names of WAL objects to what the notes say of them.
func (s *sweep) nameFiles(ctx context.Context) error {
	var small []catalog.WALEntry
	for _, f := range s.judge.WAL {
		s.files[f.Name] = f
		s.spans[spanOf(f)] = f
		if f.From == f.To {
			small = append(small, f.WALEntry)
		}
	}
	notes, faults, err := s.Catalog.WALNotes(ctx, s.Cluster, small)
	s.unread = len(faults) > 0
	for _, n := range notes {
		s.files[n.Body.Object.Name] = s.files[n.Name]
	}
	return err
}

// left counts what a pass found of one mark.
type left struct {
	names int
	kept  int
	zones map[string]int
}

// pass lists every zone, versions included, and hands the names that are to go to
// act, in the order of removal.
func (s *sweep) pass(ctx context.Context, act func(ctx context.Context, names []string)) ([]left, error) {
	found := make([]left, len(s.due))
	s.faults, s.listed = map[string]error{}, map[string]time.Time{}
	for i := range found {
		found[i].zones = map[string]int{}
	}
	for _, prefix := range []string{catalog.SnapshotsDir(s.Cluster), catalog.WALRoot(s.Cluster)} {
		zones, faults := s.Remover.Versions(ctx, prefix)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("sweeping %s: %w", s.Cluster, err)
		}
		for z, err := range faults {
			s.faults[z] = errors.Join(s.faults[z], err)
		}
		names := map[string]int{}
		for z, objects := range zones {
			s.listed[z] = s.now
			for _, o := range objects {
				if _, ok := names[o.Name]; !ok {
					names[o.Name] = s.owner(o)
					if i := s.keeper(o.Name); names[o.Name] < 0 && i >= 0 {
						found[i].kept++
					}
				}
				if i := names[o.Name]; i >= 0 {
					found[i].zones[z]++
				}
			}
		}
		going := removalOrder(names)
		if act != nil {
			going = going[:min(len(going), sweepMost)] // the next sweep goes on: what is there says what it is
			act(ctx, going)
		}
		for _, name := range going {
			found[names[name]].names++
		}
	}
	return found, nil
}

// owner is the due mark under which an object goes, or -1.
func (s *sweep) owner(o zone.Object) int {
	if s.stays(o.Name) {
		return -1
	}
	if id, ok := holdingID(s.Cluster, o.Name); ok {
		return s.markOf(id)
	}
	f, ok := s.fileOf(o.Name)
	if !ok {
		return s.leftOver(o.Name)
	}
	i := slices.IndexFunc(s.due, func(m catalog.Forgotten) bool {
		return (!m.OnlyCovered() || s.judge.covered(f)) && f.Taken(m.WAL)
	})
	if i < 0 {
		return -1
	}
	if keep, _ := s.judge.judgeFile(f); keep {
		return -1
	}
	return i
}

// leftOver is the due mark under which the note of a small file went before the sweep
// that removed it died: its object's name tells about where it stood. Where a note could
// not be read, the object may be that note's, and stays.
func (s *sweep) leftOver(name string) int {
	within, ok := parseSmallObject(name, s.segSize())
	if !ok || s.unread {
		return -1
	}
	return slices.IndexFunc(s.due, func(m catalog.Forgotten) bool {
		return slices.ContainsFunc(m.WAL, func(span catalog.WALSpan) bool {
			return span.From == span.To && span.Epoch == within.Epoch && span.Timeline == within.Timeline && within.From <= span.From && span.From <= within.To
		})
	})
}

// stays says that a snapshot that stays needs an object. The intent of a directory
// goes last: it says to the end what the rest is, and of when.
func (s *sweep) stays(name string) bool {
	id, ok := holdingID(s.Cluster, name)
	return s.kept[name] || ok && (s.needed[id] && name == catalog.IntentName(s.Cluster, id) ||
		slices.Contains(s.dirs, catalog.SnapshotDir(s.Cluster, id)))
}

// markOf is the due mark of a snapshot, or -1.
func (s *sweep) markOf(id string) int {
	return slices.IndexFunc(s.due, func(m catalog.Forgotten) bool { return slices.Contains(m.Snapshots, id) })
}

// keeper is the due mark under which an object will go once nothing needs it, or -1.
func (s *sweep) keeper(name string) int {
	if id, ok := holdingID(s.Cluster, name); ok {
		if s.stays(name) {
			return s.markOf(id)
		}
		return -1
	}
	f, ok := s.fileOf(name)
	if !ok {
		return -1
	}
	return slices.IndexFunc(s.due, func(m catalog.Forgotten) bool {
		return !m.OnlyCovered() && f.Taken(m.WAL)
	})
}

// fileOf tells which archived file an object belongs to: by its note, or by its
// own name where a writer or a sweep was interrupted and the note is not there.
func (s *sweep) fileOf(name string) (File, bool) {
	if f, ok := s.files[name]; ok {
		return f, true
	}
	got, ok := parseWALObject(name, s.segSize())
	if !ok {
		return File{}, false
	}
	if f, ok := s.spans[spanOf(got)]; ok {
		return f, true
	}
	_, covered := s.judge.longer(got)
	s.judge.longest[got.Name] = !covered
	return got, true
}

func spanOf(f File) catalog.WALSpan {
	return catalog.WALSpan{Epoch: f.Epoch, Timeline: f.Timeline, From: f.From, To: f.To}
}

func (s *sweep) segSize() int64 {
	if n := len(s.judge.Snapshots); n > 0 {
		return segSize(s.judge.Snapshots[n-1])
	}
	return segSize(catalog.Snapshot{})
}

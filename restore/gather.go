package restore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// Repo is what a restore reads from: it can neither write nor delete.
type Repo struct {
	Reader  vault.Reader
	Catalog *catalog.Reader
	Trust   catalog.Truster
	// Data opens packs and WAL, Index manifests and WAL indexes. A plan needs one
	// of them, a restore Data.
	Data  []age.Identity
	Index []age.Identity
}

func (r Repo) identities() []age.Identity { return append(slices.Clone(r.Data), r.Index...) }

// only reads from one zone alone; "" from all.
func (r Repo) only(zone string) Repo {
	if zone != "" {
		r.Reader = r.Reader.Only(zone)
		r.Catalog = catalog.NewReader(r.Reader, r.Trust)
	}
	return r
}

// ErrUnreachable means that the repository holds nothing that reaches the target.
var ErrUnreachable = errors.New("the target cannot be reached")

// maxHistory bounds a timeline history file.
const maxHistory = 1 << 20

// gatherer reads what one plan follows from.
type gatherer struct {
	Repo
	all     Repo // what deleted projects are looked up in: every zone
	cluster string
	target  Target
	now     time.Time
	snaps   catalog.Snapshots
	entries []catalog.WALEntry // on the path's timelines
	beyond  error              // WAL that is listed and cannot be reached
	in      Inputs
}

// Gather reads the catalog for a restore of cluster to target and chooses: the
// timeline, the snapshot, and the position that the target stands for.
func Gather(ctx context.Context, r Repo, cluster string, target Target, now time.Time) (Inputs, error) {
	if err := target.Check(); err != nil {
		return Inputs{}, err
	}
	if known := r.Reader.Zones(); target.Zone != "" && !slices.Contains(known, target.Zone) {
		return Inputs{}, fmt.Errorf("planning a restore of %s: there is no zone %q; want one of %s", cluster, target.Zone, strings.Join(known, ", "))
	}
	g := &gatherer{Repo: r.only(target.Zone), all: r, cluster: cluster, target: target, now: now}
	g.in = Inputs{Cluster: cluster, Now: now, Target: target}
	for _, step := range []func(context.Context) error{g.readSnapshots, g.readTimelines, g.choose, g.readObjects, g.readTombstones} {
		if err := step(ctx); err != nil {
			return Inputs{}, fmt.Errorf("planning a restore of %s to %s: %w", cluster, target, err)
		}
	}
	return g.in, nil
}

func (g *gatherer) readSnapshots(ctx context.Context) (err error) {
	if g.snaps, err = g.Catalog.Snapshots(ctx, g.cluster); err != nil {
		return err
	}
	g.missing("snapshots", g.snaps.Require())
	exported := len(g.snaps.List)
	g.snaps.List = catalog.OfKind(g.snaps.List, catalog.Physical)
	exported -= len(g.snaps.List)
	if g.target.Zone != "" {
		g.missing("zone "+g.target.Zone, errors.New("it alone was asked, others may hold more"))
	}
	if len(g.snaps.List) == 0 {
		names, _ := g.Catalog.Clusters(ctx)
		if exported > 0 {
			return fmt.Errorf("%w: the repository shows no physical snapshot of %s%s, and %d others, which --on CONNECTION loads into a server", ErrUnreachable, g.cluster, g.alone(), exported)
		}
		return fmt.Errorf("%w: the repository shows no snapshot of %s%s (clusters seen: %s)%s", ErrUnreachable, g.cluster, g.alone(), strings.Join(names, ", "), faults(append(g.snaps.Faults, g.snaps.Missing...)))
	}
	return nil
}

func faults(list []catalog.Fault) string {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "; %v", f)
	}
	return b.String()
}

func (g *gatherer) missing(what string, err error) {
	if err != nil {
		g.in.Missing = append(g.in.Missing, strings.ReplaceAll(what+": "+err.Error(), "\n", ", "))
	}
}

// readTimelines picks the timeline on which recovery ends, reads its history,
// and keeps the WAL entries on the way.
func (g *gatherer) readTimelines(ctx context.Context) error {
	wal, err := g.Catalog.WALEntries(ctx, g.cluster, "")
	if err != nil {
		return err
	}
	if !wal.Complete {
		g.in.Missing = append(g.in.Missing, "WAL: too few zones answered")
	}
	wal.List = wal.Backed()
	last := g.snaps.List[len(g.snaps.List)-1].Body
	g.in.Timeline = cmp.Or(g.target.Timeline, newestTimeline(wal.List, last))
	history, err := g.histories(ctx, wal.List)
	if err != nil {
		return err
	}
	g.in.Legs = path(g.in.Timeline, history)
	for _, e := range wal.List {
		if slices.ContainsFunc(g.in.Legs, func(l leg) bool { return l.Timeline == e.Timeline }) && e.To > e.From {
			g.entries = append(g.entries, e)
		}
	}
	return nil
}

// newestTimeline is that of the newest epoch's WAL, or else the newest snapshot's.
func newestTimeline(entries []catalog.WALEntry, last catalog.Snapshot) uint32 {
	epoch, timeline := last.Epoch, last.Timeline
	for _, e := range entries {
		if e.To > e.From && (e.Epoch > epoch || e.Epoch == epoch && e.Timeline > timeline) {
			epoch, timeline = e.Epoch, e.Timeline
		}
	}
	return timeline
}

// histories reads the history of the chosen timeline, and lists all history
// files: recovery asks for its own, and promotion for others, so as not to take
// the number of a timeline that exists (findNewestTimeLine in timeline.c).
func (g *gatherer) histories(ctx context.Context, entries []catalog.WALEntry) ([]lsn.Switch, error) {
	var small []catalog.WALEntry
	for _, e := range entries {
		if e.From == e.To {
			small = append(small, e)
		}
	}
	notes, bad, err := g.Catalog.WALNotes(ctx, g.cluster, small)
	if err != nil {
		return nil, err
	}
	found := g.in.Timeline == 1
	var own []lsn.Switch
	for _, n := range slices.Backward(notes) {
		if !strings.HasSuffix(n.Body.File, ".history") || slices.ContainsFunc(g.in.Histories, func(f File) bool { return f.Name == n.Body.File }) {
			continue
		}
		g.in.Histories = append(g.in.Histories, File{Name: n.Body.File, Size: n.Body.RawSize, Parts: []Part{wholePart(n.Body)}})
		if n.Body.File == lsn.HistoryName(g.in.Timeline) {
			if own, err = g.history(ctx, n.Body); err != nil {
				return nil, err
			}
			found = true
		}
	}
	if !found {
		return nil, fmt.Errorf("%w: the archive has no %s%s, without which the way to timeline %d is not known%s", ErrUnreachable, lsn.HistoryName(g.in.Timeline), g.alone(), g.in.Timeline, faults(bad))
	}
	slices.SortFunc(g.in.Histories, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	return own, nil
}

func wholePart(w catalog.WAL) Part {
	return Part{Object: w.Object, Len: w.RawSize, Raw: w.Raw, RawSize: w.RawSize}
}

func (g *gatherer) history(ctx context.Context, w catalog.WAL) ([]lsn.Switch, error) {
	sealed, err := g.Reader.Get(ctx, w.Object.Name, w.Object.Size, w.Object.SHA256)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", w.File, err)
	}
	raw, err := seal.OpenFile(sealed, g.identities(), maxHistory)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w; give an identity that opens it with --identity", w.File, err)
	}
	return lsn.ParseHistory(raw)
}

func (g *gatherer) readObjects(ctx context.Context) error {
	ref := g.in.Snapshot.Objects
	data, err := g.Reader.Get(ctx, ref.Name, ref.Size, ref.SHA256)
	if err != nil {
		return fmt.Errorf("reading the list of objects of snapshot %s: %w", g.in.Snapshot.ID, err)
	}
	g.in.Objects, err = catalog.DecodeObjects(bytes.NewReader(data))
	return err
}

func (g *gatherer) readTombstones(ctx context.Context) error {
	tombs, err := g.all.Catalog.Tombstones(ctx, g.cluster)
	if err != nil {
		return fmt.Errorf("reading tombstones: %w", err)
	}
	if g.in.Absences, err = g.all.Catalog.Absences(ctx); err != nil {
		return fmt.Errorf("reading tombstones: %w", err)
	}
	g.in.Tombstones = tombs.Bodies()
	g.in.TombstoneOK = tombs.Complete && len(tombs.Faults) == 0
	g.missing("tombstones", tombs.Require())
	for _, f := range tombs.Faults {
		g.in.Missing = append(g.in.Missing, f.Error())
	}
	return nil
}

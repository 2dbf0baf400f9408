package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/snapshot"
)

const (
	walMendTime = 5 * time.Minute // for one look with all that it mends
	walMendMost = 64              // notes brought into zones by one look
)

// watchWAL looks at what the zones themselves show of the cluster's WAL: what one
// lacks is brought from another, what all lack from the server, and what nobody
// has closes the window where everyone sees it.
func (p *protected) watchWAL(ctx context.Context) error {
	w := &walWatcher{p: p}
	tick := time.NewTicker(p.cfg.WAL.CheckEvery.Std())
	defer tick.Stop()
	for !p.isRetired() {
		look, cancel := context.WithTimeout(ctx, walMendTime)
		if err := w.look(look); err != nil && ctx.Err() == nil {
			p.n.log.Warn("the WAL in the zones is not all as it should be, or cannot be looked at; looking again", zap.String("cluster", p.cfg.Name), zap.Error(err))
		}
		cancel()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// walWatcher remembers between looks: what is missing once may be on its way.
type walWatcher struct {
	p     *protected
	holes map[catalog.WALSpan]bool
	late  map[string]bool // note and zone
}

func (w *walWatcher) look(ctx context.Context) error {
	p := w.p
	coming := p.coming()
	r, err := p.n.readWAL(ctx, p.cfg.Name)
	if err != nil {
		return err
	}
	p.n.settleGaps(ctx, p.cfg.Name, r)
	faults := []error{w.bring(ctx, r)}
	seen := map[catalog.WALSpan]bool{}
	for _, h := range r.holes(coming) {
		seen[h.WALSpan] = true
		if w.holes[h.WALSpan] {
			faults = append(faults, p.mend(ctx, r, h.WALSpan))
		}
	}
	w.holes = seen
	return errors.Join(faults...)
}

// mend refills a hole from a server, or else writes it down as a gap.
func (p *protected) mend(ctx context.Context, r walRecord, hole catalog.WALSpan) error {
	p.mu.Lock()
	s := p.session
	p.mu.Unlock()
	if s == nil {
		return nil // what claims the lineage mends it later
	}
	subject := map[string]string{"cluster": p.cfg.Name}
	err := errors.New("it belongs to another database system")
	if r.rootOf(s.lineage.Epoch) == hole.Epoch {
		err = s.writer.Refill(ctx, p.dsn, s.facts.SegSize, snapshot.Hole{Timeline: hole.Timeline, From: hole.From, To: hole.To})
	}
	if err == nil {
		p.n.settle(ctx, gapKey(p.cfg.Name, hole), "the server still had the WAL: it is archived")
		_, err = p.n.append(ctx, "wal.refilled", subject, hole)
		return err
	}
	if ctx.Err() != nil || r.guarded(hole) || p.n.known(gapKey(p.cfg.Name, hole)) {
		return ctx.Err()
	}
	return p.gap(ctx, snapshot.Gap{
		Cluster: p.cfg.Name, Epoch: s.lineage.Epoch, Why: "no zone holds it, and no server does: " + err.Error(), NoticedAt: p.n.now().UTC(),
		From: snapshot.Place{Timeline: hole.Timeline, LSN: hole.From}, To: snapshot.Place{Timeline: hole.Timeline, LSN: hole.To},
	})
}

func gapKey(cluster string, hole catalog.WALSpan) string {
	return "wal-gap/" + cluster + "/" + hole.From.String()
}

// known says whether an incident is open.
func (n *node) known(key string) bool {
	list, err := n.incidents.List()
	return err == nil && slices.ContainsFunc(list, func(i incident.Incident) bool { return i.Key == key && i.Open() })
}

// guarded says whether a good snapshot lies behind a hole: the newest moments can
// be restored, and the hole is history.
func (r walRecord) guarded(hole catalog.WALSpan) bool {
	return slices.ContainsFunc(r.snaps.List, func(s catalog.Noted[catalog.Snapshot]) bool {
		return !s.Body.Suspect && r.rootOf(s.Body.Epoch) >= hole.Epoch && s.Body.StartLSN >= hole.To
	})
}

// settleGaps closes the incidents about gaps that a later snapshot lies behind.
func (n *node) settleGaps(ctx context.Context, cluster string, r walRecord) {
	list, err := n.incidents.List()
	if err != nil {
		n.log.Error("cannot read the incidents", zap.Error(err))
		return
	}
	for _, i := range list {
		if !i.Open() || !strings.HasPrefix(i.Key, "wal-gap/"+cluster+"/") {
			continue
		}
		for _, s := range r.snaps.List {
			if !s.Body.Suspect && s.Body.StartedAt.After(i.OpenedAt) {
				n.settle(ctx, i.Key, "snapshot "+s.Body.ID+" was taken behind it; moments inside the gap cannot be restored")
				break
			}
		}
	}
}

// bring has zones hold what others do and they were seen twice to lack: mostly
// back-fill was faster, but it does not know what a zone lost later.
func (w *walWatcher) bring(ctx context.Context, r walRecord) error {
	late := map[string]bool{}
	var faults []error
	for _, e := range r.entries.List {
		if r.letGo(e) || len(e.Bare) >= len(e.Zones) {
			continue
		}
		for _, z := range r.entries.Zones {
			if z.Err != nil || !placed(w.p.n.world, e.Name, z.Name) || slices.Contains(e.Zones, z.Name) && (!slices.Contains(e.Bare, z.Name) || e.From == e.To) {
				continue
			}
			key := z.Name + " " + e.Name
			late[key] = true
			if w.late[key] && len(faults) < walMendMost && ctx.Err() == nil {
				faults = append(faults, w.p.n.healWAL(ctx, w.p.cfg.Name, e))
				break // all zones are healed at once
			}
		}
	}
	w.late = late
	return errors.Join(faults...)
}

func (r walRecord) letGo(e catalog.WALEntry) bool {
	e.Epoch = r.rootOf(e.Epoch)
	return e.Taken(r.gone) || !e.Whole() && e.Taken(r.covered)
}

func placed(w *world, name, zone string) bool {
	allowed := w.place()(name)
	return len(allowed) == 0 || slices.Contains(allowed, zone)
}

// healWAL brings an object, its index and last their note into every zone.
func (n *node) healWAL(ctx context.Context, cluster string, e catalog.WALEntry) error {
	notes, bad, err := n.catalog.WALNotes(ctx, cluster, []catalog.WALEntry{e})
	if err != nil || len(bad) > 0 || len(notes) == 0 {
		return errors.Join(err, fmt.Errorf("the note %s does not open in any zone", e.Name))
	}
	for _, ref := range []catalog.Ref{notes[0].Body.Object, notes[0].Body.Index} {
		if ref.Name == "" {
			continue
		}
		if _, err := n.vault.Writer().Heal(ctx, ref.Name, ref.Size, ref.SHA256); err != nil {
			return err
		}
	}
	var body catalog.WAL
	note, err := n.vault.Reader().Fetch(ctx, e.Name, func(_ string, msg []byte) error {
		_, err := n.trust.Open(msg, catalog.KindWAL, string(catalog.DutyWAL), cluster, &body)
		return err
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(note)
	_, err = n.vault.Writer().Heal(ctx, e.Name, int64(len(note)), hex.EncodeToString(sum[:]))
	return err
}

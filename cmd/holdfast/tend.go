package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// What must be where is read anew from all notes after each snapshot, and at least so
// often: other objects made since have their locks and are young. In between turns go on
// with what is known.
const (
	refreshMost = 6 * time.Hour
	turnMost    = 15 * time.Minute // of verification, before locks are looked at again
	pauseMost   = time.Minute
)

// tendCopies is rolling verification: it keeps what is in the zones locked and reads
// every copy once in node.scrub.every, until ctx ends. Nodes that take no snapshots
// may hold credentials that only read, and leave it.
func (n *node) tendCopies(ctx context.Context) error {
	if !n.takesSnapshots() {
		return nil
	}
	found := &findings{seen: map[string]found{}}
	s, err := n.vault.OpenScrub(vault.ScrubConfig{
		Every: n.cfg.Node.Scrub.Every.Std(), Rate: int64(n.cfg.Node.Scrub.Rate), Locks: n.lockingZones(), Now: n.now, OnFault: found.add,
	})
	if err != nil {
		return err
	}
	n.onClose(s.Close)
	n.scrubber.Store(s)
	t := tending{n: n, s: s, found: found, known: knownRefs{}, refresh: min(max(n.turnEvery()/20, time.Second), refreshMost)}
	for ctx.Err() == nil {
		if err := t.turn(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("copies could not all be looked at; the next turn tries again", zap.Error(err))
		}
		select {
		case <-time.After(min(t.refresh, pauseMost)):
		case <-ctx.Done():
		}
	}
	return nil
}

func (n *node) takesSnapshots() bool {
	return slices.ContainsFunc(n.cfg.Clusters, func(c configs.Cluster) bool { return c.Connection != "" })
}

// turnEvery is how often everything is looked at: as often as verification and as the
// shortest floor demand.
func (n *node) turnEvery() time.Duration {
	every := n.cfg.Node.Scrub.Every.Std()
	for _, c := range n.cfg.Clusters {
		if n.locks() {
			every = min(every, max(c.Retention.KeepAtLeast.Std(), time.Second), max(c.Retention.Window.Std(), time.Second))
		}
	}
	return every
}

func (w *world) lockingZones() map[string]bool {
	out := map[string]bool{}
	for _, z := range w.cfg.Repository.Zones {
		out[z.Name] = z.ObjectLock != "none"
	}
	return out
}

// tending is rolling verification between two turns.
type tending struct {
	n       *node
	s       *vault.Scrub
	found   *findings
	refresh time.Duration
	known   knownRefs // of the targets
	at      time.Time // when the targets were read
	fresh   bool      // that was in this turn
	owed    bool      // the zones' identities could not all be locked
}

func (t *tending) turn(ctx context.Context) error {
	cover, err := t.look(ctx)
	if anyBad(cover) && !t.fresh && t.n.now().Sub(t.at) >= min(t.refresh, turnMost) {
		t.doubt(ctx, cover)
		t.at = time.Time{}
		cover, err = t.look(ctx)
	}
	if data, jerr := json.Marshal(cover); jerr == nil && cover != nil {
		err = errors.Join(err, durable.WriteFile(t.n.state("scrub.json"), data, 0o600))
	}
	if anyBad(cover) && !t.fresh { // wait for what must be there
		t.doubt(ctx, cover)
		return err
	}
	for _, c := range cover {
		t.n.tellCopies(ctx, c, t.found.take(c.Zone))
	}
	return err
}

func anyBad(cover []vault.Coverage) bool {
	return slices.ContainsFunc(cover, func(c vault.Coverage) bool { return c.Bad > 0 })
}

// doubt drops what a turn found bad by what was known before: retention may have removed
// it since. What lies beneath other versions is there, and is told.
func (t *tending) doubt(ctx context.Context, cover []vault.Coverage) {
	for _, c := range cover {
		t.n.tellTampered(ctx, c, t.found.take(c.Zone))
	}
}

// look verifies what must be there, as it is known or is read anew.
func (t *tending) look(ctx context.Context) ([]vault.Coverage, error) {
	now, grew := t.n.now(), t.n.grew.Swap(false)
	t.fresh = grew || t.at.IsZero() || now.Sub(t.at) >= t.refresh || now.Before(t.at)
	var idErr error
	if t.fresh || t.owed {
		idErr = t.n.lockIdentities(ctx)
		t.owed = idErr != nil
	}
	if t.fresh {
		targets, err := t.n.targets(ctx, t.known)
		if err != nil {
			if grew {
				t.n.grew.Store(true)
			}
			return nil, errors.Join(idErr, err)
		}
		t.s.Expect(targets)
		t.at = now
	}
	err := t.s.Turn(ctx, min(max(t.refresh, 10*time.Second), turnMost))
	return t.s.Coverage(), errors.Join(idErr, err)
}

// found is what turns found in one zone.
type found struct {
	hidden  int
	beneath string // the first that is hidden
	first   string // the first with another fault
}

// findings collects faults from the turn's workers.
type findings struct {
	mu   sync.Mutex
	seen map[string]found
}

func (f *findings) add(zone, name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	z := f.seen[zone]
	first := &z.first
	if errors.Is(err, vault.ErrHidden) {
		z.hidden++
		first = &z.beneath
	}
	if *first == "" {
		*first = fmt.Sprintf("%s: %v", name, err)
	}
	f.seen[zone] = z
}

func (f *findings) take(zone string) found {
	f.mu.Lock()
	defer f.mu.Unlock()
	z := f.seen[zone]
	delete(f.seen, zone)
	return z
}

// tellCopies opens and closes the incidents about one zone's copies.
func (n *node) tellCopies(ctx context.Context, c vault.Coverage, f found) {
	n.tellTampered(ctx, c, f)
	if key := "copies-bad/" + c.Zone; c.Bad > 0 {
		n.raise(ctx, incident.Incident{
			Key: key, Severity: "warning", Title: fmt.Sprintf("%d copies in zone %s are wrong or missing", c.Bad, c.Zone), Detail: f.first,
			Remedy: "they are healed from other zones where one has a good copy; `holdfast zone scrub " + c.Zone + "` names them",
		})
	} else {
		n.settle(ctx, key, "every copy that was looked at is right")
	}
	if key := "locks-short/" + c.Zone; c.Short > 0 {
		n.raise(ctx, incident.Incident{
			Key: key, Severity: "warning", Title: fmt.Sprintf("%d objects in zone %s are not locked as long as they must be kept", c.Short, c.Zone), Detail: f.first,
			Remedy: "see that the bucket has object lock and that the credentials have s3:PutObjectRetention and s3:GetObjectRetention",
		})
	} else {
		n.settle(ctx, key, "every lock ends as late as it must")
	}
}

// tellTampered opens an incident where somebody wrote over objects, and closes it when
// every copy in the zone was read and right since.
func (n *node) tellTampered(ctx context.Context, c vault.Coverage, f found) {
	key := "zone-tampered/" + c.Zone
	if f.hidden > 0 {
		n.raise(ctx, incident.Incident{
			Key: key, Severity: "critical", Title: "somebody writes over objects in zone " + c.Zone,
			Detail: fmt.Sprintf("%d objects lie beneath later versions or delete markers, which Holdfast did not make; first %s", f.hidden, f.beneath),
			Remedy: "take the credentials away from whoever writes there; restores read the versions beneath, and the right bytes are put on top again",
		})
		return
	}
	list, err := n.incidents.List()
	if err != nil {
		return
	}
	for _, i := range list {
		if i.Key == key && i.Open() && c.Objects > 0 && c.Verified >= c.Objects && c.Hidden == 0 && c.Oldest.After(i.LastSeen) {
			n.settle(ctx, key, "every copy was read since, and none lies beneath another")
		}
	}
}

// coverage is what the daemon of this node wrote down last; nil: nothing yet.
func (w *world) coverage() map[string]vault.Coverage {
	if w.cfg.Node.State == "" {
		return nil
	}
	data, err := os.ReadFile(w.state("scrub.json"))
	var list []vault.Coverage
	if err != nil || json.Unmarshal(data, &list) != nil {
		return nil
	}
	out := map[string]vault.Coverage{}
	for _, c := range list {
		out[c.Zone] = c
	}
	return out
}

// coverText says it in a few words.
func coverText(c *vault.Coverage, now time.Time) string {
	if c == nil {
		return "not verified yet"
	}
	text := fmt.Sprintf("%d of %d copies verified", c.Verified, c.Objects)
	if !c.Oldest.IsZero() {
		text += ", the oldest " + ago(c.Oldest, now)
	}
	for _, x := range []struct {
		n    int
		what string
	}{{c.Bad, "wrong or missing"}, {c.Hidden, "beneath others"}, {c.Short, "locked too short"}} {
		if x.n > 0 {
			text += fmt.Sprintf(", %d %s", x.n, x.what)
		}
	}
	return text
}

// zoneReturned has retention look again at what it removed: a zone that was away may
// be an older state of itself.
func (w *world) zoneReturned(string) {
	if w.holder == nil || w.holder.node == nil {
		return
	}
	n := w.holder.node
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.cfg.Clusters {
		n.revisit[c.Name] = true
	}
}

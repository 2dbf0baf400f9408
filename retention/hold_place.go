package retention

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

const (
	entryHold     = "hold"
	entryReleased = "hold.released"
)

// ErrHold means that a hold cannot be placed or released as it was asked for.
var ErrHold = errors.New("it cannot be done")

// ErrOnHold means that a hold forbids an act.
var ErrOnHold = errors.New("a hold forbids it")

// maxReason bounds what people write into a hold, in bytes.
const maxReason = 500

// heldEntry is what the ledger says of a hold. The reason is in the note alone, which
// the entry names by its digest: what is in the ledger can never be removed.
type heldEntry struct {
	Kind     string     `json:"kind"`
	Snapshot string     `json:"snapshot,omitempty"`
	From     *time.Time `json:"from,omitempty"`
	To       *time.Time `json:"to,omitempty"`
	KeyMAC   string     `json:"key_mac,omitempty"`
	ReviewBy time.Time  `json:"review_by,omitzero"`
	Note     string     `json:"note_sha256"`
}

// Place puts a hold into force: it is in the ledger and in the quorum when it returns.
// h says what it is on, why, by whom and until when it is to be looked at again; the
// rest is filled in. The error is ErrHold where it would keep nothing.
func (k *Keeper) Place(ctx context.Context, h catalog.Hold) (catalog.Hold, error) {
	var id [5]byte
	_, _ = rand.Read(id[:])
	h.ID, h.Cluster, h.PlacedAt = "h"+hex.EncodeToString(id[:]), k.Cluster, k.Now().UTC().Truncate(time.Second)
	h.From, h.To, h.ReviewBy = h.From.UTC(), h.To.UTC(), h.ReviewBy.UTC()
	if err := errors.Join(h.Check(), written(h.Reason, h.By)); err != nil {
		return h, fmt.Errorf("placing a hold: %w: %w", ErrHold, err)
	}
	if !h.ReviewBy.After(h.PlacedAt) {
		return h, fmt.Errorf("placing a hold: %w: it is to be reviewed by %s, which is past", ErrHold, stamp(h.ReviewBy))
	}
	if err := k.prepare(ctx, &h); err != nil {
		return h, fmt.Errorf("placing a hold: %w", err)
	}
	e := heldEntry{Kind: h.Kind, Snapshot: h.Snapshot, KeyMAC: h.KeyMAC, ReviewBy: h.ReviewBy}
	if h.Kind == catalog.HoldSpan {
		e.From, e.To = &h.From, &h.To
	}
	err := k.tellHold(ctx, entryHold, h.ID, catalog.HoldName(k.Cluster, h.ID), catalog.KindHold, h, e)
	if err != nil {
		err = fmt.Errorf("placing a hold: %w", err)
	}
	return h, err
}

// prepare says whether there is something that a hold can keep, and writes down what it
// spares of what was let go so lately that all of it is there.
func (k *Keeper) prepare(ctx context.Context, h *catalog.Hold) error {
	snaps, err := k.Catalog.Snapshots(ctx, k.Cluster)
	if err != nil {
		return err
	}
	if h.Kind == catalog.HoldSnapshot {
		return k.sparable(snaps, h.Snapshot)
	}
	if err := snaps.Require(); err != nil {
		return err
	}
	if h.Spares, err = k.spares(ctx, snaps, *h); err != nil {
		return err
	}
	if h.Kind == catalog.HoldSpan && len(h.Spares) == 0 && !slices.ContainsFunc(snaps.Bodies(), func(s catalog.Snapshot) bool {
		return s.Kind == "physical" && !s.Suspect && !s.FinishedAt.After(h.To)
	}) {
		return fmt.Errorf("%w: no snapshot ended by %s: nothing restores a moment of the span", ErrHold, stamp(h.To))
	}
	return nil
}

// sparable says whether a snapshot is there, or marked so lately that all of it is.
func (k *Keeper) sparable(snaps catalog.Snapshots, id string) error {
	if !slices.ContainsFunc(snaps.All, func(n catalog.Noted[catalog.Snapshot]) bool { return n.Body.ID == id }) {
		return fmt.Errorf("%w: cluster %s has no snapshot %q; `snapshot list` shows those there are", ErrHold, k.Cluster, id)
	}
	if m, marked := snaps.Forgotten[id]; marked && !k.Now().Before(m.NotBefore) {
		return fmt.Errorf("%w: snapshot %s was let go under mark %s and has been removed since %s", ErrHold, id, m.ID, stamp(m.NotBefore))
	}
	return nil
}

// written says whether a reason and a name can stand in a note.
func written(reason, by string) error {
	for name, s := range map[string]string{"a reason": reason, "who it is by": by} {
		if strings.TrimSpace(s) == "" || len(s) > maxReason || strings.ContainsAny(s, "\r\n") {
			return fmt.Errorf("%s is %q, want one line of 1 to %d bytes", name, s, maxReason)
		}
	}
	return nil
}

// Release ends a hold: it is in the ledger and in the quorum when it returns. What it
// kept goes by the policy from then on.
func (k *Keeper) Release(ctx context.Context, end catalog.Released) (catalog.Released, error) {
	end.Cluster, end.ReleasedAt = k.Cluster, k.Now().UTC().Truncate(time.Second)
	holds, err := k.Catalog.Holds(ctx, k.Cluster)
	if err == nil {
		err = written(end.Reason, end.By)
	}
	if err != nil {
		return end, fmt.Errorf("releasing hold %s: %w", end.Hold, err)
	}
	if !slices.ContainsFunc(holds.InForce(), func(h catalog.Hold) bool { return h.ID == end.Hold }) {
		return end, fmt.Errorf("releasing hold %s: %w: cluster %s has no such hold in force", end.Hold, ErrHold, k.Cluster)
	}
	if err := k.tellHold(ctx, entryReleased, end.Hold, catalog.ReleasedName(k.Cluster, end.Hold), catalog.KindReleased, end, heldEntry{}); err != nil {
		return end, fmt.Errorf("releasing hold %s: %w", end.Hold, err)
	}
	return end, nil
}

// tellHold tells the ledger first, then the zones.
func (k *Keeper) tellHold(ctx context.Context, typ, id, name, kind string, body any, e heldEntry) error {
	text, err := seal.SignNote(kind, body, k.Signer)
	if err != nil {
		return err
	}
	e.Note = catalog.HashNote(text)
	if _, err := k.Ledger.AppendAnchored(ctx, typ, map[string]string{"cluster": k.Cluster, "hold": id}, e); err != nil {
		return err
	}
	_, err = k.Store.Put(ctx, name, text, vault.PutOptions{})
	return err
}

// PlaceOnProject puts a hold on a project that live has, by its id.
func (p *Purger) PlaceOnProject(ctx context.Context, v Preview, h catalog.Hold) (catalog.Hold, error) {
	for _, s := range []string{h.Reason, h.By} {
		if v.Name != "" && strings.Contains(strings.ToLower(s), strings.ToLower(v.Name)) {
			return h, fmt.Errorf("placing a hold: %w: its reason or who it is by has the project's name in it; write a case number", ErrHold)
		}
	}
	keys, err := p.Keys(p.Epoch)
	if err != nil {
		return h, fmt.Errorf("placing a hold: %w", err)
	}
	h.Kind, h.KeyMAC, h.DigestEpoch = catalog.HoldProject, tenancy.MAC(keys, p.Cluster, p.Layout, v.ID), keys.Epoch
	return p.Place(ctx, h)
}

// PlaceOnPurge puts a hold on the project of a tombstone.
func (k *Keeper) PlaceOnPurge(ctx context.Context, tombstone string, h catalog.Hold) (catalog.Hold, error) {
	tombs, err := k.Catalog.Tombstones(ctx, k.Cluster)
	if err != nil {
		return h, fmt.Errorf("placing a hold: %w", err)
	}
	for _, t := range tombs.Bodies() {
		if t.ID == tombstone {
			h.Kind, h.KeyMAC, h.DigestEpoch = catalog.HoldProject, t.KeyMAC, t.DigestEpoch
			return k.Place(ctx, h)
		}
	}
	return h, fmt.Errorf("placing a hold: %w: cluster %s has no purge %q", ErrHold, k.Cluster, tombstone)
}

// forbidden is ErrOnHold, with the holds, where a project is on hold.
func (p *Purger) forbidden(ctx context.Context, key string) error {
	holds, err := p.Catalog.Holds(ctx, p.Cluster)
	if err == nil {
		err = holds.Require()
	}
	if err != nil {
		return fmt.Errorf("looking for holds: %w", err)
	}
	var why []string
	for _, h := range holds.InForce() {
		if h.Kind != catalog.HoldProject {
			continue
		}
		keys, err := p.Keys(h.DigestEpoch)
		if err != nil {
			return err
		}
		if h.KeyMAC == tenancy.MAC(keys, p.Cluster, p.Layout, key) {
			why = append(why, h.Text())
		}
	}
	if len(why) > 0 {
		return fmt.Errorf("%w: %s", ErrOnHold, strings.Join(why, "; "))
	}
	return nil
}

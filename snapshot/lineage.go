package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// LineageConfig is who asks for the right to write a cluster's WAL and snapshots.
type LineageConfig struct {
	Cluster string
	Server  Server
	Node    string
	// StateID is the random id of the node's state directory, which the caller
	// holds under its lock: whoever has it continues its own epoch.
	StateID string
	Boot    string // the kernel's boot id
	Signer  note.Signer
	Trust   catalog.Truster
	Quorum  int // zones that must hold a claim
	// LifeWindow is how long a holder without a sign of life still counts as
	// living; 0 means 15 minutes.
	LifeWindow time.Duration
	// TakeOver claims although the holder shows life, Upgrade although the system
	// identifier is another: both on purpose, by an operator.
	TakeOver bool
	Upgrade  bool
	// LedgerSign returns the time of the newest checkpoint of a node's ledger, or
	// the zero time; nil when ledgers are not to be asked.
	LedgerSign func(ctx context.Context, node string) (time.Time, error)
	Now        func() time.Time
	LockUntil  func(time.Time) time.Time // of the claim's object; nil: no lock
}

func (c LineageConfig) lifeWindow() time.Duration {
	if c.LifeWindow > 0 {
		return c.LifeWindow
	}
	return 15 * time.Minute
}

// ClaimStore is where claims live.
type ClaimStore interface {
	catalog.Source
	Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error)
}

// claimTries bounds how many split or lost numbers one claim passes over.
const claimTries = 8

// Claim makes the caller the one writer of its cluster, or says why not: the
// epoch's object is created with identical bytes in a quorum of zones, so that
// of two claims of one number at most one succeeds. A number that no claim can
// win any more is dead and passed over. An error means that nothing may be
// archived: ErrClaimed, ErrForeignServer, ErrOldTimeline, or a doubt.
func Claim(ctx context.Context, c LineageConfig, store ClaimStore) (catalog.Lineage, error) {
	for range claimTries {
		view, err := readClaims(ctx, c, store)
		if err != nil {
			return catalog.Lineage{}, fmt.Errorf("claiming cluster %s: %w", c.Cluster, err)
		}
		verdict, err := DecideClaim(c, view.holder, c.Now())
		if err != nil {
			return catalog.Lineage{}, err
		}
		lineage, err := carryOut(ctx, c, store, view, verdict)
		if !errors.Is(err, vault.ErrConflict) {
			return lineage, err
		}
		// Somebody else was faster: what was asked for was asked against the
		// holder that was known then, not against the new one.
		c.TakeOver, c.Upgrade = false, false
	}
	return catalog.Lineage{}, fmt.Errorf("claiming cluster %s: %d numbers in a row were lost to other writers; see that one daemon only archives it", c.Cluster, claimTries)
}

func carryOut(ctx context.Context, c LineageConfig, store ClaimStore, view claims, v Verdict) (catalog.Lineage, error) {
	lineage, body := v.Next, view.body
	if v.Continue {
		lineage = view.holder.Lineage
	} else {
		lineage.Epoch = max(lineage.Epoch, view.dead+1)
		var err error
		if body, err = seal.SignNote(catalog.KindLineage, lineage, c.Signer); err != nil {
			return catalog.Lineage{}, fmt.Errorf("signing the claim of cluster %s: %w", c.Cluster, err)
		}
	}
	var opt vault.PutOptions
	if c.LockUntil != nil {
		opt.LockUntil = c.LockUntil(c.Now())
	}
	name := catalog.LineageName(c.Cluster, lineage.Epoch)
	if _, err := store.Put(ctx, name, body, opt); err != nil {
		return catalog.Lineage{}, fmt.Errorf("claiming epoch %d of cluster %s: %w", lineage.Epoch, c.Cluster, err)
	}
	return lineage, nil
}

// claims is what the zones say of the newest epochs.
type claims struct {
	holder *Holder // nil: never claimed
	body   []byte  // the holder's note
	dead   int     // the highest number that nobody can win
}

// readClaims finds the holder: the highest number that a claim won or may still
// win. It needs N−W+1 zones, so that no acknowledged claim is missed.
func readClaims(ctx context.Context, c LineageConfig, store catalog.Source) (claims, error) {
	listing, err := store.List(ctx, catalog.LineagesDir(c.Cluster))
	if err != nil {
		return claims{}, fmt.Errorf("listing its lineages: %w", err)
	}
	if !listing.Complete {
		return claims{}, fmt.Errorf("listing its lineages: %w: %w", catalog.ErrIncomplete, zoneErrors(listing))
	}
	var out claims
	for i := len(listing.Objects) - 1; i >= 0; i-- {
		epoch, ok := catalog.ParseLineageName(listing.Objects[i].Name)
		if !ok {
			continue
		}
		found, err := readNumber(ctx, c, store, epoch)
		if err != nil {
			return claims{}, err
		}
		best, alive := pickClaim(found, c, len(listing.Zones))
		if !alive {
			out.dead = max(out.dead, epoch)
			continue
		}
		out.body = best.body
		out.holder, err = lookAtHolder(ctx, c, store, best.lineage)
		return out, err
	}
	return out, nil
}

func zoneErrors(l vault.Listing) error {
	var errs []error
	for _, z := range l.Zones {
		if z.Err != nil {
			errs = append(errs, fmt.Errorf("zone %s: %w", z.Name, z.Err))
		}
	}
	return errors.Join(errs...)
}

// claim is one content that was found under a number, and in how many zones.
type claim struct {
	lineage catalog.Lineage
	body    []byte
	zones   int
}

// readNumber reads what every zone holds under one number. What no trusted
// signer signed takes its place in the zone, but claims nothing.
func readNumber(ctx context.Context, c LineageConfig, store catalog.Source, epoch int) ([]claim, error) {
	var found []claim
	var bad error
	name := catalog.LineageName(c.Cluster, epoch)
	seen := map[string]bool{}
	_, err := store.Fetch(ctx, name, func(zone string, body []byte) error {
		if seen[zone] { // versions: the oldest is the claim
			return vault.ErrGoOn
		}
		seen[zone] = true
		for i := range found {
			if bytes.Equal(found[i].body, body) {
				found[i].zones++
				return vault.ErrGoOn
			}
		}
		var l catalog.Lineage
		if _, err := c.Trust.Open(body, catalog.KindLineage, string(catalog.DutyWAL), c.Cluster, &l); err != nil {
			bad = errors.Join(bad, fmt.Errorf("zone %s: %w", zone, err))
			return err
		}
		found = append(found, claim{l, bytes.Clone(body), 1})
		return vault.ErrGoOn
	})
	if len(found) > 0 {
		return found, nil
	}
	return nil, fmt.Errorf("%s is there and no zone shows a claim that a trusted signer signed; see what wrote it, and repository.trusted_signers: %w", name, errors.Join(bad, err))
}

// pickClaim says which content of a number is to be taken for its holder. One
// that a quorum holds is. Else one that might still reach it is, our own first;
// with none, the number is dead.
func pickClaim(found []claim, c LineageConfig, zones int) (claim, bool) {
	free := zones
	for _, f := range found {
		free -= f.zones
	}
	var best claim
	for _, f := range found {
		if f.zones >= c.Quorum {
			return f, true
		}
		if f.zones+free >= c.Quorum && (best.zones == 0 || f.lineage.State == c.StateID) {
			best = f
		}
	}
	return best, best.zones > 0
}

// lookAtHolder reads the holder's newest signs of life.
func lookAtHolder(ctx context.Context, c LineageConfig, store catalog.Source, l catalog.Lineage) (*Holder, error) {
	h := &Holder{Lineage: l, Reached: l.Timeline, Seen: l.ClaimedAt}
	r := catalog.NewReader(store, c.Trust)
	entries, err := r.WALEntries(ctx, c.Cluster, walEpochDir(c.Cluster, l.Epoch))
	if err != nil {
		return nil, err
	}
	if n := len(entries.List); n > 0 {
		newest, faults, err := r.WALNotes(ctx, c.Cluster, newestEntries(entries.List, 4))
		if err != nil {
			return nil, err
		}
		if len(newest) == 0 {
			return nil, fmt.Errorf("reading the holder's newest WAL notes: %w", faults[0])
		}
		for _, w := range newest {
			h.Reached = max(h.Reached, w.Body.Timeline)
			h.Seen = later(h.Seen, w.Body.ArchivedAt)
		}
	}
	if c.LedgerSign != nil && l.State != c.StateID {
		at, err := c.LedgerSign(ctx, l.Node)
		if err != nil {
			return nil, fmt.Errorf("reading the newest checkpoint of node %s: %w", l.Node, err)
		}
		h.Seen = later(h.Seen, at)
	}
	return h, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// newestEntries returns up to n of the last entries.
func newestEntries(list []catalog.WALEntry, n int) []catalog.WALEntry {
	return list[max(0, len(list)-n):]
}

// CheckEpoch says ErrFenced when a higher epoch than l's appeared. Any other
// error is a doubt, and does not fence: the next look will tell.
func CheckEpoch(ctx context.Context, l catalog.Lineage, store catalog.Source, trust catalog.Truster) error {
	listing, err := store.List(ctx, catalog.LineagesDir(l.Cluster))
	if err != nil {
		return fmt.Errorf("looking for higher epochs of cluster %s: %w", l.Cluster, err)
	}
	for _, o := range listing.Objects {
		epoch, ok := catalog.ParseLineageName(o.Name)
		if !ok || epoch <= l.Epoch {
			continue
		}
		var other catalog.Lineage
		_, err := store.Fetch(ctx, o.Name, func(_ string, body []byte) error {
			_, err := trust.Open(body, catalog.KindLineage, string(catalog.DutyWAL), l.Cluster, &other)
			return err
		})
		if err != nil {
			return fmt.Errorf("reading a higher epoch of cluster %s: %w", l.Cluster, err)
		}
		return fmt.Errorf("cluster %s: %w: epoch %d by node %s (%s) since %s; this writer of epoch %d stops", l.Cluster, ErrFenced,
			other.Epoch, other.Node, other.How, other.ClaimedAt.Format(time.RFC3339), l.Epoch)
	}
	return nil
}

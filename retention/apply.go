package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// The ledger's types of entries for removals and purges.
const (
	entryIntent      = "removal.intent"
	entryResult      = "removal.result"
	entryTombstone   = "tombstone"
	entryAbsent      = "purge.absent"
	entryStatement   = "purge.statement"
	entryCertificate = "certificate"
)

// ErrChanged means that a plan no longer follows from what the repository holds.
var ErrChanged = errors.New("the repository has changed since the plan was made")

// Apply is the first act: it marks what the plan lets go. The plan must say what
// a plan made now would; its mark is zero where nothing goes. D1, D2.
func (k *Keeper) Apply(ctx context.Context, p Plan) (mark catalog.Forgotten, err error) {
	if err := k.confirm(ctx, p); err != nil {
		return mark, fmt.Errorf("applying the retention plan of %s: %w", k.Cluster, err)
	}
	st, err := k.load()
	if err == nil {
		err = k.accept(ctx, &st, p)
	}
	if err != nil {
		return mark, fmt.Errorf("applying the retention plan of %s: %w", k.Cluster, err)
	}
	m := k.markOf(p)
	if len(m.Snapshots)+len(m.WAL) > 0 {
		if err := k.mark(ctx, m, p.early()); err != nil {
			return mark, fmt.Errorf("marking what %s lets go: %w", k.Cluster, err)
		}
		mark = m
	}
	st.Last = p.Now
	if err := k.save(st); err != nil {
		return mark, err
	}
	daily, err := k.forgetSlices(ctx, &st, p)
	if err == nil && mark.ID == "" {
		mark = daily
	}
	return mark, err
}

// markOf is the mark of what a plan lets go.
func (k *Keeper) markOf(p Plan) catalog.Forgotten {
	now := k.Now().UTC()
	m := catalog.Forgotten{
		Cluster: k.Cluster, ID: now.Format("20060102T150405Z") + "-" + p.Hash[:12], MarkedAt: now,
		NotBefore: now.Add(k.Policy.RemovalGrace), PlanHash: p.Hash, Reasons: []string{},
	}
	for _, d := range slices.Concat(p.Snapshots, p.Garbage) {
		if !d.Keep {
			m.Snapshots = append(m.Snapshots, d.ID)
			addReasons(&m, d.Reasons)
		}
	}
	for _, d := range p.WAL {
		if !d.Keep && !marked(d) && !covered(d) {
			m.WAL = append(m.WAL, d.span())
			addReasons(&m, d.Reasons)
		}
	}
	if !p.RetiredAt.IsZero() && !slices.ContainsFunc(p.WAL, func(d WALDecision) bool { return d.Keep }) {
		m.WAL = everything(m.WAL)
	}
	return m
}

func marked(d WALDecision) bool  { return slices.Equal(d.Reasons, []string{"marked"}) }
func covered(d WALDecision) bool { return slices.Equal(d.Reasons, []string{catalog.Covered}) }

func addReasons(m *catalog.Forgotten, reasons []string) {
	for _, r := range reasons {
		if !slices.Contains(m.Reasons, r) {
			m.Reasons = append(m.Reasons, r)
		}
	}
}

// confirm says whether p may be carried out now.
func (k *Keeper) confirm(ctx context.Context, p Plan) error {
	if err := p.Err(); err != nil {
		return err
	}
	hash, err := approval.Hash(p)
	if err != nil || hash != p.Hash || p.Cluster != k.Cluster {
		return errors.Join(errors.New("the plan is not what its hash says, or another cluster's"), err)
	}
	now, err := k.Plan(ctx, p.Forced)
	if err != nil {
		return err
	}
	if err := now.Err(); err != nil {
		return err
	}
	goes := map[string]bool{}
	for _, d := range slices.Concat(now.Snapshots, now.Garbage) {
		goes[d.ID] = !d.Keep
	}
	for _, d := range slices.Concat(p.Snapshots, p.Garbage) {
		if !d.Keep && !goes[d.ID] {
			return fmt.Errorf("%w: snapshot %s would stay by now, or is marked already; make another plan", ErrChanged, d.ID)
		}
	}
	if n, kept := keptAfterAll(p.WAL, now.WAL); kept {
		return fmt.Errorf("%w: WAL %s to %s would stay by now; make another plan", ErrChanged, n.From, n.To)
	}
	return nil
}

// keptAfterAll is WAL that one plan lets go and a later one keeps. A history that stays
// within WAL that goes is none.
func keptAfterAll(then, now []WALDecision) (WALDecision, bool) {
	for _, d := range then {
		if d.Keep || covered(d) {
			continue
		}
		for _, n := range now {
			if n.Keep && d.span().Takes(catalog.WALEntry{Epoch: n.Epoch, Timeline: n.Timeline, From: n.From, To: n.To}) {
				return n, true
			}
		}
	}
	return WALDecision{}, false
}

// removal is the body of the ledger's entries.
type removal struct {
	Mark      string            `json:"mark"`
	PlanHash  string            `json:"plan_hash"`
	Snapshots []string          `json:"snapshots"`
	WAL       int               `json:"wal_stretches"`
	Removed   int               `json:"objects_removed,omitempty"`
	Kept      int               `json:"objects_kept,omitempty"` // that other snapshots need: another result tells when they went
	Zones     map[string]string `json:"zones,omitempty"`        // when each was listed and showed nothing of it
	Early     *stoodOn          `json:"purge_early,omitempty"`  // the approved plan of an early removal
	Ended     []ended           `json:"ended,omitempty"`        // marks of slices that are done since the last day's entry
}

// stoodOn is an approved plan, and the approvals that it stood on.
type stoodOn struct {
	Hash      string           `json:"plan_hash"`
	Approvals []approval.Given `json:"approvals"` // none where a person's word was enough
}

// early is the approved plan of an early removal that p carries out.
func (p Plan) early() *stoodOn {
	if p.Early == nil || !p.Early.Approved {
		return nil
	}
	return &stoodOn{p.Early.Hash, p.Early.Standing.Given}
}

func (k *Keeper) subject(m catalog.Forgotten) map[string]string {
	return map[string]string{"cluster": k.Cluster, "mark": m.ID}
}

// mark tells the ledger first, then the zones.
func (k *Keeper) mark(ctx context.Context, m catalog.Forgotten, early *stoodOn) error {
	body := removal{Mark: m.ID, PlanHash: m.PlanHash, Snapshots: m.Snapshots, WAL: len(m.WAL), Early: early}
	if _, err := k.Ledger.AppendAnchored(ctx, entryIntent, k.subject(m), body); err != nil {
		return fmt.Errorf("the ledger must hold the intent first: %w", err)
	}
	return k.put(ctx, m)
}

func (k *Keeper) put(ctx context.Context, m catalog.Forgotten) error {
	return k.putNote(ctx, catalog.ForgottenName(k.Cluster, m.ID), catalog.KindForgotten, m)
}

func (k *Keeper) putNote(ctx context.Context, name, kind string, body any) error {
	text, err := seal.SignNote(kind, body, k.Signer)
	if err != nil {
		return err
	}
	_, err = k.Store.Put(ctx, name, text, vault.PutOptions{})
	return err
}

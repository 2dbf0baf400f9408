package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// entryRetired is the ledger's type of the entry that ends a cluster.
const entryRetired = "cluster.retired"

// ErrUnapproved means that an act waits for approvals.
var ErrUnapproved = errors.New("it is not approved")

// RetirePlan is what of a retirement is approved: all that there is of these lineages. It
// names no snapshot, since one more may come before it is approved.
type RetirePlan struct {
	Kind         string           `json:"kind"` // PlanRetire
	Cluster      string           `json:"cluster"`
	Lineages     []RetiredLineage `json:"lineages"`
	RemovalGrace string           `json:"removal_grace"`
}

// RetiredLineage is a lineage that ends with its cluster.
type RetiredLineage struct {
	Epoch    int    `json:"epoch"`
	SystemID string `json:"system_id"`
}

// Retirement is how the end of a cluster stands.
type Retirement struct {
	Hash      string            `json:"hash"` // of Plan: what is approved
	Plan      RetirePlan        `json:"plan"`
	Snapshots []string          `json:"snapshots"` // there now, and under no mark
	WALFiles  int               `json:"wal_files"` // there now, and under no mark
	Newest    time.Time         `json:"newest_at,omitzero"`
	Holds     []string          `json:"holds"` // in force: they forbid it
	Approved  bool              `json:"approved"`
	Standing  approval.Standing `json:"standing"`
	RetiredAt time.Time         `json:"retired_at,omitzero"` // zero: not yet
}

// PlanRetirement says what the end of the cluster would remove, and what it waits for.
func (k *Keeper) PlanRetirement(ctx context.Context) (r Retirement, err error) {
	in, err := k.gather(ctx)
	if err != nil {
		return r, err
	}
	if !in.Complete {
		return r, fmt.Errorf("%w: the listing is not complete: %v", ErrRefused, in.Missing)
	}
	r = Retirement{Plan: RetirePlan{Kind: PlanRetire, Cluster: k.Cluster, Lineages: []RetiredLineage{}, RemovalGrace: k.Policy.RemovalGrace.String()}, Snapshots: []string{}, Holds: []string{}, RetiredAt: in.RetiredAt}
	for _, l := range in.Lineages {
		r.Plan.Lineages = append(r.Plan.Lineages, RetiredLineage{l.Epoch, l.SystemID})
	}
	for _, s := range in.Snapshots {
		r.Snapshots = append(r.Snapshots, s.ID)
		r.Newest = later(r.Newest, s.FinishedAt.UTC())
	}
	for _, f := range in.WAL {
		if !f.Taken(in.Marked) {
			r.WALFiles++
		}
	}
	for _, h := range in.Holds {
		r.Holds = append(r.Holds, h.Text())
	}
	if r.Hash, err = approval.Hash(r.Plan); err != nil {
		return r, err
	}
	r.Approved, r.Standing, err = k.approved(ctx, r.Hash)
	r.Approved = r.Approved || r.Standing.Needed == 0 && k.Confirmed
	return r, err
}

// Refused says why the cluster cannot be retired now, or nil.
func (r Retirement) Refused() error {
	switch {
	case !r.RetiredAt.IsZero():
		return nil
	case len(r.Holds) > 0:
		return fmt.Errorf("retiring cluster %s: %w: %s", r.Plan.Cluster, ErrOnHold, strings.Join(r.Holds, "; "))
	case r.Approved:
		return nil
	case r.Standing.Needed > 0:
		return fmt.Errorf("retiring cluster %s: %w: %s", r.Plan.Cluster, ErrUnapproved, r.Standing.Text())
	}
	return fmt.Errorf("retiring cluster %s: %w", r.Plan.Cluster, ErrConfirm)
}

// Pending is the plan as it waits.
func (r Retirement) Pending() Pending {
	return Pending{PlanRetire, r.Hash, r.Plan, []string{fmt.Sprintf("there were %d snapshots, the newest of %s, and %d files of WAL", len(r.Snapshots), stamp(r.Newest), r.WALFiles)}}
}

// Retire ends the cluster: the ledger has it, then the note is in the quorum. From then on
// every plan lets all of it go, but what holds keep. Where no approvers are configured it
// must be Confirmed. Again it does nothing.
func (k *Keeper) Retire(ctx context.Context, node string) (Retirement, error) {
	r, err := k.PlanRetirement(ctx)
	if err != nil {
		return r, fmt.Errorf("retiring cluster %s: %w", k.Cluster, err)
	}
	if err := r.Refused(); err != nil || !r.RetiredAt.IsZero() {
		return r, err
	}
	note := catalog.Retired{Cluster: k.Cluster, Node: node, RetiredAt: k.Now().UTC().Truncate(time.Second), PlanHash: r.Hash}
	body := struct {
		PlanHash  string           `json:"plan_hash"`
		Snapshots int              `json:"snapshots"`
		WALFiles  int              `json:"wal_files"`
		Approvals []approval.Given `json:"approvals"` // none where the name was typed
	}{r.Hash, len(r.Snapshots), r.WALFiles, r.Standing.Given}
	if _, err := k.Ledger.AppendAnchored(ctx, entryRetired, map[string]string{"cluster": k.Cluster}, body); err != nil {
		return r, fmt.Errorf("retiring cluster %s: telling the ledger: %w", k.Cluster, err)
	}
	if err := k.putNote(ctx, catalog.RetiredName(k.Cluster), catalog.KindRetired, note); err != nil {
		return r, fmt.Errorf("retiring cluster %s: %w", k.Cluster, err)
	}
	r.RetiredAt = note.RetiredAt
	return r, nil
}

// gatherRetired reads whether the cluster is retired.
func (k *Keeper) gatherRetired(ctx context.Context, in *Inputs) error {
	list, err := k.Catalog.Retired(ctx, k.Cluster)
	if err != nil {
		return err
	}
	incomplete(in, "the end of the cluster", list)
	for _, r := range list.Bodies() {
		in.RetiredAt = r.RetiredAt
	}
	return nil
}

// retired says that the policy keeps nothing any more: holds alone do.
func (p *planner) retired() bool { return !p.RetiredAt.IsZero() }

// everything widens the stretches that go to all of their timelines, so that what a writer
// left without a note goes with the rest.
func everything(spans []catalog.WALSpan) (out []catalog.WALSpan) {
	for _, s := range spans {
		if s.From < s.To {
			s.From, s.To = 0, ^lsn.LSN(0)
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

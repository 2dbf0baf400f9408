package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/retention"
)

// opApprove takes an approval that was signed elsewhere: keys are sent nowhere.
var opApprove = server.Op[approveIn, approvedDoc]{ID: "approve", Method: http.MethodPost, Path: "/v1/approvals/{hash}", Summary: "Store an approver's signed approval of a waiting plan"}

type approveIn struct {
	Hash string `path:"hash"`
	Body struct {
		Note string `json:"note" doc:"The approval, a signed note."`
	}
}

// approvedDoc is the answer of `approve`.
type approvedDoc struct {
	Hash      string           `json:"hash"`
	Kind      string           `json:"kind"`
	Cluster   string           `json:"cluster"`
	Does      []string         `json:"does"`
	Key       string           `json:"key"`
	New       bool             `json:"new"` // false: the key had approved already
	Needed    int              `json:"needed"`
	Approvals []approval.Given `json:"approvals"`
	Enough    bool             `json:"enough"`
}

// board is where plans wait, with the rule of this node's configuration.
func (w *world) board() *approval.Board {
	b := &approval.Board{Repository: w.vault.Writer(), Nodes: w.trust, Now: w.now}
	if a := w.cfg.Approvals; a != nil {
		b.Rule = approval.Rule{Needed: a.Needed, Approvers: a.Approvers, Valid: a.Valid.Std()}
	}
	return b
}

// refuseOwnKey refuses this node's signing key among the approvers'.
func (w *world) refuseOwnKey() error {
	if w.cfg.Approvals == nil || w.vkey == "" {
		return nil
	}
	own := strings.TrimPrefix(w.vkey, approval.KeyID(w.vkey)) // without the name that it goes by
	for i, key := range w.cfg.Approvals.Approvers {
		if strings.HasSuffix(key, own) {
			return usage("approvals.approvers[%d] is this node's own signing key: a node must not approve what it asks for; make one with `holdfast keys new approver`", i)
		}
	}
	return nil
}

// ask has what waits for approvals wait in the repository.
func (n *node) ask(ctx context.Context, cluster string, list []retention.Pending) error {
	b := n.board()
	if !b.Rule.Asks() {
		return nil
	}
	for _, p := range list {
		w := approval.Waiting{PlanHash: p.Hash, What: p.Kind, Cluster: cluster, Node: n.cfg.Node.Name, Effect: p.Effect}
		if err := b.Ask(ctx, n.signer, w, p.Plan); err != nil {
			return err
		}
	}
	return nil
}

// waiting reads a plan that waits, and by whom it is to be approved: by the
// configuration's rule, or, where that has none, by the one of the node that asks.
func (w *world) waiting(ctx context.Context, hash string) (*approval.Board, approval.Waiting, error) {
	b := w.board()
	plan, err := b.Waiting(ctx, hash)
	if errors.Is(err, approval.ErrNoPlan) {
		return b, plan, &fault{exit: exitUsage, err: err, remedy: "give the whole hash, as the refusal and `purge show` have it; the node that asks must have looked since, and be trusted (repository.trusted_signers, may: [snapshot])"}
	}
	if err == nil && !b.Rule.Asks() {
		b.Rule, err = plan.Rule()
	}
	return b, plan, err
}

// approve stores an approval that an approver signed: first the ledger has it.
func (n *node) approve(ctx context.Context, in approveIn) (doc approvedDoc, err error) {
	ctx = asHuman(ctx)
	b, plan, err := n.waiting(ctx, in.Hash)
	if err != nil {
		return doc, err
	}
	note := []byte(in.Body.Note)
	given, ok := b.Check(note, in.Hash)
	if !ok {
		return doc, refused("sign with a key of approvals.approvers, and see that both clocks are right", "approving plan %s: no approver's signature on it counts", in.Hash)
	}
	type entry struct {
		What      string    `json:"what"`
		Key       string    `json:"key"`
		At        time.Time `json:"at"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	subject := map[string]string{"cluster": plan.Cluster, "plan": in.Hash}
	if _, err := n.appendAnchored(ctx, "approval", subject, entry{plan.What, given.Key, given.At, given.ExpiresAt}); err != nil {
		return doc, fmt.Errorf("approving plan %s: telling the ledger: %w", in.Hash, err)
	}
	return storeApproval(ctx, b, plan, given.Key, note)
}

// storeApproval puts an approval into the quorum, and tells how far the plan is.
func storeApproval(ctx context.Context, b *approval.Board, plan approval.Waiting, key string, note []byte) (doc approvedDoc, err error) {
	if err := b.Give(ctx, plan.PlanHash, note); err != nil {
		return doc, err
	}
	s, err := b.Standing(ctx, plan.PlanHash)
	return approvedDoc{
		Hash: plan.PlanHash, Kind: plan.What, Cluster: plan.Cluster, Key: key, New: true, Needed: s.Needed, Approvals: s.Given, Enough: s.Enough(),
	}, err
}

// loadApprover reads an approver's key.
func loadApprover(path string, data []byte, b *approval.Board) (*approver, error) {
	signer, vkey, err := seal.LoadSigner(string(data))
	if err != nil {
		return nil, usage("--key %s: %v", path, err)
	}
	if !b.Rule.Has(vkey) {
		return nil, refused("use the key of one of approvals.approvers, or have it added there", "approving with the key %s: it is none of the %d approvers'", approval.KeyID(vkey), len(b.Rule.Approvers))
	}
	return &approver{signer, approval.KeyID(vkey)}, nil
}

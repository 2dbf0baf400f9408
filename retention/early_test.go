package retention

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// board gives the keeper approvers, two of whom must sign; it returns their keys.
func (r *rig) board() (keys []note.Signer) {
	r.t.Helper()
	rule := approval.Rule{Needed: 2, Valid: 90 * day}
	for _, name := range []string{"ann", "bob"} {
		skey, vkey, err := seal.NewSigningKey(name)
		noErr(r.t, err)
		signer, _, err := seal.LoadSigner(skey)
		noErr(r.t, err)
		keys, rule.Approvers = append(keys, signer), append(rule.Approvers, vkey)
	}
	r.keeper.Board = &approval.Board{Repository: r.vault.Writer(), Rule: rule, Now: func() time.Time { return r.now }}
	return keys
}

// sign approves a plan by its hash.
func (r *rig) sign(hash string, keys ...note.Signer) {
	r.t.Helper()
	for _, k := range keys {
		data, err := r.keeper.Board.Sign(approval.Waiting{PlanHash: hash, Cluster: "main"}, k)
		noErr(r.t, err)
		noErr(r.t, r.keeper.Board.Give(r.t.Context(), hash, data))
	}
}

func (r *rig) proven(s catalog.Snapshot) {
	r.t.Helper()
	r.note(catalog.ProofName("drill-1", s.ID), catalog.KindProof, catalog.Proof{Drill: s.ID, Cluster: "main", Snapshot: s.ID, Level: "L8", Outcome: "pass", At: r.now})
}

func (r *rig) plan() Plan {
	r.t.Helper()
	p, err := r.keeper.Plan(r.t.Context(), false)
	noErr(r.t, err)
	return p
}

func stays(e *EarlyPurge) (out []string) {
	for i, s := range e.Plan.Stays {
		out = append(out, s.ID+" needs "+strings.Join(e.Waits[i].Needs, ", "))
	}
	return out
}

var keepsNine = Policy{Daily: 9, KeepAtMost: 30 * day, RenewAfter: 7 * day, RemovalGrace: day}

// Promises 6 and 7: what holds a deleted project goes ahead of retention when approvers
// have signed for exactly that, but not the newest, the newest proven, or what is on hold.
func TestWhatHoldsADeletedProjectGoesEarlyByAnApprovedPlan(t *testing.T) {
	r, p := deletedWithin(t, place(36*time.Hour), 9*day, keepsNine)
	keys := r.board()
	oldest, proven, third, last := ago(6*day), ago(5*day), ago(4*day), ago(2*day)
	pack := r.take(oldest)
	for _, s := range []catalog.Snapshot{proven, third, last} {
		r.take(s)
	}
	r.proven(proven)
	if r.plan().Early != nil {
		t.Fatal("an early removal that is not configured")
	}
	r.keeper.Early = &Early{Grace: 3 * day}
	if r.plan().Early != nil {
		t.Fatal("an early removal within the grace")
	}
	r.keeper.Early.Grace = day
	first := r.plan().Early
	if first == nil || !slices.Equal(first.Plan.Snapshots, []string{oldest.ID, third.ID}) || !slices.Equal(stays(first), []string{proven.ID + " needs drill", last.ID + " needs snapshot"}) {
		t.Fatalf("before a clean snapshot: %+v", first)
	}
	dirty := ago(day)
	r.take(dirty, pack) // after the deletion, and of a pack from before it
	newest := ago(6 * time.Hour)
	r.take(newest)
	r.sign(first.Hash, keys...)
	e := r.plan().Early
	if e.Hash == first.Hash || e.Approved || !slices.Equal(e.Plan.Snapshots, []string{oldest.ID, third.ID, last.ID, dirty.ID}) || !slices.Equal(stays(e), []string{proven.ID + " needs drill"}) {
		t.Fatalf("with a clean one, and the plan before approved: %+v", e)
	}
	if !e.Plan.Window.From.Equal(newest.FinishedAt) || len(e.Plan.WAL) == 0 || !slices.Equal(e.Plan.Purges, []string{"tomb"}) {
		t.Errorf("the plan: %+v", e.Plan)
	}
	if again := r.plan().Early; again.Hash != e.Hash {
		t.Errorf("the same plan has two hashes: %s, %s", e.Hash, again.Hash)
	}
	r.sign(e.Hash, keys[0])
	if got := r.plan(); got.Early.Approved || len(got.Pending) != 1 || got.Pending[0].Hash != e.Hash {
		t.Errorf("by one of two: %+v", got.Early)
	}
	if shown, err := p.Show(t.Context(), "tomb", false); err != nil || shown[0].Early == nil || shown[0].Early.Hash != e.Hash {
		t.Errorf("shown: %+v, %v", shown, err)
	}
	r.sign(e.Hash, keys[1])
	r.carriedOut(e, p, proven)
}

// carriedOut lets both acts of an approved removal happen, and a drill what stays.
func (r *rig) carriedOut(e *EarlyPurge, p *Purger, proven catalog.Snapshot) {
	r.t.Helper()
	if m := r.apply(); !slices.Equal(m.Snapshots, e.Plan.Snapshots) || !slices.Equal(m.WAL, e.Plan.WAL) || !m.NotBefore.Equal(r.now.Add(day)) {
		r.t.Fatalf("marked %+v, want %+v", m, e.Plan)
	}
	body, err := json.Marshal(r.book.bodies[0])
	noErr(r.t, err)
	if s := string(body); !strings.Contains(s, e.Hash) || !strings.Contains(s, `"key":"ann+`) || !strings.Contains(s, `"key":"bob+`) {
		r.t.Errorf("the ledger's intent: %s", s)
	}
	for i := range r.dirs { // before the grace nothing is gone
		if len(r.names(i, e.Plan.Snapshots[0]+"/manifest")) == 0 {
			r.t.Errorf("zone %d lost it within the grace", i)
		}
	}
	if m := r.apply(); m.ID != "" {
		r.t.Errorf("a second run marked %v", m.Snapshots)
	}
	r.now = r.now.Add(6 * day) // the deadline is 9 d after the request: the last one must go now
	if over := r.plan().OverRetained; len(over) != 1 || over[0].ID != proven.ID || !slices.Contains(over[0].Needs, "drill") {
		r.t.Errorf("when the removal must begin: %+v", over)
	}
	r.sweep()
	for i := range r.dirs {
		for _, id := range e.Plan.Snapshots {
			if left := r.names(i, "/"+id+"/"); len(left) > 0 {
				r.t.Errorf("zone %d still has %v", i, left)
			}
		}
		if len(r.names(i, "/"+proven.ID+"/")) == 0 {
			r.t.Errorf("zone %d lost the newest proven snapshot", i)
		}
	}
	r.proven(ago(6 * time.Hour))
	last := r.plan().Early
	r.sign(last.Hash, r.signer) // the node itself is nobody's approver
	if got := r.plan().Early; got.Approved || !slices.Equal(got.Plan.Snapshots, []string{proven.ID}) || len(got.Plan.Stays) != 0 {
		r.t.Errorf("once another is proven: %+v", got)
	}
	r.keeper.Board, r.keeper.Approved = nil, last.Hash // without approvers a person's word is enough
	r.apply()
	r.now = r.now.Add(2 * day)
	r.sweep()
	if one := advanceOne(r.t, p, nil); one.Certificate == nil {
		r.t.Errorf("nothing holds it any more, and it is %s, blocked by %v", one.State, blockers(one))
	}
}

func TestAHoldStaysInFrontOfAnEarlyRemoval(t *testing.T) {
	r, _ := deletedWithin(t, place(36*time.Hour), 9*day, keepsNine)
	r.keeper.Early = &Early{}
	held, other := ago(6*day), ago(4*day)
	for _, s := range []catalog.Snapshot{held, other, ago(day)} {
		r.take(s)
	}
	h, err := r.keeper.Place(t.Context(), catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: held.ID, Reason: "case 7", By: "legal", ReviewBy: noon.Add(day)})
	noErr(t, err)
	e := r.plan().Early
	if !slices.Equal(e.Plan.Snapshots, []string{other.ID}) || !slices.Equal(stays(e), []string{held.ID + " needs release of a hold"}) {
		t.Errorf("with hold %s: %+v", h.ID, e)
	}
	r.keeper.Approved = e.Hash
	if m := r.apply(); !slices.Equal(m.Snapshots, []string{other.ID}) {
		t.Errorf("marked %v", m.Snapshots)
	}
}

// An early removal is refused when it no longer is what was approved: here the approval
// ends between the plan and the act.
func TestAnApprovalThatEndsBeforeTheActRemovesNothing(t *testing.T) {
	r, _ := deletedWithin(t, place(36*time.Hour), 9*day, keepsNine)
	keys := r.board()
	r.keeper.Early = &Early{}
	r.takeAll(4, 1)
	r.keeper.Board.Rule.Valid = time.Hour
	r.sign(r.plan().Early.Hash, keys...)
	p := r.plan()
	if !p.Early.Approved {
		t.Fatalf("%+v", p.Early)
	}
	r.now = r.now.Add(2 * time.Hour)
	if _, err := r.keeper.Apply(t.Context(), p); !errors.Is(err, ErrChanged) {
		t.Errorf("applied: %v", err)
	}
	if _, err := os.Stat(r.dirs[0] + "/forgotten"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a mark: %v", err)
	}
}

func TestWhatAgesInTimeWaitsForNobody(t *testing.T) {
	r, _ := deletedWithin(t, place(36*time.Hour), 38*day, keepsNine)
	r.keeper.Early = &Early{}
	r.takeAll(6, 4, 1)
	if e := r.plan().Early; e != nil {
		t.Errorf("%+v", e)
	}
}

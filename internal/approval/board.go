package approval

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// Where they lie in the repository, below the hash of the plan.
const (
	PlansDir     = "plans/"
	ApprovalsDir = "approvals/"
)

// Repository is what a Board reads from and writes to: a vault's Writer.
type Repository interface {
	List(ctx context.Context, prefix string) (vault.Listing, error)
	Fetch(ctx context.Context, name string, accept func(zone string, body []byte) error) ([]byte, error)
	Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error)
}

// Board is where plans wait and approvals are given, in the repository: an approver
// needs nothing else than that and a key.
type Board struct {
	Repository Repository
	Nodes      seal.Trust // whose plans are believed
	Rule       Rule
	Now        func() time.Time
}

// Waiting is a plan that waits for approvals. The hash is over Plan alone: the rest is
// the word of the node that asks.
type Waiting struct {
	PlanHash  string          `json:"plan_hash"`
	What      string          `json:"what"` // the plan's kind
	Cluster   string          `json:"cluster"`
	Node      string          `json:"node"`
	AskedAt   time.Time       `json:"asked_at"`
	Needed    int             `json:"needed"`
	Approvers []string        `json:"approvers"`
	Valid     string          `json:"valid"`
	Plan      json.RawMessage `json:"plan"`
	Effect    []string        `json:"effect"` // what it came to when it was asked for, in words
}

// Rule is by whom the node that asks wants it approved.
func (w Waiting) Rule() (Rule, error) {
	valid, err := time.ParseDuration(w.Valid)
	if err != nil {
		return Rule{}, fmt.Errorf("plan %s: how long an approval counts: %w", w.PlanHash, err)
	}
	return Rule{w.Needed, w.Approvers, valid}, nil
}

// ErrNoPlan means that no plan with that hash waits.
var ErrNoPlan = errors.New("no such plan waits for approval")

var errUnsigned = errors.New("no approver signed it")

var hashRE = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Ask has a plan wait: it is in the quorum when it returns. Asking again for the same
// by the same rule writes nothing.
func (b *Board) Ask(ctx context.Context, signer note.Signer, w Waiting, plan any) error {
	hash, err := Hash(plan)
	if err == nil && hash != w.PlanHash {
		err = fmt.Errorf("its hash is %s", hash)
	}
	if err == nil {
		w.Plan, err = json.Marshal(plan)
	}
	if err != nil {
		return fmt.Errorf("asking for approvals of plan %s: %w", w.PlanHash, err)
	}
	w.AskedAt, w.Needed, w.Approvers, w.Valid = b.Now().UTC().Truncate(time.Second), b.Rule.Needed, b.Rule.Approvers, b.Rule.Valid.String()
	there, err := b.Waiting(ctx, w.PlanHash)
	if err == nil && there.Needed == w.Needed && there.Valid == w.Valid && slices.Equal(there.Approvers, w.Approvers) {
		return nil
	}
	if err != nil && !errors.Is(err, ErrNoPlan) {
		return err
	}
	name := PlansDir + w.PlanHash + "/" + w.AskedAt.Format("20060102T150405Z") + "-" + w.Node + ".note"
	if err := b.put(ctx, name, KindPlan, w, signer); err != nil {
		return fmt.Errorf("asking for approvals of plan %s: %w", w.PlanHash, err)
	}
	return nil
}

// Waiting reads the plan with a hash, as it was asked for last. Its hash is what the
// plan says, whoever signed it.
func (b *Board) Waiting(ctx context.Context, hash string) (found Waiting, err error) {
	err = b.each(ctx, PlansDir, hash, func(data []byte) error {
		w, err := b.openPlan(data, hash)
		if err == nil && !w.AskedAt.Before(found.AskedAt) {
			found = w
		}
		return err
	})
	if err == nil && found.PlanHash == "" {
		err = fmt.Errorf("plan %s: %w", hash, ErrNoPlan)
	}
	return found, err
}

func (b *Board) openPlan(data []byte, hash string) (w Waiting, err error) {
	_, body := seal.PeekNote(data)
	var about struct {
		Cluster string `json:"cluster"`
	}
	if err := json.Unmarshal(body, &about); err != nil || about.Cluster == "" {
		return w, fmt.Errorf("plan %s: it names no cluster", hash)
	}
	if _, err := b.Nodes.Open(data, KindPlan, planDuty, about.Cluster, &w); err != nil {
		return w, err
	}
	if got, err := Hash(w.Plan); err != nil || got != hash || w.PlanHash != hash {
		return w, fmt.Errorf("plan %s: it is not what its hash says: %w", hash, cmp.Or(err, seal.ErrDamaged))
	}
	return w, nil
}

// Standing verifies the approvals of a plan by the keys of the rule, and counts those
// that have not expired, one of each key. What cannot be read does not count.
func (b *Board) Standing(ctx context.Context, hash string) (Standing, error) {
	s := Standing{Hash: hash, Needed: b.Rule.Needed, Given: []Given{}}
	latest := map[string]Given{}
	err := b.each(ctx, ApprovalsDir, hash, func(data []byte) error {
		refused := errUnsigned
		for _, vkey := range b.Rule.Approvers {
			g, err := b.Rule.open(data, hash, vkey)
			if err != nil {
				continue
			}
			refused = nil // one that has expired is a good copy too
			if g.counts(b.Now()) && g.ExpiresAt.After(latest[vkey].ExpiresAt) {
				latest[vkey] = g
			}
		}
		return refused
	})
	for _, g := range latest {
		s.Given = append(s.Given, g)
	}
	slices.SortFunc(s.Given, func(x, y Given) int { return cmp.Or(x.At.Compare(y.At), strings.Compare(x.Key, y.Key)) })
	return s, err
}

// Sign makes an approval of a plan, by an approver's own key.
func (b *Board) Sign(w Waiting, signer note.Signer) ([]byte, error) {
	now := b.Now().UTC().Truncate(time.Second)
	return seal.SignNote(KindApproval, Approval{
		PlanHash: w.PlanHash, Cluster: w.Cluster, What: w.What, Role: role, At: now, ExpiresAt: now.Add(b.Rule.Valid),
	}, signer)
}

// Check says whose approval of a plan a note is, by the rule.
func (b *Board) Check(data []byte, hash string) (Given, bool) {
	for _, vkey := range b.Rule.Approvers {
		if g, err := b.Rule.open(data, hash, vkey); err == nil && g.counts(b.Now()) {
			return g, true
		}
	}
	return Given{}, false
}

// Signed refuses what no approver of the rule signed.
func (b *Board) Signed(data []byte) error {
	_, body := seal.PeekNote(data)
	var a Approval
	if err := json.Unmarshal(body, &a); err != nil {
		return fmt.Errorf("reading an approval: %w", err)
	}
	for _, vkey := range b.Rule.Approvers {
		if _, err := b.Rule.open(data, a.PlanHash, vkey); err == nil {
			return nil
		}
	}
	return errUnsigned
}

// Give puts an approval into the quorum.
func (b *Board) Give(ctx context.Context, hash string, data []byte) error {
	sum := sha256.Sum256(data)
	name := fmt.Sprintf("%s%s/%x.note", ApprovalsDir, hash, sum[:16])
	if _, err := b.Repository.Put(ctx, name, data, vault.PutOptions{}); err != nil {
		return fmt.Errorf("storing the approval of plan %s: %w", hash, err)
	}
	return nil
}

func (b *Board) put(ctx context.Context, name, kind string, body any, signer note.Signer) error {
	data, err := seal.SignNote(kind, body, signer)
	if err == nil {
		_, err = b.Repository.Put(ctx, name, data, vault.PutOptions{})
	}
	return err
}

// each reads every note below a plan's hash, from whichever zone has one that is
// accepted. One that no zone has so is passed over: anybody may have written it.
func (b *Board) each(ctx context.Context, dir, hash string, accept func(data []byte) error) error {
	if !hashRE.MatchString(hash) {
		return fmt.Errorf("plan %q: want the 64 hex digits of its hash", hash)
	}
	listing, err := b.Repository.List(ctx, dir+hash+"/")
	if err != nil {
		return fmt.Errorf("listing %s%s: %w", dir, hash, err)
	}
	for _, o := range listing.Objects {
		if !strings.HasSuffix(o.Name, ".note") {
			continue
		}
		_, _ = b.Repository.Fetch(ctx, o.Name, func(_ string, data []byte) error { return accept(data) })
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

package approval

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// The kinds of notes.
const (
	KindPlan     = "plan v1"     // body: Waiting
	KindApproval = "approval v1" // body: Approval
)

// Whose notes count. An approver's key has a duty that no node's key can have.
const (
	planDuty     = "snapshot" // who may mark may ask to
	approverDuty = "approval"
)

// clockMargin is how far two clocks may be apart.
const clockMargin = 10 * time.Minute

// Rule is how many of whom must approve, and for how long an approval counts. The zero
// Rule asks nobody.
type Rule struct {
	Needed    int
	Approvers []string // verifier keys
	Valid     time.Duration
}

// Asks says whether plans need approvals at all.
func (r Rule) Asks() bool { return r.Needed > 0 }

// Has says whether a key is one of the approvers'.
func (r Rule) Has(vkey string) bool { return slices.Contains(r.Approvers, vkey) }

// Approval is what an approver signs.
type Approval struct {
	PlanHash  string    `json:"plan_hash"`
	Cluster   string    `json:"cluster"`
	What      string    `json:"what"` // the plan's kind
	Role      string    `json:"role"`
	At        time.Time `json:"at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// role is the only one so far.
const role = "approver"

// Given is an approval that counts.
type Given struct {
	Key       string    `json:"key"` // its id: name+hash
	At        time.Time `json:"at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Standing is how far a plan is approved.
type Standing struct {
	Hash   string  `json:"hash"`
	Needed int     `json:"needed"`
	Given  []Given `json:"approvals"` // one of each key, the earliest first
}

// Enough says that as many have approved as must.
func (s Standing) Enough() bool { return s.Needed > 0 && len(s.Given) >= s.Needed }

// Text is how far it is, and what to do where that is not enough.
func (s Standing) Text() string {
	if s.Enough() {
		return fmt.Sprintf("it has %d of %d approvals: enough", len(s.Given), s.Needed)
	}
	return fmt.Sprintf("it has %d of %d approvals; an approver gives one with `holdfast approve %s --key FILE`", len(s.Given), s.Needed, s.Hash)
}

// KeyID names a verifier key (name+hash+base64) without its bytes.
func KeyID(vkey string) string {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, _, _ := strings.Cut(rest, "+")
	return name + "+" + hash
}

// open opens an approval by one key; it counts until it ends, and no longer than the
// rule lets it.
func (r Rule) open(data []byte, hash, vkey string) (g Given, err error) {
	trust, err := seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, Clusters: []string{"*"}, May: []string{approverDuty}}})
	if err != nil {
		return g, err
	}
	var a Approval
	if _, err := trust.Open(data, KindApproval, approverDuty, "", &a); err != nil {
		return g, err
	}
	if a.PlanHash != hash || a.Role != role {
		return g, fmt.Errorf("it is a %q approval of plan %q", a.Role, a.PlanHash)
	}
	g = Given{KeyID(vkey), a.At.UTC(), a.ExpiresAt.UTC()}
	if most := g.At.Add(r.Valid); g.ExpiresAt.After(most) {
		g.ExpiresAt = most
	}
	return g, nil
}

func (g Given) counts(now time.Time) bool {
	return now.Before(g.ExpiresAt) && !g.At.After(now.Add(clockMargin))
}

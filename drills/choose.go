package drills

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/restore"
)

// The selectors.
const (
	Latest     = "latest"      // the newest snapshot, to the end of the archive
	Oldest     = "oldest"      // the oldest one, to its own end
	Random     = "random"      // any one, to its own end
	RandomTime = "random_time" // any moment of the window
	Stalest    = "stalest"     // the one proven longest ago, or never
)

// Algorithm names how [Choose] chooses.
const Algorithm = "sha256 of canonical JSON, v1"

// Pick is what a choice is made from. It is in the ledger before the choice is.
type Pick struct {
	Select     string      `json:"select"`
	Zone       string      `json:"zone,omitempty"`
	Seed       string      `json:"seed"` // 32 random bytes, hex
	Candidates []Candidate `json:"candidates"`
	// LeftOut counts candidates beyond what an entry holds: see sample.
	LeftOut int    `json:"left_out,omitempty"`
	Spans   []Span `json:"spans,omitempty"` // of moments that can be restored to
}

// Candidate is a snapshot that could be restored.
type Candidate struct {
	Snapshot string    `json:"id"`
	Proven   time.Time `json:"proven_at,omitzero"`
}

// Span is a stretch of time, both ends included.
type Span struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Choice is what to restore.
type Choice struct {
	Snapshot string         `json:"snapshot,omitempty"` // "" where a restore to Target finds the best
	Target   restore.Target `json:"target"`
}

// errNothing means that there is nothing to choose from.
var errNothing = errors.New("the repository holds nothing that could be restored")

// Choose is the choice that follows from a plan's hash, a slot and a pick: a pure
// function, so that anyone who has the ledger can make it again.
func Choose(planHash, slot string, p Pick) (Choice, error) {
	n := len(p.Candidates)
	if n == 0 {
		return Choice{}, errNothing
	}
	number, err := draw(planHash, slot, p)
	if err != nil {
		return Choice{}, err
	}
	switch p.Select {
	case Latest:
		return p.of(n-1, restore.Latest), nil
	case Oldest:
		return p.of(0, restore.Immediate), nil
	case Random:
		return p.of(int(below(number, int64(n))), restore.Immediate), nil
	case Stalest:
		least := 0
		for i, c := range p.Candidates {
			if c.Proven.Before(p.Candidates[least].Proven) {
				least = i
			}
		}
		return p.of(least, restore.Immediate), nil
	case RandomTime:
		return p.moment(number)
	}
	return Choice{}, fmt.Errorf("selector %q: want one of %v", p.Select, selectors)
}

func (p Pick) of(i int, kind string) Choice {
	id := p.Candidates[i].Snapshot
	return Choice{id, restore.Target{Kind: kind, Snapshot: id, Zone: p.Zone}}
}

// moment falls on any millisecond of the spans alike.
func (p Pick) moment(number *big.Int) (Choice, error) {
	var total int64
	for _, s := range p.Spans {
		total += s.millis()
	}
	if total == 0 {
		return Choice{}, fmt.Errorf("%w: no span of time is covered by WAL", errNothing)
	}
	at := below(number, total)
	for _, s := range p.Spans {
		if at < s.millis() {
			t := s.From.UTC().Truncate(time.Millisecond).Add(time.Millisecond + time.Duration(at)*time.Millisecond)
			return Choice{Target: restore.Target{Kind: restore.AtTime, Time: t, Zone: p.Zone}}, nil
		}
		at -= s.millis()
	}
	return Choice{}, errNothing // not reached: at is below the sum
}

// millis are the whole milliseconds behind From, up to To.
func (s Span) millis() int64 { return max(s.To.UnixMilli()-s.From.UnixMilli(), 0) }

// draw is a number of 256 bits that nobody can aim at without changing the entry.
func draw(planHash, slot string, p Pick) (*big.Int, error) {
	text, err := seal.CanonicalJSON(map[string]any{"plan_hash": planHash, "slot": slot, "pick": p})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return new(big.Int).SetBytes(sum[:]), nil
}

func below(number *big.Int, n int64) int64 {
	return new(big.Int).Mod(number, big.NewInt(n)).Int64()
}

// maxCandidates fit into an entry.
const maxCandidates = 300

// sample keeps as many candidates as an entry holds: the oldest, the newest, the
// stalest, and of the rest those with the smallest hash under the seed.
func sample(seed string, all []Candidate) (kept []Candidate, left int) {
	if len(all) <= maxCandidates {
		return all, 0
	}
	key := func(c Candidate) string {
		sum := sha256.Sum256([]byte(seed + "\n" + c.Snapshot))
		return hex.EncodeToString(sum[:])
	}
	stalest := slices.MinFunc(all, func(a, b Candidate) int { return a.Proven.Compare(b.Proven) })
	order := slices.Clone(all[1 : len(all)-1])
	slices.SortFunc(order, func(a, b Candidate) int { return strings.Compare(key(a), key(b)) })
	chosen := map[string]bool{all[0].Snapshot: true, all[len(all)-1].Snapshot: true, stalest.Snapshot: true}
	for _, c := range order {
		if len(chosen) == maxCandidates {
			break
		}
		chosen[c.Snapshot] = true
	}
	for _, c := range all {
		if chosen[c.Snapshot] {
			kept = append(kept, c)
		}
	}
	return kept, len(all) - len(kept)
}

// Announcement is the body of an entry of type "drill.due".
type Announcement struct {
	ledger.Due
	ID       string `json:"id"`
	Drill    string `json:"drill"`
	Cluster  string `json:"cluster"`
	PlanHash string `json:"plan_hash"`
	Trigger  string `json:"trigger"`
	Pick     *Pick  `json:"pick,omitempty"` // none for a slot that was missed
}

// Recompute makes the choice of a slot again from its entry in the ledger.
func Recompute(due ledger.Record) (Choice, error) {
	var b Announcement
	if err := json.Unmarshal(due.Body, &b); err != nil {
		return Choice{}, fmt.Errorf("reading entry %d: %w", due.Index, err)
	}
	if b.Pick == nil {
		return Choice{}, fmt.Errorf("entry %d, slot %s: nothing was chosen", due.Index, b.Slot)
	}
	return Choose(b.PlanHash, b.Slot, *b.Pick)
}

// VerifyChoice says whether a record restored what its slot's entry makes it choose.
func VerifyChoice(due ledger.Record, r Record) error {
	want, err := Recompute(due)
	if err != nil {
		return err
	}
	if r.Target == nil || !reflect.DeepEqual(*r.Target, want.Target) || want.Snapshot != "" && want.Snapshot != r.Snapshot {
		return fmt.Errorf("drill %s restored %s to %v, and its slot's entry %d chooses %s to %s", r.ID, r.Snapshot, r.Target, due.Index, want.Snapshot, want.Target)
	}
	return nil
}

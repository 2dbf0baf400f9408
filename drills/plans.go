package drills

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// Plans is the body of an entry of type "drill.plans": the drills that a node is
// configured to run from then on. A node writes it when it starts and every day,
// so that anyone can tell which slots were due from the ledger alone.
type Plans struct {
	Drills []Plan `json:"drills"`
	// Abandoned are slots of an earlier entry's schedules that passed while nothing
	// ran, and that no run will make up: the drill is no longer configured, or the
	// state that remembered it is lost.
	Abandoned []Abandoned `json:"abandoned,omitempty"`
}

// Plan is one drill of them; without the SQL of its questions, which its hash covers.
type Plan struct {
	Name     string `json:"name"`
	Cluster  string `json:"cluster"`
	PlanHash string `json:"plan_hash"`
	Schedule string `json:"schedule,omitempty"` // as in the configuration; "" runs when asked
	Select   string `json:"select"`
	Zone     string `json:"zone,omitempty"`
	Level    string `json:"level"`
	// Owes is how long after it is due a slot may wait for its outcome, in seconds.
	Owes float64 `json:"owes"`
	RPO  float64 `json:"rpo,omitempty"` // the objectives, in seconds
	RTO  float64 `json:"rto,omitempty"`
}

// Abandoned is a slot that nobody ran.
type Abandoned struct {
	Drill string    `json:"drill"`
	DueAt time.Time `json:"due_at"`
	Why   string    `json:"why"`
}

// Plan says of a definition what the ledger shall say.
func (d Definition) Plan() (Plan, error) {
	hash, err := d.Hash()
	if err != nil {
		return Plan{}, fmt.Errorf("drill %s: %w", d.Name, err)
	}
	return Plan{
		Name: d.Name, Cluster: d.Cluster, PlanHash: hash, Schedule: d.Schedule, Select: d.Select, Zone: d.Zone, Level: d.Level,
		Owes: d.owes().Seconds(), RPO: d.Objectives.RPO.Seconds(), RTO: d.Objectives.RTO.Seconds(),
	}, nil
}

// owes is how long a slot may wait for its outcome.
func (d Definition) owes() time.Duration { return 2*d.Limits.Time + time.Hour }

// PlansOf reads the body of an entry of type "drill.plans".
func PlansOf(e ledger.Record) (p Plans, err error) {
	if err = json.Unmarshal(e.Body, &p); err != nil {
		err = fmt.Errorf("reading entry %d of ledger %s: %w", e.Index, e.Origin, err)
	}
	return p, err
}

// SincePlans are a log's entries from its newest one about plans on; all of them
// where there is none.
func SincePlans(ctx context.Context, log Reader) (out []ledger.Record, err error) {
	err = back(ctx, log, func(e ledger.Record) (bool, error) {
		out = append(out, e)
		return e.Type != ledger.TypeDrillPlans, nil
	})
	slices.Reverse(out)
	return out, err
}

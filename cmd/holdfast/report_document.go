package main

import (
	"time"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/retention"
)

// retentionReport is the document of `retention report`.
type retentionReport struct {
	OK           bool                     `json:"ok"`
	Cluster      string                   `json:"cluster"`
	RetiredAt    time.Time                `json:"retired_at,omitzero"` // zero: it is protected
	At           time.Time                `json:"at"`                  // when the zones were listed
	Period       window                   `json:"period"`
	Policy       policyDoc                `json:"policy"`
	Failures     []failureDoc             `json:"failures"`
	Kept         int                      `json:"kept_snapshots"`
	Window       window                   `json:"window"`
	Windows      []zoneWindow             `json:"zone_windows"`
	Inventory    []holdingDoc             `json:"inventory"`
	Deletions    []deletionDoc            `json:"deletions"`
	Refused      []refusalDoc             `json:"refused"`
	OverRetained []retention.OverRetained `json:"over_retained"`
	Holds        []holdDoc                `json:"holds"` // in force
	HoldEvents   []holdEvent              `json:"hold_events"`
	Purges       purgeCounts              `json:"purges"`
	Residency    residencyDoc             `json:"residency"`
	NotAssessed  []string                 `json:"not_assessed"`

	present map[string]bool // snapshots, by id
}

// policyDoc is the policy in force, in seconds and counts.
type policyDoc struct {
	Window       float64 `json:"window"`
	Hourly       int     `json:"hourly"`
	Daily        int     `json:"daily"`
	Weekly       int     `json:"weekly"`
	Monthly      int     `json:"monthly"`
	Yearly       int     `json:"yearly"`
	TimeZone     string  `json:"time_zone"`
	KeepAtLeast  float64 `json:"keep_at_least"`
	KeepAtMost   float64 `json:"keep_at_most"`
	RemovalGrace float64 `json:"removal_grace"`
	RenewAfter   float64 `json:"renew_after"`
}

type failureDoc struct {
	Kind string `json:"kind"` // over-retained | under-retained | residency | not observed
	Zone string `json:"zone,omitempty"`
	What string `json:"what"`
}

type zoneWindow struct {
	Zone   string `json:"zone"`
	Window window `json:"window"`
	Err    string `json:"error,omitempty"`
}

type holdingDoc struct {
	retention.Holding
	Locks *locksDoc `json:"locks,omitempty"`
}

// locksDoc is what was read back of the locks of a sample of objects.
type locksDoc struct {
	Configured    string   `json:"configured"`
	Sampled       int      `json:"sampled"`
	Locked        int      `json:"locked"`
	LeastLeft     *float64 `json:"least_left_seconds,omitempty"` // of those that are locked
	MostLeft      *float64 `json:"most_left_seconds,omitempty"`
	BeyondCeiling int      `json:"beyond_keep_at_most"`
}

// deletionDoc is one mark under which objects went, or are to.
type deletionDoc struct {
	Mark      string            `json:"mark"`
	MarkedAt  time.Time         `json:"marked_at,omitzero"` // zero: before the period
	NotBefore time.Time         `json:"not_before,omitzero"`
	DoneAt    time.Time         `json:"done_at,omitzero"` // zero: not yet
	By        string            `json:"by,omitempty"`
	Origin    string            `json:"ledger_origin,omitempty"`
	Index     int64             `json:"ledger_index,omitempty"`
	PlanHash  string            `json:"plan_hash,omitempty"`
	Reasons   []string          `json:"reasons"`
	Snapshots []string          `json:"snapshots"`
	WAL       int               `json:"wal_stretches"`
	Removed   int               `json:"objects_removed"`
	Zones     map[string]string `json:"zones"` // when each was listed and showed nothing of it
}

type refusalDoc struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
	Why  string    `json:"why"`
}

type holdEvent struct {
	At   time.Time `json:"at"`
	What string    `json:"what"` // hold | hold.released
	Hold string    `json:"hold"`
}

type purgeCounts struct {
	Requested int      `json:"requested"`
	Absent    int      `json:"absent_from_live"`
	Certified int      `json:"certified"`
	Overdue   []string `json:"overdue"`
}

type residencyDoc struct {
	Allow  []string        `json:"allow"`
	Copies int             `json:"copies"`
	Zones  []residencyZone `json:"zones"`
}

type residencyZone struct {
	Zone         string `json:"zone"`
	Jurisdiction string `json:"jurisdiction,omitempty"`
	Allowed      bool   `json:"allowed"`
	Versions     int64  `json:"versions"`
}

// newRetentionReport is a report with nothing in it yet.
func newRetentionReport(in reportIn, now time.Time, p retention.Policy, c configs.Cluster) retentionReport {
	to := in.To
	if to.IsZero() {
		to = now
	}
	from := in.From
	if from.IsZero() {
		from = to.AddDate(0, 0, -30)
	}
	return retentionReport{
		Cluster: in.Cluster, At: now, Period: window{from.UTC(), to.UTC()}, Policy: policyDoc{
			Window: p.Window.Seconds(), Hourly: p.Hourly, Daily: p.Daily, Weekly: p.Weekly, Monthly: p.Monthly, Yearly: p.Yearly, TimeZone: c.Retention.TimeZone,
			KeepAtLeast: p.Floor().Seconds(), KeepAtMost: p.KeepAtMost.Seconds(), RemovalGrace: p.RemovalGrace.Seconds(), RenewAfter: p.RenewAfter.Seconds(),
		},
		Failures: []failureDoc{}, Windows: []zoneWindow{}, Inventory: []holdingDoc{}, Deletions: []deletionDoc{}, Refused: []refusalDoc{},
		OverRetained: []retention.OverRetained{}, Holds: []holdDoc{}, HoldEvents: []holdEvent{}, Purges: purgeCounts{Overdue: []string{}},
		NotAssessed: []string{
			"whether what is there can be restored: drills say that",
			"locks of objects outside the sample of each zone and class",
			"what a store keeps below its own interface, and copies that were not made through the zones: replicas, exports, restored copies",
			"removals that no ledger which the zones hold tells of",
		},
	}
}

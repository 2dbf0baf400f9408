package drills

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/restore"
)

// Record is all that is known of one drill: the body of its outcome's entry in
// the ledger, and the document of `drill show`. Times are UTC, durations seconds,
// sizes bytes; what is not known is absent.
type Record struct {
	ledger.Outcome
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Cluster    string          `json:"cluster"`
	Trigger    string          `json:"trigger,omitempty"`
	DueAt      time.Time       `json:"due_at,omitzero"`
	PlanHash   string          `json:"plan_hash"`
	Class      string          `json:"class,omitempty"` // of what is at fault, when something is
	Reason     string          `json:"reason,omitempty"`
	Level      string          `json:"level,omitempty"` // all up to it passed
	Wanted     string          `json:"level_wanted"`
	StartedAt  time.Time       `json:"started_at,omitzero"`
	FinishedAt time.Time       `json:"finished_at"`
	Failure    *Failure        `json:"failure,omitempty"`
	Selection  *Selection      `json:"selection,omitempty"`
	Snapshot   string          `json:"snapshot,omitempty"`
	Target     *restore.Target `json:"target,omitempty"`
	Zone       string          `json:"zone,omitempty"` // read from it alone
	Source     *Source         `json:"source,omitempty"`
	Place      Place           `json:"environment"`
	Expected   *restore.End    `json:"expected,omitempty"` // known before the restore began
	Reached    *restore.End    `json:"reached,omitempty"`
	Phases     []Phase         `json:"phases"`
	RTO        Measure         `json:"rto"`
	RPO        Measure         `json:"rpo"`
	Checks     []Check         `json:"checks"`
	BadCopies  []BadCopy       `json:"bad_copies,omitempty"`
	Tombstones *Purged         `json:"purge_negative,omitempty"`
	// NotAssessed stands in the entry's envelope.
	NotAssessed []ledger.NotAssessed `json:"not_assessed,omitempty"`
	Cleanup     Cleanup              `json:"cleanup"`
	Cost        Cost                 `json:"cost"`
	// Ledger says where the record stands; it is not part of it.
	Ledger *Entry `json:"ledger,omitempty"`
}

// Failure is what ended a drill before its checks could speak.
type Failure struct {
	Stage   string `json:"stage"`
	Outcome string `json:"outcome"`
	Class   string `json:"class"`
	Reason  string `json:"reason"`
}

// Selection says how it was chosen; the candidates and the seed are in the entry
// DueIndex of the same ledger, from which [Recompute] makes the choice again.
type Selection struct {
	Select     string `json:"select"`
	Algorithm  string `json:"algorithm"`
	Candidates int    `json:"candidates"`
	DueIndex   int64  `json:"due_index"`
	Anchored   bool   `json:"anchored_before_start"` // a quorum of zones held the candidates
	Choice     string `json:"choice"`                // self-attested
	Again      bool   `json:"again,omitempty"`       // an earlier run of the slot was cut off
}

// Source is what was restored.
type Source struct {
	SystemID   string      `json:"system_id"`
	Epoch      int         `json:"epoch"`
	Timeline   uint32      `json:"timeline"`
	Major      int         `json:"major"`
	FinishedAt time.Time   `json:"finished_at"`
	AgeSeconds float64     `json:"age"`
	Manifest   catalog.Ref `json:"manifest"`
	Objects    catalog.Ref `json:"objects"`
	Recipients []string    `json:"recipients,omitempty"`
	LockUntil  time.Time   `json:"lock_until,omitzero"` // as the snapshot's note says; not read back
	RestoreOf  string      `json:"restore_plan,omitempty"`
	WALFrom    lsn.LSN     `json:"wal_from_lsn,omitzero"`
	WALTo      lsn.LSN     `json:"wal_to_lsn,omitzero"`
	Freshness  string      `json:"freshness,omitempty"`
}

// Place is where it was restored, and how closed that was.
type Place struct {
	Name    string        `json:"name"`
	Server  string        `json:"server_version,omitempty"`
	Room    *sandbox.Room `json:"isolation,omitempty"`
	Archive string        `json:"credentials,omitempty"` // what the drill could do to the repository
}

// Phase is a timed part of the drill.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes,omitempty"`
	Outcome string  `json:"outcome"` // done | failed
}

// Measure is a promise and what was measured, in seconds.
type Measure struct {
	Objective *float64 `json:"objective,omitempty"`
	Measured  *float64 `json:"measured,omitempty"`
	Met       *bool    `json:"met,omitempty"`
	// Of says what was measured.
	Of string `json:"of,omitempty"`
	// AtTarget: how long before the target time the last replayed commit lies.
	AtTarget *float64 `json:"at_target,omitempty"`
}

func measure(objective time.Duration, measured *time.Duration, of string) Measure {
	var m Measure
	if objective > 0 {
		m.Objective = ptr(objective.Seconds())
	}
	if measured != nil {
		m.Measured, m.Of = ptr(measured.Seconds()), of
	}
	if m.Objective != nil && m.Measured != nil {
		m.Met = ptr(*m.Measured <= *m.Objective)
	}
	return m
}

func ptr[T any](v T) *T { return &v }

// The verdicts of a check.
const (
	passed = "pass"
	failed = "fail"
	gap    = "gap" // could not be found out, or holds less than it should
)

// Check is one thing that was asked. Its id is a level of the ladder, or the name
// of a part of one after its level: "L8:fresh".
type Check struct {
	ID       string  `json:"id"`
	Verdict  string  `json:"verdict"` // pass | fail | gap
	Class    string  `json:"class,omitempty"`
	Expected string  `json:"expected"`
	Observed string  `json:"observed"`
	Input    string  `json:"input_sha256,omitempty"` // of a question's SQL
	Seconds  float64 `json:"seconds"`
}

// BadCopy is a copy that was missing or wrong where another zone's served.
type BadCopy struct {
	Zone   string `json:"zone"`
	Object string `json:"object"`
	Fault  string `json:"fault"`
}

// Purged says what became of deleted projects.
type Purged struct {
	Applied  int `json:"applied"`
	Found    int `json:"found"` // were in the snapshot, and were removed
	Residual int `json:"residual"`
}

// Cleanup says what is left.
type Cleanup struct {
	Verified   bool      `json:"verified"` // looked for, and not found
	VerifiedAt time.Time `json:"verified_at,omitzero"`
	Left       []string  `json:"left,omitempty"` // what is still there, and why
	Bytes      int64     `json:"bytes_freed"`
}

// Cost is what it took.
type Cost struct {
	Wall      float64 `json:"wall"`
	BytesRead int64   `json:"bytes_read"`
	Disk      int64   `json:"disk_bytes"`
}

// Entry is a record's place in the ledger. Checkpoint is of the first signed tree
// known to hold it.
type Entry struct {
	Origin     string `json:"origin"`
	Index      int64  `json:"index"`
	Checkpoint string `json:"checkpoint,omitempty"` // size and root
	RecordID   string `json:"record_id"`
}

// bounds of what a record says in words, so that it fits an entry.
const (
	maxWords  = 600
	maxCopies = 50
	maxRecord = 48 << 10
)

func words(format string, args ...any) string { return cut(fmt.Sprintf(format, args...), maxWords) }

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	end := n
	for end > 0 && s[end]&0xC0 == 0x80 {
		end--
	}
	return s[:end] + "…"
}

// fit shortens what was observed until the record fits an entry: first to less
// and less, in the end to nothing. Verdicts are never dropped.
func fit(r Record) Record {
	for n := maxWords; n > 0 && size(r) > maxRecord; n /= 2 {
		checks := make([]Check, len(r.Checks))
		for i, c := range r.Checks {
			c.Observed, c.Expected = cut(c.Observed, n), cut(c.Expected, n)
			checks[i] = c
		}
		r.Checks = checks
		r.BadCopies = r.BadCopies[:min(len(r.BadCopies), n/8)]
	}
	return r
}

func size(r Record) int {
	data, err := json.Marshal(r)
	if err != nil {
		return 0 // the ledger says so
	}
	return len(data)
}

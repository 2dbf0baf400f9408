package drills

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/restore"
)

// Definition is one rehearsal, as the configuration tells it.
type Definition struct {
	Name        string      `json:"name"`
	Cluster     string      `json:"cluster"`
	Schedule    string      `json:"schedule,omitempty"`
	Select      string      `json:"select"`         // latest | oldest | random | random_time | stalest
	Zone        string      `json:"zone,omitempty"` // "" reads from all zones
	Level       string      `json:"level"`          // the highest to run, L0 to L8
	Objectives  Objectives  `json:"objectives"`
	Limits      Limits      `json:"limits"`
	Checks      []Question  `json:"checks"`
	Environment Environment `json:"environment"`
}

// Objectives are promised times; 0 is none.
type Objectives struct {
	RPO time.Duration `json:"rpo_ns"`
	RTO time.Duration `json:"rto_ns"`
}

// Limits bound one run: bytes of disk (0: what is free) and time.
type Limits struct {
	Disk int64         `json:"disk"`
	Time time.Duration `json:"time_ns"`
}

// Question is asked of the restored database, and has one right answer: one row
// of one column, as text.
type Question struct {
	Name     string `json:"name"`
	Database string `json:"database"`
	SQL      string `json:"sql"`
	Expect   string `json:"expect"`
}

// Environment is where restores land.
type Environment struct {
	Name      string `json:"name"`
	Directory string `json:"directory"`
	Binaries  string `json:"binaries"`
	User      string `json:"user,omitempty"`
}

// Hash identifies the definition: what changes it makes another plan.
func (d Definition) Hash() (string, error) { return approval.Hash(d) }

// selectors are the values of Definition.Select.
var selectors = []string{Latest, Oldest, Random, RandomTime, Stalest}

// Check says what a definition lacks.
func (d Definition) Check() error {
	switch {
	case catalog.CheckName(d.Name) != nil:
		return fmt.Errorf("drill %q: %w", d.Name, catalog.CheckName(d.Name))
	case d.Cluster == "":
		return fmt.Errorf("drill %s: names no cluster", d.Name)
	case !slices.Contains(selectors, d.Select):
		return fmt.Errorf("drill %s: select %q: want one of %v", d.Name, d.Select, selectors)
	case rung(d.Level) < 0:
		return fmt.Errorf("drill %s: level %q: want L0 to L8", d.Name, d.Level)
	case d.Limits.Time <= 0:
		return fmt.Errorf("drill %s: limits.time is %s: a drill that may last for ever is none", d.Name, d.Limits.Time)
	case !filepath.IsAbs(d.Environment.Directory):
		return fmt.Errorf("drill %s: environment %s: directory %q: want an absolute path", d.Name, d.Environment.Name, d.Environment.Directory)
	}
	return nil
}

// Slot is a time at which a drill is due, or a request for one.
type Slot struct {
	Key      string // unique in the repository, see [SlotKey]; "" for one that is asked for
	DueAt    time.Time
	Deadline time.Time // by then it owes an outcome; zero: DueAt, twice the time limit and an hour
	Trigger  string    // schedule | human | api
}

// SlotKey names the slot of a drill by its UTC instant.
func SlotKey(drill string, due time.Time) string {
	return drill + "/" + due.UTC().Format(time.RFC3339)
}

// Log is the node's own ledger: *ledger.Ledger.
type Log interface {
	Append(ctx context.Context, e ledger.Entry) (int64, error)
	AppendAnchored(ctx context.Context, e ledger.Entry) (int64, error)
	Entries(ctx context.Context, from, to int64) ([]ledger.Record, error)
	Status() ledger.Status
}

// Prover keeps the proof that a snapshot was restored.
type Prover interface {
	Prove(ctx context.Context, p catalog.Proof) error
}

// Incidents are where conditions open and close: *incident.Store.
type Incidents interface {
	Raise(i incident.Incident, now time.Time) (out incident.Incident, opened bool, err error)
	Close(key, seen string, now time.Time) (*incident.Incident, error)
}

// Deps are what a drill works with.
type Deps struct {
	Repo      restore.Repo
	Log       Log
	Proofs    Prover    // nil: proofs are not kept, and the record says so
	Incidents Incidents // nil: nobody is told
	Replay    restore.Replayer
	// Digests opens the keys of the blocks' digests; nil: frames alone are checked.
	Digests   func(ctx context.Context, epoch int) (seal.DigestKeys, error)
	Program   string // this binary, for restore_command
	Role      string // a superuser of the cluster; "" is postgres
	Workers   int
	Actor     ledger.Actor
	Now       func() time.Time // nil: time.Now
	ServerLog io.Writer        // of the restored server; nil: nowhere
	Progress  func(drill string, p restore.Progress)
	// AnchorWait is how long a drill waits for the zones to hold its slot; then it
	// starts, and the ledger tells that they hold it late. Default 30 s.
	AnchorWait time.Duration
	// Stall is how long replay may stand still; default 10 min.
	Stall time.Duration
}

func (d Deps) complete() (Deps, error) {
	if d.Log == nil || d.Repo.Catalog == nil {
		return d, errors.New("a drill needs a ledger and a repository to read from")
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.AnchorWait <= 0 {
		d.AnchorWait = 30 * time.Second
	}
	if d.Actor.Kind == "" {
		d.Actor.Kind = "holdfast"
	}
	return d, nil
}

// Putter stores an object in a quorum of zones: vault.Writer.
type Putter interface {
	Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error)
}

// SignedProofs is a [Prover] that keeps signed notes in the repository.
type SignedProofs struct {
	Signer note.Signer // trusted with the duty "ledger"
	Store  Putter
}

// Prove signs p and stores it under its name.
func (s SignedProofs) Prove(ctx context.Context, p catalog.Proof) error {
	body, err := seal.SignNote(catalog.KindProof, p, s.Signer)
	if err != nil {
		return err
	}
	_, err = s.Store.Put(ctx, catalog.ProofName(p.Origin, p.Drill), body, vault.PutOptions{})
	return err
}

package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// State is where a job is in its life.
type State string

// A job waits as available, runs, and ends as done, failed (its attempts or its
// time are used up) or cancelled.
const (
	Available State = "available"
	Running   State = "running"
	Done      State = "done"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Finished says whether the job has ended.
func (s State) Finished() bool { return s == Done || s == Failed || s == Cancelled }

// Job is one piece of work. Whoever enqueues gives Kind and whatever applies of
// Lane, Key, Payload, RunAt, Deadline, MaxAttempts, Schedule and Slot; the rest
// is the queue's.
type Job struct {
	ID          int64           `json:"id"`
	Kind        string          `json:"kind"`               // which handler
	Lane        string          `json:"lane,omitempty"`     // one job of a lane runs at a time; "": no lane
	Key         string          `json:"key,omitempty"`      // at most one job has it, ever; "": none
	Schedule    string          `json:"schedule,omitempty"` // the schedule that made it
	Slot        time.Time       `json:"slot,omitzero"`      // the slot that it was made for
	Payload     json.RawMessage `json:"payload,omitempty"`
	RunAt       time.Time       `json:"run_at"`            // not before; zero: now
	Deadline    time.Time       `json:"deadline,omitzero"` // its context ends then; zero: none
	State       State           `json:"state"`
	Attempt     int             `json:"attempt"`      // begun so far; what a stop or a snooze ended does not count
	MaxAttempts int             `json:"max_attempts"` // zero: DefaultAttempts
	Owner       string          `json:"owner,omitempty"`
	Progress    json.RawMessage `json:"progress,omitempty"` // what its handler last reported
	Output      json.RawMessage `json:"output,omitempty"`   // what its handler returned
	Error       string          `json:"error,omitempty"`    // of the last attempt
	CreatedAt   time.Time       `json:"created_at"`
	StartedAt   time.Time       `json:"started_at,omitzero"`
	FinishedAt  time.Time       `json:"finished_at,omitzero"`
}

// DefaultAttempts bounds a job that names no bound of its own. A process killed
// during an attempt has used it.
const DefaultAttempts = 10

// Filter selects jobs; zero fields select all.
type Filter struct {
	Kind, Lane, Schedule string
	States               []State
	Limit                int // zero: 100
}

// SlotState is what a queue remembers of a schedule.
type SlotState struct {
	Spec string    // the expression that was in force
	Last time.Time // the newest slot that was dealt with
}

// Enqueuer takes jobs. A key that is known already is no error: the job that has
// it is named, and created is false.
type Enqueuer interface {
	Enqueue(ctx context.Context, job Job) (id int64, created bool, err error)
}

// Claimer is the worker's side. What it is given back must be the job as it was
// claimed: ErrLost says that somebody else has it now.
type Claimer interface {
	// Claim starts the oldest job that is due, of one of the kinds, in a lane in
	// which none runs. ok is false when there is none.
	Claim(ctx context.Context, kinds []string) (job Job, ok bool, err error)
	// Heartbeat stores progress (nil: unchanged) and fails with ErrCancelled once
	// the job's end was asked for.
	Heartbeat(ctx context.Context, job Job, progress json.RawMessage) error
	// Settle ends an attempt.
	Settle(ctx context.Context, job Job, outcome Outcome) error
}

// Outcome is how an attempt ended. State Available means: again, not before
// RetryAt; Refund gives the attempt back.
type Outcome struct {
	State   State
	Output  json.RawMessage
	Error   string
	RetryAt time.Time
	Refund  bool
}

// Reader shows jobs, newest first. Get fails with ErrNoJob.
type Reader interface {
	Get(ctx context.Context, id int64) (Job, error)
	List(ctx context.Context, f Filter) ([]Job, error)
}

// Slots remembers which slots of which schedules were dealt with.
type Slots interface {
	SlotStates(ctx context.Context) (map[string]SlotState, error)
	// TakeSlot stores the state and, in the same transaction, enqueues the job
	// unless it is nil.
	TakeSlot(ctx context.Context, schedule string, state SlotState, job *Job) (created bool, err error)
	ForgetSchedule(ctx context.Context, schedule string) error
}

// Keeper tidies.
type Keeper interface {
	// Recover ends the attempts of processes that are dead: their jobs become
	// available at once, or end when nothing is left of their attempts.
	Recover(ctx context.Context) ([]Job, error)
	// Cancel ends a job that waits and asks for the end of one that runs.
	Cancel(ctx context.Context, id int64) error
	// Prune removes jobs that finished before.
	Prune(ctx context.Context, before time.Time) (int64, error)
}

// Queue is all of it: what a store must be. The suite in schedulertest says what
// that means.
type Queue interface {
	Enqueuer
	Claimer
	Reader
	Slots
	Keeper
}

// What a queue answers.
var (
	ErrNoJob     = errors.New("no such job")
	ErrLost      = errors.New("the job is not this process's any more")
	ErrCancelled = errors.New("the job was cancelled")
)

// ErrStopping is the cause of a handler's context when the runner stops: what is
// not finished goes back to the queue and loses no attempt.
var ErrStopping = errors.New("the scheduler stops")

type snooze struct{ d time.Duration }

func (s snooze) Error() string { return fmt.Sprintf("not yet: again in %v", s.d) }

// Snooze is a handler's answer: not now, again in d, and no attempt is used.
func Snooze(d time.Duration) error { return snooze{d} }

type cancel struct{ err error }

func (c cancel) Error() string { return c.err.Error() }
func (c cancel) Unwrap() error { return c.err }

// Cancel is a handler's answer: err, and trying again is of no use.
func Cancel(err error) error { return cancel{err} }

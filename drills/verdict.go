package drills

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/restore"
)

// What a drill ends with (ledger.Outcomes).
const (
	Pass         = "pass"
	PassWithGaps = "pass_with_gaps"
	Fail         = "fail"
	Inconclusive = "inconclusive"
	TimedOut     = "timed_out"
	Aborted      = "aborted"
	Skipped      = "skipped"
	MissedSlot   = "missed"
)

// Passed says whether an outcome proves that what was restored could be restored.
func Passed(outcome string) bool { return outcome == Pass || outcome == PassWithGaps }

// What is at fault.
const (
	ClassBackup  = "backup"  // what is kept is not what should be
	ClassKey     = "key"     // the environment's identity does not open it
	ClassZone    = "zone"    // zones did not answer
	ClassHarness = "harness" // the drill itself: programs, disk, the daemon
	ClassTarget  = "target"  // the place where the copy landed
	ClassPolicy  = "policy"  // an objective, a limit, a rule
)

// ErrStopping is the cause to cancel a drill's context with when its daemon stops
// for a while: its slot stays owed, and the next Run of it takes the same choice.
var ErrStopping = errors.New("the daemon stops; the drill will run again")

var (
	errTime   = errors.New("the drill's time limit passed")
	errDisk   = errors.New("the drill used more disk than its limit")
	errPurge  = errors.New("deleted projects were not removed")
	errPrereq = errors.New("the environment cannot run it")
	errPolicy = errors.New("the drill's limits forbid it")
	errAnswer = errors.New("the question got no answer")
)

// levels of the ladder, the lowest first.
var levels = []string{"L0", "L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8"}

// rung is a level's place, -1 for what is none.
func rung(level string) int {
	for i, l := range levels {
		if l == level {
			return i
		}
	}
	return -1
}

// reached is the highest level up to which every check of the ladder passed.
func reached(checks []Check) string {
	verdict := map[string]string{}
	for _, c := range checks {
		verdict[c.ID] = c.Verdict
	}
	top := ""
	for _, l := range levels {
		if verdict[l] != passed {
			break
		}
		top = l
	}
	return top
}

// Verdict is the outcome that follows from the rest of a record: a pure function.
func Verdict(r Record) (outcome, class, reason string) {
	if f := r.Failure; f != nil {
		return f.Outcome, f.Class, f.Stage + ": " + f.Reason
	}
	var gaps []string
	for _, c := range r.Checks {
		switch c.Verdict {
		case failed:
			return Fail, c.Class, c.ID + ": " + c.Observed
		case gap:
			gaps = append(gaps, c.ID+": "+c.Observed)
		}
	}
	switch {
	case !r.Cleanup.Verified:
		return Fail, ClassTarget, "the restored copy was not removed: " + strings.Join(r.Cleanup.Left, "; ")
	case r.RTO.Met != nil && !*r.RTO.Met:
		return Fail, ClassPolicy, fmt.Sprintf("the recovery time objective is %.0f s, and it took %.0f s", *r.RTO.Objective, *r.RTO.Measured)
	}
	if r.RPO.Met != nil && !*r.RPO.Met {
		gaps = append(gaps, fmt.Sprintf("the recovery point objective is %.0f s, and the archive is known up to %.0f s ago; whether live wrote more since cannot be seen from here", *r.RPO.Objective, *r.RPO.Measured))
	}
	if r.Place.Room == nil || !r.Place.Room.NoEgress {
		gaps = append(gaps, "that the restored server could not call out is not proven")
	}
	if rung(r.Level) < rung(r.Wanted) {
		gaps = append(gaps, fmt.Sprintf("level %s was wanted and %s reached", r.Wanted, cmp.Or(r.Level, "none")))
	}
	if rung(r.Level) < rung("L4") {
		gaps = append(gaps, "nothing was restored and replayed")
	}
	if len(gaps) > 0 {
		return PassWithGaps, "", cut(strings.Join(gaps, "; "), maxWords)
	}
	return Pass, "", ""
}

// Entails says whether a record's outcome follows from the rest of it.
func Entails(r Record) error {
	if level := reached(r.Checks); level != r.Level {
		return fmt.Errorf("drill %s says that it reached level %q, and its checks say %q", r.ID, r.Level, level)
	}
	if outcome, class, _ := Verdict(r); outcome != r.Outcome.Outcome || class != r.Class {
		return fmt.Errorf("drill %s says %s (%s), and what it saw says %s (%s)", r.ID, r.Outcome.Outcome, r.Class, outcome, class)
	}
	return nil
}

// blame says what an error means for the backup.
func blame(ctx context.Context, zoned bool, err error) (outcome, class string) {
	if ctx.Err() != nil {
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, errTime), errors.Is(cause, context.DeadlineExceeded):
			return TimedOut, ClassPolicy
		case errors.Is(cause, errDisk):
			return Inconclusive, ClassPolicy
		}
		return Aborted, ClassHarness
	}
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case is(errPolicy):
		return Inconclusive, ClassPolicy
	case is(errPrereq, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, restore.ErrNotEmpty, restore.ErrUnfit):
		return Inconclusive, ClassHarness
	case is(seal.ErrIdentity):
		return Fail, ClassKey
	case is(errPurge):
		return Fail, ClassPolicy
	case is(vault.ErrNoGoodCopy, seal.ErrDamaged, seal.ErrUntrusted, zone.ErrDigest, fs.ErrNotExist, restore.ErrUnreachable, errNothing, errAnswer):
		return Fail, ClassBackup
	case is(vault.ErrDoubt, zone.ErrUnreachable):
		// The subject of a drill of one zone is that zone; otherwise the fault may
		// be our own network.
		if zoned {
			return Fail, ClassZone
		}
		return Inconclusive, ClassZone
	case is(restore.ErrIncomplete):
		return Fail, ClassBackup
	}
	return Inconclusive, ClassHarness
}

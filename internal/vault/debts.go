package vault

import (
	"errors"
	"path"
	"strings"
	"sync"
	"time"
)

// Need names an object that a note speaks of, and binds its bytes.
type Need struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // lower-case hex
}

// debt is what a zone has not got yet.
type debt struct {
	Size      int64     `json:"size,omitempty"`
	SHA256    string    `json:"sha256,omitempty"` // "" until the other zones agree on it
	LockUntil time.Time `json:"lock_until,omitzero"`
	Needs     []Need    `json:"needs,omitempty"` // which the zone must hold first
}

// errTooManyDebts leaves the rest to reconciliation.
var errTooManyDebts = errors.New("a zone misses more objects than the journal holds; the next listing finds the rest")

// debts is the journal of one zone.
type debts struct {
	*journal[debt]
	mu   sync.Mutex
	busy map[string]int       // being written by a Put right now
	over bool                 // some could not be journalled
	lost map[string]time.Time // no zone had a good copy then
}

func newDebts() *debts {
	return &debts{journal: newJournal[debt](), busy: map[string]int{}, lost: map[string]time.Time{}}
}

// owe journals a debt durably. What is known already is only made more exact.
func (d *debts) owe(name string, owed debt) error {
	full := false
	err := d.update(name, func(old debt, known bool) (debt, bool) {
		if known && (old.SHA256 != "" || owed.SHA256 == "") && len(old.Needs) >= len(owed.Needs) {
			return old, false
		}
		full = !known && len(d.live) >= maxDebts
		return owed, !full
	})
	if full {
		d.overflow()
		return errTooManyDebts
	}
	return err
}

func (d *debts) overflow() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
}

// overflowed says once that debts were left out since it was last asked.
func (d *debts) overflowed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	over := d.over
	d.over = false
	return over
}

// hold keeps back-fill from a debt that a Put is about to pay itself.
func (d *debts) hold(name string) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy[name]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.busy[name]--; d.busy[name] == 0 {
			delete(d.busy, name)
		}
	}
}

func (d *debts) held(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.busy[name] > 0
}

// giveUp notes that no zone has a good copy: it is not looked for at every turn.
func (d *debts) giveUp(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.lost) >= maxLazy {
		clear(d.lost)
	}
	d.lost[name] = time.Now()
}

// hopeless says that within the time given no zone had a good copy.
func (d *debts) hopeless(name string, within time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, lost := d.lost[name]
	return lost && time.Since(at) < within
}

// The order in which a zone catches up: the marks that say what is deleted
// before anything that they could name, and notes after what they vouch for.
const (
	phaseMarks = iota
	phaseObjects
	phaseNotes
	phases
)

func phaseOf(name string) int {
	switch {
	case !strings.HasPrefix(name, "clusters/"):
		return phaseMarks
	case path.Ext(name) == ".note":
		return phaseNotes
	default:
		return phaseObjects
	}
}

// clusterOf is the part of a name that says whose it is.
func clusterOf(name string) string {
	rest, ok := strings.CutPrefix(name, "clusters/")
	if !ok {
		return ""
	}
	cluster, _, _ := strings.Cut(rest, "/")
	return cluster
}

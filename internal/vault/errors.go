package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Errors that callers branch on, beside fs.ErrNotExist.
var (
	// ErrQuorum means that fewer zones than the quorum hold the bytes.
	ErrQuorum = errors.New("write quorum not reached")
	// ErrConflict means that a zone holds other bytes under the name.
	ErrConflict = errors.New("other bytes are stored under this name")
	// ErrDoubt means that too few zones answered to know.
	ErrDoubt = errors.New("too few zones answered to be sure")
	// ErrRemoved means that the name is being removed, or must not be copied.
	ErrRemoved = errors.New("object is removed or must not be copied any more")
	// ErrNoGoodCopy means that no zone that answered holds the right bytes.
	ErrNoGoodCopy = errors.New("no zone that answered holds a good copy")
	// ErrGoOn is what an accept of Fetch returns to see the other copies as well,
	// though there is nothing wrong with this one.
	ErrGoOn = errors.New("looking at every copy")
	// ErrHidden means that the right bytes lie beneath other versions or a delete marker.
	ErrHidden = errors.New("other versions or a delete marker lie over it")
	// ErrReadOnly means that the vault was opened without a state directory.
	ErrReadOnly = errors.New("vault was opened for reading only")
)

// Faults says what each zone answered when they could not act together.
type Faults struct {
	Act   string // what was being done, and to what
	Kind  error  // ErrQuorum, ErrDoubt, ErrNoGoodCopy or fs.ErrNotExist
	Zones map[string]error
}

// Error names each zone and its fault.
func (f *Faults) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", f.Act, f.Kind)
	for _, name := range slices.Sorted(maps.Keys(f.Zones)) {
		fmt.Fprintf(&b, "; zone %s: %v", name, f.Zones[name])
	}
	return b.String()
}

// Unwrap gives the kind. Of the zones' own faults it gives those that callers
// branch on; a single zone's "does not exist" is not the vault's word.
func (f *Faults) Unwrap() []error {
	errs := []error{f.Kind}
	for _, name := range slices.Sorted(maps.Keys(f.Zones)) {
		if err := f.Zones[name]; err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errs
}

// sick says that an error speaks of the zone, not of the object asked for.
func sick(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false // we gave up, whatever the zone would have said
	}
	for _, fine := range []error{
		fs.ErrExist, fs.ErrNotExist, errors.ErrUnsupported, zone.ErrLocked, zone.ErrDigest,
		ErrConflict, ErrRemoved, ErrNoGoodCopy, ErrDoubt, errRefused,
	} {
		if errors.Is(err, fine) {
			return errors.Is(err, zone.ErrUnreachable)
		}
	}
	return err != nil
}

// lasting says that trying again at once cannot help.
func lasting(err error) bool {
	for _, e := range []error{ErrConflict, ErrRemoved, errors.ErrUnsupported, zone.ErrLocked, context.Canceled} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Package zone is object storage in one place: a bucket, or a directory.
//
// It defines what a driver must be able to do (small interfaces, one act
// each), and the guard that stands before every driver: a zone is unreachable
// until its holdfast.json shows this repository's and this zone's id, so that a
// missing mount, an emptied directory or a swapped bucket is never taken for
// "absent".
//
// It never overwrites (Repair, of a copy whose digest is wrong, excepted),
// never retries for ever, and never turns a doubt into fs.ErrNotExist: that
// error is this zone's own word, given after its identity was seen again. What
// a driver cannot do answers errors.ErrUnsupported. Every driver passes the
// suite in zonetest.
package zone

import (
	"context"
	"errors"
	"io"
	"time"
)

// Errors that callers branch on, beside fs.ErrExist, fs.ErrNotExist and
// errors.ErrUnsupported.
var (
	// ErrUnreachable means that the zone's word cannot be had or trusted now:
	// it does not answer, or answers without showing its identity.
	ErrUnreachable = errors.New("zone is unreachable")
	// ErrLocked means that the object's version is retained by the store.
	ErrLocked = errors.New("object is locked")
	// ErrDigest means that the bytes that arrived are not those that were sent.
	ErrDigest = errors.New("digest does not match")
)

// Object is what a zone says of one version of an object.
type Object struct {
	Name    string
	Size    int64
	Version string // "" where the store keeps no versions
	Latest  bool   // the version that an unversioned read gets
	Marker  bool   // a delete marker: no bytes
	// Modified is the store's own clock.
	Modified time.Time
	// SHA256 of the bytes as noted at their creation, lower-case hex; "" where
	// the store or the call does not tell. It is a claim, not a proof.
	SHA256 string
	// LockedUntil is zero where no lock was seen or asked for.
	LockedUntil time.Time
}

// CreateOptions go with one creation.
type CreateOptions struct {
	SHA256 [32]byte // of the body; the driver refuses a body that differs
	// LockUntil is zero for no lock. A zone that is configured without locks
	// keeps the object unlocked all the same, and Stat and Probe say so.
	LockUntil time.Time
	// Pace, where it is set, is called by one goroutine before each n more bytes of
	// the body are sent, and may wait; the waiting is not the zone's slowness.
	Pace func(ctx context.Context, n int) error
}

// Spend calls Pace where there is one.
func (o CreateOptions) Spend(ctx context.Context, n int) error {
	if o.Pace == nil || n == 0 {
		return nil
	}
	return o.Pace(ctx, n)
}

// Creator makes objects that did not exist.
type Creator interface {
	// Create stores body under name if nothing is there, durably when it
	// returns nil. It returns an error that is fs.ErrExist where name exists
	// already, whatever its bytes; an interrupted creation leaves nothing that
	// Reader or Lister would show.
	Create(ctx context.Context, name string, body []byte, opt CreateOptions) error
}

// Reader reads ranges.
type Reader interface {
	// Read returns length bytes of the object from off on (to the end where
	// length is negative; fewer where the object ends). version "" is the
	// latest. fs.ErrNotExist where there is none. The caller closes it, and
	// must check what it reads against a digest of its own.
	Read(ctx context.Context, name, version string, off, length int64) (io.ReadCloser, error)
	// Stat tells of one version without its bytes.
	Stat(ctx context.Context, name, version string) (Object, error)
}

// Lister lists the latest versions of the objects whose name begins with
// prefix, in byte order of their names; delete markers are left out. A zone that
// locks lists the oldest version of each name instead, hidden beneath a marker or
// not: what is put on top changes no listing. An error of yield ends the listing
// and is returned as it is.
type Lister interface {
	List(ctx context.Context, prefix string, yield func(Object) error) error
}

// VersionLister lists every version and delete marker under prefix, by name
// and then newest first. A store without versions lists each object once.
type VersionLister interface {
	ListVersions(ctx context.Context, prefix string, yield func(Object) error) error
}

// SingleVersion is what a driver says whose store never keeps more than one version of
// an object: to look at it then is to list its versions.
type SingleVersion interface {
	SingleVersion() bool
}

// LockExtender makes a version undeletable until a later moment. It never
// shortens: an earlier until is success and changes nothing.
type LockExtender interface {
	ExtendLock(ctx context.Context, name, version string, until time.Time) error
}

// Repairer replaces the bytes of a copy whose digest was found wrong. It is
// the repository's only overwrite; with versions the wrong one stays beneath.
type Repairer interface {
	Repair(ctx context.Context, name string, body []byte, opt CreateOptions) error
}

// Remover removes one version for good ("" where the store keeps none). What
// is gone already is success; what is retained is ErrLocked.
type Remover interface {
	RemoveVersion(ctx context.Context, name, version string) error
}

// Driver is all of it: what a kind of storage implements and zonetest checks.
type Driver interface {
	Creator
	Reader
	Lister
	VersionLister
	LockExtender
	Repairer
	Remover
	io.Closer
}

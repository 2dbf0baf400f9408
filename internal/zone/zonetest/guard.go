package zonetest

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Identity is what zones of tests show.
func Identity(name string) zone.Identity {
	return zone.Identity{Format: zone.Format, Repository: "00000000-0000-4000-8000-000000000001", Zone: name}
}

// Open initialises d and puts the guard before it, with a short deadline.
func Open(t testing.TB, d zone.Driver, name string) *zone.Zone {
	t.Helper()
	if err := zone.Initialise(t.Context(), d, Identity(name)); err != nil {
		t.Fatalf("initialise zone %s: %v", name, err)
	}
	return zone.Open(name, d, Identity(name), zone.Options{Timeout: 10 * time.Second})
}

// Guard is [Open] for [Run]: the identity is not listed, so that the zone looks
// empty.
func Guard(t testing.TB, d zone.Driver, name string) zone.Driver {
	return withoutIdentity{Open(t, d, name)}
}

type withoutIdentity struct{ *zone.Zone }

func (w withoutIdentity) List(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	return w.Zone.List(ctx, prefix, hide(yield))
}

func (w withoutIdentity) ListVersions(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	return w.Zone.ListVersions(ctx, prefix, hide(yield))
}

func hide(yield func(zone.Object) error) func(zone.Object) error {
	return func(o zone.Object) error {
		if o.Name == zone.IdentityName {
			return nil
		}
		return yield(o)
	}
}

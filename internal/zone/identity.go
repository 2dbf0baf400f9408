package zone

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// IdentityName is the object that says which zone of which repository this is.
const IdentityName = "holdfast.json"

// ProbePrefix is where Probe leaves what it could not remove; such objects do
// not make a zone occupied.
const ProbePrefix = "probe/"

// Format is the repository format that this program reads and writes.
const Format = 1

// ErrOccupied means that a zone that was to be initialised holds something.
var ErrOccupied = errors.New("zone holds something else")

const maxIdentity = 4 << 10

// Identity is what holdfast.json says.
type Identity struct {
	Format     int    `json:"format"`
	Repository string `json:"repository"`
	Zone       string `json:"zone"`
}

// check compares what was read with what was configured.
func (id Identity) check(want Identity) error {
	switch {
	case id.Format > Format:
		return fmt.Errorf("%s is of format %d, and this program knows format %d: use a newer one", IdentityName, id.Format, Format)
	case id.Repository != want.Repository:
		return fmt.Errorf("%s belongs to repository %q, not to %q", IdentityName, id.Repository, want.Repository)
	case id.Zone != want.Zone:
		return fmt.Errorf("%s belongs to zone %q, not to %q", IdentityName, id.Zone, want.Zone)
	case id != want:
		return fmt.Errorf("%s is of format %d, not %d", IdentityName, id.Format, want.Format)
	}
	return nil
}

// ReadIdentity reads a zone's holdfast.json: its oldest version where the store
// keeps them, because what was put on top of it later, a delete marker included,
// was not put there by Initialise. fs.ErrNotExist where there is none; it is the
// caller's to doubt that.
func ReadIdentity(ctx context.Context, r Reader) (Identity, error) {
	version, err := OldestIdentity(ctx, r)
	if err != nil {
		return Identity{}, fmt.Errorf("look for %s: %w", IdentityName, err)
	}
	return readIdentity(ctx, r, version)
}

// showsIdentity is ReadIdentity for a zone whose identity is known: one reading is
// enough where the latest version is it.
func showsIdentity(ctx context.Context, r Reader, want Identity) error {
	id, err := readIdentity(ctx, r, "")
	if err == nil {
		err = id.check(want)
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrUnreachable) {
		return err
	}
	version, lerr := OldestIdentity(ctx, r)
	if lerr != nil || version == "" {
		return err
	}
	if id, err = readIdentity(ctx, r, version); err != nil {
		return err
	}
	return id.check(want)
}

// OldestIdentity is the version of holdfast.json that was there first: whatever was laid
// over it later is not the zone's. It is "" where there are no versions, or none of it.
func OldestIdentity(ctx context.Context, r Reader) (version string, err error) {
	l, ok := r.(VersionLister)
	if !ok {
		return "", nil
	}
	err = l.ListVersions(ctx, IdentityName, func(o Object) error {
		if o.Name == IdentityName && !o.Marker {
			version = o.Version
		}
		return nil
	})
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return version, err
}

func readIdentity(ctx context.Context, r Reader, version string) (Identity, error) {
	body, err := r.Read(ctx, IdentityName, version, 0, maxIdentity)
	if err != nil {
		return Identity{}, fmt.Errorf("read %s: %w", IdentityName, err)
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxIdentity))
	if err != nil {
		return Identity{}, fmt.Errorf("read %s: %w", IdentityName, err)
	}
	var id Identity
	if err := json.Unmarshal(data, &id); err != nil {
		return Identity{}, fmt.Errorf("read %s: not a zone's identity: %w", IdentityName, err)
	}
	if id.Format < 1 || id.Repository == "" || id.Zone == "" {
		return Identity{}, fmt.Errorf("read %s: not a zone's identity: want format, repository and zone", IdentityName)
	}
	return id, nil
}

// Initialise makes an empty zone this one, for good; only `init` and `zone add`
// call it. A zone that bears the identity already is success; one that bears
// another, or holds any object (older versions too), is ErrOccupied.
func Initialise(ctx context.Context, d Driver, id Identity) error {
	if id.Format != Format || id.Repository == "" || id.Zone == "" {
		return fmt.Errorf("initialise zone: identity %+v: want format %d, a repository and a zone", id, Format)
	}
	switch have, err := ReadIdentity(ctx, d); {
	case err == nil:
		return occupied(have, id)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("initialise zone %s: %w", id.Zone, err)
	}
	err := d.ListVersions(ctx, "", func(o Object) error {
		if o.Marker || strings.HasPrefix(o.Name, ProbePrefix) {
			return nil
		}
		return fmt.Errorf("%w: %s; choose an empty directory, bucket or prefix", ErrOccupied, o.Name)
	})
	if err != nil {
		return fmt.Errorf("initialise zone %s: %w", id.Zone, err)
	}
	return claim(ctx, d, id)
}

func claim(ctx context.Context, d Driver, id Identity) error {
	body, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("initialise zone %s: %w", id.Zone, err)
	}
	body = append(body, '\n')
	err = d.Create(ctx, IdentityName, body, CreateOptions{SHA256: sha256.Sum256(body)})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("initialise zone %s: %w", id.Zone, err)
	}
	have, err := ReadIdentity(ctx, d)
	if err != nil {
		return fmt.Errorf("initialise zone %s: read back: %w", id.Zone, err)
	}
	return occupied(have, id)
}

func occupied(have, want Identity) error {
	if err := have.check(want); err != nil {
		return fmt.Errorf("initialise zone %s: %w: %w", want.Zone, ErrOccupied, err)
	}
	return nil
}

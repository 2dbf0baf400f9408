package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Examined is what one zone's copy of an object was found to be.
type Examined struct {
	Version string // that has the right bytes; "" for the latest
	Hidden  error  // what is wrong with the latest version, where an older one is right
}

// Examine reads what one zone holds of an object, every byte and as it comes, and
// compares its digest: no key is needed. pace, where it is not nil, is called before
// each n bytes and may wait. The error is fs.ErrNotExist where no version is there,
// zone.ErrDigest where none is right, any other where the zone gives no answer.
func (v *Vault) Examine(ctx context.Context, zoneName string, want Need, pace func(ctx context.Context, n int) error) (Examined, error) {
	m, err := v.memberNamed(zoneName)
	if err != nil {
		return Examined{}, err
	}
	x, err := m.examine(ctx, want, pace)
	if m.saw(err, 0); err != nil {
		return x, fmt.Errorf("examining %s: %w", want.Name, err)
	}
	return x, nil
}

func (v *Vault) memberNamed(name string) (*member, error) {
	for _, m := range v.members {
		if m.name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("the vault has no zone %q", name)
}

func (m *member) examine(ctx context.Context, want Need, pace func(context.Context, int) error) (x Examined, err error) {
	if err = m.sameBytes(ctx, want, "", pace); err == nil {
		return x, nil
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, zone.ErrDigest) {
		return x, err
	}
	older, lerr := m.versions(ctx, want.Name)
	if lerr != nil {
		return x, errors.Join(err, lerr)
	}
	for _, o := range older {
		if o.Version == "" || o.Size != want.Size {
			continue
		}
		if m.sameBytes(ctx, want, o.Version, pace) == nil {
			return Examined{o.Version, err}, nil
		}
	}
	return x, err
}

// sameBytes compares a version's digest without holding the version in memory.
func (m *member) sameBytes(ctx context.Context, want Need, version string, pace func(context.Context, int) error) error {
	body, err := m.Read(ctx, want.Name, version, 0, want.Size+1)
	if err != nil {
		return err
	}
	defer body.Close()
	h, buf := sha256.New(), make([]byte, 128<<10)
	var size int64
	for err == nil {
		var n int
		n, err = body.Read(buf)
		h.Write(buf[:n])
		size += int64(n)
		if pace != nil && n > 0 {
			if perr := pace(ctx, n); perr != nil {
				return perr
			}
		}
	}
	switch {
	case !errors.Is(err, io.EOF):
		return err
	case size != want.Size:
		return fmt.Errorf("%w: its size is not the %d bytes that were written", zone.ErrDigest, want.Size)
	case hex.EncodeToString(h.Sum(nil)) != want.SHA256:
		return fmt.Errorf("%w: SHA-256 is not the %s that was written", zone.ErrDigest, want.SHA256)
	}
	return nil
}

// lengthen makes every version that can be the object undeletable until a later moment,
// and tells until when the zone shows the oldest to be locked. errors.ErrUnsupported where
// the zone does not lock.
func (m *member) lengthen(ctx context.Context, want Need, until time.Time) (locked time.Time, err error) {
	defer func() { m.saw(err, 0) }()
	versions, err := m.versions(ctx, want.Name)
	if err != nil {
		return locked, err
	}
	versions = slices.DeleteFunc(versions, func(o zone.Object) bool { return o.Size != want.Size })
	if len(versions) == 0 {
		return locked, fs.ErrNotExist
	}
	for _, o := range versions {
		if err := m.ExtendLock(ctx, want.Name, o.Version, until); err != nil { // it never shortens
			return locked, fmt.Errorf("locking %s: %w", want.Name, err)
		}
	}
	oldest, err := m.Stat(ctx, want.Name, versions[0].Version)
	return oldest.LockedUntil, err
}

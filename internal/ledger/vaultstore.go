package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vault"
)

// FromReader reads the ledgers of a vault.
func FromReader(r vault.Reader) Source { return vaultSource{r} }

// FromWriter keeps a ledger in a vault; lockUntil says how long from now each
// object is to be locked, nil: not at all.
func FromWriter(w vault.Writer, lockUntil func() time.Time) Store {
	return vaultStore{vaultSource{w.Reader}, w, lockUntil}
}

type vaultSource struct{ r vault.Reader }

func (s vaultSource) Fetch(ctx context.Context, name string, accept func(string, []byte) error) ([]byte, error) {
	return s.r.Fetch(ctx, name, accept)
}

func (s vaultSource) List(ctx context.Context, prefix string) ([]string, error) {
	l, err := s.r.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	if !l.Complete {
		return nil, fmt.Errorf("list %s: %w: %v", prefix, vault.ErrDoubt, l.Zones)
	}
	names := make([]string, len(l.Objects))
	for i, o := range l.Objects {
		names[i] = o.Name
	}
	return names, nil
}

type vaultStore struct {
	vaultSource
	w         vault.Writer
	lockUntil func() time.Time
}

func (s vaultStore) Put(ctx context.Context, name string, body []byte) error {
	var opt vault.PutOptions
	if s.lockUntil != nil {
		opt.LockUntil = s.lockUntil()
	}
	_, err := s.w.Put(ctx, name, body, opt)
	if errors.Is(err, vault.ErrConflict) {
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	}
	return err
}

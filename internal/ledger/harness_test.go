package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

var (
	errDown = errors.New("zone is down")
	start   = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
)

// zones are directories with a quorum over them; a zone that is down does not
// answer. before may fail any act.
type zones struct {
	dirs   []string
	quorum int

	mu     sync.Mutex
	down   map[int]bool
	before func(act, name string) error
	puts   []string
}

func newZones(t testing.TB, n, quorum int) *zones {
	z := &zones{quorum: quorum, down: map[int]bool{}}
	for range n {
		z.dirs = append(z.dirs, t.TempDir())
	}
	return z
}

func (z *zones) set(down bool, which ...int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, i := range which {
		z.down[i] = down
	}
}

func (z *zones) up(act, name string) (dirs []string, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.before != nil {
		if err := z.before(act, name); err != nil {
			return nil, err
		}
	}
	for i, d := range z.dirs {
		if !z.down[i] {
			dirs = append(dirs, d)
		}
	}
	return dirs, nil
}

func (z *zones) Put(_ context.Context, name string, body []byte) error {
	dirs, err := z.up("put", name)
	if err != nil {
		return err
	}
	held := 0
	for _, d := range dirs {
		path := filepath.Join(d, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		err := durable.Create(path, body, 0o600)
		if there, rerr := os.ReadFile(path); errors.Is(err, fs.ErrExist) && (rerr != nil || !bytes.Equal(there, body)) {
			return err
		}
		held++
	}
	if held < z.quorum {
		return fmt.Errorf("put %s: %w: %d of %d", name, errDown, held, z.quorum)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.puts = append(z.puts, name)
	return nil
}

func (z *zones) Fetch(ctx context.Context, name string, accept func(string, []byte) error) ([]byte, error) {
	dirs, err := z.up("get", name)
	last := cmpOr(err, errDown)
	for _, d := range dirs {
		body, err := Dir(d).Fetch(ctx, name, accept)
		if err == nil {
			return body, nil
		}
		last = err
	}
	return nil, last
}

func (z *zones) List(ctx context.Context, prefix string) ([]string, error) {
	dirs, err := z.up("list", prefix)
	if err != nil || len(dirs) < len(z.dirs)-z.quorum+1 {
		return nil, cmpOr(err, errDown)
	}
	var names []string
	for _, d := range dirs {
		n, err := Dir(d).List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		names = append(names, n...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// bench is a node with its key and the zones.
type bench struct {
	t     testing.TB
	zones *zones
	conf  Config
	trust seal.Trust
	vkey  string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	skey, vkey, err := seal.NewSigningKey("db1")
	if err != nil {
		t.Fatal(err)
	}
	signer, _, err := seal.LoadSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, May: []string{"ledger"}}})
	if err != nil {
		t.Fatal(err)
	}
	z := newZones(t, 3, 2)
	var mu sync.Mutex
	now := start
	return &bench{t, z, Config{
		Dir: t.TempDir(), Repository: "repo1", Origin: "db1", Signer: signer, Trust: trust, Store: z,
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(time.Second); return now },
	}, trust, vkey}
}

func (b *bench) open() *Ledger {
	b.t.Helper()
	l, err := Open(b.conf)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	return l
}

func (b *bench) append(l *Ledger, n int) {
	b.t.Helper()
	for i := range n {
		_, err := l.Append(b.t.Context(), Entry{Type: TypeConfig, Body: map[string]int{"n": i}})
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) anchor(l *Ledger) Checkpoint {
	b.t.Helper()
	c, err := l.Anchor(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) verify(src Source) Report {
	b.t.Helper()
	r, err := Verify(b.t.Context(), src, b.trust, VerifyOptions{Repository: "repo1", Now: start.Add(time.Hour)})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bench) sound(src Source) Report {
	b.t.Helper()
	r := b.verify(src)
	if len(r.Faults) > 0 {
		b.t.Fatalf("%d faults, the first: %v", len(r.Faults), r.Faults[0])
	}
	return r
}

func flip(t testing.TB, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

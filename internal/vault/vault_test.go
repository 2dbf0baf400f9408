package vault_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

// unruly is a real directory zone's driver whose calls can be made to hang until
// released, to take their time, or to fail.
type unruly struct {
	zone.Driver
	mu    sync.Mutex
	hang  chan struct{} // nil: calls go on
	fault error
	delay time.Duration
	asked int // calls
	hung  int
	peak  int
}

func (u *unruly) set(f func(*unruly)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f(u)
}

func (u *unruly) suspend() (release func()) {
	ch := make(chan struct{})
	u.set(func(u *unruly) { u.hang = ch })
	return sync.OnceFunc(func() {
		u.set(func(u *unruly) { u.hang = nil })
		close(ch)
	})
}

func (u *unruly) fail(err error) { u.set(func(u *unruly) { u.fault = err }) }

// MayVanish is a directory's answer, which the embedded interface hides.
func (u *unruly) MayVanish() bool { return true }

// obey is called first by every call. It ignores the context while it hangs, as
// a dead mount does.
func (u *unruly) obey(ctx context.Context) error {
	u.mu.Lock()
	hang, fault, delay := u.hang, u.fault, u.delay
	u.asked++
	if hang != nil {
		u.hung++
		u.peak = max(u.peak, u.hung)
	}
	u.mu.Unlock()
	if hang != nil {
		<-hang
		u.set(func(u *unruly) { u.hung-- })
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return fault
}

func (u *unruly) Create(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	if err := u.obey(ctx); err != nil {
		return err
	}
	return u.Driver.Create(ctx, name, body, opt)
}

func (u *unruly) Repair(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	if err := u.obey(ctx); err != nil {
		return err
	}
	return u.Driver.Repair(ctx, name, body, opt)
}

func (u *unruly) Read(ctx context.Context, name, version string, off, n int64) (io.ReadCloser, error) {
	if err := u.obey(ctx); err != nil {
		return nil, err
	}
	return u.Driver.Read(ctx, name, version, off, n)
}

func (u *unruly) Stat(ctx context.Context, name, version string) (zone.Object, error) {
	if err := u.obey(ctx); err != nil {
		return zone.Object{}, err
	}
	return u.Driver.Stat(ctx, name, version)
}

func (u *unruly) List(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	if err := u.obey(ctx); err != nil {
		return err
	}
	return u.Driver.List(ctx, prefix, yield)
}

func (u *unruly) ListVersions(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	if err := u.obey(ctx); err != nil {
		return err
	}
	return u.Driver.ListVersions(ctx, prefix, yield)
}

func (u *unruly) RemoveVersion(ctx context.Context, name, version string) error {
	if err := u.obey(ctx); err != nil {
		return err
	}
	return u.Driver.RemoveVersion(ctx, name, version)
}

// house is some directory zones, and the vault over them.
type house struct {
	t     *testing.T
	roots []string
	zones []*unruly
	conf  vault.Config
	*vault.Vault

	mu  sync.Mutex
	bad []string // "zone name" of each bad copy that was reported
}

var names = []string{"a", "b", "c", "d", "e"}

func build(t *testing.T, n, quorum int, with ...func(*vault.Config)) *house {
	t.Helper()
	h := &house{t: t}
	h.conf = vault.Config{
		Quorum: quorum, State: filepath.Join(t.TempDir(), "vault"), Log: zaptest.NewLogger(t),
		SlowAfter: 100 * time.Millisecond, RetryAfter: 20 * time.Millisecond,
		OnBad: func(zone, name string, _ error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.bad = append(h.bad, zone+" "+name)
		},
	}
	for i := range n {
		root := t.TempDir()
		d, err := dirzone.New(root)
		if err != nil {
			t.Fatal(err)
		}
		u := &unruly{Driver: d}
		id := zonetest.Identity(names[i])
		if err := zone.Initialise(t.Context(), u, id); err != nil {
			t.Fatal(err)
		}
		h.roots, h.zones = append(h.roots, root), append(h.zones, u)
		h.conf.Zones = append(h.conf.Zones, zone.Open(names[i], u, id, zone.Options{Timeout: 2 * time.Second}))
	}
	for _, f := range with {
		f(&h.conf)
	}
	h.open()
	t.Cleanup(func() { h.Close() })
	return h
}

func (h *house) open() {
	h.t.Helper()
	v, err := vault.Open(h.conf)
	if err != nil {
		h.t.Fatal(err)
	}
	h.Vault = v
}

// restart closes the vault and opens it on the same journals.
func (h *house) restart() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.open()
}

// run runs the vault until the test or the returned function ends it.
func (h *house) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(stop)
	return stop
}

func (h *house) put(name string, body []byte) vault.Stored {
	h.t.Helper()
	st, err := h.Writer().Put(h.t.Context(), name, body, vault.PutOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

// file is an object's place in a zone's directory.
func (h *house) file(i int, name string) string { return filepath.Join(h.roots[i], name) }

func (h *house) reported() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.bad...)
}

// holds says whether the zone's directory has exactly these bytes.
func (h *house) holds(i int, name string, body []byte) bool {
	data, err := os.ReadFile(h.file(i, name))
	return err == nil && bytes.Equal(data, body)
}

func (h *house) everywhere(name string, body []byte) bool {
	for i := range h.zones {
		if !h.holds(i, name, body) {
			return false
		}
	}
	return true
}

// eventually waits for what happens in the background.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it never happened: %s", what)
		}
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func body(n int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%08d", n)), 100) }

func need(name string, b []byte) vault.Need {
	return vault.Need{Name: name, Size: int64(len(b)), SHA256: digest(b)}
}

// rot flips a bit of a file where it lies.
func rot(t testing.TB, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

var errBroken = errors.New("the disk is on fire")

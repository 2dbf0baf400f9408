package zone

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Prober is a driver that can try what the contract forbids, so that Probe sees
// the store refuse it and not our own care.
type Prober interface {
	// LockMode is the configured one: "", "governance" or "compliance".
	LockMode() string
	// TryCorrupt sends a body with the checksum of another: ErrDigest where the
	// store refuses it.
	TryCorrupt(ctx context.Context, name string, body []byte) error
	// TryShorten asks for an earlier end of a lock: nil where the store obeys.
	TryShorten(ctx context.Context, name, version string, until time.Time) error
	// TryBypass removes a locked version with whatever rights the credentials
	// have: ErrLocked where the store refuses.
	TryBypass(ctx context.Context, name, version string) error
}

// ProbeResult is what a zone was seen to do. A false means "not seen".
type ProbeResult struct {
	Zone string    `json:"zone"`
	At   time.Time `json:"at"`
	// ConditionalCreate: of 16 racing creations one won and its bytes stayed.
	ConditionalCreate bool `json:"conditional_create"`
	// Versions: replaced bytes were still read by their version.
	Versions bool `json:"versions"`
	// Lock is the configured mode if the store was seen to refuse the removal
	// of a locked version ("compliance" only if with bypass as well), else "none";
	// [LockUnknown] where it answered too slowly to tell.
	Lock              string  `json:"lock"`
	ShorteningRefused bool    `json:"shortening_refused"`
	BypassPossible    bool    `json:"bypass_possible"`   // these credentials removed a locked version
	DefaultRetention  bool    `json:"default_retention"` // an object came out locked that was not to be
	ListAfterWrite    bool    `json:"list_after_write"`
	RangeRead         bool    `json:"range_read"`
	ChecksumRefused   bool    `json:"checksum_refused"`
	ClockSkewSeconds  float64 `json:"clock_skew_seconds"` // the store's clock less ours
	// NotAssessed and Left: what could not be tried, with the reason, and
	// objects that could not be removed again.
	NotAssessed []string `json:"not_assessed,omitempty"`
	Left        []string `json:"left,omitempty"`
}

// LockUnknown is the lock of a zone that could not be tried within it.
const LockUnknown = "unknown"

// probeLock is how long a probe object is locked. It is waited for, so that the
// object can be removed.
const probeLock = 6 * time.Second

type probe struct {
	z      *Zone
	r      ProbeResult
	dir    string
	body   []byte
	skew   time.Duration
	prober Prober // nil where the driver is none
}

// Probe tries what the zone really does, on objects of its own under probe/,
// which it removes where it can. It takes some seconds where locks are on. The
// error is that of a zone that does not answer; what a store cannot do is a
// result.
func Probe(ctx context.Context, z *Zone, now time.Time) (ProbeResult, error) {
	p := &probe{z: z, dir: ProbePrefix + rand.Text() + "/", body: []byte("holdfast was here: 0123456789")}
	p.r = ProbeResult{Zone: z.Name(), At: now.UTC(), Lock: "none"}
	p.prober, _ = z.d.(Prober)
	for _, step := range []func(context.Context) error{p.plain, p.race, p.versions, p.checksum, p.lock, p.clean} {
		if err := step(ctx); err != nil {
			p.leave(ctx)
			return p.r, fmt.Errorf("probe zone %s: %w", z.Name(), err)
		}
	}
	return p.r, nil
}

func (p *probe) create(ctx context.Context, name string, lockUntil time.Time) error {
	return p.z.Create(ctx, p.dir+name, p.body, CreateOptions{SHA256: sha256.Sum256(p.body), LockUntil: lockUntil})
}

// read is nil bytes where the store refuses or does not know.
func (p *probe) read(ctx context.Context, name, version string, off, n int64) ([]byte, error) {
	rc, err := p.z.Read(ctx, p.dir+name, version, off, n)
	if err != nil {
		return nil, unlessUnreachable(err)
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	return data, unlessUnreachable(err)
}

func unlessUnreachable(err error) error {
	if errors.Is(err, ErrUnreachable) {
		return err
	}
	return nil
}

func (p *probe) plain(ctx context.Context) error {
	begin := time.Now()
	if err := p.create(ctx, "plain", time.Time{}); err != nil {
		return err
	}
	middle := begin.Add(time.Since(begin) / 2)
	err := p.z.List(ctx, p.dir, func(o Object) error {
		p.r.ListAfterWrite = p.r.ListAfterWrite || o.Name == p.dir+"plain"
		return nil
	})
	if err != nil {
		return err
	}
	o, err := p.z.Stat(ctx, p.dir+"plain", "")
	if err != nil {
		return err
	}
	p.skew = o.Modified.Sub(middle)
	p.r.ClockSkewSeconds = p.skew.Seconds()
	if p.skew < time.Second && p.skew > -time.Second-time.Since(begin) {
		p.skew, p.r.ClockSkewSeconds = 0, 0 // stores tell whole seconds
	}
	p.r.DefaultRetention = !o.LockedUntil.IsZero()
	got, err := p.read(ctx, "plain", "", 5, 7)
	p.r.RangeRead = bytes.Equal(got, p.body[5:12])
	return err
}

func (p *probe) race(ctx context.Context) error {
	const n = 16
	bodies := make([][]byte, n)
	var won, lost atomic.Int32
	winner := -1
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		bodies[i] = fmt.Appendf(nil, "racer %d", i)
		wg.Go(func() {
			err := p.z.Create(ctx, p.dir+"race", bodies[i], CreateOptions{SHA256: sha256.Sum256(bodies[i])})
			switch {
			case err == nil:
				won.Add(1)
			case errors.Is(err, fs.ErrExist):
				lost.Add(1)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			winner = i
		} else if err := unlessUnreachable(err); err != nil {
			return err
		}
	}
	got, err := p.read(ctx, "race", "", 0, -1)
	p.r.ConditionalCreate = won.Load() == 1 && lost.Load() == n-1 && bytes.Equal(got, bodies[winner])
	return err
}

func (p *probe) versions(ctx context.Context) error {
	if err := p.create(ctx, "versions", time.Time{}); err != nil {
		return err
	}
	first, err := p.z.Stat(ctx, p.dir+"versions", "")
	if err != nil {
		return err
	}
	second := []byte("a later version")
	if err := p.z.Repair(ctx, p.dir+"versions", second, CreateOptions{SHA256: sha256.Sum256(second)}); err != nil {
		return err
	}
	if first.Version == "" {
		return nil
	}
	got, err := p.read(ctx, "versions", first.Version, 0, -1)
	p.r.Versions = bytes.Equal(got, p.body)
	return err
}

func (p *probe) checksum(ctx context.Context) error {
	var err error
	if p.prober != nil {
		err = p.prober.TryCorrupt(ctx, p.dir+"corrupt", p.body)
	} else {
		err = p.z.Create(ctx, p.dir+"corrupt", p.body, CreateOptions{SHA256: sha256.Sum256(nil)})
	}
	p.r.ChecksumRefused = errors.Is(err, ErrDigest)
	return unlessUnreachable(err)
}

func (p *probe) lock(ctx context.Context) error {
	if p.prober == nil || p.prober.LockMode() == "" {
		p.r.NotAssessed = append(p.r.NotAssessed, "locks: the zone is configured without")
		return nil
	}
	until := time.Now().Add(p.skew + probeLock)
	err := p.create(ctx, "locked", until)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	o, err := p.z.Stat(ctx, p.dir+"locked", "")
	if err != nil || o.LockedUntil.Before(until) {
		return err
	}
	err = p.prober.TryShorten(ctx, o.Name, o.Version, until.Add(-probeLock/2))
	p.r.ShorteningRefused = err != nil
	if again, err := p.z.Stat(ctx, o.Name, o.Version); err != nil || again.LockedUntil.Before(o.LockedUntil) {
		p.r.ShorteningRefused = false
		return unlessUnreachable(err)
	}
	return p.removal(ctx, o)
}

// removal tries to remove a locked version, then waits for the lock to end.
func (p *probe) removal(ctx context.Context, o Object) error {
	plain := p.z.RemoveVersion(ctx, o.Name, o.Version)
	bypass := p.prober.TryBypass(ctx, o.Name, o.Version)
	if time.Now().Add(p.skew).After(o.LockedUntil.Add(-time.Second)) {
		p.r.NotAssessed = append(p.r.NotAssessed, "locks: the zone answered too slowly to try within the lock")
		p.r.Lock = LockUnknown
		return nil
	}
	p.r.BypassPossible = plain == nil || bypass == nil
	switch {
	case !errors.Is(plain, ErrLocked):
		return unlessUnreachable(plain)
	case p.prober.LockMode() == "compliance" && errors.Is(bypass, ErrLocked):
		p.r.Lock = "compliance"
	default:
		p.r.Lock = "governance"
	}
	timer := time.NewTimer(time.Until(o.LockedUntil.Add(time.Second - p.skew)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave removes what a probe that did not end made, as far as that is soon done.
func (p *probe) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = p.clean(ctx) // the probe's own error is the one to tell
}

func (p *probe) clean(ctx context.Context) error {
	var all []Object
	err := p.z.ListVersions(ctx, p.dir, func(o Object) error { all = append(all, o); return nil })
	if err != nil {
		return err
	}
	for _, o := range all {
		if err := p.z.RemoveVersion(ctx, o.Name, o.Version); err != nil {
			p.r.Left = append(p.r.Left, o.Name)
		}
	}
	slices.Sort(p.r.Left)
	p.r.Left = slices.Compact(p.r.Left)
	return nil
}

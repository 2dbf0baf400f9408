package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// store is what the vault needs of a zone.
type store interface {
	Name() string
	zone.Creator
	zone.Reader
	zone.Lister
	zone.VersionLister
	zone.LockExtender
	zone.Repairer
	zone.Remover
}

// member is one zone of the vault with what is known of its health and what it
// has not got yet.
type member struct {
	store
	name  string
	slots chan struct{} // writes in flight
	bulk  chan struct{} // of these, what may wait
	debts *debts
	kick  chan struct{} // wakes the back-fill
	// returned hears that the zone answered again after a fault.
	returned func()

	mu      sync.Mutex
	fault   error
	ill     time.Time // until when it is not waited for: see unwell
	lastOK  time.Time
	stale   bool          // it was away: what the others know of removals it may not know yet
	doubted time.Time     // when it was last made stale without having been away
	pace    time.Duration // moving average of a read, for each MiB begun
	sampled time.Time
}

func newMember(z store, returned func()) *member {
	return &member{
		store: z, name: z.Name(), debts: newDebts(), returned: returned,
		slots: make(chan struct{}, writesPerZone),
		bulk:  make(chan struct{}, bulkPerZone),
		kick:  make(chan struct{}, 1),
	}
}

func (m *member) wake() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// saw notes how a call ended; took is zero where it says nothing about speed.
func (m *member) saw(err error, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	switch {
	case sick(err):
		m.fault, m.ill, m.stale = err, now.Add(convalescence), true
	case errors.Is(err, context.Canceled):
		// We gave up: that tells of its speed at most.
	default:
		if m.fault != nil {
			m.fault = nil
			m.wake()
			m.returned()
		}
		m.lastOK, m.ill = now, time.Time{}
	}
	if took > 0 {
		m.pace, m.sampled = (m.aged(now)*3+took)/4, now
	}
}

// convalescence is for how long a zone that failed, or was given up on, is asked
// but not waited for where the others suffice.
const convalescence = 30 * time.Second

// gaveUp notes that the zone did not answer while it was waited for. A zone whose
// every call is cancelled would never be seen to fail.
func (m *member) gaveUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ill = time.Now().Add(convalescence)
}

func (m *member) unwell() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Before(m.ill)
}

// patience is how long a read of that many bytes may take before another zone is
// asked too: what is big is not slow.
func (m *member) patience(slowAfter time.Duration, size int64) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	expected := 100 * time.Millisecond
	if m.pace > 0 {
		expected = 3 * m.pace
	}
	return slowAfter + time.Duration(size>>20)*expected
}

// aged is the pace as far as it still counts: an old sample fades, so that a
// zone that was slow once is tried again. The caller holds the lock.
func (m *member) aged(now time.Time) time.Duration {
	fade := math.Exp2(-now.Sub(m.sampled).Minutes())
	return time.Duration(float64(m.pace) * fade)
}

func (m *member) health() (lastOK time.Time, fault error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lastOK, m.fault
}

// score orders zones for reading: the lower the better. One that came back serves
// when all others fail until it is reconciled.
func (m *member) score(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	score := m.aged(now)
	if m.fault != nil || now.Before(m.ill) {
		score += time.Hour
	}
	if m.stale {
		score += 2 * time.Hour
	}
	return score
}

// suspected makes it stale, at most once in every; false: it was suspected just now.
func (m *member) suspected(every time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if m.stale || now.Sub(m.doubted) < every {
		return false
	}
	m.stale, m.doubted = true, now
	return true
}

func (m *member) isStale() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stale
}

// reconciled says whether it was stale until now; one that failed meanwhile stays so.
func (m *member) reconciled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.stale && m.fault == nil
	m.stale = m.stale && !was
	return was
}

// ranked is the members, best first, ties in their configured order.
func ranked(members []*member) []*member {
	now := time.Now()
	scores := make(map[*member]time.Duration, len(members))
	for _, m := range members {
		scores[m] = m.score(now).Round(time.Millisecond)
	}
	out := slices.Clone(members)
	slices.SortStableFunc(out, func(a, b *member) int { return int((scores[a] - scores[b]) / time.Millisecond) })
	return out
}

// body reads a version whole, refusing more than limit bytes.
func (m *member) body(ctx context.Context, name, version string, limit int64) ([]byte, error) {
	r, err := m.Read(ctx, name, version, 0, -1)
	if err != nil {
		return nil, err
	}
	var got bytes.Buffer
	if limit != maxNote && limit != maxObject { // it is the size: memory for it is taken once
		got.Grow(int(limit) + 1 + bytes.MinRead)
	}
	_, err = got.ReadFrom(io.LimitReader(r, limit+1))
	data := got.Bytes()
	err = errors.Join(err, r.Close())
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("reading %s: longer than %d bytes: %w", name, limit, zone.ErrDigest)
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

var errEnough = errors.New("enough was listed")

// versions lists what the zone keeps under exactly this name, oldest first,
// delete markers left out.
func (m *member) versions(ctx context.Context, name string) ([]zone.Object, error) {
	var out []zone.Object
	err := m.eachVersion(ctx, name, func(o zone.Object) error {
		if o.Marker {
			return nil
		}
		if len(out) == maxVersions { // the oldest are those that count
			out = slices.Delete(out, 0, 1)
		}
		out = append(out, o)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(out)
	return out, nil
}

// eachVersion gives yield what is kept under exactly this name, newest first, delete
// markers included. errEnough from yield ends it.
func (m *member) eachVersion(ctx context.Context, name string, yield func(zone.Object) error) error {
	if single, ok := m.store.(zone.SingleVersion); ok && single.SingleVersion() {
		o, err := m.Stat(ctx, name, "")
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err == nil:
			err = yield(o)
		}
		return enough(err)
	}
	exactly := func(o zone.Object) error {
		if o.Name != name {
			return errEnough // names come in order: the name itself is first
		}
		return yield(o)
	}
	err := m.ListVersions(ctx, name, exactly)
	if errors.Is(err, errors.ErrUnsupported) {
		err = m.List(ctx, name, exactly)
	}
	return enough(err)
}

func enough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Reader reads from the best zone and falls over to the next.
type Reader struct {
	v *Vault
}

// Only restricts reading to the named zones. Proof of absence needs all of them
// then, and an unknown name is a zone that never answers.
func (r Reader) Only(zones ...string) Reader {
	view := r.v.View(zones)
	view.only = true
	return Reader{v: view}
}

// Zones names the zones that are read.
func (r Reader) Zones() []string {
	names := make([]string, len(r.v.members))
	for i, m := range r.v.members {
		names[i] = m.name
	}
	return names
}

// Get returns the object whole when its size and SHA-256 (hex) match, from the
// first zone that has it so, older versions included. Copies that are wrong or
// missing are told to Config.OnBad and queued to be healed. It asks the next
// zone on error, on mismatch and after Config.SlowAfter; the error is
// fs.ErrNotExist when N-W+1 zones say so, else ErrNoGoodCopy or ErrDoubt.
func (r Reader) Get(ctx context.Context, name string, size int64, sha256 string) ([]byte, error) {
	want := Need{Name: name, Size: size, SHA256: sha256}
	return r.v.get(ctx, want, r.v.placed(name))
}

func (v *Vault) get(ctx context.Context, want Need, s set) ([]byte, error) {
	if want.Size < 0 || want.Size > maxObject {
		return nil, fmt.Errorf("reading %s: size %d is outside 0 to %d", want.Name, want.Size, maxObject)
	}
	check := func(body []byte) error { return matches(body, want) }
	return v.race(ctx, want, want.Size, s, func(ctx context.Context, m *member) ([]byte, error, error) {
		return m.latestOr(ctx, want.Name, want.Size, check)
	})
}

func matches(body []byte, want Need) error {
	if int64(len(body)) != want.Size {
		return fmt.Errorf("%w: %d bytes where %d were written", zone.ErrDigest, len(body), want.Size)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != want.SHA256 {
		return fmt.Errorf("%w: SHA-256 is %x where %s was written", zone.ErrDigest, sum, want.SHA256)
	}
	return nil
}

// latestOr reads the latest version and, where that is not it, the older ones,
// oldest first: whatever was put on top later changes nothing. taint is what was
// wrong with the latest when an older one is good.
func (m *member) latestOr(ctx context.Context, name string, limit int64, check func([]byte) error) (body []byte, taint, err error) {
	body, err = m.body(ctx, name, "", limit)
	if err == nil {
		err = check(body)
	}
	if err == nil || !(errors.Is(err, fs.ErrNotExist) || errors.Is(err, zone.ErrDigest)) {
		return body, nil, err
	}
	older, listErr := m.versions(ctx, name)
	if listErr != nil {
		return nil, nil, errors.Join(err, listErr)
	}
	for _, o := range older {
		if o.Version == "" || (o.Latest && !errors.Is(err, fs.ErrNotExist)) {
			continue
		}
		if body, oldErr := m.body(ctx, name, o.Version, limit); oldErr == nil && check(body) == nil {
			return body, err, nil
		}
	}
	return nil, nil, err
}

// Fetch gives accept the bytes that zones hold under name until it returns nil,
// and returns those: for signed notes, whose digest nobody knows. Every version
// is tried, oldest first, so that what was put on top later hides nothing.
// accept is never called twice at once, nor after Fetch returned.
func (r Reader) Fetch(ctx context.Context, name string, accept func(zoneName string, body []byte) error) ([]byte, error) {
	var gate sync.Mutex
	closed := false
	defer func() {
		gate.Lock()
		closed = true
		gate.Unlock()
	}()
	ask := func(ctx context.Context, m *member) ([]byte, error, error) {
		body, err := m.oldest(ctx, name, func(body []byte) error {
			gate.Lock()
			defer gate.Unlock()
			if closed {
				return context.Canceled
			}
			err := accept(m.name, body)
			closed = err == nil
			return err
		})
		return body, nil, err
	}
	return r.v.race(ctx, Need{Name: name}, 0, r.v.placed(name), ask)
}

// oldest tries all versions, oldest first.
func (m *member) oldest(ctx context.Context, name string, accept func([]byte) error) ([]byte, error) {
	all, err := m.versions(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	var refused []error
	for _, o := range all {
		body, err := m.body(ctx, name, o.Version, maxNote)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, zone.ErrDigest) {
			return nil, err
		}
		if err == nil {
			if err = accept(body); err == nil {
				return body, nil
			}
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		refused = append(refused, err)
	}
	return nil, errors.Join(refused...)
}

// errRefused is a copy that the caller did not accept.
var errRefused = errors.New("refused")

// Range returns n bytes from off on of an object of that size, fewer where it
// ends, from the best zone. They are NOT verified: the caller checks them, and
// on a mismatch asks RangeAccept or RangeFrom.
func (r Reader) Range(ctx context.Context, name string, size, off, n int64) ([]byte, error) {
	return r.RangeAccept(ctx, Need{Name: name, Size: size}, off, n, allocate, func(string, []byte) error { return nil })
}

// RangeAccept is Range with a check: a range that accept refuses is a bad copy,
// which is reported and healed, and the next zone is asked. memory gives the bytes
// that an answer is read into; what a slower zone reads into is not handed back.
// accept and memory may be called at the same time for several zones.
func (r Reader) RangeAccept(ctx context.Context, want Need, off, n int64, memory func(n int64) []byte, accept func(zoneName string, part []byte) error) ([]byte, error) {
	if off < 0 || n < 0 || off > want.Size || n > maxObject {
		return nil, fmt.Errorf("reading %s: range of %d bytes from %d on is outside its %d bytes", want.Name, n, off, want.Size)
	}
	n = min(n, want.Size-off)
	return r.v.race(ctx, want, n, r.v.placed(want.Name), func(ctx context.Context, m *member) ([]byte, error, error) {
		return m.part(ctx, want, off, n, memory, func(part []byte) error { return accept(m.name, part) })
	})
}

// RangeFrom reads the range from one zone.
func (r Reader) RangeFrom(ctx context.Context, zoneName, name string, size, off, n int64) ([]byte, error) {
	return r.Only(zoneName).Range(ctx, name, size, off, n)
}

// part reads a range of the latest version and, where that is not it, of the
// older ones of the right size.
func (m *member) part(ctx context.Context, want Need, off, n int64, memory func(int64) []byte, accept func([]byte) error) (body []byte, taint, err error) {
	body, err = m.piece(ctx, want.Name, "", off, n, memory, accept)
	if err == nil || !(errors.Is(err, fs.ErrNotExist) || errors.Is(err, zone.ErrDigest)) {
		return body, nil, err
	}
	older, listErr := m.versions(ctx, want.Name)
	if listErr != nil {
		return nil, nil, errors.Join(err, listErr)
	}
	for _, o := range older {
		if o.Version == "" || o.Size != want.Size {
			continue
		}
		if body, oldErr := m.piece(ctx, want.Name, o.Version, off, n, memory, accept); oldErr == nil {
			return body, err, nil
		}
	}
	return nil, nil, err
}

func allocate(n int64) []byte { return make([]byte, n) }

func (m *member) piece(ctx context.Context, name, version string, off, n int64, memory func(int64) []byte, accept func([]byte) error) ([]byte, error) {
	r, err := m.Read(ctx, name, version, off, n)
	if err != nil {
		return nil, err
	}
	body := memory(n)
	got, err := io.ReadFull(r, body)
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%w: %s ends after %d bytes of the %d from %d on", zone.ErrDigest, name, got, n, off)
	}
	if err != nil {
		return nil, err
	}
	if err := accept(body); err != nil {
		return nil, fmt.Errorf("%w: %w", zone.ErrDigest, err)
	}
	return body, nil
}

type answer struct {
	m          *member
	body       []byte
	taint, err error
}

// race asks the zones of a set, best first: the next one as soon as one fails,
// and another whenever one takes longer than
// a read of that size should. The first good answer
// wins; the others are cancelled and not waited for.
func (v *Vault) race(ctx context.Context, want Need, size int64, s set, ask func(context.Context, *member) ([]byte, error, error)) ([]byte, error) {
	if v.removals.has(want.Name) {
		return nil, fmt.Errorf("reading %s: %w", want.Name, ErrRemoved)
	}
	racing, cancel := context.WithCancel(ctx)
	defer cancel()
	order := ranked(s.members)
	answers := make(chan answer, len(order))
	started, failed := 0, map[string]error{}
	slow := time.NewTimer(v.cfg.SlowAfter)
	start := func() {
		if started < len(order) {
			m := order[started]
			started++
			go func() { answers <- timed(racing, m, size, ask) }()
			slow.Reset(m.patience(v.cfg.SlowAfter, size))
		}
	}
	start()
	defer slow.Stop()
	for len(failed) < len(order) {
		select {
		case a := <-answers:
			if a.err == nil {
				v.tell(want, a, failed)
				return a.body, nil
			}
			failed[a.m.name] = a.err
			start()
		case <-slow.C:
			start()
		case <-ctx.Done():
			return nil, fmt.Errorf("reading %s: %w", want.Name, context.Cause(ctx))
		}
	}
	v.tell(want, answer{}, failed)
	return nil, &Faults{Act: "reading " + want.Name, Kind: kindOf(failed, s), Zones: failed}
}

func timed(ctx context.Context, m *member, size int64, ask func(context.Context, *member) ([]byte, error, error)) answer {
	begun := time.Now()
	body, taint, err := ask(ctx, m)
	if err == nil || sick(err) || errors.Is(err, context.Canceled) {
		m.saw(err, time.Since(begun)/time.Duration(1+size>>20))
	} else {
		m.saw(err, 0)
	}
	return answer{m, body, taint, err}
}

// kindOf says what the zones' faults amount to.
func kindOf(failed map[string]error, s set) error {
	absent, wrong := 0, false
	for _, err := range failed {
		switch {
		case sick(err):
		case errors.Is(err, zone.ErrDigest), errors.Is(err, errRefused):
			wrong = true
		case errors.Is(err, fs.ErrNotExist):
			absent++
		}
	}
	switch {
	case wrong:
		return ErrNoGoodCopy
	case absent >= s.proof() && s.n > 0:
		return fs.ErrNotExist
	default:
		return ErrDoubt
	}
}

// tell reports the copies that were found bad on the way to an answer, and
// queues their repair where the right bytes are known.
func (v *Vault) tell(want Need, good answer, failed map[string]error) {
	bad := maps.Clone(failed)
	if good.taint != nil {
		bad[good.m.name] = good.taint
	}
	for _, m := range v.members {
		err, found := bad[m.name]
		if !found || sick(err) || errors.Is(err, ErrGoOn) {
			continue
		}
		missing := errors.Is(err, fs.ErrNotExist)
		if missing && (good.m == nil || m.owes(want.Name)) {
			continue // known already, or perhaps nowhere at all
		}
		if missing || errors.Is(err, zone.ErrDigest) || errors.Is(err, errRefused) {
			v.bad(m.name, want.Name, err)
			v.queueHeal(m, want)
			if missing && want.SHA256 == "" {
				v.suspect(m, want.Name)
			}
		}
	}
}

// suspect has a zone compared that lacks a note which another shows, and owes none: it
// may be an older state of itself that came back unseen.
func (v *Vault) suspect(m *member, name string) {
	if v.cfg.State == "" || v.barred(name) || v.flights.busy(name) || !m.suspected(time.Minute) {
		return
	}
	v.relist.Store(true)
	v.zoneReturned()
	m.wake()
}

// queueHeal leaves the repair to Run. Reading does not wait for the journal.
func (v *Vault) queueHeal(m *member, want Need) {
	if v.cfg.State == "" || want.SHA256 == "" || v.barred(want.Name) {
		return
	}
	if m.owes(want.Name) {
		return
	}
	v.spawn(func() {
		defer m.wake()
		if err := m.debts.owe(want.Name, debt{Size: want.Size, SHA256: want.SHA256}); err != nil {
			v.log.Warn("a repair could not be queued", zap.String("zone", m.name), zap.String("object", want.Name), zap.Error(err))
		}
	})
}

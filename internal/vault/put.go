package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Writer puts objects into the zones. It can read, and cannot remove.
type Writer struct {
	Reader
}

// Conflict says what happens where other bytes are stored under the name.
type Conflict int

const (
	// Refuse leaves them and counts the zone as failed with ErrConflict.
	Refuse Conflict = iota
	// Repair replaces them: for names that vouch for their plaintext.
	Repair
)

// PutOptions go with one Put.
type PutOptions struct {
	LockUntil time.Time // zero: no lock
	Conflict  Conflict
	// SHA256 is the body's where the caller has it already; zero: it is computed.
	// Zones check it against what arrives.
	SHA256 [32]byte
}

// Stored says what a Put did.
type Stored struct {
	Size   int64
	SHA256 string   // hex
	Zones  []string // hold exactly these bytes
	Missed []string // do not yet; their debt is journalled
}

// Put stores body in all zones at once and returns nil when W of them hold
// exactly these bytes. Zones that have not answered by then are journalled, go
// on behind the caller's back within bounds, and are back-filled by Run: body
// must not be changed afterwards. Bytes that are there already are success.
// Below the quorum the error is ErrQuorum (and ErrConflict where a zone holds
// other bytes) and names each zone's fault; calling again is safe.
func (w Writer) Put(ctx context.Context, name string, body []byte, opt PutOptions) (Stored, error) {
	return w.v.put(ctx, w.v.newJob(name, body, opt, debt{}, mayWait(name)))
}

// PutNote is Put for a note that vouches for other objects: each zone gets it
// only when that zone shows every one of them, which are copied there from other
// zones where they lack. It returns nil when W zones hold the note.
func (w Writer) PutNote(ctx context.Context, name string, body []byte, needs []Need, opt PutOptions) (Stored, error) {
	return w.v.put(ctx, w.v.newJob(name, body, opt, debt{Needs: needs}, mayWait(name)))
}

// job is one object on its way to the zones.
type job struct {
	name string
	body []byte
	opt  zone.CreateOptions
	mode Conflict
	debt debt
	bulk bool // may wait for WAL and notes: see pacer
}

func (c *core) newJob(name string, body []byte, opt PutOptions, d debt, bulk bool) *job {
	sum := opt.SHA256
	if sum == [32]byte{} {
		sum = sha256.Sum256(body)
	}
	if opt.LockUntil.IsZero() && c.cfg.Lock != nil {
		opt.LockUntil = c.cfg.Lock(name)
	}
	d.Size, d.SHA256, d.LockUntil = int64(len(body)), hex.EncodeToString(sum[:]), opt.LockUntil
	return &job{
		name: name, body: body, mode: opt.Conflict, debt: d, bulk: bulk,
		opt: zone.CreateOptions{SHA256: sum, LockUntil: opt.LockUntil, Pace: c.pace(bulk)},
	}
}

func (j *job) want() Need { return Need{Name: j.name, Size: j.debt.Size, SHA256: j.debt.SHA256} }

// outcome is how the writing to one zone ended.
type outcome struct {
	m   *member
	err error
}

// fan is one Put under way.
type fan struct {
	set
	job      *job
	begun    time.Time
	outcomes chan outcome
	cancel   context.CancelFunc
	end      func()
	waiting  map[*member]bool
	held     map[string]string // zones that hold the bytes
	faults   map[string]error
}

func (v *Vault) put(ctx context.Context, j *job) (Stored, error) {
	if v.cfg.State == "" {
		return Stored{}, fmt.Errorf("storing %s: %w", j.name, ErrReadOnly)
	}
	f, err := v.launch(j)
	if err != nil {
		return Stored{}, err
	}
	err = f.await(ctx)
	if err != nil {
		f.abandon(v.core)
		return Stored{Size: j.debt.Size, SHA256: j.debt.SHA256}, err
	}
	f.linger(v)
	return f.acknowledge(v.core)
}

// launch begins to write to all zones. What it starts lives as long as the
// vault, not the call: the slow zones go on behind an acknowledgement.
func (v *Vault) launch(j *job) (*fan, error) {
	s := v.placed(j.name)
	if s.n == 0 {
		return nil, &Faults{Act: "storing " + j.name, Kind: ErrQuorum, Zones: map[string]error{"?": errors.New("the name is placed in no zone")}}
	}
	ctx, end, err := v.begin(v.ctx, j.name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &fan{
		set: s, job: j, begun: time.Now(), cancel: cancel, end: end,
		outcomes: make(chan outcome, len(s.members)),
		waiting:  map[*member]bool{}, held: map[string]string{}, faults: map[string]error{},
	}
	for _, m := range s.members {
		f.waiting[m] = true
		go func() { f.outcomes <- outcome{m, v.write(ctx, m, j)} }()
	}
	return f, nil
}

// write brings the job's bytes into one zone, trying again a few times.
func (c *core) write(ctx context.Context, m *member, j *job) error {
	leave, err := m.enter(ctx, j.bulk)
	if err != nil {
		return err
	}
	defer leave()
	for attempt := range writeAttempts {
		if attempt > 0 && !pause(ctx, time.Duration(100<<attempt)*time.Millisecond) {
			break
		}
		if attempt > 0 && c.barred(j.name) {
			return fmt.Errorf("storing %s: %w", j.name, ErrRemoved)
		}
		if err = c.supply(ctx, m, j.name, j.debt, j.bulk); err == nil {
			err = m.place(ctx, j)
		}
		if err == nil || lasting(err) {
			break
		}
	}
	return err
}

// enter waits for a place among the writes to the zone; bulk never has them all.
func (m *member) enter(ctx context.Context, bulk bool) (leave func(), err error) {
	places := []chan struct{}{m.slots}
	if bulk {
		places = []chan struct{}{m.bulk, m.slots}
	}
	leave = func() {}
	for _, place := range places {
		select {
		case place <- struct{}{}:
			before := leave
			leave = func() { <-place; before() }
		case <-ctx.Done():
			leave()
			return nil, ctx.Err()
		}
	}
	return leave, nil
}

// pause waits about d and says whether the context still lives.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// place creates the object, or finds these very bytes there already, or repairs.
func (m *member) place(ctx context.Context, j *job) (err error) {
	defer func() { m.saw(err, 0) }()
	err = m.Create(ctx, j.name, j.body, j.opt)
	if err == nil || !errors.Is(err, fs.ErrExist) {
		return err
	}
	_, taint, err := m.latestOr(ctx, j.name, j.debt.Size, func(there []byte) error { return matches(there, j.want()) })
	switch {
	case err == nil && taint != nil && j.mode == Repair:
		return m.Repair(ctx, j.name, j.body, j.opt)
	case err == nil:
		return m.extend(ctx, j.want(), j.opt.LockUntil)
	case errors.Is(err, fs.ErrNotExist):
		return m.uncover(ctx, j)
	case !errors.Is(err, zone.ErrDigest):
		return err
	case j.mode == Repair:
		return m.Repair(ctx, j.name, j.body, j.opt)
	default:
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
}

// uncover stores where nothing but a delete marker stands in the way. Two may do so
// at once: the oldest version counts, as it does for readers.
func (m *member) uncover(ctx context.Context, j *job) error {
	if err := m.Repair(ctx, j.name, j.body, j.opt); err != nil {
		return err
	}
	all, err := m.versions(ctx, j.name)
	if err != nil || len(all) == 0 {
		return errors.Join(fmt.Errorf("storing %s: its versions cannot be seen", j.name), err)
	}
	there, err := m.body(ctx, j.name, all[0].Version, j.debt.Size)
	if err == nil {
		err = matches(there, j.want())
	}
	if errors.Is(err, zone.ErrDigest) {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return err
}

// await collects outcomes until the quorum holds the bytes or cannot any more.
func (f *fan) await(ctx context.Context) error {
	for len(f.held) < f.quorum {
		if len(f.held)+len(f.waiting) < f.quorum {
			return f.fault()
		}
		select {
		case o := <-f.outcomes:
			f.note(o)
		case <-ctx.Done():
			for m := range f.waiting {
				f.faults[m.name] = fmt.Errorf("no answer yet: %w", context.Cause(ctx))
			}
			return f.fault()
		}
	}
	return nil
}

func (f *fan) note(o outcome) {
	delete(f.waiting, o.m)
	if o.err == nil {
		f.held[o.m.name] = f.job.debt.SHA256
	} else {
		f.faults[o.m.name] = o.err
	}
}

func (f *fan) fault() error {
	return &Faults{
		Act:  fmt.Sprintf("storing %s in %d of %d zones (%d hold it)", f.job.name, f.quorum, f.n, len(f.held)),
		Kind: ErrQuorum, Zones: f.faults,
	}
}

// linger gives zones in good health a moment more: an acknowledgement that is a
// little later is cheaper than a debt.
func (f *fan) linger(v *Vault) {
	timer := time.NewTimer(min(max(time.Since(f.begun)/4, 5*time.Millisecond), v.cfg.SlowAfter/4))
	defer timer.Stop()
	for f.hopeful() {
		select {
		case o := <-f.outcomes:
			f.note(o)
		case <-timer.C:
			return
		}
	}
}

func (f *fan) hopeful() bool {
	for m := range f.waiting {
		if _, fault := m.health(); fault == nil && m.debts.len() == 0 {
			return true
		}
	}
	return false
}

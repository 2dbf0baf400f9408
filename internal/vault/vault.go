// Package vault makes the zones of a repository act as one.
//
// It writes to all placed zones at once from one buffer and acknowledges when
// the write quorum W of the N zones holds exactly those bytes; what a zone
// missed is a debt, journalled before the acknowledgement and paid by [Vault.Run]
// when the zone returns, after a restart too. It reads from the best zone and
// falls over on error, on a digest that does not match and on slowness. What
// only the whole repository can say (that a name is absent, that a listing is
// complete) it says when N-W+1 zones answered, because any W zones share one
// with those; a single zone's word proves nothing.
//
// It never seals, signs or reads what it carries, never overwrites (the repair
// of a copy whose digest is wrong excepted), never brings back what was removed,
// and never waits for one zone when the others can answer. Below the quorum it
// fails with [ErrQuorum] and every zone's fault; where it cannot know it fails
// with [ErrDoubt]. Memory, concurrency and retries are bounded: what does not fit
// becomes a debt, and debts that do not fit are found again by listing.
package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Config is what a vault is made of. Zero durations and sizes mean the defaults.
type Config struct {
	Zones  []*zone.Zone
	Quorum int // W: zones that hold the bytes before a write is acknowledged
	// State is the directory of the journals, used by one process at a time;
	// "" makes a vault that can only read.
	State string
	Log   *zap.Logger
	// SlowAfter is when a read asks the next zone as well (1 s).
	SlowAfter time.Duration
	// NoHeal says of a name that it must not be copied or repaired any more:
	// a tombstone or a forgotten mark names it. It must not block for long.
	NoHeal func(name string) bool
	// OnBad hears of each copy that was not what it should be. It must not block.
	OnBad func(zone, name string, err error)
	// Place gives the zones where a name belongs, or a listing's prefix looks;
	// nil, or an answer of nil, means all of them. Nothing is written elsewhere.
	Place func(name string) []string
	// Lock says until when what is stored under a name without a lock of its own is
	// locked at least; nil, or a zero answer: it is not.
	Lock func(name string) time.Time
	// OnReturn hears of each zone that was away, or not looked at since the start,
	// once it has what the others know of removals. It must not block.
	OnReturn func(zone string)
	// Prefixes are what reconciliation lists (Prefixes of the repository).
	Prefixes []string
	// ReconcileEvery is how often all zones are listed and compared (6 h).
	ReconcileEvery time.Duration
	// RetryAfter is the first pause after a failed back-fill (1 s); it doubles
	// up to sixty times as much.
	RetryAfter time.Duration
	// Outstanding bounds the bytes of bodies that writes hold after they were
	// acknowledged, and separately those of back-fill (128 MiB each).
	Outstanding int64
	// Upload is how many bytes a second are sent to all zones together; 0: no limit.
	// WAL and notes are never kept waiting by it, and are paid for by what waits:
	// packs, maps and manifests of snapshots, and copies from zone to zone.
	Upload int64
}

// Prefixes are the folders of the repository that reconciliation compares.
var Prefixes = []string{
	"forgotten/", "tombstones/", "approvals/", "plans/", "holds/", "keys/",
	"ledger/", "proofs/", "certificates/", "clusters/",
}

const (
	writesPerZone = 16      // writes in flight or waiting for a hung zone
	bulkPerZone   = 8       // of these, packs and what else may wait
	copiesPerZone = 2       // back-fills in flight to one zone
	writeAttempts = 3       // tries of one zone before a write below quorum fails
	maxDebts      = 1 << 17 // journalled debts of one zone; more are left to reconciliation
	maxNote       = 16 << 20
	maxObject     = 1 << 30
	maxVersions   = 64      // versions of one name that a read tries
	maxListing    = 1 << 21 // names that one listing returns
)

// Vault is the zones as one. It is safe for concurrent use.
type Vault struct {
	*core
	members []*member
	asked   int  // zones that a view was asked to hold, known or not
	only    bool // every zone must answer before absence is believed
}

// core is what all views of a vault share.
type core struct {
	cfg      Config
	log      *zap.Logger
	all      []*member
	lock     *durable.Lock
	removals *removals
	flights  flights
	recheck  chan struct{}       // a zone came back that the last listing missed
	relist   atomic.Bool         // a zone paid its debts, but there were more than fit
	held     *semaphore.Weighted // bytes held by writes that were acknowledged
	copying  *semaphore.Weighted // bytes held by back-fill
	pacer    *pacer
	ctx      context.Context // ends at Close: what goes on behind an acknowledgement
	cancel   context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// spawn runs f behind the caller's back until Close, which waits for it. After
// Close it does nothing.
func (c *core) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// Open replays the journals under cfg.State. Close ends what it started.
func Open(cfg Config) (*Vault, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.fill()
	c := &core{
		cfg: cfg, log: cfg.Log,
		held:    semaphore.NewWeighted(cfg.Outstanding),
		copying: semaphore.NewWeighted(cfg.Outstanding),
		recheck: make(chan struct{}, 1),
		pacer:   newPacer(cfg.Upload),
	}
	c.flights.init()
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for _, z := range cfg.Zones {
		m := newMember(z, c.zoneReturned)
		m.stale = cfg.State != ""
		c.all = append(c.all, m)
	}
	if err := c.openState(); err != nil {
		return nil, errors.Join(err, c.closeState())
	}
	return &Vault{core: c, members: c.all, asked: len(c.all)}, nil
}

func (cfg *Config) check() error {
	if cfg.Quorum < 1 || cfg.Quorum > len(cfg.Zones) {
		return fmt.Errorf("opening the vault: write quorum %d of %d zones: want 1 to %d", cfg.Quorum, len(cfg.Zones), len(cfg.Zones))
	}
	seen := map[string]bool{}
	for _, z := range cfg.Zones {
		if seen[z.Name()] {
			return fmt.Errorf("opening the vault: two zones are named %q", z.Name())
		}
		seen[z.Name()] = true
	}
	return nil
}

func (cfg *Config) fill() {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.SlowAfter = orDefault(cfg.SlowAfter, time.Second)
	cfg.ReconcileEvery = orDefault(cfg.ReconcileEvery, 6*time.Hour)
	cfg.RetryAfter = orDefault(cfg.RetryAfter, time.Second)
	cfg.Outstanding = orDefault(cfg.Outstanding, 128<<20)
	if cfg.Prefixes == nil {
		cfg.Prefixes = Prefixes
	}
}

func orDefault[T ~int64](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

func (c *core) openState() error {
	c.removals = newRemovals()
	if c.cfg.State == "" {
		return nil
	}
	err := durable.MkdirAll(c.cfg.State, 0o700)
	if err != nil {
		return fmt.Errorf("opening the vault's journals: %w", err)
	}
	if c.lock, err = durable.Acquire(pathIn(c.cfg.State, "vault.lock")); err != nil {
		return fmt.Errorf("opening the vault's journals in %s (is another process using them?): %w", c.cfg.State, err)
	}
	if err := c.removals.open(pathIn(c.cfg.State, "removals.log")); err != nil {
		return err
	}
	for _, m := range c.all {
		if err := m.debts.open(pathIn(c.cfg.State, "zone-"+m.name+".log")); err != nil {
			return err
		}
	}
	return nil
}

// Close cancels writes that go on behind an acknowledgement (they are debts),
// waits for them and closes the journals. The zones are the caller's to close.
func (v *Vault) Close() error {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.cancel()
	v.wg.Wait()
	return v.closeState()
}

func (c *core) closeState() error {
	errs := []error{c.removals.close()}
	for _, m := range c.all {
		errs = append(errs, m.debts.close())
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Release())
		c.lock = nil
	}
	return errors.Join(errs...)
}

// View is the vault over the named zones only, for the placement of a cluster:
// same journals, N the number of names, W at most N.
func (v *Vault) View(zones []string) *Vault {
	view := &Vault{core: v.core, asked: len(zones)}
	for _, m := range v.members {
		if slices.Contains(zones, m.name) {
			view.members = append(view.members, m)
		}
	}
	return view
}

// Reader is for those who may only read.
func (v *Vault) Reader() Reader { return Reader{v: v} }

// Writer is for those who may store and repair, and not remove.
func (v *Vault) Writer() Writer { return Writer{Reader{v: v}} }

// Remover is for the one who may remove.
func (v *Vault) Remover() Remover { return Remover{v: v} }

// set is the zones where one name belongs, as far as a view sees them.
type set struct {
	members []*member
	n       int  // N; larger than len(members) where an unknown zone was asked for
	quorum  int  // W
	each    bool // every zone's answer is of use: the unwell are waited for like the others
}

// proof is the number of zones that must answer before absence is believed.
func (s set) proof() int { return max(1, s.n-s.quorum+1) }

func (v *Vault) placed(name string) set {
	s := set{members: v.members, n: v.asked}
	if v.cfg.Place != nil {
		if at := v.cfg.Place(name); at != nil {
			s.members = nil
			for _, m := range v.members {
				if slices.Contains(at, m.name) {
					s.members = append(s.members, m)
				} else {
					s.n--
				}
			}
		}
	}
	s.quorum = min(v.cfg.Quorum, s.n)
	if v.only {
		s.quorum = min(1, s.n)
	}
	return s
}

// Behind counts what each zone has not got yet, removals included.
func (v *Vault) Behind() map[string]int {
	behind := make(map[string]int, len(v.members))
	for _, m := range v.members {
		behind[m.name] = m.debts.len() + v.removals.owing(m.name)
	}
	return behind
}

// ZoneState is what the vault last saw of a zone.
type ZoneState struct {
	Name          string
	State         string // "up" or "down"
	Err           error  // the last fault while down
	BehindObjects int
	LastOK        time.Time // zero: it has not answered yet
}

// State tells of every zone of the view, in their order.
func (v *Vault) State() []ZoneState {
	behind := v.Behind()
	out := make([]ZoneState, 0, len(v.members))
	for _, m := range v.members {
		last, err := m.health()
		st := ZoneState{Name: m.name, State: "up", Err: err, BehindObjects: behind[m.name], LastOK: last}
		if err != nil {
			st.State = "down"
		}
		out = append(out, st)
	}
	return out
}

// bad tells of a copy that is not what it should be.
func (c *core) bad(zone, name string, err error) {
	c.log.Warn("a copy is bad", zap.String("zone", zone), zap.String("object", name), zap.Error(err))
	if c.cfg.OnBad != nil {
		c.cfg.OnBad(zone, name, err)
	}
}

// barred says that a name must not be copied or repaired any more.
func (c *core) barred(name string) bool {
	return c.removals.has(name) || (c.cfg.NoHeal != nil && c.cfg.NoHeal(name))
}

// zoneReturned asks for a look at what the last listing could not see.
func (c *core) zoneReturned() {
	select {
	case c.recheck <- struct{}{}:
	default:
	}
}

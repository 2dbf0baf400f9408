package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// ErrGap means that WAL is lost and that nobody takes note of it: OnGap is nil.
var ErrGap = errors.New("a stretch of WAL is neither archived nor on the server")

// ArchiveConfig says what an [Archiver] streams.
type ArchiveConfig struct {
	DSN     string // of the server, or of several; the role needs REPLICATION
	Slot    string // physical replication slot, made where it does not exist
	SegSize int64  // of the server's WAL segments, in bytes
	// MaxLag is how long a byte may wait before it goes out in a slice (5 s).
	MaxLag time.Duration
	// FenceEvery is how often higher epochs are looked for (1 min).
	FenceEvery time.Duration
	// SlotEvery is how often the slot on each server is looked at (10 s).
	SlotEvery time.Duration
	// OnGap records a gap, durably, before archiving goes on behind it. With nil
	// a gap ends Run.
	OnGap func(ctx context.Context, g Gap) error
	// AppName is shown in pg_stat_replication and is what a synchronous standby is
	// named by; "" is "holdfast".
	AppName string
}

func (c *ArchiveConfig) fill() {
	if c.MaxLag <= 0 {
		c.MaxLag = 5 * time.Second
	}
	if c.FenceEvery <= 0 {
		c.FenceEvery = time.Minute
	}
	if c.SlotEvery <= 0 {
		c.SlotEvery = 10 * time.Second
	}
	if c.AppName == "" {
		c.AppName = "holdfast"
	}
}

// Archiver streams a server's WAL into the vault through a physical slot. The
// server is told "flushed" only what the quorum holds, so it keeps the rest; it
// goes on where the repository says that the archive ends.
type Archiver struct {
	c   ArchiveConfig
	w   *WALWriter
	asm *assembler // nil until the first connection told where to begin

	pending []part        // cut, and not yet on their way
	slots   chan struct{} // parts that are being sealed
	sending chan struct{} // parts that are being sent from memory; the others wait in the spool
	freed   chan struct{} // a part is in the spool, or became durable
	last    *turn         // of the newest part on its way
	behind  atomic.Int64  // parts on their way
	work    *errgroup.Group
	workCtx context.Context //nolint:containedctx // of the parts on their way, which outlive a connection

	nudge chan struct{} // a waiter wants what is not yet cut

	told   lsn.LSN // what the server was last told to be durable, and when
	toldAt time.Time

	mu   sync.Mutex
	want lsn.LSN // cut as soon as this much has come
	drop *dropOrder
	st   streamState
}

// streamState is what Position shows of the connection.
type streamState struct {
	connected bool
	err       error
	received  lsn.LSN
	serverEnd lsn.LSN
	server    time.Time
	gaps      int
	slots     []SlotView
	sync      bool // commits wait for us
}

// NewArchiver makes an Archiver that writes through w.
func NewArchiver(c ArchiveConfig, w *WALWriter) *Archiver {
	c.fill()
	return &Archiver{
		c: c, w: w, slots: make(chan struct{}, w.c.Parallel), sending: make(chan struct{}, w.c.Parallel),
		freed: make(chan struct{}, 1), nudge: make(chan struct{}, 1),
	}
}

// Run archives until ctx ends (then it returns nil) or archiving must stop: the
// epoch was lost (ErrFenced), the server is another (ErrForeignServer), its WAL
// contradicts itself (ErrDiverged), a gap cannot be recorded. Everything else is
// tried again, with growing pauses, for as long as it takes.
func (a *Archiver) Run(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	a.work, a.workCtx = group, gctx
	group.Go(func() error { return a.watchEpoch(gctx) })
	group.Go(func() error { return a.stream(gctx) })
	group.Go(func() error { return a.watchSlots(gctx) })
	err := group.Wait()
	if ctx.Err() != nil {
		err = nil
	}
	if err != nil {
		a.w.done.end(err)
	} else {
		a.w.done.end(errors.New("the WAL archiver has stopped"))
	}
	return err
}

func (a *Archiver) watchEpoch(ctx context.Context) error {
	tick := time.NewTicker(a.c.FenceEvery)
	defer tick.Stop()
	for {
		err := CheckEpoch(ctx, a.w.c.Lineage, a.w.c.Store, a.w.c.Trust)
		if errors.Is(err, ErrFenced) {
			return err
		}
		if err != nil {
			a.w.c.Log.Warn("cannot see whether another writer took over; looking again", zap.Error(err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// connectMost is the longest pause before connecting again: for so long after a
// server is back the commits that wait for us as its synchronous standby still stand.
const connectMost = 3 * time.Second

// stream connects again and again.
func (a *Archiver) stream(ctx context.Context) error {
	if err := a.recover(ctx); err != nil {
		return err
	}
	var before lsn.LSN
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, connectMost) {
		err := a.session(ctx)
		if ctx.Err() != nil || final(err) {
			return err
		}
		if now := a.asmPos(); now != before {
			before, pause = now, 200*time.Millisecond
		}
		a.lost(err)
		a.w.c.Log.Warn("WAL stream ended; connecting again", zap.Error(err), zap.Duration("after", pause))
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// recover sends what the spool holds, for as long as it takes.
func (a *Archiver) recover(ctx context.Context) error {
	return a.w.insist(ctx, func() error { return a.w.Recover(ctx) })
}

// final says that connecting again cannot help.
func final(err error) bool {
	for _, e := range []error{ErrFenced, ErrForeignServer, ErrDiverged, ErrGap, ErrStateLost} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (a *Archiver) asmPos() lsn.LSN {
	if a.asm == nil {
		return 0
	}
	return a.asm.pos()
}

func (a *Archiver) lost(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.st.connected, a.st.err = false, err
}

// Position is how far archiving has come.
type Position struct {
	Timeline  uint32
	Durable   lsn.LSN // everything before is in the quorum
	Received  lsn.LSN // came from the server
	ServerEnd lsn.LSN // of the server's WAL, as it last said
	// Commit is the newest commit that is durable, ServerTime the server's clock
	// at the newest durable byte, LastHeard its clock in its last message.
	Commit, ServerTime, LastHeard time.Time
	// Behind is the WAL on the server that is not durable yet, in bytes.
	Behind    int64
	Connected bool
	// Err is what archiving waits for now, nil when it goes well.
	Err error
	// Gaps that were recorded since the start.
	Gaps int
	// Spool is how full the spool is.
	Spool SpoolState
}

// Position may be asked at any time.
func (a *Archiver) Position() Position {
	var p Position
	p.Timeline, p.Durable, p.Commit, p.ServerTime = a.w.done.newest()
	a.mu.Lock()
	defer a.mu.Unlock()
	p.Received, p.ServerEnd, p.LastHeard, p.Connected, p.Err, p.Gaps = a.st.received, a.st.serverEnd, a.st.server, a.st.connected, a.st.err, a.st.gaps
	if p.ServerEnd > p.Durable {
		p.Behind = int64(p.ServerEnd - p.Durable)
	}
	a.w.look(&p)
	return p
}

// look adds what a writer waits for, and how full its spool is.
func (w *WALWriter) look(p *Position) {
	p.Spool = w.spool.quota.state()
	if p.Spool.Full != nil {
		p.Err = p.Spool.Full
	}
	if err := w.fault.err(); err != nil {
		p.Err = err
	}
}

// WaitDurable returns when the quorum holds all WAL before upTo, and has it sent
// at once instead of after MaxLag. It fails when ctx ends or archiving stopped.
func (a *Archiver) WaitDurable(ctx context.Context, upTo lsn.LSN) error {
	a.mu.Lock()
	a.want = max(a.want, upTo)
	a.mu.Unlock()
	select {
	case a.nudge <- struct{}{}:
	default:
	}
	if err := a.w.done.wait(ctx, upTo); err != nil {
		p := a.Position()
		return fmt.Errorf("waiting until WAL before %s is durable (durable: %s, received: %s): %w", upTo, p.Durable, p.Received, errors.Join(err, p.Err))
	}
	return nil
}

// Flush sends at once what has come so far and waits until it is durable.
func (a *Archiver) Flush(ctx context.Context) error {
	a.mu.Lock()
	received := a.st.received
	a.mu.Unlock()
	return a.WaitDurable(ctx, received)
}

// WALRefs names the archived objects that hold a stretch.
func (a *Archiver) WALRefs(ctx context.Context, timeline uint32, from, to lsn.LSN) ([]catalog.Ref, error) {
	return a.w.WALRefs(ctx, timeline, from, to)
}

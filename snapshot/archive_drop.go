package snapshot

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// ErrNothingToDrop means that the server holds no whole segment that is not archived.
var ErrNothingToDrop = errors.New("the server holds no whole segment that is not archived")

// errDropping ends a connection, so that the next one drops.
var errDropping = errors.New("an operator gives up WAL")

// dropOrder is an operator's order to give up WAL; it is carried out at the
// beginning of a connection.
type dropOrder struct {
	done chan dropped // buffered
}

type dropped struct {
	gap Gap
	err error
}

// Drop gives up the WAL that only the server holds, up to the segment that it
// writes now, and lets the server remove it. The gap is recorded by OnGap before
// the server is told. What was received already is sent all the same. It is the
// one way in which WAL is dropped, and an operator's alone.
func (a *Archiver) Drop(ctx context.Context) (Gap, error) {
	order := &dropOrder{done: make(chan dropped, 1)}
	a.mu.Lock()
	busy := a.drop != nil
	if !busy {
		a.drop = order
	}
	a.mu.Unlock()
	if busy {
		return Gap{}, errors.New("dropping WAL: another order is being carried out")
	}
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.drop == order {
			a.drop = nil
		}
	}()
	select {
	case a.nudge <- struct{}{}:
	default:
	}
	select {
	case d := <-order.done:
		return d.gap, d.err
	case <-ctx.Done():
		return Gap{}, fmt.Errorf("dropping WAL: %w: the server was not reached; what archiving waits for: %w", context.Cause(ctx), errors.Join(a.Position().Err))
	}
}

func (a *Archiver) dropping() *dropOrder {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.drop
}

// obey carries out an order to drop, if there is one.
func (a *Archiver) obey(ctx context.Context, server Server, slotRestart lsn.LSN) error {
	order := a.dropping()
	if order == nil {
		return nil
	}
	g, err := a.giveUp(ctx, server, slotRestart)
	a.mu.Lock()
	a.drop = nil
	a.mu.Unlock()
	order.done <- dropped{g, err}
	if errors.Is(err, ErrNothingToDrop) {
		return nil
	}
	return err
}

func (a *Archiver) giveUp(ctx context.Context, server Server, slotRestart lsn.LSN) (Gap, error) {
	timeline, at, _, _ := a.w.done.newest()
	to := Place{server.Timeline, server.LSN.SegmentStart(a.c.SegSize)}
	if to.LSN <= a.asm.pos() || to.Timeline < timeline {
		return Gap{}, fmt.Errorf("dropping WAL: %w: archived to %s, received to %s, the server is at %s", ErrNothingToDrop, at, a.asm.pos(), server.LSN)
	}
	l := a.w.c.Lineage
	g := Gap{
		Cluster: l.Cluster, Epoch: l.Epoch, From: Place{timeline, at}, To: to, Why: "an operator gave it up", Dropped: true,
		Slot: a.c.Slot, Restart: slotRestart, NoticedAt: a.w.c.Now().UTC(),
	}
	if a.c.OnGap == nil {
		return Gap{}, fmt.Errorf("dropping WAL: %w: nobody records the gap", ErrGap)
	}
	if err := a.c.OnGap(ctx, g); err != nil {
		return Gap{}, fmt.Errorf("dropping WAL: recording the gap from %s to %s: %w", g.From, g.To, err)
	}
	if p, ok := a.asm.slice(); ok {
		a.queue(p)
	}
	a.w.c.Log.Error("WAL is dropped by an operator's order: recovery cannot pass this gap", zap.Stringer("from", g.From), zap.Stringer("to", g.To))
	a.mu.Lock()
	a.st.gaps++
	a.mu.Unlock()
	a.aim(to, a.asm.cfg.Major, walrec.Carry{})
	return g, nil
}

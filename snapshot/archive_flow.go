package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// take is one message from the server.
func (a *Archiver) take(ctx context.Context, conn *postgres.Conn, m postgres.Msg, stream *postgres.Stream) (turned bool, err error) {
	now := time.Now()
	a.mu.Lock()
	a.st.server = later(a.st.server, m.ServerTime)
	a.st.serverEnd = max(a.st.serverEnd, m.ServerEnd)
	a.mu.Unlock()
	switch m.Kind {
	case postgres.Data:
		full, err := a.asm.accept(m.Start, m.Data, now)
		if err != nil {
			return false, err
		}
		a.queue(full...)
		a.mu.Lock()
		a.st.received = max(a.st.received, a.asm.pos())
		a.mu.Unlock()
	case postgres.Keepalive:
		if m.ReplyRequested {
			return false, a.reply(stream)
		}
	case postgres.EndOfTimeline:
		return true, a.turn(ctx, conn, m)
	}
	return false, nil
}

// queue cuts parts: they wait for their place among those on their way.
func (a *Archiver) queue(parts ...part) {
	a.mu.Lock()
	server := a.st.server
	a.mu.Unlock()
	for _, p := range parts {
		p.serverTime = server
		a.pending = append(a.pending, p)
	}
}

// turn follows the server to the next timeline: its history first, so that a
// restore can know of the turn before any WAL behind it (C-50).
func (a *Archiver) turn(ctx context.Context, conn *postgres.Conn, m postgres.Msg) error {
	at, next := m.SwitchLSN, m.NextTimeline
	if next == 0 {
		return fmt.Errorf("the server ended timeline %d without naming the next", a.asm.cfg.Timeline)
	}
	if err := a.keepHistory(ctx, conn, next, at); err != nil {
		return err
	}
	old := a.asm.cfg.Timeline
	left, err := a.asm.turn(at, next)
	if err != nil {
		return err
	}
	a.queue(left...)
	a.w.c.Log.Info(fmt.Sprintf("timeline %d ended at %s, timeline %d follows", old, at, next))
	return nil
}

// cutDue cuts a slice when its time has come, or when somebody waits for it.
func (a *Archiver) cutDue() {
	due := a.asm.due(a.c.MaxLag)
	if due.IsZero() || a.crowded() || !a.awaited() && time.Now().Before(due) {
		return
	}
	if p, ok := a.asm.slice(); ok {
		a.queue(p)
	}
}

// awaited says that somebody waits for what is not yet cut. Commits that wait for
// us as a synchronous standby go out as soon as nothing else is on its way: those
// that come meanwhile share the next slice.
func (a *Archiver) awaited() bool {
	a.mu.Lock()
	want, sync := a.want, a.st.sync
	a.mu.Unlock()
	if want > a.asm.cut && a.asm.pos() >= want {
		return true
	}
	return a.asm.watch(sync) > a.asm.cut && a.behind.Load() == 0
}

// dispatch starts to seal what is cut, and then to send it, as far as there are places
// and there is room in the spool.
func (a *Archiver) dispatch() {
	for len(a.pending) > 0 {
		select {
		case a.slots <- struct{}{}:
		default:
			return
		}
		r, err := a.w.spool.quota.admit(a.pending[0].most())
		if err != nil {
			<-a.slots // the server keeps its WAL until a part has left
			return
		}
		p := a.pending[0]
		a.pending = a.pending[1:]
		a.last = a.last.follow(a.slots, a.sending, a.wakeUp)
		a.send(&p, r, a.last)
	}
}

// send makes p durable behind the parts before it.
func (a *Archiver) send(p *part, r *room, t *turn) {
	n := p.names(a.w.c.Lineage, a.w.c.Keys)
	a.behind.Add(1)
	a.work.Go(func() error {
		defer func() {
			a.behind.Add(-1)
			t.leave()
			r.release()
			a.wakeUp()
		}()
		err := a.w.insist(a.workCtx, func() error { return a.w.bring(a.workCtx, p, n, r, t) })
		if err != nil {
			return fmt.Errorf("archiving %s: %w", p.file, err)
		}
		close(t.done)
		return nil
	})
}

// crowded says that so much is on its way that a slice would not be there sooner than
// the segment: none is cut then.
func (a *Archiver) crowded() bool {
	return len(a.pending) > 0 || int(a.behind.Load()) >= a.w.c.Parallel
}

// drain sends all that is cut and waits until it is durable.
func (a *Archiver) drain(ctx context.Context) error {
	for a.dispatch(); len(a.pending) > 0; a.dispatch() {
		select {
		case <-a.freed:
		case <-time.After(statusEvery): // a disk that had no room may have
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if a.last == nil {
		return nil
	}
	select {
	case <-a.last.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *Archiver) wakeUp() {
	select {
	case a.freed <- struct{}{}:
	default:
	}
}

// idle is how long nothing needs to be done if nothing happens.
func (a *Archiver) idle() time.Duration {
	wait := statusEvery
	if due := a.asm.due(a.c.MaxLag); !due.IsZero() && !a.crowded() {
		wait = min(wait, time.Until(due))
	}
	return max(wait, time.Millisecond)
}

// flushed is what the server may forget: what the quorum holds. A new timeline is
// archived from the start of the segment with the switch, whose bytes the old one
// holds as well: it does not go back.
func (a *Archiver) flushed() lsn.LSN {
	timeline, at, _, _ := a.w.done.newest()
	if timeline > a.asm.cfg.Timeline {
		return a.told
	}
	return max(at, a.told)
}

// status reports when there is something new, or it is time.
func (a *Archiver) status(stream *postgres.Stream) error {
	f := a.flushed()
	if f == a.told && time.Since(a.toldAt) < statusEvery {
		return nil
	}
	return a.reply(stream)
}

func (a *Archiver) reply(stream *postgres.Stream) error {
	f := a.flushed()
	write := max(f, a.asm.pos())
	if err := stream.Status(write, f, 0); err != nil {
		return errors.Join(errors.New("telling the server what is durable"), err)
	}
	a.told, a.toldAt = f, time.Now()
	return nil
}

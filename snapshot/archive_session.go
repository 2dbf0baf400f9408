package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// statusEvery is how often the server hears from us when nothing else happens:
// well within half of the least sensible wal_sender_timeout (C-49).
const statusEvery = 2 * time.Second

// session is one connection, from timeline to timeline.
func (a *Archiver) session(ctx context.Context) error {
	conn, server, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	slot, err := a.slot(ctx, conn)
	if err != nil {
		return err
	}
	if a.asm == nil {
		if err := a.begin(ctx, conn, server, slot); err != nil {
			return err
		}
	}
	if err := a.obey(ctx, server, slot.Restart); err != nil {
		return err
	}
	a.compare(slot)
	for {
		turned, err := a.follow(ctx, conn, server, slot)
		if err != nil || !turned {
			return err
		}
	}
}

// begin finds where to go on: where the repository's archive ends, or with an
// empty one where the slot holds WAL from.
func (a *Archiver) begin(ctx context.Context, conn *postgres.Conn, server Server, slot postgres.Slot) error {
	at, ok, err := a.w.resume(ctx, server)
	if err != nil {
		return err
	}
	if !ok {
		first := slot.Restart
		if first == 0 {
			first = server.LSN
		}
		at = Place{server.timelineAt(first), first.SegmentStart(a.c.SegSize)}
	}
	a.pending = nil
	if err := a.backfillHistories(ctx, conn, server); err != nil {
		return err
	}
	var reach walrec.Carry
	if ok {
		reach = a.reaching(ctx, server, at.LSN.SegmentStart(a.c.SegSize))
	}
	a.aim(at, server.Major, reach)
	a.w.c.Log.Info("WAL archiving begins", zap.Stringer("at", at), zap.Bool("first", !ok))
	return nil
}

// slot makes sure of the slot and reads it. One that the server invalidated
// holds nothing and never will again: it is made anew, and what it was to hold
// is asked of the server all the same, so that a loss becomes a gap (C-51).
func (a *Archiver) slot(ctx context.Context, conn *postgres.Conn) (postgres.Slot, error) {
	for range 2 {
		created, err := postgres.EnsureSlot(ctx, conn, a.c.Slot)
		if err != nil {
			return postgres.Slot{}, err
		}
		slot, err := a.readSlot(ctx, conn)
		if err != nil || created || slot.Restart != 0 {
			return slot, err
		}
		a.w.c.Log.Error("the server has invalidated the replication slot; making it anew", zap.String("slot", a.c.Slot))
		if err := postgres.DropSlot(ctx, conn, a.c.Slot); err != nil {
			return postgres.Slot{}, err
		}
	}
	return postgres.Slot{}, fmt.Errorf("the replication slot %q holds no WAL although it was just made", a.c.Slot)
}

// readSlot asks servers before 15 on an ordinary connection.
func (a *Archiver) readSlot(ctx context.Context, conn *postgres.Conn) (postgres.Slot, error) {
	slot, err := postgres.ReadSlot(ctx, conn, a.c.Slot)
	if !errors.Is(err, errors.ErrUnsupported) {
		return slot, err
	}
	plain, err := postgres.Connect(ctx, a.c.DSN, postgres.ConnectOptions{AppName: a.c.AppName})
	if err != nil {
		return postgres.Slot{}, err
	}
	defer func() { _ = plain.Close() }()
	st, err := postgres.GetSlotState(ctx, plain, a.c.Slot)
	return postgres.Slot{Restart: st.Restart}, err
}

// backfillHistories stores the histories of the timelines that the server has
// been through: a restore needs them even where we never followed the turn.
func (a *Archiver) backfillHistories(ctx context.Context, conn *postgres.Conn, server Server) error {
	for i, h := range server.History {
		next := server.Timeline
		if i+1 < len(server.History) {
			next = server.History[i+1].Timeline
		}
		if err := a.keepHistory(ctx, conn, next, h.LSN); err != nil {
			return err
		}
	}
	return nil
}

func (a *Archiver) keepHistory(ctx context.Context, conn *postgres.Conn, timeline uint32, at lsn.LSN) error {
	h, err := history(ctx, conn, timeline)
	if err != nil {
		return err
	}
	a.pending = append(a.pending, part{file: h.Name, timeline: timeline, from: at, to: at, data: h.Content, known: true})
	return nil
}

// history asks for the history of a timeline. The file of an ancestor that the
// server has lost is made again from its newest: with a number missing PostgreSQL
// takes the timelines behind it for not there (C-61).
func history(ctx context.Context, conn *postgres.Conn, timeline uint32) (postgres.History, error) {
	h, err := postgres.TimelineHistory(ctx, conn, timeline)
	if !absent(err) {
		return h, err
	}
	sys, serr := postgres.IdentifySystem(ctx, conn)
	if serr != nil || sys.Timeline <= timeline {
		return h, errors.Join(err, serr)
	}
	newest, nerr := postgres.TimelineHistory(ctx, conn, sys.Timeline)
	if nerr != nil {
		return h, errors.Join(err, nerr)
	}
	return postgres.AncestorHistory(newest, timeline)
}

// aim makes at the next position to archive; reach is what is known of a record
// that reaches into its segment.
func (a *Archiver) aim(at Place, major int, reach walrec.Carry) {
	cfg := walrec.Config{SegSize: a.c.SegSize, Major: major, Timeline: at.Timeline}
	a.asm = newAssembler(cfg, at.LSN, reach, a.unindexed)
	a.w.done.start(at.Timeline, at.LSN)
}

func (a *Archiver) unindexed(err error) {
	a.w.c.Log.Error("WAL cannot be read; it is archived without an index, so recovery cannot aim at times within it", zap.Error(err))
}

// compare looks at the slot before asking for WAL that it no longer protects
// (C-48): the server may have it still, and says so if not.
func (a *Archiver) compare(slot postgres.Slot) {
	if from := a.asm.start; slot.Restart != 0 && from < slot.Restart.SegmentStart(a.c.SegSize) {
		a.w.c.Log.Warn("the slot holds WAL only from behind the archive's end; asking the server for what it still has",
			zap.Stringer("archive_ends", a.asm.pos()), zap.Stringer("slot_restart", slot.Restart))
	}
}

// follow streams one timeline; turned says that it ended and that the assembler
// is on the next. WAL that the server has removed becomes a gap.
func (a *Archiver) follow(ctx context.Context, conn *postgres.Conn, server Server, slot postgres.Slot) (turned bool, err error) {
	stream, err := postgres.StartStream(ctx, conn, a.c.Slot, a.asm.start, a.asm.cfg.Timeline)
	if err == nil {
		a.joined()
		turned, err = a.receive(ctx, conn, stream)
	}
	if !removed(err) {
		return turned, err
	}
	return false, errors.Join(err, a.gap(ctx, server, slot, err))
}

// removed says that the server has no such segment any more. A slot that is
// invalid is another matter: it is made anew, and the server asked again.
func removed(err error) bool { return errors.Is(err, postgres.ErrWALRemoved) && absent(err) }

// absent says that the server has no such file.
func absent(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "58P01"
}

// gap records what is lost, and only then aims behind it. The caller connects anew.
func (a *Archiver) gap(ctx context.Context, server Server, slot postgres.Slot, why error) error {
	first := slot.Restart
	// A slot goes where the last status put it, back as well: to WAL that is gone.
	if first.SegmentStart(a.c.SegSize) <= max(a.asm.pos(), a.asm.cut) {
		first = server.LSN
	}
	to := Place{server.timelineAt(first), first.SegmentStart(a.c.SegSize)}
	l := a.w.c.Lineage
	g := Gap{
		Cluster: l.Cluster, Epoch: l.Epoch, From: Place{a.asm.cfg.Timeline, a.asm.cut}, To: to, Why: why.Error(),
		Slot: a.c.Slot, Restart: slot.Restart, NoticedAt: a.w.c.Now().UTC(),
	}
	if a.c.OnGap == nil {
		return fmt.Errorf("cluster %s: %w: from %s to %s", l.Cluster, ErrGap, g.From, g.To)
	}
	if err := a.c.OnGap(ctx, g); err != nil {
		return fmt.Errorf("recording the gap from %s to %s: %w", g.From, g.To, err)
	}
	a.w.c.Log.Error("WAL is lost: recovery cannot pass this gap; a snapshot behind it is needed", zap.Stringer("from", g.From), zap.Stringer("to", g.To))
	a.mu.Lock()
	a.st.gaps++
	a.mu.Unlock()
	a.aim(to, a.asm.cfg.Major, walrec.Carry{})
	return nil
}

func (a *Archiver) joined() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.st.connected, a.st.err = true, nil
}

// heard is a message, or the end of a connection.
type heard struct {
	msg postgres.Msg
	err error
}

// listen hands on what the server sends, until an error or the end of the timeline.
func listen(ctx context.Context, stream *postgres.Stream, out chan<- heard) {
	for {
		msg, err := stream.Next(ctx)
		msg.Data = append([]byte(nil), msg.Data...) // valid until the next message only
		select {
		case out <- heard{msg, err}:
		case <-ctx.Done():
			return
		}
		if err != nil || msg.Kind == postgres.EndOfTimeline {
			return
		}
	}
}

// receive runs one stream.
func (a *Archiver) receive(ctx context.Context, conn *postgres.Conn, stream *postgres.Stream) (turned bool, err error) {
	lctx, cancel := context.WithCancel(ctx)
	in, ended := make(chan heard, 4), make(chan struct{})
	go func() {
		defer close(ended)
		listen(lctx, stream, in)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	for {
		if a.dropping() != nil {
			return false, errDropping
		}
		a.cutDue()
		a.dispatch()
		if err := a.status(stream); err != nil {
			return false, err
		}
		source := in
		if len(a.pending) > 0 {
			source = nil // what is cut goes first: this is where memory is bounded
		}
		timer := time.NewTimer(a.idle())
		select {
		case h := <-source:
			timer.Stop()
			if h.err != nil {
				return false, h.err
			}
			if turned, err := a.take(ctx, conn, h.msg, stream); err != nil || turned {
				return turned, err
			}
		case <-a.freed:
		case <-a.nudge:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false, ctx.Err()
		}
	}
}

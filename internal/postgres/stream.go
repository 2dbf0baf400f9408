package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Kind says what a [Msg] is.
type Kind int

const (
	Data          Kind = iota // WAL
	Keepalive                 // how far the server is
	EndOfTimeline             // the timeline is over; the stream is too
)

// Msg is one message of a stream.
type Msg struct {
	Kind Kind
	// Start is where Data begins; Data is valid until the next call of Next.
	Start lsn.LSN
	Data  []byte
	// ServerEnd is the end of the WAL that the server has sent or could send,
	// ServerTime its clock.
	ServerEnd  lsn.LSN
	ServerTime time.Time
	// ReplyRequested: the server wants to hear of us. Next has answered with
	// the last Status; a newer one is welcome (C-49).
	ReplyRequested bool
	// NextTimeline begins where this one ended, at SwitchLSN (C-50). Both 0
	// on a server that ended the copy without saying.
	NextTimeline uint32
	SwitchLSN    lsn.LSN
}

// ErrWALRemoved means that the server no longer has the WAL that was asked for: a
// gap, to be filled from elsewhere or recorded (C-48).
var ErrWALRemoved = errors.New("the server has removed WAL that was not archived yet")

// ErrSlotUnusable means that the slot was invalidated or is none for physical
// replication: [GetSlotState] says which (C-51).
var ErrSlotUnusable = errors.New("the server refuses the replication slot")

// ErrSilent means that the server said nothing for as long as liveness allows, not
// even when asked.
var ErrSilent = errors.New("the server has gone silent")

// ErrServerStopped means that the server ended the stream because it shuts down.
var ErrServerStopped = errors.New("the server ended the stream: it is shutting down")

// DefaultLiveness is how long a server may be silent; it is PostgreSQL's own
// default of wal_sender_timeout and wal_receiver_timeout.
const DefaultLiveness = 60 * time.Second

// Stream is WAL on its way. Next belongs to one goroutine; Status may be called
// from any.
type Stream struct {
	conn     *Conn
	timeline uint32
	next     lsn.LSN // where the next data must begin
	over     bool
	ended    *Msg // the timeline had ended before the stream began

	// Liveness is how long the server may be silent before Next gives up; at
	// half of it Next asks for a sign of life. Set it before the first Next.
	Liveness time.Duration

	mu                  sync.Mutex
	write, flush, apply lsn.LSN
	sent                bool
	unsent              error // the first position that a server which had left was not told
}

func streamSQL(slot string, from lsn.LSN, timeline uint32) string {
	if slot != "" {
		slot = `SLOT "` + slot + `" `
	}
	return fmt.Sprintf("START_REPLICATION %sPHYSICAL %s TIMELINE %d", slot, from, timeline)
}

// StartStream begins to stream WAL of a timeline from a position, exactly: a server
// that has it no longer answers [ErrWALRemoved]. With slot "" no slot is used.
// Nothing else may be done with the connection until the stream has ended.
func StartStream(ctx context.Context, c *Conn, slot string, from lsn.LSN, timeline uint32) (*Stream, error) {
	if slot != "" {
		if err := checkSlotName(slot); err != nil {
			return nil, err
		}
	}
	s := &Stream{conn: c, timeline: timeline, next: from, Liveness: DefaultLiveness}
	if err := c.send(streamSQL(slot, from, timeline)); err != nil {
		return nil, fmt.Errorf("start to stream WAL from %s on timeline %d: %w", from, timeline, err)
	}
	if err := s.begin(ctx); err != nil {
		return nil, fmt.Errorf("start to stream WAL from %s on timeline %d: %w", from, timeline, err)
	}
	return s, nil
}

// begin waits for the copy to begin. For a timeline that ended just there the
// server says at once which is the next.
func (s *Stream) begin(ctx context.Context) error {
	for {
		m, err := s.conn.pgx.PgConn().ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *pgproto3.CopyBothResponse:
			return nil
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		case *pgproto3.ErrorResponse:
			return errors.Join(explain(pgconn.ErrorResponseToPgError(m)), s.drain(ctx, nil))
		case *pgproto3.RowDescription:
			msg := Msg{Kind: EndOfTimeline}
			if err := s.drain(ctx, &msg); err != nil {
				return err
			}
			s.ended = &msg
			return nil
		default:
			return fmt.Errorf("the server sent %T, want the beginning of the stream", m)
		}
	}
}

// explain marks the errors that have a meaning of their own.
func explain(err error) error {
	switch code(err) {
	case "58P01":
		return fmt.Errorf("%w: %w", ErrWALRemoved, err)
	case "55000":
		return fmt.Errorf("%w: %w", ErrSlotUnusable, err)
	case "57P01", "57P02", "57P03":
		return fmt.Errorf("%w: %w", ErrServerStopped, err)
	}
	return err
}

// Next waits for the next message. It probes a silent server by itself and gives
// up with [ErrSilent]. Data follow one another without a hole: a hole is an error.
// After EndOfTimeline the connection is free for the next command; after an error
// it is not usable.
func (s *Stream) Next(ctx context.Context) (Msg, error) {
	if s.ended != nil {
		m := *s.ended
		s.ended, s.over = nil, true
		return m, nil
	}
	if s.over {
		return Msg{}, errors.New("the stream is over")
	}
	m, err := s.receive(ctx)
	if err != nil {
		s.over = true
		err = errors.Join(err, s.abandon())
		return Msg{}, fmt.Errorf("stream WAL at %s on timeline %d: %w", s.next, s.timeline, err)
	}
	return m, nil
}

func (s *Stream) receive(ctx context.Context) (Msg, error) {
	probed := false
	for {
		m, err := s.await(ctx)
		switch {
		case err == nil:
		case timedOut(err) && ctx.Err() == nil && !probed:
			probed = true
			if err := s.report(true); err != nil {
				return Msg{}, err
			}
			continue
		case timedOut(err) && ctx.Err() == nil:
			return Msg{}, fmt.Errorf("%w for %s", ErrSilent, s.Liveness)
		default:
			return Msg{}, err
		}
		if msg, ok, err := s.take(ctx, m); ok || err != nil {
			return msg, err
		}
	}
}

// await reads one message within half of the liveness. The deadline is set for
// reading alone: a context's would end a Status under way as well.
func (s *Stream) await(ctx context.Context) (pgproto3.BackendMessage, error) {
	pg := s.conn.pgx.PgConn()
	if err := pg.Conn().SetReadDeadline(time.Now().Add(s.Liveness / 2)); err != nil {
		return nil, err
	}
	m, err := pg.ReceiveMessage(ctx)
	if err == nil {
		return m, nil
	}
	return nil, errors.Join(ctx.Err(), err, s.undelivered())
}

func (s *Stream) undelivered() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unsent
}

func (s *Stream) take(ctx context.Context, m pgproto3.BackendMessage) (Msg, bool, error) {
	switch m := m.(type) {
	case *pgproto3.CopyData:
		msg, err := s.message(m.Data)
		return msg, true, err
	case *pgproto3.CopyDone:
		msg, err := s.endOfTimeline(ctx)
		return msg, true, err
	case *pgproto3.CommandComplete:
		return Msg{}, false, ErrServerStopped
	case *pgproto3.ErrorResponse:
		return Msg{}, false, explain(pgconn.ErrorResponseToPgError(m))
	case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		return Msg{}, false, nil
	}
	return Msg{}, false, fmt.Errorf("the server sent %T in the midst of the stream", m)
}

// message holds the data to their order, and answers a server that asks for a reply
// at once with what was reported last, so that a caller who is waiting for a zone
// is not cut off (C-49).
func (s *Stream) message(data []byte) (Msg, error) {
	msg, err := parseMessage(data)
	switch {
	case err != nil:
		return Msg{}, err
	case msg.Kind == Data && msg.Start != s.next:
		return Msg{}, fmt.Errorf("the server sent WAL from %s, want %s: a hole is never passed over", msg.Start, s.next)
	case msg.Kind == Data:
		s.next += lsn.LSN(len(msg.Data))
	case msg.ReplyRequested:
		err = s.report(false)
	}
	return msg, err
}

// endOfTimeline answers the server's end of the copy with ours and reads which
// timeline is next (C-50).
func (s *Stream) endOfTimeline(ctx context.Context) (Msg, error) {
	if err := s.done(); err != nil {
		return Msg{}, err
	}
	msg := Msg{Kind: EndOfTimeline}
	err := s.drain(ctx, &msg)
	s.over = true
	return msg, err
}

func (s *Stream) done() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(&pgproto3.CopyDone{})
}

// drain reads to where the server is ready again and puts the row (next timeline,
// switch point) into end.
func (s *Stream) drain(ctx context.Context, end *Msg) (failed error) {
	for {
		if err := s.conn.pgx.PgConn().Conn().SetReadDeadline(time.Now().Add(s.Liveness)); err != nil {
			return err
		}
		m, err := s.conn.pgx.PgConn().ReceiveMessage(ctx)
		if err != nil {
			return errors.Join(failed, err)
		}
		switch m := m.(type) {
		case *pgproto3.DataRow:
			failed = errors.Join(failed, nextTimeline(m.Values, end))
		case *pgproto3.ErrorResponse:
			failed = errors.Join(failed, explain(pgconn.ErrorResponseToPgError(m)))
		case *pgproto3.ReadyForQuery:
			return errors.Join(failed, s.conn.pgx.PgConn().Conn().SetReadDeadline(time.Time{}))
		}
	}
}

func nextTimeline(row [][]byte, end *Msg) error {
	if end == nil {
		return nil
	}
	if len(row) != 2 {
		return fmt.Errorf("the end of the timeline came as %d columns, want 2", len(row))
	}
	t, err1 := strconv.ParseUint(string(row[0]), 10, 32)
	at, err2 := lsn.Parse(string(row[1]))
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("the end of the timeline: %w", err)
	}
	end.NextTimeline, end.SwitchLSN = uint32(t), at
	return nil
}

// Status tells the server how far we are: write is what was received, flush what is
// durable by the quorum of zones, and nothing else, for the server removes what was
// flushed (C-49). Call it when either moves, and at least every half of
// wal_sender_timeout while Next is not being called. apply is for those who replay;
// 0 says nothing. None may go back. That the server has left is no error here: Next
// tells what it said last.
func (s *Stream) Status(write, flush, apply lsn.LSN) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if flush > write || s.sent && flush < s.flush {
		return fmt.Errorf("report flush %s, write %s: flush was %s before, it must not go back nor beyond write", flush, write, s.flush)
	}
	s.write, s.flush, s.apply, s.sent = write, flush, apply, true
	return s.transmit(false)
}

// report says again what was said last. Before the first Status there is nothing
// to say but that we live.
func (s *Stream) report(reply bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.transmit(reply)
}

// transmit leaves it to Next to tell that the server closed the connection: why it
// did may stand unread in the socket.
func (s *Stream) transmit(reply bool) error {
	err := s.put(&pgproto3.CopyData{Data: statusMessage(s.write, s.flush, s.apply, time.Now(), reply)})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("report the position to the server: %w", err)
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	if s.unsent == nil {
		s.unsent = err
	}
	return nil
}

// put writes to the socket itself: the driver's own buffer is not ours while Next
// reads, for a read that fails has the driver take leave of the server beside us.
func (s *Stream) put(m pgproto3.FrontendMessage) error {
	data, err := m.Encode(nil)
	if err != nil {
		return err
	}
	_, err = s.conn.pgx.PgConn().Conn().Write(data)
	return err
}

// abandon closes the connection; a Status under way beside it fails first.
func (s *Stream) abandon() error {
	_ = s.conn.pgx.PgConn().Conn().Close() // frees a writer that holds the lock
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.abandon()
}

// Position is where the next data will begin.
func (s *Stream) Position() lsn.LSN { return s.next }

// Close ends the stream in order, so that the connection is free for the next
// command; data under way are dropped.
func (s *Stream) Close(ctx context.Context) error {
	if s.over || s.ended != nil {
		return nil
	}
	s.over = true
	if err := s.done(); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	if err := s.drain(ctx, nil); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	return nil
}

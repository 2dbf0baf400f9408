package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

const segment = 16 << 20

// flushed is the end of the WAL that the server has on disk: what a stream can
// reach without anything else being written.
func flushed(t *testing.T, c *pgtest.Cluster) lsn.LSN {
	t.Helper()
	l, err := lsn.Parse(pgtest.Value[string](c, "SELECT pg_current_wal_flush_lsn()::text"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// readSlot asks servers before 15 on an ordinary connection, as an archiver does.
func readSlot(t *testing.T, c *pgtest.Cluster, conn *postgres.Conn, name string) (postgres.Slot, error) {
	t.Helper()
	slot, err := postgres.ReadSlot(t.Context(), conn, name)
	if c.Major >= 15 || !errors.Is(err, errors.ErrUnsupported) {
		return slot, err
	}
	state, err := postgres.GetSlotState(t.Context(), connect(t, c), name)
	return postgres.Slot{Restart: state.Restart, Timeline: 1}, err
}

// begin makes a slot and streams from the beginning of its segment.
func begin(t *testing.T, c *pgtest.Cluster, conn *postgres.Conn) (*postgres.Stream, lsn.LSN) {
	t.Helper()
	if _, err := postgres.EnsureSlot(t.Context(), conn, "hold"); err != nil {
		t.Fatal(err)
	}
	if _, err := postgres.IdentifySystem(t.Context(), conn); err != nil { // a standby of 14 does not stream before it
		t.Fatal(err)
	}
	slot, err := readSlot(t, c, conn, "hold")
	if err != nil {
		t.Fatal(err)
	}
	start, gap := postgres.Resume(0, slot, segment)
	if gap != nil || start == 0 {
		t.Fatal(start, gap)
	}
	s, err := postgres.StartStream(t.Context(), conn, "hold", start, slot.Timeline)
	if err != nil {
		t.Fatal(err)
	}
	return s, start
}

// follow reads until the stream has passed end.
func follow(t *testing.T, s *postgres.Stream, end lsn.LSN) (got []byte) {
	t.Helper()
	for s.Position() < end {
		m, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind == postgres.EndOfTimeline {
			t.Fatalf("the timeline ended at %s, want data to %s", s.Position(), end)
		}
		got = append(got, m.Data...)
	}
	return got
}

// C-47
func TestASlotIsMadeOnceAndReservesWAL(t *testing.T) {
	c := pgtest.Start(t)
	conn := replication(t, c)
	for _, want := range []bool{true, false} {
		if created, err := postgres.EnsureSlot(t.Context(), conn, "hold"); err != nil || created != want {
			t.Errorf("created %v, %v", created, err)
		}
	}
	slot, err := readSlot(t, c, conn, "hold")
	if err != nil || slot.Restart == 0 || slot.Timeline != 1 {
		t.Errorf("%+v, %v", slot, err)
	}
	for _, name := range []string{"", "Upper", `a"; DROP`, strings.Repeat("x", 64)} {
		if _, err := postgres.EnsureSlot(t.Context(), conn, name); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
	if _, err := readSlot(t, c, conn, "other"); !errors.Is(err, postgres.ErrNoSlot) {
		t.Error(err)
	}
	for range 2 {
		if err := postgres.DropSlot(t.Context(), conn, "hold"); err != nil {
			t.Error(err)
		}
	}
	if got := postgres.CreateSlotSQL(140000, "s"); got != `CREATE_REPLICATION_SLOT "s" PHYSICAL RESERVE_WAL` {
		t.Error(got)
	}
	if got := postgres.StreamSQL("s", 0x16B374D848, 3); got != `START_REPLICATION SLOT "s" PHYSICAL 16/B374D848 TIMELINE 3` {
		t.Error(got)
	}
}

// C-47
func TestIdentifySystemNamesTheCluster(t *testing.T) {
	c := pgtest.Start(t)
	sys, err := postgres.IdentifySystem(t.Context(), replication(t, c))
	if err != nil || sys.SystemID != pgtest.Value[string](c, "SELECT system_identifier::text FROM pg_control_system()") ||
		sys.Timeline != 1 || sys.Flushed == 0 {
		t.Errorf("%+v, %v", sys, err)
	}
}

// The bytes are those of the server's own segments, without a hole.
func TestTheStreamIsTheServersWAL(t *testing.T) {
	c := pgtest.Start(t)
	s, start := begin(t, c, replication(t, c))
	c.Exec("CREATE TABLE a AS SELECT g, md5(g::text) FROM generate_series(1, 200000) g")
	c.SwitchWAL()
	c.Exec("CREATE TABLE b AS SELECT 1 AS x")
	end := flushed(t, c)
	got := follow(t, s, end)
	if len(got) < segment || !bytes.Equal(got, wal(t, c, start, len(got))) {
		t.Errorf("%d bytes from %s differ from the server's files", len(got), start)
	}
}

func wal(t *testing.T, c *pgtest.Cluster, from lsn.LSN, n int) (all []byte) {
	for p := from; len(all) < n; p += segment {
		data, err := os.ReadFile(filepath.Join(c.DataDir, "pg_wal", lsn.SegmentName(1, p.Segment(segment), segment)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	return all[:n]
}

// C-49: the slot follows what was reported as flushed, and nothing else; Status may
// be called beside Next.
func TestTheSlotFollowsFlushAlone(t *testing.T) {
	c := pgtest.Start(t)
	conn, sql := replication(t, c), connect(t, c)
	s, start := begin(t, c, conn)
	c.Exec("CREATE TABLE a AS SELECT g FROM generate_series(1, 1000) g")
	end := flushed(t, c)
	follow(t, s, end)
	var beside sync.WaitGroup
	beside.Go(func() {
		for range 100 {
			if err := s.Status(end, start, 0); err != nil {
				t.Error(err)
			}
		}
	})
	c.Exec("CREATE TABLE b AS SELECT g FROM generate_series(1, 1000) g")
	follow(t, s, flushed(t, c))
	beside.Wait()
	state, err := postgres.GetSlotState(t.Context(), sql, "hold")
	if err != nil || state.Restart > start+segment || !state.Active || state.ActivePID == 0 || state.WALStatus != "reserved" ||
		state.SafeBytes != nil || state.Behind <= 0 || state.Lost() {
		t.Errorf("%+v, %v", state, err)
	}
	if err := s.Status(end, end, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Ended in order: the server has read the report before it answered.
	if slot, err := readSlot(t, c, conn, "hold"); err != nil || slot.Restart != end {
		t.Errorf("%+v, want %s, %v", slot, end, err)
	}
	if s.Status(end, end+1, 0) == nil || s.Status(end, start, 0) == nil {
		t.Error("a flush position that goes back, or beyond write, was reported")
	}
}

// C-49: asked for a reply, we reply at once, however long nothing happens.
func TestAnIdleStreamOutlivesTheServersTimeout(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithSetting("wal_sender_timeout", "1500ms"))
	s, start := begin(t, c, replication(t, c))
	follow(t, s, flushed(t, c))
	if err := s.Status(start, start, 0); err != nil {
		t.Fatal(err)
	}
	for asked, began := 0, time.Now(); asked < 5 || time.Since(began) < 4500*time.Millisecond; {
		m, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind == postgres.Keepalive {
			if m.ServerEnd == 0 || time.Since(m.ServerTime).Abs() > time.Minute {
				t.Fatalf("%+v", m)
			}
			if m.ReplyRequested {
				asked++
			}
		}
	}
}

// A server that hangs is found by its silence, and a probe wakes one that is idle.
func TestASilentServerIsGivenUp(t *testing.T) {
	c := pgtest.Start(t)
	sql := connect(t, c)
	s, _ := begin(t, c, replication(t, c))
	follow(t, s, flushed(t, c))
	s.Liveness = 400 * time.Millisecond
	for range 3 {
		// wal_sender_timeout is a minute: these answer our own probes.
		if m, err := s.Next(t.Context()); err != nil || m.Kind != postgres.Keepalive {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	state, err := postgres.GetSlotState(t.Context(), sql, "hold")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(state.ActivePID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(state.ActivePID, syscall.SIGCONT)
	for err == nil {
		_, err = s.Next(t.Context())
	}
	if !errors.Is(err, postgres.ErrSilent) {
		t.Errorf("%v, want ErrSilent", err)
	}
}

func TestACancelledContextEndsNext(t *testing.T) {
	c := pgtest.Start(t)
	s, _ := begin(t, c, replication(t, c))
	follow(t, s, flushed(t, c))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var err error
	for err == nil {
		_, err = s.Next(ctx)
	}
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, postgres.ErrSilent) {
		t.Error(err)
	}
}

// A server that shuts down in order waits until everything was flushed, and says so.
func TestAShutdownEndsTheStreamAfterTheLastByte(t *testing.T) {
	c := pgtest.Start(t)
	s, _ := begin(t, c, replication(t, c))
	c.Exec("CREATE TABLE last AS SELECT 1 AS x")
	stopped := make(chan struct{})
	go func() { defer close(stopped); c.Stop() }()
	var err error
	for err == nil {
		if _, err = s.Next(t.Context()); err == nil {
			err = s.Status(s.Position(), s.Position(), 0)
		}
	}
	if !errors.Is(err, postgres.ErrServerStopped) {
		t.Errorf("%v, want ErrServerStopped", err)
	}
	<-stopped
}

// What the server said last is told even if it had left before our position could
// reach it.
func TestAShutdownIsToldWhenThePositionComesTooLate(t *testing.T) {
	c := pgtest.Start(t)
	s, _ := begin(t, c, replication(t, c))
	follow(t, s, flushed(t, c))
	stopped := make(chan struct{})
	go func() { defer close(stopped); c.Stop() }()
	var err error
	for late := false; err == nil; {
		if err = s.Status(s.Position(), s.Position(), 0); err != nil {
			break
		}
		select {
		case <-stopped:
			if !late {
				late = true
				continue // the server is gone: this one cannot be delivered
			}
		case <-time.After(100 * time.Millisecond): // it waits for more than this position
		}
		_, err = s.Next(t.Context())
	}
	if !errors.Is(err, postgres.ErrServerStopped) {
		t.Errorf("%v, want ErrServerStopped", err)
	}
	<-stopped
}

// C-50
func TestAPromotionEndsTheTimelineAndTheNextFollows(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithSetting("wal_keep_size", "256MB"))
	standby := c.Standby(t, "wal_retrieve_retry_interval = '100ms'")
	conn := replication(t, standby)
	c.Exec("CREATE TABLE before_it (a int)")
	standby.AwaitReplay(flushed(t, c).String())
	s, start := begin(t, standby, conn)
	follow(t, s, flushed(t, c))
	promoted := make(chan struct{})
	go func() { defer close(promoted); standby.Promote() }()
	var end postgres.Msg
	for end.Kind != postgres.EndOfTimeline {
		var err error
		if end, err = s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	<-promoted
	if end.NextTimeline != 2 || end.SwitchLSN != s.Position() {
		t.Errorf("%+v at %s", end, s.Position())
	}
	if _, err := s.Next(t.Context()); err == nil {
		t.Error("a stream that is over went on")
	}
	h, err := postgres.TimelineHistory(t.Context(), conn, 2)
	if err != nil || h.Name != "00000002.history" || len(h.Parsed) != 1 || h.Parsed[0].LSN != end.SwitchLSN {
		t.Fatalf("%+v, %v", h, err)
	}
	onDisk, err := os.ReadFile(filepath.Join(standby.DataDir, "pg_wal", h.Name))
	if err != nil || !bytes.Equal(onDisk, h.Content) {
		t.Errorf("%q is not what the server has: %q, %v", h.Content, onDisk, err)
	}
	if _, err := postgres.TimelineHistory(t.Context(), conn, 1); err == nil {
		t.Error("timeline 1 has a history")
	}
	// Asked for the end of what is over, the server says so without a stream.
	again, err := postgres.StartStream(t.Context(), conn, "", end.SwitchLSN, 1)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := again.Next(t.Context()); err != nil || m.Kind != postgres.EndOfTimeline || m.NextTimeline != 2 {
		t.Errorf("%+v, %v", m, err)
	}
	standby.Exec("CREATE TABLE after_it (a int)")
	next, err := postgres.StartStream(t.Context(), conn, "hold", end.SwitchLSN.SegmentStart(segment), 2)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, next, flushed(t, standby))
	if start >= end.SwitchLSN {
		t.Errorf("the test began at %s, after the switch", start)
	}
}

// C-48, C-51: WAL that is gone is said to be gone; nothing is passed over.
func TestALostSlotIsAGapAndSaysSo(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithSetting("max_slot_wal_keep_size", "16MB"), pgtest.WithSetting("max_wal_size", "32MB"), pgtest.WithSetting("min_wal_size", "32MB"))
	conn, sql := replication(t, c), connect(t, c)
	s, start := begin(t, c, conn)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		c.Exec("CREATE TABLE x (a int); DROP TABLE x")
		c.SwitchWAL()
	}
	c.Exec("CHECKPOINT")
	state, err := postgres.GetSlotState(t.Context(), sql, "hold")
	if err != nil || !state.Lost() || state.WALStatus != "lost" {
		t.Errorf("%+v, %v", state, err)
	}
	for _, slot := range []string{"hold", ""} {
		stream, err := postgres.StartStream(t.Context(), replication(t, c), slot, start, 1)
		for err == nil {
			_, err = stream.Next(t.Context())
		}
		// 15 finds the segment gone; later versions refuse the slot first.
		if !errors.Is(err, postgres.ErrWALRemoved) && (slot == "" || !errors.Is(err, postgres.ErrSlotUnusable)) {
			t.Errorf("with slot %q: %v", slot, err)
		}
	}
}

// C-48
func TestResumeNeverJumps(t *testing.T) {
	for name, c := range map[string]struct {
		durable, restart, want lsn.LSN
		gap                    *postgres.Gap
	}{
		"nothing yet":          {0, 0x3000100, 0x3000000, nil},
		"the slot is behind":   {0x5000000, 0x3000100, 0x5000000, nil},
		"the slot is there":    {0x5000000, 0x5000000, 0x5000000, nil},
		"the slot is beyond":   {0x5000000, 0x7000028, 0x5000000, &postgres.Gap{From: 0x5000000, To: 0x7000028}},
		"the slot has nothing": {0x5000000, 0, 0x5000000, nil},
	} {
		got, gap := postgres.Resume(c.durable, postgres.Slot{Restart: c.restart, Timeline: 1}, segment)
		if got != c.want || (gap == nil) != (c.gap == nil) || gap != nil && *gap != *c.gap {
			t.Errorf("%s: %s, %+v", name, got, gap)
		}
	}
}

func TestStatusMessage(t *testing.T) {
	got := postgres.StatusMessage(1, 2, 3, time.Date(2000, 1, 1, 0, 0, 1, 0, time.UTC), true)
	want := []byte{'r', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0xf, 0x42, 0x40, 1}
	if !bytes.Equal(got, want) {
		t.Errorf("%x", got)
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add(append([]byte{'w', 0, 0, 0, 0, 2, 0, 0, 0}, bytes.Repeat([]byte{7}, 40)...))
	f.Add(append([]byte{'k'}, make([]byte, 17)...))
	f.Add(bytes.Repeat([]byte{0xff}, 30))
	f.Add([]byte{'w'})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := postgres.ParseMessage(data)
		if err == nil && m.Kind == postgres.Data && len(m.Data) != len(data)-25 {
			t.Fatalf("%d of %d bytes", len(m.Data), len(data))
		}
	})
}

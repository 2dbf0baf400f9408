package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

func historyName(timeline uint32) string { return lsn.HistoryName(timeline) }

func parsePath(timeline uint32, data []byte) ([]leg, error) {
	switches, err := lsn.ParseHistory(data)
	return path(timeline, switches), err
}

// doReplay runs recovery until what was replayed reaches the expected end, and
// promotes. PostgreSQL may stop on a doubt of restore_command as often as it
// likes: it is started again while replay advances or the stall limit lasts.
func (room *Room) doReplay(ctx context.Context) error {
	if err := room.mark("replaying"); err != nil {
		return err
	}
	if err := room.serveWAL(ctx); err != nil {
		return err
	}
	began, moved := time.Now(), time.Now()
	var last lsn.LSN
	for {
		reached, err := room.recoverOnce(ctx, began, &last, &moved)
		if err == nil {
			room.Result.Reached.LSN = reached
			return room.promote(ctx)
		}
		if ctx.Err() != nil || time.Since(moved) > room.opt.Stall || !room.retryable() {
			return fmt.Errorf("%w: replay came to %s of %s: %w", ErrIncomplete, last, room.Plan.ExpectedEnd.LSN, err)
		}
	}
}

// retryable says whether the server ended for want of WAL, which may come back.
func (room *Room) retryable() bool {
	room.fetch.mu.Lock()
	defer room.fetch.mu.Unlock()
	again := room.fetch.last != nil
	room.fetch.last = nil
	return again
}

// serveWAL starts answering restore_command.
func (room *Room) serveWAL(ctx context.Context) (err error) {
	sock := filepath.Join(room.dir, "wal.sock")
	room.fetch, err = newFetchServer(ctx, room.repo, room.Plan, sock, filepath.Join(room.dir, "wal"), room.programs.Own)
	if err != nil {
		return err
	}
	fctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- room.fetch.Run(fctx) }()
	room.stopped = func() { cancel(); <-done }
	return nil
}

func (room *Room) settings() map[string]string {
	s := map[string]string{
		"restore_command":               RestoreCommand(room.opt.Program, filepath.Join(room.dir, "wal.sock")),
		"recovery_target_action":        "pause",
		"recovery_target_timeline":      strconv.Itoa(int(room.Plan.Timeline)),
		"wal_retrieve_retry_interval":   "200ms",
		"wal_receiver_create_temp_slot": "off",
		"hot_standby_feedback":          "off",
	}
	if room.Plan.Timeline == room.Snapshot.Timeline {
		s["recovery_target_timeline"] = "current"
	}
	if p := room.Plan.Stop; p.Setting != "" {
		s[p.Setting] = p.Value
		s["recovery_target_inclusive"] = "off"
	}
	return s
}

// recoverOnce starts the server under standby.signal and waits until replay has
// arrived. On an error the server has ended.
func (room *Room) recoverOnce(ctx context.Context, began time.Time, last *lsn.LSN, moved *time.Time) (lsn.LSN, error) {
	srv, err := sandbox.Launch(ctx, sandbox.Config{
		Programs: room.programs, DataDir: room.opt.To, SocketDir: filepath.Join(room.dir, "s"),
		Settings: room.settings(), ConfigFile: room.tree.confFile(), Log: room.opt.Log, Role: room.role(),
	})
	if err != nil {
		return 0, err
	}
	room.Server = srv
	reached, err := room.await(ctx, srv, began, last, moved)
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, srv.Stop(stop, sandbox.Immediate))
		room.Server = nil
	}
	return reached, err
}

// await polls how far replay came until that is the expected end.
func (room *Room) await(ctx context.Context, srv *sandbox.Server, began time.Time, last *lsn.LSN, moved *time.Time) (lsn.LSN, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
	}()
	from, to := room.Plan.WAL.From, room.Plan.ExpectedEnd.LSN
	for {
		var err error
		if conn == nil {
			conn, err = srv.Conn(ctx, "postgres")
		}
		if err == nil {
			var now lsn.LSN
			var paused bool
			if now, paused, err = replayed(ctx, conn); err != nil {
				conn.Close(ctx)
				conn = nil
			} else if now != *last {
				*last, *moved = now, time.Now()
			}
			room.tell("replay", int64(max(*last, from)-from), int64(to-from), last.String(), began)
			if err == nil && Arrived(now, to, room.Plan.SegSize) && (paused || room.Plan.Stop.Setting == "") {
				return now, nil
			}
		}
		select {
		case err := <-srv.Wait():
			return 0, fmt.Errorf("PostgreSQL ended during recovery: %w%s", err, room.lastFault())
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
		if time.Since(*moved) > room.opt.Stall {
			return 0, fmt.Errorf("replay has stood at %s for %s; the server's log ends:\n%s", *last, room.opt.Stall, srv.LogTail())
		}
	}
}

func (room *Room) lastFault() string {
	room.fetch.mu.Lock()
	defer room.fetch.mu.Unlock()
	if room.fetch.last == nil {
		return ""
	}
	return "; the last WAL that could not be fetched: " + room.fetch.last.Error()
}

// replayed says how far replay came, and whether it stands at its target.
func replayed(ctx context.Context, conn *pgx.Conn) (at lsn.LSN, paused bool, err error) {
	var text *string
	err = conn.QueryRow(ctx, "SELECT pg_last_wal_replay_lsn()::text, pg_is_wal_replay_paused()").Scan(&text, &paused)
	if err != nil || text == nil {
		return 0, false, err
	}
	at, err = lsn.Parse(*text)
	return at, paused, err
}

// promote ends recovery, which only Holdfast may, and reads where it ended.
func (room *Room) promote(ctx context.Context) error {
	conn, err := room.Server.Conn(ctx, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var at *time.Time
	if err := conn.QueryRow(ctx, "SELECT pg_last_xact_replay_timestamp()").Scan(&at); err != nil {
		return fmt.Errorf("asking where recovery ended: %w", err)
	}
	if at != nil {
		room.Result.Reached.Time = at.UTC()
	}
	var done bool
	if err := conn.QueryRow(ctx, "SELECT pg_promote(true, 120)").Scan(&done); err != nil || !done {
		return fmt.Errorf("promoting the restored server: done %v: %w; its log ends:\n%s", done, err, room.Server.LogTail())
	}
	var timeline int64
	err = conn.QueryRow(ctx, "SELECT timeline_id FROM pg_control_checkpoint()").Scan(&timeline)
	if err != nil {
		return fmt.Errorf("asking for the timeline after promotion: %w", err)
	}
	room.Result.Timeline, room.Result.Complete = uint32(timeline), true
	return nil
}

// role is a superuser of the restored cluster.
func (room *Room) role() string { return cmp.Or(room.opt.Role, "postgres") }

package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

func historyName(timeline uint32) string { return lsn.HistoryName(timeline) }

func parsePath(timeline uint32, data []byte) ([]leg, error) {
	switches, err := lsn.ParseHistory(data)
	return path(timeline, switches), err
}

// errAgain means that the server ended, or was ended, in a way that a new start
// may mend.
var errAgain = errors.New("recovery is to be started again")

// replay is how far recovery came over all starts of the server.
type replay struct {
	began    time.Time
	best     lsn.LSN   // the furthest that replay was seen
	served   int       // the furthest file that recovery took
	rose     time.Time // when best or served last did
	now      lsn.LSN   // in this start: after a new start replay begins further back
	moved    time.Time // when now last did
	fruitful bool      // this start got further than those before
}

func (r *replay) see(now lsn.LSN, served int) {
	if now != r.now {
		r.now, r.moved = now, time.Now()
	}
	if now > r.best || served > r.served {
		r.rose, r.moved, r.fruitful = time.Now(), time.Now(), true
	}
	r.best, r.served = max(r.best, now), max(r.served, served)
}

// doReplay runs recovery until what was replayed reaches the expected end, and
// promotes. PostgreSQL may stop on a doubt of restore_command as often as it
// likes: it is started again while replay advances or the stall limit lasts.
func (room *Room) doReplay(ctx context.Context) error {
	if err := room.mark(stateReplay); err != nil {
		return err
	}
	if err := room.serveWAL(ctx); err != nil {
		return err
	}
	defer func() {
		if room.standby() == nil || !room.Result.Complete {
			room.stopped() // a standby asks on, until the room is closed
		}
	}()
	r := &replay{began: time.Now(), served: -1, rose: time.Now()}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		r.now, r.moved, r.fruitful = 0, time.Now(), false
		err := room.recoverOnce(ctx, r)
		if err == nil {
			return room.settleSpaces(ctx)
		}
		if errors.Is(err, ErrSpaces) {
			return err
		}
		if ctx.Err() != nil || !errors.Is(err, errAgain) || time.Since(r.rose) > room.opt.Stall {
			return fmt.Errorf("%w: replay came to %s of %s: %w", ErrIncomplete, r.best, room.Plan.ExpectedEnd.LSN, err)
		}
		if r.fruitful {
			wait = 100 * time.Millisecond
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// serveWAL starts answering restore_command.
func (room *Room) serveWAL(ctx context.Context) (err error) {
	sock := filepath.Join(room.sockets, "wal.sock")
	room.fetch, err = newFetchServer(ctx, room.repo, room.Plan, room.opt.To, sock, filepath.Join(room.dir, "wal"), room.programs.Own)
	if err != nil {
		return err
	}
	room.fetch.retry = min(room.fetch.retry, room.opt.Stall/2)
	fctx, cancel := context.WithCancel(ctx)
	if len(room.Plan.Files) > 0 { // while the server starts
		room.fetch.begin(fctx, 0)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := room.fetch.Run(fctx); err != nil {
			room.fetch.note(-1, err)
		}
	}()
	room.stopped = sync.OnceFunc(func() { cancel(); <-done })
	return nil
}

func (room *Room) settings() map[string]string {
	s := map[string]string{
		"restore_command":             RestoreCommand(room.opt.Program, filepath.Join(room.sockets, "wal.sock")),
		"recovery_target_action":      "pause",
		"recovery_target_timeline":    strconv.Itoa(int(room.Plan.Timeline)),
		"wal_retrieve_retry_interval": "100ms",
		"lc_messages":                 "C", // its log is read for restore_command's failures
		// What is not closed is thrown away after a crash; Close makes all durable.
		"fsync": "off", "recovery_init_sync_method": "syncfs",
		"wal_receiver_create_temp_slot": "off",
		"hot_standby_feedback":          "off",
	}
	if room.Plan.Timeline == room.Snapshot.Timeline {
		s["recovery_target_timeline"] = "current"
	}
	if slices.ContainsFunc(room.Header.Tablespaces, func(s catalog.Tablespace) bool { return s.InPlace }) {
		s["allow_in_place_tablespaces"] = "on" // or consistency is refused (CheckTablespaceDirectory)
	}
	if p := room.Plan.Stop; p.Setting != "" {
		s[p.Setting] = p.Value
		s["recovery_target_inclusive"] = "off"
	}
	return s
}

// recoverOnce starts the server under standby.signal, waits until replay has
// arrived, and promotes. On an error the server has ended.
func (room *Room) recoverOnce(ctx context.Context, r *replay) (err error) {
	srv, err := sandbox.Launch(ctx, sandbox.Config{
		Programs: room.programs, DataDir: room.opt.To, SocketDir: filepath.Join(room.sockets, "s"),
		Settings: room.settings(), ConfigFile: room.tree.confFile(), Log: room.opt.Log, Role: room.role(),
	})
	if err != nil {
		return err
	}
	room.Server = srv
	if err = room.await(ctx, srv, r); err == nil {
		err = room.arrive(ctx, r)
	}
	if err == nil {
		return nil
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err = errors.Join(err, srv.Stop(stop, sandbox.Immediate))
	if doubt := room.fetch.doubt(); doubt != nil {
		err = fmt.Errorf("%w; the last WAL that could not be fetched: %w; %w", err, doubt, errAgain)
	} else if strings.Contains(srv.LogTail(), "could not restore file") {
		err = fmt.Errorf("%w; restore_command failed; %w", err, errAgain)
	}
	room.Server = nil
	return err
}

// arrive ends recovery, or leaves a standby in it.
func (room *Room) arrive(ctx context.Context, r *replay) error {
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
	if room.standby() != nil {
		return room.stand(ctx, conn, r)
	}
	return room.promote(ctx, conn, r)
}

// pace is how often a server is asked what it does not tell by itself: to answer
// takes it a fiftieth of that.
const pace = 10 * time.Millisecond

// await polls how far replay came until that is the expected end.
func (room *Room) await(ctx context.Context, srv *sandbox.Server, r *replay) error {
	tick := time.NewTicker(pace)
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
		now, paused := r.now, false
		if conn == nil {
			conn, err = connect(ctx, srv)
		}
		if err == nil {
			if now, paused, err = replayed(ctx, conn); err != nil {
				conn.Close(ctx)
				conn, now = nil, r.now
			}
		}
		r.see(now, room.fetch.progress())
		room.tell("replay", int64(max(r.best, from)-from), int64(to-from), r.best.String(), r.began)
		if err == nil && room.arrived(now, paused) {
			return nil
		}
		if paused {
			// The primary's settings grew on the way; pg_control has them now (C-63).
			return fmt.Errorf("replay paused at %s: %w", now, errAgain)
		}
		select {
		case err := <-srv.Wait():
			return fmt.Errorf("PostgreSQL ended during recovery: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if time.Since(r.moved) > room.opt.Stall {
			return fmt.Errorf("replay has stood at %s for %s; the server's log ends:\n%s", r.now, room.opt.Stall, srv.LogTail())
		}
	}
}

// connect waits a moment for a server that may not accept connections yet.
func connect(ctx context.Context, srv *sandbox.Server) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	soon, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	if err := srv.Ready(soon); err != nil {
		return nil, err
	}
	return srv.Conn(ctx, "postgres")
}

// arrived says whether all has been replayed that the plan wants: the WAL that
// recovery is given ends there, or it has paused at its target.
func (room *Room) arrived(now lsn.LSN, paused bool) bool {
	p := room.Plan
	switch {
	case !Arrived(now, p.ExpectedEnd.LSN, p.SegSize):
		return false
	case p.Stop.Setting == "" || paused:
		return true
	}
	return p.Stop.Upto != 0 && Arrived(now, p.Stop.Upto, p.SegSize)
}

// replayed says how far replay came, and whether it stands at its target.
func replayed(ctx context.Context, conn *pgx.Conn) (at lsn.LSN, paused bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var text *string
	err = conn.QueryRow(ctx, "SELECT pg_last_wal_replay_lsn()::text, pg_get_wal_replay_pause_state() = 'paused'").Scan(&text, &paused)
	if err != nil || text == nil {
		return 0, false, err
	}
	at, err = lsn.Parse(*text)
	return at, paused, err
}

// promote ends recovery, which only Holdfast may, and looks where it ended.
func (room *Room) promote(ctx context.Context, conn *pgx.Conn, r *replay) error {
	if err := room.endRecovery(ctx, conn); err != nil {
		return fmt.Errorf("promoting the restored server: %w; its log ends:\n%s", err, room.Server.LogTail())
	}
	room.tell("promoted", 0, 0, r.now.String(), r.began)
	ended, timeline, err := room.turned(ctx, conn)
	if err != nil {
		return fmt.Errorf("asking where recovery ended: %w", err)
	}
	if !Arrived(ended, room.Plan.ExpectedEnd.LSN, room.Plan.SegSize) {
		return fmt.Errorf("the restored server left recovery at %s, short of the expected end", ended)
	}
	room.Result.Reached.LSN, room.Result.Timeline, room.Result.Complete = ended, timeline, true
	return nil
}

// endRecovery promotes and waits for it; pg_promote itself looks ten times a second.
func (room *Room) endRecovery(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var done bool
	if err := conn.QueryRow(ctx, "SELECT pg_promote(false)").Scan(&done); err != nil || !done {
		return fmt.Errorf("asked for: %v: %w", done, err)
	}
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		var recovering bool
		err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering)
		if err != nil || !recovering {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// turned reads from the history of the timeline that promotion began where
// recovery really ended.
func (room *Room) turned(ctx context.Context, conn *pgx.Conn) (lsn.LSN, uint32, error) {
	// The first 8 digits of a WAL file's name are its timeline; pg_control follows
	// only with the next checkpoint.
	var name string
	if err := conn.QueryRow(ctx, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())").Scan(&name); err != nil {
		return 0, 0, err
	}
	timeline, err := strconv.ParseUint(name[:min(8, len(name))], 16, 32)
	if err != nil {
		return 0, 0, err
	}
	data, err := os.ReadFile(filepath.Join(room.opt.To, "pg_wal", historyName(uint32(timeline))))
	if err != nil {
		return 0, 0, err
	}
	switches, err := lsn.ParseHistory(data)
	if err != nil || len(switches) == 0 {
		return 0, 0, fmt.Errorf("%s says nothing: %w", historyName(uint32(timeline)), err)
	}
	return switches[len(switches)-1].LSN, uint32(timeline), nil
}

// role is a superuser of the restored cluster.
func (room *Room) role() string { return cmp.Or(room.opt.Role, "postgres") }

package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

// Replayer removes the projects of tombstones from a restored server, reached
// through connect; a root table that is missing is an error (internal/tenancy).
type Replayer func(ctx context.Context, connect func(ctx context.Context, db string) (*pgx.Conn, error), tombs []catalog.Tombstone) ([]AppliedTombstone, error)

// Options say where and how a plan is carried out.
type Options struct {
	To         string // the new data directory: absent or empty
	Binaries   string // PostgreSQL's programs, with {major}; "" is Debian's place
	User       string // who runs them when we are root; "" is postgres
	Role       string // a superuser of the cluster; "" is postgres
	Program    string // this binary, for restore_command
	Workers    int    // packs fetched at a time (2)
	Replay     Replayer
	Quarantine bool // open to superusers only, whatever tombstones are unknown
	Progress   func(Progress)
	Log        io.Writer     // the server's log
	Stall      time.Duration // how long replay may stand still (10 min)
}

// Progress is told while a restore runs.
type Progress struct {
	Phase       string  `json:"phase"` // fetch | replay | verify
	Done, Total int64   // bytes
	LSN         string  `json:"lsn,omitempty"`
	Seconds     float64 `json:"seconds"`
}

// Room is a restored cluster behind closed doors: its server runs, promoted and
// without the deleted projects, and nobody else can reach it.
type Room struct {
	Server   *sandbox.Server
	Result   Result
	Manifest catalog.Manifest
	Snapshot catalog.Snapshot
	Plan     Plan

	repo     Repo
	opt      Options
	programs sandbox.Programs
	tree     *tree
	dir      string // sockets, spool, settings: beside the data directory, removed at the end
	fetch    *fetchServer
	stopped  func() // ends the fetch server and waits for it
	closing  sync.Once
}

// marker is the file in the data directory that says what it is.
const marker = "holdfast-restore.json"

// Marker is what the marker file says.
type Marker struct {
	Cluster  string    `json:"cluster"`
	Plan     string    `json:"plan"`
	Snapshot string    `json:"snapshot"`
	State    string    `json:"state"` // fetching | replaying | closed | open | quarantined
	At       time.Time `json:"at"`
	Result   *Result   `json:"result,omitempty"`
}

// ErrNotEmpty means that the target directory holds something.
var ErrNotEmpty = errors.New("the target directory is not empty")

// ErrIncomplete means that recovery did not reach the plan's expected end.
var ErrIncomplete = errors.New("the restore is not complete")

// Prepare carries out the plan up to a promoted server in the closed room. On an
// error nothing runs any more, and the directory cannot be started.
func Prepare(ctx context.Context, r Repo, p Plan, opt Options) (_ *Room, err error) {
	began := time.Now()
	if opt.Workers < 1 {
		opt.Workers = 2
	}
	if opt.Stall <= 0 {
		opt.Stall = 10 * time.Minute
	}
	room := &Room{Plan: p, repo: r.only(p.Target.Zone), opt: opt, dir: strings.TrimRight(opt.To, "/") + ".room"}
	room.Result = Result{RestoredTo: opt.To, Plan: p.Hash, Expected: p.ExpectedEnd, Tombstones: []AppliedTombstone{}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("restoring %s to %s into %s: %w", p.Cluster, p.Target, opt.To, err)
			err = errors.Join(err, room.abandon(context.WithoutCancel(ctx)))
		}
	}()
	for _, phase := range []struct {
		name string
		do   func(context.Context) error
		took *float64
	}{
		{"fetch", room.doFetch, &room.Result.Seconds.Fetch},
		{"replay", room.doReplay, &room.Result.Seconds.Replay},
		{"tombstones", func(ctx context.Context) error { return room.forget(ctx, r) }, &room.Result.Seconds.Verify},
	} {
		start := time.Now()
		if err := phase.do(ctx); err != nil {
			return nil, err
		}
		*phase.took = time.Since(start).Seconds()
	}
	room.Result.Seconds.Total = time.Since(began).Seconds()
	room.Result.NoEgress = room.Server.Room().NoEgress
	return room, room.mark("closed")
}

func (room *Room) tell(phase string, done, total int64, lsn string, since time.Time) {
	if room.opt.Progress != nil {
		room.opt.Progress(Progress{phase, done, total, lsn, time.Since(since).Seconds()})
	}
}

// doFetch fills the directory: all files, then what recovery needs, pg_control last.
func (room *Room) doFetch(ctx context.Context) (err error) {
	began := time.Now()
	if room.programs, err = sandbox.FindPrograms(room.Plan.Major, room.opt.Binaries); err != nil {
		return err
	}
	room.programs.User = room.opt.User
	if err := room.makeDirs(); err != nil {
		return err
	}
	if room.Snapshot, err = room.repo.Catalog.Snapshot(ctx, room.Plan.Cluster, room.Plan.Snapshot); err != nil {
		return err
	}
	if room.Manifest, err = readManifest(ctx, room.repo, room.Snapshot); err != nil {
		return err
	}
	room.tree = &tree{root: room.opt.To, man: room.Manifest, own: room.programs.Own, outside: map[string][]byte{}, spaces: map[uint32]string{}}
	for _, s := range room.Manifest.Header.Tablespaces {
		if !s.InPlace {
			room.tree.spaces[s.OID] = filepath.Join(room.opt.To+".tablespaces", fmt.Sprint(s.OID))
		}
	}
	if len(room.tree.spaces) > 0 {
		if err := room.tree.mkdir(room.opt.To+".tablespaces", 0o700); err != nil {
			return err
		}
	}
	err = room.tree.fill(ctx, room.repo, room.opt.Workers, func(done, total int64) { room.tell("fetch", done, total, "", began) })
	if err != nil {
		return err
	}
	for _, o := range room.Manifest.Packs {
		room.Result.Bytes += o.Ref.Size
	}
	return room.tree.prepareRecovery()
}

// makeDirs makes the data directory, which must not hold anything (C-53), and
// the room's own beside it.
func (room *Room) makeDirs() error {
	to := room.opt.To
	if !filepath.IsAbs(to) {
		return fmt.Errorf("%s: want an absolute path", to)
	}
	entries, err := os.ReadDir(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: %s holds %s and more; give another --to, or `restore discard` what is there", ErrNotEmpty, to, entries[0].Name())
	}
	if err := checkDisk(to, room.Plan.DiskNeeded); err != nil {
		return err
	}
	for _, dir := range []string{to, room.dir} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !(dir == to && errors.Is(err, fs.ErrExist)) {
			return err
		}
		if err := errors.Join(os.Chmod(dir, 0o700), room.programs.Own(dir)); err != nil {
			return err
		}
	}
	return room.mark("fetching")
}

func (room *Room) mark(state string) error {
	m := Marker{Cluster: room.Plan.Cluster, Plan: room.Plan.Hash, Snapshot: room.Plan.Snapshot, State: state, At: time.Now().UTC()}
	if room.Result.Complete {
		m.Result = &room.Result
	}
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(room.opt.To, marker)
	return errors.Join(durable.WriteFile(path, append(data, '\n'), 0o600), room.programs.Own(path))
}

// ReadMarker says what a directory is that a restore made.
func ReadMarker(dir string) (m Marker, err error) {
	data, err := os.ReadFile(filepath.Join(dir, marker))
	if err != nil {
		return m, fmt.Errorf("%s is no directory that a restore made: %w", dir, err)
	}
	return m, json.Unmarshal(data, &m)
}

// forget replays the tombstones that apply, as they are now: those added after
// the plan as well. An incomplete set ends the restore, or quarantines it.
func (room *Room) forget(ctx context.Context, all Repo) error {
	tombs, err := all.Catalog.Tombstones(ctx, room.Plan.Cluster)
	if err != nil {
		return fmt.Errorf("reading tombstones: %w", err)
	}
	if (!tombs.Complete || len(tombs.Faults) > 0) && !room.opt.Quarantine {
		return fmt.Errorf("the set of tombstones is not known to be complete, and a deleted project must not come back: %w; reach more zones, or use --quarantine", errors.Join(tombs.Require(), joined(tombs.Faults)))
	}
	absences, err := all.Catalog.Absences(ctx)
	if err != nil {
		return fmt.Errorf("reading tombstones: %w", err)
	}
	legs, err := room.legs(ctx)
	if err != nil {
		return err
	}
	var due []catalog.Tombstone
	for _, t := range tombs.Bodies() {
		if applies(t, absences, legs, room.Result.Reached.LSN) {
			due = append(due, t)
		}
	}
	if len(due) == 0 {
		return nil
	}
	if room.opt.Replay == nil {
		return fmt.Errorf("%d deleted projects must be removed from the restored database, and nothing here can", len(due))
	}
	applied, err := room.opt.Replay(ctx, room.Server.Conn, due)
	room.Result.Tombstones = append(room.Result.Tombstones, applied...)
	if err != nil {
		return fmt.Errorf("removing deleted projects from the restored database: %w", err)
	}
	return nil
}

func joined(list []catalog.Fault) error {
	var errs []error
	for _, f := range list {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// legs is the path that was restored along.
func (room *Room) legs(ctx context.Context) ([]leg, error) {
	g := &gatherer{Repo: room.repo, cluster: room.Plan.Cluster}
	g.in.Timeline = room.Plan.Timeline
	if g.in.Timeline == 1 {
		return path(1, nil), nil
	}
	for _, f := range room.Plan.Files {
		if f.Name == historyName(room.Plan.Timeline) {
			data, _, err := assemble(ctx, room.repo, f)
			if err != nil {
				return nil, err
			}
			return parsePath(room.Plan.Timeline, data)
		}
	}
	return nil, fmt.Errorf("the plan has no %s", historyName(room.Plan.Timeline))
}

// Close stops the server cleanly and ends the room; the directory is then ready
// for pg_ctl start.
func (room *Room) Close(ctx context.Context) error {
	err := room.leave(ctx, sandbox.Fast)
	return errors.Join(err, room.finishConfig(), room.mark("closed"))
}

// Discard stops the server and removes all that the restore made.
func (room *Room) Discard(ctx context.Context) error {
	err := room.leave(ctx, sandbox.Immediate)
	return errors.Join(err, Discard(room.opt.To))
}

// Discard removes a directory that a restore made, and what belongs to it.
func Discard(dir string) error {
	if _, err := ReadMarker(dir); err != nil {
		return fmt.Errorf("discarding: %w", err)
	}
	if pid := running(dir); pid != 0 {
		return fmt.Errorf("discarding %s: a server runs there (process %d); stop it first", dir, pid)
	}
	// pg_control goes first: what is left half-way cannot start.
	if err := os.Remove(filepath.Join(dir, controlFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discarding %s: %w", dir, err)
	}
	return errors.Join(os.RemoveAll(dir+".tablespaces"), os.RemoveAll(dir+".room"), os.RemoveAll(dir))
}

// leave stops the server and the fetching, and removes the room's own directory.
func (room *Room) leave(ctx context.Context, mode sandbox.Mode) (err error) {
	room.closing.Do(func() {
		if room.Server != nil {
			stop, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			err = room.Server.Stop(stop, mode)
		}
		if room.stopped != nil {
			room.stopped()
		}
		err = errors.Join(err, os.RemoveAll(room.dir))
	})
	return err
}

// abandon ends a restore that failed: what is there cannot start.
func (room *Room) abandon(ctx context.Context) error {
	err := room.leave(ctx, sandbox.Immediate)
	if room.tree == nil {
		return err
	}
	if e := os.Remove(filepath.Join(room.opt.To, controlFile)); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Replayer removes the projects of tombstones from a restored server, reached
// through connect; a root table that is missing is an error (internal/tenancy).
type Replayer func(ctx context.Context, connect func(ctx context.Context, db string) (*pgx.Conn, error), tombs []catalog.Tombstone) ([]AppliedTombstone, error)

// Options say where and how a plan is carried out.
type Options struct {
	To       string // the data directory: absent or empty, unless Delta
	Binaries string // PostgreSQL's programs, with {major}; "" is Debian's place
	User     string // who runs them when we are root; "" is postgres
	Role     string // a superuser of the cluster; "" is postgres
	Program  string // holdfast or holdfast-wal, for restore_command
	// FetchCommand is the restore_command that a standby is left with.
	FetchCommand string
	Workers      int // packs fetched at a time (2)
	Replay       Replayer
	Quarantine   bool // where the set of tombstones is not known whole: go on, and open to superusers only
	// Delta goes over a stopped, damaged or stale directory of the same system, or
	// goes on with a restore that was ended: blocks that are right stay. Digests
	// opens the keys by which they are known; without it everything is fetched.
	Delta   bool
	Digests func(ctx context.Context, epoch int) (seal.DigestKeys, error)
	// Resume, with Delta, takes files that a restore of the same plan has brought
	// whole and durably as they are, by their sizes; Delta alone compares them.
	Resume bool
	// Tablespaces maps a tablespace's name, OID or old path to its new directory,
	// absent or empty; the others go to <To>.tablespaces/<oid>.
	Tablespaces map[string]string
	// InPlace, whose Beside To is, is whose place it takes when it is whole; the
	// caller swaps.
	InPlace *InPlace
	// Process is this one where it does nothing else, so that whoever cancels the
	// restore may ask it to end.
	Process  *Process
	Progress func(Progress)
	Log      io.Writer     // the server's log
	Stall    time.Duration // how long replay may stand still (10 min)
}

// Progress is told while a restore runs.
type Progress struct {
	Phase       string  `json:"phase"` // fetch | replay | promoted
	Done, Total int64   // bytes
	LSN         string  `json:"lsn,omitempty"`
	Seconds     float64 `json:"seconds"`
}

// Room is a restored cluster behind closed doors: its server runs, promoted and
// without the deleted projects, or a standby still, and nobody else can reach it.
type Room struct {
	Server   *sandbox.Server
	Result   Result
	Header   catalog.ManifestHeader
	Files    int // of the snapshot
	Packs    int // that it needs
	Snapshot catalog.Snapshot
	Plan     Plan

	repo     Repo
	opt      Options
	programs sandbox.Programs
	tree     *tree
	dir      string  // spool, settings: beside the data directory, removed at the end
	sockets  string  // dir, or where that is too long for a socket's path a shorter one
	made     bool    // dir is ours
	delta    bool    // the directory holds something to go over
	before   *Marker // of the restore that made what it holds
	lock     *durable.Lock
	supers   []string
	tombs    []catalog.Tombstone       // of a standby
	absences map[string]catalog.Absent // when live was seen without their projects
	way      []leg                     // that it came
	fetch    *fetchServer
	stopped  func() // ends the fetch server and waits for it
	closing  sync.Once
}

// ErrNotEmpty means that the target directory holds something.
var ErrNotEmpty = errors.New("the target directory is not empty")

// ErrIncomplete means that recovery did not reach the plan's expected end.
var ErrIncomplete = errors.New("the restore is not complete")

// Prepare carries out the plan up to a promoted server in the closed room. On an
// error nothing runs any more, and the directory cannot be started.
func Prepare(ctx context.Context, r Repo, p Plan, opt Options) (*Room, error) {
	began := time.Now()
	room := newRoom(r, p, opt)
	err := room.phases(ctx, []phase{
		// Hours of fetching must not end in a refusal that was known before.
		{func(ctx context.Context) error { _, err := room.due(ctx, r); return err }, new(float64)},
		{room.doFetch, &room.Result.Seconds.Fetch},
		{room.doReplay, &room.Result.Seconds.Replay},
		{func(ctx context.Context) error { room.compareHosts(ctx); return room.forgetOrReckon(ctx, r) }, &room.Result.Seconds.Verify},
	})
	if err != nil {
		return nil, err
	}
	room.Result.Seconds.Total = time.Since(began).Seconds()
	room.Result.NoEgress = room.Server.Room().NoEgress
	return room, room.mark(statePrepared)
}

// forgetOrReckon removes deleted projects, or, in a standby, which only live's own WAL
// can change, finds what it must have replayed before anybody reads.
func (room *Room) forgetOrReckon(ctx context.Context, all Repo) error {
	if room.standby() != nil {
		return room.reckon(ctx, all)
	}
	return room.forget(ctx, all)
}

// Fetch carries out the plan's first phase alone: the directory has all files and
// a manifest of them, and is ready for recovery, which a delta restore of the same
// plan goes on with. It cannot be started otherwise.
func Fetch(ctx context.Context, r Repo, p Plan, opt Options) (Result, error) {
	began := time.Now()
	room := newRoom(r, p, opt)
	err := room.phases(ctx, []phase{
		{func(ctx context.Context) error { _, err := room.due(ctx, r); return err }, new(float64)},
		{room.doFetch, &room.Result.Seconds.Fetch},
	})
	if err != nil {
		return Result{}, err
	}
	room.Result.Seconds.Total = time.Since(began).Seconds()
	return room.Result, room.leave(ctx, sandbox.Fast)
}

func newRoom(r Repo, p Plan, opt Options) *Room {
	opt.Workers = max(opt.Workers, 2)
	if opt.Stall <= 0 {
		opt.Stall = 10 * time.Minute
	}
	opt.To = filepath.Clean(opt.To)
	room := &Room{Plan: p, repo: r.only(p.Target.Zone), opt: opt, dir: opt.To + ".room"}
	room.Result = Result{RestoredTo: opt.To, Plan: p.Hash, Expected: p.ExpectedEnd, Tombstones: []AppliedTombstone{}}
	return room
}

type phase struct {
	do   func(context.Context) error
	took *float64
}

func (room *Room) phases(ctx context.Context, list []phase) error {
	for _, phase := range list {
		start := time.Now()
		if err := phase.do(ctx); err != nil {
			err = fmt.Errorf("restoring %s to %s into %s: %w", room.Plan.Cluster, room.Plan.Target, room.opt.To, err)
			return errors.Join(err, room.abandon(context.WithoutCancel(ctx)))
		}
		*phase.took = time.Since(start).Seconds()
	}
	return nil
}

func (room *Room) tell(phase string, done, total int64, lsn string, since time.Time) {
	if room.opt.Progress != nil {
		room.opt.Progress(Progress{phase, done, total, lsn, time.Since(since).Seconds()})
	}
}

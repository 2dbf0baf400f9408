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
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Replayer removes the projects of tombstones from a restored server, reached
// through connect; a root table that is missing is an error (internal/tenancy).
type Replayer func(ctx context.Context, connect func(ctx context.Context, db string) (*pgx.Conn, error), tombs []catalog.Tombstone) ([]AppliedTombstone, error)

// Options say where and how a plan is carried out.
type Options struct {
	To         string // the data directory: absent or empty, unless Delta
	Binaries   string // PostgreSQL's programs, with {major}; "" is Debian's place
	User       string // who runs them when we are root; "" is postgres
	Role       string // a superuser of the cluster; "" is postgres
	Program    string // this binary, for restore_command
	Workers    int    // packs fetched at a time (2)
	Replay     Replayer
	Quarantine bool // where the set of tombstones is not known whole: go on, and open to superusers only
	// Delta goes over a stopped, damaged or stale directory of the same system, or
	// goes on with a restore that was ended: blocks that are right stay. Digests
	// opens the keys by which they are known; without it everything is fetched.
	Delta   bool
	Digests func(ctx context.Context, epoch int) (seal.DigestKeys, error)
	// Tablespaces maps a tablespace's name, OID or old path to its new directory,
	// absent or empty; the others go to <To>.tablespaces/<oid>.
	Tablespaces map[string]string
	Progress    func(Progress)
	Log         io.Writer     // the server's log
	Stall       time.Duration // how long replay may stand still (10 min)
}

// Progress is told while a restore runs.
type Progress struct {
	Phase       string  `json:"phase"` // fetch | replay | promoted
	Done, Total int64   // bytes
	LSN         string  `json:"lsn,omitempty"`
	Seconds     float64 `json:"seconds"`
}

// Room is a restored cluster behind closed doors: its server runs, promoted and
// without the deleted projects, and nobody else can reach it.
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
	fetch    *fetchServer
	stopped  func() // ends the fetch server and waits for it
	closing  sync.Once
}

// marker is the file in the data directory that says what it is.
const marker = "holdfast-restore.json"

// Marker is what the marker file says.
type Marker struct {
	Cluster  string `json:"cluster"`
	Plan     string `json:"plan"`
	Snapshot string `json:"snapshot"`
	SystemID string `json:"system_id"`
	// State is prepared while the room's server runs; from closed on, and
	// quarantined, the directory may be started.
	State  string    `json:"state"` // seizing | fetching | fetched | replaying | prepared | closed | open | quarantined
	At     time.Time `json:"at"`
	Result *Result   `json:"result,omitempty"`
	// Tablespaces are the directories that were made or filled for it elsewhere.
	Tablespaces []string `json:"tablespaces,omitempty"`
	// Mapping is Options.Tablespaces, for who goes on with the restore.
	Mapping  map[string]string `json:"mapping,omitempty"`
	SavedWAL string            `json:"saved_wal,omitempty"` // where WAL of before was put aside
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
		{func(ctx context.Context) error { return room.forget(ctx, r) }, &room.Result.Seconds.Verify},
	})
	if err != nil {
		return nil, err
	}
	room.Result.Seconds.Total = time.Since(began).Seconds()
	room.Result.NoEgress = room.Server.Room().NoEgress
	return room, room.mark(statePrepared)
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

// doFetch fills the directory: all files, then what recovery needs, pg_control
// last. Nothing is made before all that could be refused was looked at.
func (room *Room) doFetch(ctx context.Context) (err error) {
	began := time.Now()
	if room.programs, err = sandbox.FindPrograms(room.Plan.Major, room.opt.Binaries); err != nil {
		return err
	}
	room.programs.User = room.opt.User
	if err := room.checkTarget(); err != nil {
		return err
	}
	if room.Snapshot, err = room.repo.Catalog.Snapshot(ctx, room.Plan.Cluster, room.Plan.Snapshot); err != nil {
		return err
	}
	l, err := readManifest(ctx, room.repo, room.Snapshot)
	if err != nil {
		return err
	}
	room.Header, room.Files, room.Packs = l.header, len(l.files), len(l.packs)
	t := &tree{root: room.opt.To, layout: l, own: room.programs.Own, held: map[int][]byte{}, ours: map[string]bool{}}
	if t.spaces, err = room.placeSpaces(); err != nil {
		return err
	}
	if err := room.checkRoom(t); err != nil {
		return err
	}
	if err := room.makeDirs(t); err != nil {
		return err
	}
	if room.delta {
		if err := room.prepareDelta(ctx, t); err != nil {
			return err
		}
	}
	if err := t.fill(ctx, room, func(done, total int64) { room.tell("fetch", done, total, "", began) }); err != nil {
		return err
	}
	if err := t.prepareRecovery(); err != nil {
		return err
	}
	if err := room.mark(stateFetched); err != nil {
		return err
	}
	return t.finish()
}

// prepareDelta makes what the directory holds ours, and fit to be compared.
func (room *Room) prepareDelta(ctx context.Context, t *tree) error {
	var digester *page.Digester
	if epoch := t.header.DigestEpoch; epoch > 0 && room.opt.Digests != nil {
		keys, err := room.opt.Digests(ctx, epoch)
		if err != nil {
			return fmt.Errorf("comparing with what is there: %w", err)
		}
		digester = page.NewDigester(keys.Key)
	}
	if err := room.seize(); err != nil {
		return err
	}
	t.like = newLikeness(digester, t.header.Facts.ChecksumsStart != 0)
	if err := room.dropSpaces(t); err != nil {
		return err
	}
	return t.sweep()
}

// dropSpaces removes tablespaces beside the data directory that are none of the
// snapshot's: replay made them, or the cluster that is gone over.
func (room *Room) dropSpaces(t *tree) error {
	parent := room.opt.To + ".tablespaces"
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if dir := filepath.Join(parent, e.Name()); !slices.Contains(values(t.spaces), dir) {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// fill makes directories and files and brings what they hold, each byte once.
func (t *tree) fill(ctx context.Context, room *Room, progress func(done, total int64)) (err error) {
	if err := t.directories(); err != nil {
		return err
	}
	scratch, err := newRecords(filepath.Join(room.dir, "records"), inMemory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.close()) }()
	if err := t.layAll(ctx, room, scratch); err != nil {
		return err
	}
	if scratch.total == 0 {
		progress(0, 0)
		return nil
	}
	room.Result.Bytes, err = t.fetch(ctx, room.repo, room.opt.Workers, scratch, progress)
	return err
}

func (t *tree) layAll(ctx context.Context, room *Room, out *records) (err error) {
	dir := filepath.Join(room.dir, "maps")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	fetch := func(ctx context.Context, r catalog.Ref) ([]byte, error) {
		return room.repo.Reader.Get(ctx, r.Name, r.Size, r.SHA256)
	}
	maps := catalog.NewMapSet(dir, t.maps, t.packs, fetch, room.repo.identities())
	defer func() { err = errors.Join(err, maps.Close(), os.RemoveAll(dir)) }()
	return t.lay(ctx, maps, room.opt.Workers, out)
}

// checkTarget wants the data directory to hold nothing, or what a delta may go
// over (C-53).
func (room *Room) checkTarget() error {
	to := room.opt.To
	if !filepath.IsAbs(to) {
		return fmt.Errorf("%s: want an absolute path", to)
	}
	entries, err := os.ReadDir(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case len(entries) == 0:
		return nil
	case room.opt.Delta:
		room.delta = true
		return room.recognise()
	}
	return fmt.Errorf("%w: %s holds %s and more; give another --to, `restore discard` what is there, or go over it with --delta", ErrNotEmpty, to, entries[0].Name())
}

// makeDirs makes the room's own directory, the data directory beside it and the
// tablespaces'.
func (room *Room) makeDirs(t *tree) error {
	if err := room.lockDir(); err != nil {
		return err
	}
	if err := room.makeDir(room.opt.To, fs.ErrExist); err != nil {
		return err
	}
	room.tree = t
	if !room.delta {
		if err := room.mark(stateFetching); err != nil {
			return err
		}
	}
	for _, dir := range append(room.ownSpaces(t), values(t.spaces)...) {
		if err := room.makeDir(dir, fs.ErrExist); err != nil {
			return fmt.Errorf("making a tablespace's directory: %w", err)
		}
	}
	if len(room.dir)+len("/s/.s.PGSQL.5432") < maxSocketPath {
		return nil
	}
	var err error
	if room.sockets, err = os.MkdirTemp("", "holdfast-"); err != nil {
		return err
	}
	return room.programs.Own(room.sockets)
}

// lockName is a file in the room's own directory that is locked while it lives.
const lockName = "lock"

// lockDir makes the room's own directory. One that a restore left which is dead
// is taken away first; that of a live one is not.
func (room *Room) lockDir() (err error) {
	old := filepath.Join(room.dir, lockName)
	if _, err := os.Lstat(old); err == nil {
		lock, err := durable.Acquire(old)
		if err != nil {
			return fmt.Errorf("another restore into %s is under way: %w", room.opt.To, err)
		}
		err = errors.Join(os.RemoveAll(room.dir), lock.Release())
		if err != nil {
			return err
		}
	}
	if err := room.makeDir(room.dir, nil); err != nil {
		return fmt.Errorf("making the room's own directory: %w; remove it if it is nobody's", err)
	}
	room.made, room.sockets = true, room.dir
	room.lock, err = durable.Acquire(old)
	return err
}

// ownSpaces is the directory beside the data directory that tablespaces go to
// for which no other was given.
func (room *Room) ownSpaces(t *tree) []string {
	own := room.opt.To + ".tablespaces"
	for _, dir := range t.spaces {
		if filepath.Dir(dir) == own {
			return []string{own}
		}
	}
	return nil
}

// maxSocketPath is the room in sockaddr_un (unix(7)).
const maxSocketPath = 107

func (room *Room) makeDir(dir string, except error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && (except == nil || !errors.Is(err, except)) {
		return err
	}
	return errors.Join(os.Chmod(dir, 0o700), room.programs.Own(dir))
}

func (room *Room) mark(state string) error {
	m := Marker{Cluster: room.Plan.Cluster, Plan: room.Plan.Hash, Snapshot: room.Plan.Snapshot, SystemID: room.Plan.SystemID, State: state, At: time.Now().UTC(), Mapping: room.opt.Tablespaces, SavedWAL: room.Result.SavedWAL}
	if room.tree != nil {
		m.Tablespaces = values(room.tree.spaces)
	}
	if room.Result.Complete {
		m.Result = &room.Result
	}
	return m.write(room.opt.To, room.programs)
}

func (m Marker) write(dir string, p sandbox.Programs) error {
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, marker)
	return errors.Join(durable.WriteFile(path, append(data, '\n'), 0o600), p.Own(path))
}

// ReadMarker says what a directory is that a restore made.
func ReadMarker(dir string) (m Marker, err error) {
	data, err := os.ReadFile(filepath.Join(dir, marker))
	if err != nil {
		return m, fmt.Errorf("%s is no directory that a restore made: %w", dir, err)
	}
	return m, json.Unmarshal(data, &m)
}

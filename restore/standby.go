package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

// Standby says how a restored directory goes on behind live from where the archive
// ended, instead of being promoted.
type Standby struct {
	Primary    string `json:"primary_conninfo,omitempty"`  // libpq's, without a password
	Slot       string `json:"primary_slot_name,omitempty"` // on the primary
	StreamOnly bool   `json:"stream_only,omitempty"`       // without a restore_command, and so without an identity
}

// Following is how a standby was left.
type Following struct {
	Standby
	RestoreCommand string `json:"restore_command,omitempty"`
	// Replayed is the position before which PostgreSQL admits no reader: pg_control's
	// minimum, up to which it replays anew after every start.
	Replayed lsn.LSN `json:"replayed_lsn"`
	Timeline uint32  `json:"timeline"`
	// Readers: hot_standby is on, since no deleted project can be seen any more.
	Readers bool     `json:"readers"`
	Passed  []string `json:"tombstones_passed"`
	Waits   []Wait   `json:"waits_for,omitempty"`
	Control string   `json:"control,omitempty"` // SHA-256 of pg_control as it was left
}

// Wait is a deleted project that a standby may still hold. LSN and Timeline are
// where live was seen without it; without them that was not seen on this history.
type Wait struct {
	Tombstone string  `json:"tombstone"`
	Timeline  uint32  `json:"timeline,omitempty"`
	LSN       lsn.LSN `json:"lsn,omitzero"`
}

func (w Wait) String() string {
	if w.LSN == 0 {
		return "tombstone " + w.Tombstone + ": live was not seen without the project yet"
	}
	return fmt.Sprintf("tombstone %s: live was seen without the project at %s of timeline %d", w.Tombstone, w.LSN, w.Timeline)
}

// ErrReaders means that a standby has not replayed what took a deleted project away.
var ErrReaders = errors.New("a reader could see a deleted project")

// ErrPreflight means that PostgreSQL could not fetch WAL with a standby's restore_command.
var ErrPreflight = errors.New("the standby's restore_command does not work here")

// ErrSpaces means that a standby would read WAL again whose paths a restore takes out.
var ErrSpaces = errors.New("the WAL behind the snapshot creates a tablespace, in a directory of the primary's host: take a snapshot of after that, and restore the standby from it")

func (s Standby) check() error {
	if s.StreamOnly && s.Primary == "" {
		return errors.New("a standby that streams only needs a primary to stream from")
	}
	return nil
}

func (room *Room) standby() *Standby { return room.Plan.Target.Standby }

// tryFetch runs the restore_command that a standby will have, as PostgreSQL's user,
// for a file that is there: what that user cannot read is found before anything is
// written, and not by a server that does not start.
func (room *Room) tryFetch(ctx context.Context) (err error) {
	s := room.standby()
	if s == nil || s.StreamOnly || len(room.Plan.Files) == 0 {
		return nil
	}
	if room.opt.FetchCommand == "" {
		return fmt.Errorf("%w: there is none", ErrPreflight)
	}
	dir, err := os.MkdirTemp("", "holdfast-fetch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := room.programs.Own(dir); err != nil {
		return err
	}
	name := room.Plan.Files[0].Name
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	line := strings.NewReplacer("%f", name, "%p", "fetched", "%%", "%").Replace(room.opt.FetchCommand)
	if err := room.programs.Shell(ctx, dir, line); err != nil {
		return fmt.Errorf("%w: fetching %s as PostgreSQL's user: %w", ErrPreflight, name, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "fetched")); err != nil {
		return fmt.Errorf("%w: it ended well and brought no %s: %w", ErrPreflight, name, err)
	}
	return nil
}

// stand ends what the room does of a standby's recovery: it stays in recovery.
func (room *Room) stand(ctx context.Context, conn *pgx.Conn, r *replay) error {
	if room.fetch.spaces.defused.Load() {
		return ErrSpaces
	}
	// After a restartpoint of its own the shutdown has none to make, and writes into
	// pg_control how far replay came (CreateRestartPoint in xlog.c).
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("making what the standby replayed durable: %w", err)
	}
	ended, _, err := replayed(ctx, conn)
	if err != nil {
		return fmt.Errorf("asking how far the standby came: %w", err)
	}
	room.tell("replayed", 0, 0, ended.String(), r.began)
	room.Result.Reached.LSN, room.Result.Timeline, room.Result.Complete = ended, room.Plan.Timeline, true
	return nil
}

// reckon reads what a standby must have replayed before anybody may read.
func (room *Room) reckon(ctx context.Context, all Repo) (err error) {
	if room.tombs, err = room.due(ctx, all); err != nil {
		return err
	}
	if room.absences, err = all.Catalog.Absences(ctx); err != nil {
		return fmt.Errorf("reading tombstones: %w", err)
	}
	room.way, err = room.legs(ctx)
	return err
}

// judge says which deleted projects replay to a position has passed, on the way to it.
func (f *Following) judge(tombs []catalog.Tombstone, absences map[string]catalog.Absent, systemID string, legs []leg) {
	f.Passed, f.Waits = []string{}, nil
	for _, t := range tombs {
		if !applies(t, absences, systemID, legs, f.Replayed) {
			f.Passed = append(f.Passed, t.ID)
			continue
		}
		w := Wait{Tombstone: t.ID}
		if a, ok := absences[t.ID]; ok && a.SystemID == systemID && passes(legs, a.Timeline, a.LSN) {
			w.LSN, w.Timeline = a.LSN, a.Timeline
		}
		f.Waits = append(f.Waits, w)
	}
	f.Readers = len(f.Waits) == 0
}

// follow leaves the stopped directory as a standby of live.
func (room *Room) follow(ctx context.Context) error {
	c, _, err := control.ReadFile(filepath.Join(room.opt.To, controlFile))
	if err != nil {
		return err
	}
	if c.State != control.ShutDownInRecovery {
		return fmt.Errorf("the standby did not stop in recovery: pg_control's state is %d", c.State)
	}
	f := &Following{Standby: *room.standby(), Replayed: c.MinRecovery, Timeline: c.MinRecoveryTLI}
	if !f.StreamOnly {
		f.RestoreCommand = room.opt.FetchCommand
	}
	f.judge(room.tombs, room.absences, room.Plan.SystemID, room.way)
	settings := f.settings(room.Plan.Major)
	for name, value := range room.lacking(ctx, c) {
		settings[name] = value
	}
	if slices.ContainsFunc(room.Header.Tablespaces, func(s catalog.Tablespace) bool { return s.InPlace }) {
		settings["allow_in_place_tablespaces"] = "on"
	}
	auto, err := os.ReadFile(filepath.Join(room.opt.To, autoConf))
	if err != nil {
		return fmt.Errorf("reading the standby's settings: %w", err)
	}
	if err := errors.Join(room.tree.write(autoConf, followed(auto, settings), 0o600), room.tree.write("standby.signal", nil, 0o600)); err != nil {
		return err
	}
	if f.Control, err = sumOf(filepath.Join(room.opt.To, controlFile)); err != nil {
		return err
	}
	room.Result.Standby = f
	return nil
}

// settings are those of a standby; the others are live's own. It archives nothing,
// promoted or not: whose the archive is then is decided by who takes it over.
func (f *Following) settings(major int) map[string]string {
	s := map[string]string{
		"hot_standby": onOff(f.Readers), "archive_mode": "off",
		"primary_conninfo": f.Primary, "primary_slot_name": f.Slot, "restore_command": f.RestoreCommand,
		"recovery_target_timeline": "latest", "archive_cleanup_command": "", "recovery_end_command": "",
	}
	for _, target := range []string{"", "_name", "_time", "_xid", "_lsn"} {
		s["recovery_target"+target] = ""
	}
	if major < 16 {
		s["promote_trigger_file"] = ""
	}
	return s
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// lacking are the settings of which a standby must have as much as its primary, and
// the restored configuration has less (C-63): live was given more since.
func (room *Room) lacking(ctx context.Context, c control.Control) map[string]string {
	out := map[string]string{}
	for name, least := range map[string]int32{
		"max_connections": c.MaxConnections, "max_worker_processes": c.MaxWorkers, "max_wal_senders": c.MaxWALSenders,
		"max_prepared_transactions": c.MaxPrepared, "max_locks_per_transaction": c.MaxLocksPerXact,
	} {
		var said strings.Builder
		err := room.programs.Run(ctx, &said, "postgres", "-D", room.opt.To, "-c", "config_file="+room.tree.confFile(), "-C", name)
		have, perr := strconv.ParseInt(strings.TrimSpace(said.String()), 10, 32)
		if err != nil || perr != nil || have < int64(least) {
			out[name] = strconv.Itoa(int(least))
		}
	}
	return out
}

// follows begins what we add to a standby's postgresql.auto.conf.
const follows = "# Set by holdfast: a standby of live, which archives nothing, also when it is promoted.\n" +
	"# After a failover decide about archive_mode anew; the other lines below do no harm then.\n"

// giveBack are settings of live's that a standby keeps, and a copy beside production does not.
var giveBack = regexp.MustCompile(`(?i)^#holdfast# \s*(archive_command|archive_library|synchronous_standby_names)\s*[= ]`)

// followed is the postgresql.auto.conf of a standby: live's own, without what isolates
// a copy, and with settings.
func followed(auto []byte, settings map[string]string) []byte {
	auto, _, _ = bytes.Cut(auto, []byte(ours))
	auto, _, _ = bytes.Cut(auto, []byte(follows))
	var out bytes.Buffer
	for line := range bytes.Lines(auto) {
		if giveBack.Match(line) {
			line = bytes.TrimPrefix(line, []byte("#holdfast# "))
		}
		out.Write(line)
	}
	out.WriteString(follows)
	list(&out, settings)
	return out.Bytes()
}

// Started says whether a standby was started since it was restored: it is a replica in
// use from then on, and not a restore's to remove.
func Started(dir string, m Marker) (bool, error) {
	if m.State != stateStandby || m.Result == nil || m.Result.Standby == nil {
		return false, nil
	}
	sum, err := sumOf(filepath.Join(dir, controlFile))
	if errors.Is(err, fs.ErrNotExist) { // a discard that was cut off is gone on with
		return false, nil
	}
	return sum != m.Result.Standby.Control || running(dir) != 0, err
}

// Admit lets readers into a standby from its next start on, if it has replayed by now
// what took every deleted project away; else it is [ErrReaders], and says what it waits for.
func Admit(ctx context.Context, r Repo, dir string, programs sandbox.Programs) (Marker, error) {
	m, err := ReadMarker(dir)
	if err == nil && (m.State != stateStandby || m.Result == nil || m.Result.Standby == nil) {
		err = fmt.Errorf("the restore into it is %s, and no standby", m.State)
	}
	if err != nil {
		return m, fmt.Errorf("admitting readers into %s: %w", dir, err)
	}
	if err := admit(ctx, r, dir, &m); err != nil {
		return m, fmt.Errorf("admitting readers into %s: %w", dir, err)
	}
	auto := filepath.Join(dir, autoConf)
	data, err := os.ReadFile(auto)
	if err != nil {
		return m, fmt.Errorf("admitting readers into %s: %w", dir, err)
	}
	before, after, ours := bytes.Cut(data, []byte(follows))
	if !ours {
		return m, fmt.Errorf("admitting readers into %s: %s has not the lines any more that Holdfast wrote: set hot_standby = on yourself", dir, autoConf)
	}
	after = bytes.Replace(after, []byte("hot_standby = 'off'"), []byte("hot_standby = 'on'"), 1)
	err = errors.Join(durable.WriteFile(auto, slices.Concat(before, []byte(follows), after), 0o600), programs.Own(auto), m.write(dir, programs))
	if err != nil {
		return m, fmt.Errorf("admitting readers into %s: %w", dir, err)
	}
	return m, nil
}

func admit(ctx context.Context, r Repo, dir string, m *Marker) error {
	c, _, err := control.ReadFile(filepath.Join(dir, controlFile))
	if err != nil {
		return err
	}
	if c.State != control.ShutDownInRecovery && c.State != control.ArchiveRecovery {
		return errors.New("it is no standby any more: it was promoted")
	}
	tombs, err := tombstones(ctx, r, m.Cluster)
	if err != nil {
		return err
	}
	absences, err := r.Catalog.Absences(ctx)
	if err != nil {
		return fmt.Errorf("reading tombstones: %w", err)
	}
	legs, err := localLegs(dir, c.MinRecoveryTLI)
	if err != nil {
		return err
	}
	f := m.Result.Standby
	f.Replayed, f.Timeline = c.MinRecovery, c.MinRecoveryTLI
	f.judge(tombs, absences, m.SystemID, legs)
	if f.Readers {
		return nil
	}
	var waits []string
	for _, w := range f.Waits {
		waits = append(waits, w.String())
	}
	return fmt.Errorf("%w: it has replayed to %s for certain: %s", ErrReaders, f.Replayed, strings.Join(waits, "; "))
}

// localLegs is the way to a timeline by the history file that recovery left in pg_wal.
func localLegs(dir string, timeline uint32) ([]leg, error) {
	if timeline <= 1 {
		return path(1, nil), nil
	}
	data, err := os.ReadFile(filepath.Join(dir, "pg_wal", historyName(timeline)))
	if err != nil {
		return nil, fmt.Errorf("how it came to timeline %d cannot be seen: %w", timeline, err)
	}
	return parsePath(timeline, data)
}

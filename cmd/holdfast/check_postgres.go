package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
)

// serverState is what a server showed of all that its backups depend on.
type serverState struct {
	err         error // it could not be reached or asked: nothing else is known
	facts       postgres.Facts
	role        string
	super, repl bool
	start, stop bool // may execute pg_backup_start and pg_backup_stop
	monitor     bool // pg_monitor
	settings    map[string]string
	senders     int // in use
	slots       int
	slot        *postgres.SlotState // nil: there is none yet
	replErr     error               // a replication connection was refused
	dirSystem   string              // system id in data_directory, "" where none is configured
	dirErr      error
	skew        time.Duration // the server's clock less ours
	lineage     *catalog.Lineage
	lineageErr  error
}

const watchedSettings = `SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'max_wal_senders', 'max_replication_slots', 'archive_mode',
	'archive_command', 'archive_library', 'full_page_writes', 'max_slot_wal_keep_size', 'idle_replication_slot_timeout', 'synchronous_standby_names')`

// askServer gathers everything about a cluster's server. w is nil where the
// repository could not be opened.
func askServer(ctx context.Context, w *world, c configs.Cluster, dsn string) (s serverState) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := postgres.Connect(ctx, dsn, postgres.ConnectOptions{AppName: "holdfast check"})
	if err != nil {
		return serverState{err: err}
	}
	defer conn.Close()
	if s.facts, s.err = postgres.GetFacts(ctx, conn); s.err != nil {
		return s
	}
	s.skew = time.Until(s.facts.Now)
	if s.err = s.askRights(ctx, conn); s.err != nil {
		return s
	}
	if c.WAL.Mode == "stream" {
		slot, err := postgres.GetSlotState(ctx, conn, c.WAL.Slot)
		if err == nil {
			s.slot = &slot
		} else if !errors.Is(err, postgres.ErrNoSlot) {
			s.err = err
			return s
		}
	}
	s.replErr = tryReplication(ctx, dsn)
	s.askDirectory(c)
	if w != nil {
		list, err := w.catalog.Lineages(ctx, c.Name)
		if s.lineageErr = err; err == nil && len(list.List) > 0 {
			s.lineage = &list.List[len(list.List)-1].Body
		}
	}
	return s
}

func (s *serverState) askRights(ctx context.Context, conn *postgres.Conn) error {
	start, stop := "pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"
	if conn.Major() < 15 {
		start, stop = "pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"
	}
	err := conn.Pgx().QueryRow(ctx, `SELECT rolname::text, rolsuper, rolreplication, has_function_privilege($1, 'EXECUTE'), has_function_privilege($2, 'EXECUTE'),
		pg_has_role('pg_monitor', 'USAGE') FROM pg_roles WHERE rolname = current_user`, start, stop).
		Scan(&s.role, &s.super, &s.repl, &s.start, &s.stop, &s.monitor)
	if err != nil {
		return fmt.Errorf("asking for the rights of the role: %w", err)
	}
	rows, err := conn.Pgx().Query(ctx, watchedSettings)
	if err != nil {
		return fmt.Errorf("reading the server's settings: %w", err)
	}
	s.settings = map[string]string{}
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { s.settings[name] = value; return nil }); err != nil {
		return fmt.Errorf("reading the server's settings: %w", err)
	}
	err = conn.Pgx().QueryRow(ctx, "SELECT (SELECT count(*) FROM pg_stat_replication)::int, (SELECT count(*) FROM pg_replication_slots)::int").Scan(&s.senders, &s.slots)
	if err != nil {
		return fmt.Errorf("counting the server's replication connections: %w", err)
	}
	return nil
}

func tryReplication(ctx context.Context, dsn string) error {
	conn, err := postgres.Connect(ctx, dsn, postgres.ConnectOptions{Replication: true, AppName: "holdfast check"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = postgres.IdentifySystem(ctx, conn)
	return err
}

// askDirectory reads pg_control where the data directory is said to be.
func (s *serverState) askDirectory(c configs.Cluster) {
	if c.DataDirectory == "" {
		return
	}
	data, err := os.ReadFile(filepath.Join(c.DataDirectory, "global", "pg_control"))
	if err != nil {
		s.dirErr = err
		return
	}
	ctl, err := control.Parse(data)
	if errors.Is(err, control.ErrChecksum) {
		return // read while the server wrote it
	}
	s.dirErr, s.dirSystem = err, strconv.FormatUint(ctl.SystemID, 10)
}

// judgeServer says what of a server's state backups cannot or should not live with.
func judgeServer(c configs.Cluster, node string, s serverState) []finding {
	name := "cluster " + c.Name
	if s.err != nil {
		return []finding{bad(name, connectRemedy(c, s.err), "%v", s.err)}
	}
	out := judgeVersion(name, s)
	for _, judge := range []func(string, configs.Cluster, serverState) []finding{judgeRights, judgeSettings, judgeWAL, judgeDirectory} {
		out = append(out, judge(name, c, s)...)
	}
	return append(out, judgeLineage(name, c, node, s)...)
}

// grants is what makes a role that can take backups.
func grants(role string, major int) string {
	q := pgx.Identifier{role}.Sanitize()
	functions := "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
	if major == 14 {
		functions = "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)"
	}
	if major >= 16 { // whose pg_hba.conf and pg_ident.conf include other files
		functions += ", pg_hba_file_rules(), pg_ident_file_mappings()"
	}
	return fmt.Sprintf("as superuser: CREATE ROLE %s LOGIN REPLICATION; GRANT pg_monitor TO %s; GRANT EXECUTE ON FUNCTION %s, pg_switch_wal(), pg_show_all_file_settings() TO %s", q, q, functions, q)
}

// dsnOf is a cluster's connection string with its password, as a URL or as
// keywords, whichever it is.
func dsnOf(c configs.Cluster) (string, error) {
	if c.Password == nil {
		return c.Connection, nil
	}
	pw, err := c.Password.Load()
	if err != nil {
		return "", usage("clusters[%s].password: %w", c.Name, err)
	}
	if strings.HasPrefix(c.Connection, "postgres://") || strings.HasPrefix(c.Connection, "postgresql://") {
		u, err := url.Parse(c.Connection)
		if err != nil {
			return "", usage("clusters[%s].connection: it is no URL that can be read", c.Name)
		}
		q := u.Query()
		q.Set("password", string(pw))
		u.RawQuery = q.Encode()
		return u.String(), nil
	}
	return c.Connection + " password='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(string(pw)) + "'", nil
}

func connectRemedy(c configs.Cluster, err error) string {
	text := err.Error()
	user := "holdfast"
	if cfg, perr := pgx.ParseConfig(c.Connection); perr == nil {
		user = cfg.User
	}
	switch {
	case strings.Contains(text, "28P01") || strings.Contains(text, "28000"):
		return "let the role in by pg_hba.conf (peer, a certificate, or a password in clusters[" + c.Name + "].password); if there is no such role yet, " + grants(user, 0)
	case strings.Contains(text, "no such file") || strings.Contains(text, "refused"):
		return "start PostgreSQL, or correct host and port in clusters[" + c.Name + "].connection (the directory of the socket is the host)"
	}
	return "correct clusters[" + c.Name + "].connection; `psql` with the same string must work for this user; " + grants(user, 0)
}

func judgeVersion(name string, s serverState) []finding {
	f := s.facts
	v := fmt.Sprintf("PostgreSQL %d.%d", f.Major, f.ServerNum%10000)
	if f.Major < 14 || f.Major > 18 {
		return []finding{bad(name, "use a server of 14 to 18, or a holdfast that knows this one", "%s answers, and this holdfast knows 14 to 18", v)}
	}
	out := []finding{good(name, "%s answers to role %s, system id %s, timeline %d", v, s.role, f.SystemID, f.Timeline)}
	if s.skew.Abs() > 5*time.Second {
		out = append(out, warn(name+" clock", "set both clocks by NTP: restores to a time go by the server's", "the server's clock differs from this host's by %s", s.skew.Round(time.Second)))
	}
	return out
}

func judgeRights(name string, c configs.Cluster, s serverState) []finding {
	var missing []string
	grant := func(has bool, right string) {
		if !has && !s.super {
			missing = append(missing, right)
		}
	}
	grant(s.repl, "REPLICATION")
	if c.Snapshots.Source == "files" {
		grant(s.start && s.stop, "EXECUTE on pg_backup_start and pg_backup_stop")
	}
	grant(s.monitor, "pg_monitor")
	if len(missing) > 0 {
		return []finding{bad(name+" role", grants(s.role, s.facts.Major)+" (those that exist already say so)", "role %s lacks %s", s.role, strings.Join(missing, ", "))}
	}
	if s.replErr != nil {
		return []finding{bad(name+" replication", "let the role in for replication: in pg_hba.conf, a line with database `replication` (`all` does not include it), as `local replication "+s.role+" peer`; then SELECT pg_reload_conf()",
			"a replication connection is refused: %v", s.replErr)}
	}
	return []finding{good(name+" role", "%s may do all that backups need", s.role)}
}

func judgeSettings(name string, c configs.Cluster, s serverState) []finding {
	var out []finding
	num := func(setting string) int {
		n, err := strconv.Atoi(s.settings[setting])
		if err != nil {
			return 0
		}
		return n
	}
	if s.settings["wal_level"] == "minimal" {
		out = append(out, bad(name+" wal_level", "ALTER SYSTEM SET wal_level = replica; then restart the server", "it is minimal: no WAL to restore from"))
	}
	// A BASE_BACKUP and the stream take a sender each.
	if free := num("max_wal_senders") - s.senders; free < 2 && (s.slot == nil || !s.slot.Active) {
		out = append(out, bad(name+" max_wal_senders", "ALTER SYSTEM SET max_wal_senders = 10 (or more than now); then restart the server", "%d of %s are free, and backups take two", free, s.settings["max_wal_senders"]))
	}
	if free := num("max_replication_slots") - s.slots; c.WAL.Mode == "stream" && s.slot == nil && free < 1 {
		out = append(out, bad(name+" max_replication_slots", "ALTER SYSTEM SET max_replication_slots = 10 (or more than now); then restart the server", "all %s are in use, and streaming takes one", s.settings["max_replication_slots"]))
	}
	if s.settings["full_page_writes"] == "off" {
		out = append(out, bad(name+" full_page_writes", "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf()", "it is off: pages torn while they are copied cannot be mended by the WAL"))
	}
	if !s.facts.DataChecksums {
		out = append(out, warn(name+" data_checksums", "stop the server and run pg_checksums --enable", "they are off: damage on the server's disk goes unnoticed into snapshots"))
	}
	if len(s.facts.Hidden) > 0 {
		out = append(out, warn(name+" visibility", grants(s.role, s.facts.Major)+" (those that exist already say so)", "the role may not see %s", strings.Join(s.facts.Hidden, ", ")))
	}
	if len(out) == 0 {
		out = append(out, good(name+" settings", "wal_level %s, senders and slots free, full_page_writes and data_checksums on", s.settings["wal_level"]))
	}
	return out
}

// judgeWAL looks at how WAL leaves the server (C-46, C-51).
func judgeWAL(name string, c configs.Cluster, s serverState) []finding {
	if c.WAL.Mode == "push" {
		return judgePush(name, s)
	}
	var out []finding
	if strings.Contains(s.settings["archive_command"], "holdfast") && s.settings["archive_mode"] != "off" {
		out = append(out, warn(name+" archive_command", "ALTER SYSTEM SET archive_mode = off, or wal.mode: push", "it calls holdfast while wal.mode is stream: pushes are refused, and the server keeps its WAL until its disk is full"))
	}
	if t := s.settings["idle_replication_slot_timeout"]; t != "" && t != "0" {
		out = append(out, warn(name+" idle_replication_slot_timeout", "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf()", "the server drops a slot that was idle so long (%s s): a longer stop of the daemon makes a gap", t))
	}
	return append(out, judgeSlot(name+" slot", c, s)...)
}

func judgePush(name string, s serverState) []finding {
	name += " archiving"
	const meant = "archive_mode = on and archive_command = 'holdfast wal push %p'"
	mode, command, library := s.settings["archive_mode"], s.settings["archive_command"], s.settings["archive_library"]
	switch {
	case mode == "off":
		return []finding{bad(name, "ALTER SYSTEM SET archive_mode = on; then restart the server", "wal.mode is push, and archive_mode is off: nothing is archived")}
	case library != "" && command != "" && command != "(disabled)":
		return []finding{bad(name, "ALTER SYSTEM RESET archive_library; SELECT pg_reload_conf()", "archive_library (%s) and archive_command are both set: the server archives nothing", library)}
	case library != "":
		return []finding{bad(name, "ALTER SYSTEM RESET archive_library; and set "+meant, "archive_library %s archives, and not holdfast", library)}
	case !strings.Contains(command, "wal push"):
		return []finding{bad(name, "set "+meant+", then SELECT pg_reload_conf()", "wal.mode is push, and archive_command does not call holdfast wal push")}
	}
	return []finding{good(name, "archive_mode %s, archive_command calls holdfast", mode)}
}

func judgeSlot(name string, c configs.Cluster, s serverState) []finding {
	unlimited := s.settings["max_slot_wal_keep_size"] == "-1"
	const remedy = "start the daemon, or bring zones back, so that the WAL can leave; a lost slot is a gap, behind which a snapshot is taken by itself"
	if s.slot == nil {
		return []finding{good(name, "%s does not exist yet: the daemon makes it", c.WAL.Slot)}
	}
	sl := s.slot
	switch {
	case sl.Lost():
		return []finding{bad(name, "drop it: SELECT pg_drop_replication_slot('"+c.WAL.Slot+"'); the daemon makes it anew, records the gap and takes a snapshot", "%s is lost (%s): the server threw away WAL that was not archived", c.WAL.Slot, strings.TrimSpace(sl.WALStatus+" "+sl.Invalidated))}
	case sl.WALStatus == "unreserved":
		return []finding{bad(name, remedy, "%s is about to be lost: the server keeps %s for it, more than it promises", c.WAL.Slot, size(sl.Behind))}
	case sl.SafeBytes != nil && *sl.SafeBytes < sl.Behind:
		return []finding{warn(name, remedy, "the server keeps %s for %s and only %s more may be written before the slot is lost", size(sl.Behind), c.WAL.Slot, size(*sl.SafeBytes))}
	case sl.Behind > 8<<30 && unlimited:
		return []finding{warn(name, remedy+"; max_slot_wal_keep_size keeps the disk from filling", "the server keeps %s of WAL for %s, without a limit", size(sl.Behind), c.WAL.Slot)}
	}
	if unlimited {
		return []finding{warn(name, "ALTER SYSTEM SET max_slot_wal_keep_size to less than its WAL's disk has free; SELECT pg_reload_conf(). A slot that is lost by it is a recorded gap, a full disk stops the server",
			"%s: %s behind, and max_slot_wal_keep_size is -1: while no zone answers, or no daemon runs, the WAL kept for it may fill the server's disk", c.WAL.Slot, size(sl.Behind))}
	}
	return []finding{good(name, "%s: %s behind, at most %s MB are kept", c.WAL.Slot, size(sl.Behind), s.settings["max_slot_wal_keep_size"])}
}

func judgeDirectory(name string, c configs.Cluster, s serverState) []finding {
	name += " data_directory"
	switch {
	case c.DataDirectory == "":
		return nil
	case s.dirErr != nil:
		return []finding{bad(name, "run holdfast as a user that can read it (group read: initdb --allow-group-access), or leave data_directory out: it is then taken over the replication protocol", "reading %s: %v", c.DataDirectory, s.dirErr)}
	case s.dirSystem != "" && s.dirSystem != s.facts.SystemID:
		return []finding{bad(name, "correct clusters["+c.Name+"].data_directory or .connection: they belong to different servers", "%s has system id %s, and the server that answers has %s", c.DataDirectory, s.dirSystem, s.facts.SystemID)}
	case s.facts.DataDirectory != "" && real(s.facts.DataDirectory) != real(c.DataDirectory):
		return []finding{warn(name, "name the directory that the server uses, unless it only sees it under another path", "it is %s, and the server says %s", c.DataDirectory, s.facts.DataDirectory)}
	}
	return []finding{good(name, "%s is the server's, and readable", c.DataDirectory)}
}

func judgeLineage(name string, c configs.Cluster, node string, s serverState) []finding {
	name += " lineage"
	l := s.lineage
	switch {
	case s.lineageErr != nil:
		return []finding{warn(name, "bring zones back", "it cannot be read: %v", s.lineageErr)}
	case l == nil:
		return []finding{good(name, "nobody has written this cluster yet")}
	case l.SystemID != s.facts.SystemID:
		return []finding{bad(name, "correct clusters["+c.Name+"].connection, or give this server a cluster of its own: backups of two servers must not mix",
			"the repository knows system id %s under this name, and the server has %s", l.SystemID, s.facts.SystemID)}
	case s.facts.Timeline < l.Timeline:
		return []finding{bad(name, "connect to the server that was promoted", "the lineage went on to timeline %d, and this server is on %d: an old primary, or a copy of one", l.Timeline, s.facts.Timeline)}
	case l.Node != node:
		return []finding{warn(name, "if "+l.Node+" writes no more, `holdfast lineage open "+c.Name+" --take-over` makes it this node's", "node %s has lineage %d since %s", l.Node, l.Epoch, clock(l.ClaimedAt))}
	}
	return []finding{good(name, "this node has lineage %d since %s", l.Epoch, clock(l.ClaimedAt))}
}

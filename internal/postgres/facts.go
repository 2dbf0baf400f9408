package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Facts is what a server says of itself (C-9). A value that the connection's role
// may not see is its zero value and is named in Hidden: grant pg_monitor.
type Facts struct {
	SystemID        string // decimal, as the server prints it
	ServerNum       int
	Major           int
	ControlVersion  int
	CatalogVersion  int
	Timeline        uint32
	InRecovery      bool
	CurrentLSN      lsn.LSN // end of what was written, or of what was replayed in recovery
	CheckpointLSN   lsn.LSN
	Now             time.Time // the server's clock
	Platform        Platform
	DataDirectory   string
	BlockSize       int   // bytes
	SegmentBlocks   int   // pages in a segment file of a relation
	SegSize         int64 // bytes in a WAL segment
	DataChecksums   bool
	ChecksumVersion int // pg_control's data_checksum_version
	WALLevel        string
	FullPageWrites  bool
	WALLogHints     bool
	ArchiveMode     string
	SummarizeWAL    bool
	Encoding        string // of the database that answers
	Collation       string
	HotStandby      map[string]string // settings that a standby must not have less of (C-63)
	ConfigFiles     []string          // absolute paths in use, sorted (C-15)
	StatsTemp       string            // stats_temp_directory, before 15
	Databases       []Database
	Roles           []string
	Extensions      []Extension // of the database that answers
	Tablespaces     []TablespaceFact
	Hidden          []string
}

// Database is a row of pg_database.
type Database struct {
	OID              uint32
	Name             string
	Template         bool
	AllowConnections bool
	Encoding         string
	Collation        string
	CollationVersion string // "" before 15 and for C
}

// Extension is an installed extension.
type Extension struct{ Name, Version string }

// TablespaceFact is a tablespace that is not built in. Location is relative
// (pg_tblspc/<oid>) for one in place.
type TablespaceFact struct {
	OID      uint32
	Name     string
	Location string
}

// hotStandby are the settings that replay compares with those of the primary
// (CheckRequiredParameterValues in src/backend/access/transam/xlogrecovery.c).
var hotStandby = []string{
	"max_connections", "max_worker_processes", "max_wal_senders",
	"max_prepared_transactions", "max_locks_per_transaction",
}

var asked = append([]string{
	"data_directory", "block_size", "segment_size", "wal_segment_size", "wal_level", "full_page_writes",
	"wal_log_hints", "archive_mode", "summarize_wal", "server_encoding", "stats_temp_directory",
	"config_file", "hba_file", "ident_file",
}, hotStandby...)

// needed are those of asked that every server has: a role that does not see one
// lacks a privilege.
var needed = []string{"data_directory", "config_file", "hba_file", "ident_file"}

// GetFacts asks a server for its [Facts].
func GetFacts(ctx context.Context, c *Conn) (Facts, error) {
	f := Facts{ServerNum: c.num, Major: c.Major()}
	for _, part := range []struct {
		what string
		ask  func(context.Context, *Conn, *Facts) error
	}{
		{"settings", settings},
		{"control data", controlData},
		{"platform", platform},
		{"position", position},
		{"databases", databases},
		{"roles", roles},
		{"extensions", extensions},
		{"tablespaces", tablespaces},
		{"configuration files", configFiles},
	} {
		if err := part.ask(ctx, c, &f); err != nil {
			return Facts{}, fmt.Errorf("ask the server for its %s: %w", part.what, err)
		}
	}
	return f, nil
}

func settings(ctx context.Context, c *Conn, f *Facts) error {
	rows, err := c.pgx.Query(ctx, "SELECT name, setting, coalesce(unit, '') FROM pg_settings WHERE name = ANY($1)", asked)
	if err != nil {
		return err
	}
	got := map[string]string{}
	var name, value, unit string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value, &unit}, func() error {
		got[name] = value
		if name == "wal_segment_size" && unit != "B" {
			return fmt.Errorf("wal_segment_size is in %q, want bytes", unit)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, name := range needed {
		if got[name] == "" {
			f.Hidden = append(f.Hidden, name)
		}
	}
	f.DataDirectory, f.WALLevel, f.ArchiveMode = got["data_directory"], got["wal_level"], got["archive_mode"]
	f.FullPageWrites, f.WALLogHints, f.SummarizeWAL = got["full_page_writes"] == "on", got["wal_log_hints"] == "on", got["summarize_wal"] == "on"
	f.Encoding, f.StatsTemp = got["server_encoding"], got["stats_temp_directory"]
	f.HotStandby = map[string]string{}
	for _, name := range hotStandby {
		f.HotStandby[name] = got[name]
	}
	for _, name := range []string{"config_file", "hba_file", "ident_file"} {
		f.addConfig(got[name])
	}
	return sizes(got, f)
}

func sizes(got map[string]string, f *Facts) (err error) {
	if f.BlockSize, err = strconv.Atoi(got["block_size"]); err != nil {
		return fmt.Errorf("block_size: %w", err)
	}
	if f.SegSize, err = strconv.ParseInt(got["wal_segment_size"], 10, 64); err != nil {
		return fmt.Errorf("wal_segment_size: %w", err)
	}
	if f.SegmentBlocks, err = strconv.Atoi(got["segment_size"]); err != nil {
		return fmt.Errorf("segment_size: %w", err)
	}
	return nil
}

func (f *Facts) addConfig(path string) {
	if at, found := slices.BinarySearch(f.ConfigFiles, path); path != "" && !found {
		f.ConfigFiles = slices.Insert(f.ConfigFiles, at, path)
	}
}

func controlData(ctx context.Context, c *Conn, f *Facts) error {
	err := c.pgx.QueryRow(ctx, `SELECT s.system_identifier::text, s.pg_control_version, s.catalog_version_no,
	i.data_page_checksum_version, k.checkpoint_lsn::text
FROM pg_control_system() s, pg_control_init() i, pg_control_checkpoint() k`).
		Scan(&f.SystemID, &f.ControlVersion, &f.CatalogVersion, &f.ChecksumVersion, (*lsnText)(&f.CheckpointLSN))
	f.DataChecksums = f.ChecksumVersion == 1
	return err
}

// positionSQL finds where the server is. A primary's timeline is in the name of
// the segment that it writes; a standby's is the highest that it has replayed a
// checkpoint of, was told of by a minimum recovery point, or is receiving.
const positionSQL = `SELECT pg_is_in_recovery(), clock_timestamp(),
	coalesce(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, '0/0')::text,
	CASE WHEN pg_is_in_recovery() THEN greatest(
		(SELECT timeline_id FROM pg_control_checkpoint()),
		(SELECT min_recovery_end_timeline FROM pg_control_recovery()),
		(SELECT received_tli FROM pg_stat_get_wal_receiver()))
	ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END`

func position(ctx context.Context, c *Conn, f *Facts) error {
	return c.pgx.QueryRow(ctx, positionSQL).Scan(&f.InRecovery, &f.Now, (*lsnText)(&f.CurrentLSN), &f.Timeline)
}

func databases(ctx context.Context, c *Conn, f *Facts) (err error) {
	version := "''"
	if c.num >= 150000 {
		version = "coalesce(datcollversion, '')"
	}
	f.Databases, err = collect[Database](ctx, c, `SELECT oid, datname::text, datistemplate, datallowconn,
	pg_encoding_to_char(encoding)::text, coalesce(datcollate, '')::text, `+version+` FROM pg_database ORDER BY oid`)
	if err != nil {
		return err
	}
	return c.pgx.QueryRow(ctx, "SELECT coalesce(datcollate, '')::text FROM pg_database WHERE datname = current_database()").Scan(&f.Collation)
}

func roles(ctx context.Context, c *Conn, f *Facts) error {
	rows, err := c.pgx.Query(ctx, `SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1`)
	if err != nil {
		return err
	}
	f.Roles, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}

func extensions(ctx context.Context, c *Conn, f *Facts) (err error) {
	f.Extensions, err = collect[Extension](ctx, c, "SELECT extname::text, extversion FROM pg_extension ORDER BY 1")
	return err
}

func tablespaces(ctx context.Context, c *Conn, f *Facts) (err error) {
	f.Tablespaces, err = collect[TablespaceFact](ctx, c, `SELECT oid, spcname::text, pg_tablespace_location(oid)
FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid`)
	return err
}

// configFiles adds what the configuration includes, which only a superuser or
// whoever was granted the two functions may ask.
func configFiles(ctx context.Context, c *Conn, f *Facts) error {
	queries := map[string]string{"pg_show_all_file_settings()": "sourcefile"}
	if c.num >= 160000 {
		queries["pg_hba_file_rules()"] = "file_name"
		queries["pg_ident_file_mappings()"] = "file_name"
	}
	for fn, column := range queries {
		rows, err := c.pgx.Query(ctx, "SELECT DISTINCT "+column+" FROM "+fn+" WHERE "+column+" IS NOT NULL")
		var files []string
		if err == nil {
			files, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		switch {
		case code(err) == "42501":
			f.Hidden = append(f.Hidden, fn)
		case err != nil:
			return err
		}
		for _, path := range files {
			f.addConfig(path)
		}
	}
	return nil
}

func collect[T any](ctx context.Context, c *Conn, sql string) ([]T, error) {
	rows, err := c.pgx.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}

// lsnText scans the text of a pg_lsn.
type lsnText lsn.LSN

func (l *lsnText) Scan(src any) error {
	s, ok := src.(string)
	if !ok {
		return fmt.Errorf("an LSN came as %T, want text", src)
	}
	at, err := lsn.Parse(s)
	*l = lsnText(at)
	return err
}

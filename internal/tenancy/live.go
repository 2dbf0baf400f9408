package tenancy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// State is what a live database holds of a deleted project.
type State string

// The states, in the order in which they follow.
const (
	Present State = "present" // rows
	Residue State = "residue" // no rows, schema or database, but pages that may still hold bytes of them
	Absent  State = "absent"
)

// Memo is what must be remembered from one look to the next: when the rows were
// first seen gone. Whoever loses it waits for another vacuum, nothing worse.
type Memo struct {
	GoneAt time.Time         `json:"gone_at,omitzero"` // the server's clock
	Seen   string            `json:"seen,omitempty"`   // transactions from this one on never saw it (xid8)
	Files  map[uint32]uint32 `json:"files,omitempty"`  // relation → file node, then
	// Waiting is what the last look waited for.
	Waiting []string `json:"waiting,omitempty"`
}

// Seen is one look at a live database.
type Seen struct {
	State    State
	Memo     Memo
	Counts   []catalog.Count // while present
	Waiting  []string        // tables that must yet be vacuumed or rewritten
	Vacuumed []string        // tables seen vacuumed or rewritten since the rows went
	SystemID string
	Timeline uint32
	LSN      lsn.LSN   // the insert position after the look
	At       time.Time // the server's clock
}

// Live looks whether a live database still holds the project of a tombstone.
// Absent needs no rows and, since they were seen gone, a vacuum that began
// afterwards and left no dead rows, or a rewrite, of every table that they may
// have been in. Of a schema or a database it needs a vacuum of the catalogues that
// told of it, its statistics among them, that began when no transaction could see it
// any more. memo is what the last look returned.
func Live(ctx context.Context, conn *pgx.Conn, t catalog.Tombstone, keys seal.DigestKeys, memo Memo) (seen Seen, err error) {
	l := LayoutOf(t)
	var texts []string
	if err := atHome(ctx, conn, l); err != nil {
		return seen, fmt.Errorf("looking whether live still holds the project of tombstone %s: %w", t.ID, err)
	}
	err = eachKey(ctx, conn, l, func(text string) {
		if MAC(keys, t.Cluster, l, text) == t.KeyMAC {
			texts = append(texts, text)
		}
	})
	if err == nil && len(texts) == 0 {
		texts, err = underANewName(ctx, conn, t)
	}
	if err == nil && len(texts) > 0 {
		seen.State = Present
		seen.Counts = present(ctx, conn, l, texts[0])
	} else if err == nil {
		err = seen.residue(ctx, conn, t, memo)
		seen.Memo.Waiting = seen.Waiting
	}
	if err == nil {
		err = position(ctx, conn, &seen)
	}
	if err != nil {
		return seen, fmt.Errorf("looking whether live still holds the project of tombstone %s: %w", t.ID, err)
	}
	return seen, nil
}

// underANewName is the name of a project that was renamed since, on the tombstone's timeline.
func underANewName(ctx context.Context, conn *pgx.Conn, t catalog.Tombstone) ([]string, error) {
	if t.OID == 0 { // rows, and tombstones of before
		return nil, nil
	}
	var now Seen
	if err := position(ctx, conn, &now); err != nil || now.Timeline != t.Timeline {
		return nil, err
	}
	name, yes, err := renamed(ctx, conn, t)
	if err != nil || !yes {
		return nil, err
	}
	return []string{name}, nil
}

// atHome refuses to look in another database than the tombstone's: there is nothing to
// be seen of a project there. The configuration may name another by now.
func atHome(ctx context.Context, conn *pgx.Conn, l Layout) error {
	var here string
	if err := conn.QueryRow(ctx, `SELECT current_database()`).Scan(&here); err != nil || l.Kind == Database || here == l.Database {
		return err
	}
	return fmt.Errorf("%w: it was in database %s, and the configuration names %s: name that one again until the purge is done", ErrElsewhere, l.Database, here)
}

// present counts where that can be done: a database may refuse connections by now.
func present(ctx context.Context, conn *pgx.Conn, l Layout, text string) []catalog.Count {
	counts, err := Count(ctx, conn, l, text)
	if err != nil {
		return nil // that it is there is known
	}
	return counts
}

// position is read last, so that what was seen is true of every later moment
// unless the project is created anew.
func position(ctx context.Context, conn *pgx.Conn, s *Seen) error {
	var at string
	err := conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text, clock_timestamp(),
		(SELECT system_identifier::text FROM pg_control_system()),
		('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint`).Scan(&at, &s.At, &s.SystemID, &s.Timeline)
	if err != nil {
		return err
	}
	s.LSN, err = lsn.Parse(at)
	return err
}

// tableState is what the server's statistics say of one table.
type tableState struct {
	Table
	file    uint32
	last    *time.Time // the last vacuum, or autovacuum, to end
	dead    int64
	changed bool // rows were ever deleted or updated
	running bool // a vacuum runs
}

const statesSQL = `
SELECT c.oid, coalesce(pg_relation_filenode(c.oid), 0), greatest(s.last_vacuum, s.last_autovacuum), coalesce(s.n_dead_tup, 0),
       coalesce(s.n_tup_del + s.n_tup_upd, 0) > 0, EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.relid = c.oid)
  FROM pg_class c LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid WHERE c.oid = ANY ($1) ORDER BY array_position($1, c.oid)`

func states(ctx context.Context, conn *pgx.Conn, tables []Table) ([]tableState, error) {
	byOID := map[uint32]Table{}
	var oids []uint32
	for _, t := range tables {
		byOID[t.OID] = t
		oids = append(oids, t.OID)
	}
	rows, err := conn.Query(ctx, statesSQL, oids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []tableState
	for rows.Next() {
		var s tableState
		if err := rows.Scan(&s.OID, &s.file, &s.last, &s.dead, &s.changed, &s.running); err != nil {
			return nil, err
		}
		s.Table = byOID[s.OID]
		out = append(out, s)
	}
	return out, rows.Err()
}

// residue judges a database without the rows.
func (s *Seen) residue(ctx context.Context, conn *pgx.Conn, t catalog.Tombstone, memo Memo) error {
	counted := map[string]bool{}
	l := LayoutOf(t)
	for _, c := range t.Counts {
		counted[c.Table] = c.Rows > 0
	}
	var tables []Table
	var err error
	if l.rows() {
		tables, err = tablesUnder(ctx, conn, l, (*graph).touched)
	} else {
		counted = certain(l)
		tables, err = catalogues(ctx, conn, l)
	}
	if err != nil {
		return err
	}
	s.State, s.Memo = Residue, memo
	past, err := s.past(ctx, conn, l)
	if err != nil {
		return err
	}
	list, err := states(ctx, conn, tables)
	if err != nil {
		return err
	}
	touched := list[:0:0]
	for _, one := range list {
		if one.changed || counted[one.Name] || len(counted) == 0 {
			touched = append(touched, one)
		}
	}
	switch {
	case !past: // what a vacuum did meanwhile may have left it all
		s.Memo.GoneAt, s.Memo.Files = time.Time{}, nil
		s.Waiting = append([]string{waitsForHorizon}, names(touched)...)
		return nil
	case memo.GoneAt.IsZero():
		s.Waiting = names(touched)
		return s.begin(ctx, conn, touched)
	}
	s.judge(touched, l.rows())
	return nil
}

func names(list []tableState) (out []string) {
	for _, one := range list {
		out = append(out, one.Name)
	}
	return out
}

// begin notes the moment; not while a vacuum runs, which may have passed the rows
// before they were deleted.
func (s *Seen) begin(ctx context.Context, conn *pgx.Conn, touched []tableState) error {
	files := map[uint32]uint32{}
	for _, one := range touched {
		if one.running {
			return nil
		}
		files[one.OID] = one.file
	}
	s.Memo.Files = files
	return conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&s.Memo.GoneAt)
}

// judge says which tables were vacuumed. Catalogues always have dead rows, of
// whatever was done since: theirs do not count, as none of the project's was left to
// be seen by anybody when the vacuum began.
func (s *Seen) judge(touched []tableState, clean bool) {
	for _, one := range touched {
		before, known := s.Memo.Files[one.OID]
		vacuumed := one.last != nil && one.last.After(s.Memo.GoneAt)
		if (vacuumed || (known && before != one.file)) && (one.dead == 0 || !clean) {
			s.Vacuumed = append(s.Vacuumed, one.Name)
		} else {
			s.Waiting = append(s.Waiting, one.Name)
		}
	}
	if len(s.Waiting) == 0 {
		s.State = Absent
	}
}

// Where tells a live server's system, timeline and insert position.
func Where(ctx context.Context, conn *pgx.Conn) (seen Seen, err error) {
	if err = position(ctx, conn, &seen); err != nil {
		err = fmt.Errorf("asking live where its log is: %w", err)
	}
	return seen, err
}

// LastActivity is the newest time in a project's root row; zero where it has none.
func LastActivity(ctx context.Context, conn *pgx.Conn, l Layout, keyText string) (at time.Time, err error) {
	if !l.rows() {
		return at, nil
	}
	err = inTx(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := settle(ctx, tx); err != nil {
			return err
		}
		g, err := readGraph(ctx, tx, l)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT quote_ident(attname) FROM pg_attribute
			WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype)`, g.root)
		if err != nil {
			return err
		}
		cols, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(cols) == 0 {
			return err
		}
		for i, c := range cols {
			cols[i] = "r." + c + "::timestamptz"
		}
		var newest *time.Time
		err = tx.QueryRow(ctx, fmt.Sprintf(`SELECT max(greatest(%s)) FROM %s r WHERE r.%s::text = $1 AND isfinite(greatest(%[1]s))`,
			strings.Join(cols, ", "), g.from(g.root), g.col), keyText).Scan(&newest)
		if newest != nil {
			at = newest.UTC()
		}
		return err
	})
	if err != nil {
		return at, fmt.Errorf("looking for a project's last activity: %w", err)
	}
	return at, nil
}

package scheduler

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
	_ "modernc.org/sqlite" // the driver
)

const schemaVersion = 1

// The unique index on lane is what makes a lane exclusive: no query can be
// wrong about it.
const schema = `
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL, lane TEXT NOT NULL, key TEXT, schedule TEXT NOT NULL, slot INTEGER NOT NULL,
  payload BLOB, run_at INTEGER NOT NULL, deadline INTEGER NOT NULL,
  state TEXT NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL,
  owner TEXT NOT NULL DEFAULT '', cancelling INTEGER NOT NULL DEFAULT 0,
  progress BLOB, output BLOB, error TEXT NOT NULL DEFAULT '',
  created_at INTEGER NOT NULL, started_at INTEGER NOT NULL DEFAULT 0, finished_at INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX jobs_key ON jobs (key) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX jobs_lane ON jobs (lane) WHERE state = 'running' AND lane <> '';
CREATE INDEX jobs_due ON jobs (run_at, id) WHERE state = 'available';
CREATE INDEX jobs_schedule ON jobs (schedule, state);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at > 0;
CREATE TABLE schedules (name TEXT PRIMARY KEY, spec TEXT NOT NULL, last INTEGER NOT NULL) STRICT;
PRAGMA user_version = 1;
`

// SQLite is a [Queue] in one file that one process at a time holds: the lock
// beside the file ends with the process, however it ends, so whoever holds it
// knows that every other owner is dead.
type SQLite struct {
	db    *sql.DB
	lock  *durable.Lock
	owner string
	now   func() time.Time
}

// OpenSQLite opens or creates the queue at path; now is the clock, nil for
// time.Now. It fails with durable.ErrHeld while another process has it.
func OpenSQLite(ctx context.Context, path string, now func() time.Time) (*SQLite, error) {
	if now == nil {
		now = time.Now
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening the job queue %s: %w", path, err)
	}
	lock, err := durable.Acquire(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("opening the job queue %s: is another daemon running? %w", path, err)
	}
	q := &SQLite{lock: lock, owner: rand.Text(), now: now}
	// FULL: what was accepted survives a power cut.
	pragmas := url.Values{"_pragma": {"journal_mode(WAL)", "busy_timeout(5000)", "synchronous(FULL)"}, "_txlock": {"immediate"}}
	dsn := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: pragmas.Encode()}
	if q.db, err = sql.Open("sqlite", dsn.String()); err == nil {
		q.db.SetMaxOpenConns(1)
		err = q.migrate(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the job queue %s: %w; it holds no backups: if it is damaged, move it away and start again", path, err), q.Close())
	}
	return q, nil
}

func (q *SQLite) migrate(ctx context.Context) error {
	return q.tx(ctx, func(tx *sql.Tx) error {
		var version int
		if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
			return err
		}
		switch {
		case version > schemaVersion:
			return fmt.Errorf("it was written by a newer holdfast (schema %d, this one knows %d)", version, schemaVersion)
		case version == 0:
			_, err := tx.ExecContext(ctx, schema)
			return err
		}
		return nil
	})
}

// Close ends the connection and lets the lock go.
func (q *SQLite) Close() error {
	var err error
	if q.db != nil {
		err = q.db.Close()
	}
	return errors.Join(err, q.lock.Release())
}

func (q *SQLite) tx(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := q.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// micros is how times are stored: microseconds since 1970, 0 for none.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Backup is a base backup under way: from [StartBackup] to [Backup.Stop] the data
// directory may be copied. It lives as long as its connection.
type Backup struct {
	conn       *Conn
	Start      lsn.LSN
	Timeline   uint32
	InRecovery bool
	Started    time.Time // the server's clock
}

// StopResult is what a finished backup must keep.
type StopResult struct {
	LSN           lsn.LSN // consistency is reached here; WAL from Start to here is part of the backup
	Label         []byte  // to be written as backup_label, byte for byte
	TablespaceMap []byte  // to be written as tablespace_map, byte for byte, unless empty
	Time          time.Time
	Parsed        Label
}

// ErrChanged means that the server is not what it was when the backup began: it was
// promoted or changed its timeline. The copy is worthless.
var ErrChanged = errors.New("the server changed its role or timeline during the backup")

// startSQL and stopSQL are the non-exclusive API under its two names (C-1). The
// label and the map are taken as bytes in the database's encoding, so that no
// conversion on the way to us can change them (C-3). We never wait for the
// archiver: whether the WAL is kept is for our own repository to say (C-8).
func startSQL(num int) string {
	if num < 150000 {
		return "SELECT pg_start_backup($1, $2, false)::text"
	}
	return "SELECT pg_backup_start($1, $2)::text"
}

func stopSQL(num int) string {
	const columns = `SELECT lsn::text, convert_to(labelfile, getdatabaseencoding()),
	convert_to(coalesce(spcmapfile, ''), getdatabaseencoding()), clock_timestamp() FROM `
	if num < 150000 {
		return columns + "pg_stop_backup(false, false)"
	}
	return columns + "pg_backup_stop(false)"
}

// StartBackup begins a base backup. label is shown in backup_label. With fast the
// server makes its checkpoint at once; without, it spreads it over minutes and this
// call lasts as long (C-5). The connection must serve nothing else until Stop (C-2).
func StartBackup(ctx context.Context, c *Conn, label string, fast bool) (*Backup, error) {
	b := &Backup{conn: c}
	if err := c.direct(ctx); err != nil {
		return nil, fmt.Errorf("start a backup: %w", err)
	}
	var start string
	if err := c.pgx.QueryRow(ctx, startSQL(c.num), label, fast).Scan(&start); err != nil {
		return nil, fmt.Errorf("start a backup: %w", err)
	}
	var f Facts
	err := position(ctx, c, &f)
	if err == nil {
		b.Start, err = lsn.Parse(start)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a backup: look at the server: %w", err), b.Abort())
	}
	b.Timeline, b.InRecovery, b.Started = f.Timeline, f.InRecovery, f.Now
	return b, nil
}

// Check says whether the server is still what it was when the backup began; call
// it now and then so that a long copy fails early.
func (b *Backup) Check(ctx context.Context) error {
	var f Facts
	if err := position(ctx, b.conn, &f); err != nil {
		return fmt.Errorf("look at the server during a backup: %w", err)
	}
	if f.InRecovery != b.InRecovery || f.Timeline != b.Timeline {
		return fmt.Errorf("%w: in recovery %v on timeline %d, now %v on %d; take a new snapshot",
			ErrChanged, b.InRecovery, b.Timeline, f.InRecovery, f.Timeline)
	}
	return nil
}

// Stop ends the backup. Every file must have been copied by then. An error means
// that the copy is worthless (C-7).
func (b *Backup) Stop(ctx context.Context) (StopResult, error) {
	var r StopResult
	if err := b.Check(ctx); err != nil {
		return r, errors.Join(err, b.Abort())
	}
	err := b.conn.pgx.QueryRow(ctx, stopSQL(b.conn.num)).Scan((*lsnText)(&r.LSN), &r.Label, &r.TablespaceMap, &r.Time)
	if err != nil {
		return r, errors.Join(fmt.Errorf("stop the backup that began at %s: %w", b.Start, err), b.Abort())
	}
	if r.Parsed, err = ParseLabel(r.Label); err != nil {
		return r, fmt.Errorf("stop the backup that began at %s: %w", b.Start, err)
	}
	if r.Parsed.Start != b.Start || r.Parsed.Timeline != b.Timeline || r.LSN < b.Start {
		return r, fmt.Errorf("%w: it began at %s on timeline %d, its label says %s on %d, it ended at %s",
			ErrChanged, b.Start, b.Timeline, r.Parsed.Start, r.Parsed.Timeline, r.LSN)
	}
	return r, b.Check(ctx)
}

// Abort gives the backup up by closing its connection, which is how the server
// forgets it.
func (b *Backup) Abort() error { return b.conn.Close() }

package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// messages is where a reader gets the server's messages; each is valid until the next.
type messages interface {
	ReceiveMessage(ctx context.Context) (pgproto3.BackendMessage, error)
}

// backupReader follows the answer to BASE_BACKUP (C-24): where it starts, the
// tablespaces, the data, where it ends.
type backupReader struct {
	ctx     context.Context
	src     messages
	typed   bool // one copy of typed messages (15 and later), else a copy an archive
	opt     BaseBackupOptions
	sink    Sink
	out     BaseBackupResult
	whole   bool // all data and the end position came
	total   int64
	arrived arrivals
	summed  bool // the manifest came
}

func newBackupReader(ctx context.Context, src messages, num int, o BaseBackupOptions, sink Sink) *backupReader {
	return &backupReader{ctx: ctx, src: src, typed: num >= 150000, opt: o, sink: sink, arrived: newArrivals()}
}

func (r *backupReader) run() error {
	if err := r.head(); err != nil {
		return err
	}
	data := r.untyped
	if r.typed {
		data = r.typedCopy
	}
	if err := data(); err != nil {
		return err
	}
	rows, err := r.result()
	if err != nil {
		return err
	}
	if r.out.End, r.out.EndTimeline, err = pointOf(rows); err != nil {
		return fmt.Errorf("where it ends: %w", err)
	}
	r.out.TablespaceMap = tablespaceMap(r.out.Tablespaces)
	if err := r.complete(); err != nil {
		return err
	}
	r.whole = true
	return r.finish()
}

// complete says whether all came that a backup must have.
func (r *backupReader) complete() error {
	switch {
	case len(r.out.Label) == 0:
		return errors.New("the server sent no backup_label: without it the copy is silently corrupt")
	case !r.summed:
		return errors.New("the server sent no manifest")
	}
	return nil
}

// receive is the next message that is not an aside; an error of the server's ends all.
func (r *backupReader) receive() (pgproto3.BackendMessage, error) {
	for {
		m, err := r.src.ReceiveMessage(r.ctx)
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			return nil, pgconn.ErrorResponseToPgError(m)
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus, *pgproto3.NotificationResponse:
		default:
			return m, nil
		}
	}
}

// result reads one result set to its end.
func (r *backupReader) result() (rows [][][]byte, err error) {
	for {
		m, err := r.receive()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *pgproto3.RowDescription:
		case *pgproto3.DataRow:
			if len(rows) == 1<<20 {
				return nil, errors.New("a result of more than a million rows")
			}
			rows = append(rows, cloneRow(m.Values))
		case *pgproto3.CommandComplete:
			return rows, nil
		default:
			return nil, fmt.Errorf("the server sent %T, want a result", m)
		}
	}
}

func cloneRow(values [][]byte) [][]byte {
	out := make([][]byte, len(values))
	for i, v := range values {
		out[i] = bytes.Clone(v)
	}
	return out
}

func (r *backupReader) head() error {
	rows, err := r.result()
	if err != nil {
		return err
	}
	if r.out.Start, r.out.StartTimeline, err = pointOf(rows); err != nil {
		return fmt.Errorf("where it starts: %w", err)
	}
	if r.opt.Started != nil {
		r.opt.Started(r.out.Start, r.out.StartTimeline)
	}
	if rows, err = r.result(); err != nil {
		return err
	}
	for _, row := range rows {
		if err := r.tablespace(row); err != nil {
			return err
		}
	}
	return nil
}

// tablespace takes a row (oid, location, kilobytes); the data directory itself has
// no oid and comes last.
func (r *backupReader) tablespace(row [][]byte) error {
	if len(row) != 3 {
		return fmt.Errorf("a tablespace of %d columns, want 3", len(row))
	}
	size, _ := strconv.ParseInt(string(row[2]), 10, 64)
	size = max(0, min(size, 1<<52)) * 1024
	r.total += size
	if row[0] == nil {
		return nil
	}
	oid, err := strconv.ParseUint(string(row[0]), 10, 32)
	if err != nil {
		return fmt.Errorf("a tablespace with the oid %q", row[0])
	}
	location := string(row[1])
	r.out.Tablespaces = append(r.out.Tablespaces, BackupTablespace{
		OID: uint32(oid), Location: location, Size: size, InPlace: !path.IsAbs(location),
	})
	return nil
}

// pointOf reads the one row (LSN, timeline).
func pointOf(rows [][][]byte) (lsn.LSN, uint32, error) {
	if len(rows) != 1 || len(rows[0]) != 2 {
		return 0, 0, errors.New("want one row of LSN and timeline")
	}
	at, err := lsn.Parse(string(rows[0][0]))
	if err != nil {
		return 0, 0, err
	}
	t, err := strconv.ParseUint(string(rows[0][1]), 10, 32)
	if err != nil || t == 0 {
		return 0, 0, fmt.Errorf("timeline %q", rows[0][1])
	}
	return at, uint32(t), nil
}

// finish reads on to where the server is ready again; here comes the error that
// tells of wrong checksums. The connection stays usable.
func (r *backupReader) finish() (failed error) {
	for {
		m, err := r.receive()
		switch {
		case code(err) != "" && failed == nil:
			failed = err
			continue
		case err != nil:
			return errors.Join(failed, err)
		}
		switch m := m.(type) {
		case *pgproto3.CommandComplete:
		case *pgproto3.ReadyForQuery:
			return failed
		default:
			return errors.Join(failed, fmt.Errorf("the server sent %T, want the end of the backup", m))
		}
	}
}

// progress counts files where the server does not count for us.
func (r *backupReader) progress() {
	if r.opt.Progress != nil && !r.typed {
		r.opt.Progress(r.out.Bytes, r.total)
	}
}

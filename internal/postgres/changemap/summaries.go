package changemap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// Querier is a connection to the server, of a role that may read WAL summaries.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// TrustSummaries says why the WAL summaries of a server are not to be believed
// (C-33): those before 17.11 and 18.5 leave changes out. version is server_version_num.
func TrustSummaries(version int) error {
	if version >= 180005 || version >= 170011 && version < 180000 {
		return nil
	}
	return fmt.Errorf("%w: WAL summaries of server version %d are not to be trusted: those from 17.11 and 18.5 on are", ErrUnknown, version)
}

// Summaries is how a server's own WAL summaries are read (summarize_wal, 17 and later).
type Summaries struct {
	Server  Querier
	Version int // server_version_num, for [TrustSummaries]
	// AnyMinor believes all the same: for tests of the reading itself.
	AnyMinor bool
	// Patience bounds the wait for the summarizer to come to the end of the path;
	// it is renewed whenever another summary appears. 0 does not wait.
	Patience time.Duration
	Bound    int64 // of the map, in bytes; 0 is [DefaultBound]
}

type summary struct {
	timeline uint32
	whole    span // its name
	span          // what of it lies on the path
}

// Map builds a map of the path (C-27): of its every stretch there must be a summary.
func (s Summaries) Map(ctx context.Context, path []Leg) (*Map, error) {
	if err := TrustSummaries(s.Version); err != nil && !s.AnyMinor {
		return nil, err
	}
	list, err := s.await(ctx, path)
	if err != nil {
		return nil, err
	}
	b := New(path, s.Bound)
	for _, one := range list {
		if err := s.read(ctx, b, one); err != nil {
			return nil, unknown(fmt.Errorf("reading the WAL summary of timeline %d from %s to %s: %w", one.timeline, one.from, one.to, err))
		}
	}
	return b.Map()
}

// await lists what lies on the path once it is covered, or the last hole stays.
func (s Summaries) await(ctx context.Context, path []Leg) ([]summary, error) {
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	var due time.Time
	for last := -1; ; {
		list, err := s.list(ctx, path)
		if err != nil {
			return nil, unknown(fmt.Errorf("listing the server's WAL summaries: %w", err))
		}
		b := New(path, 1)
		for _, one := range list {
			b.spans = append(b.spans, one.span)
		}
		if len(list) != last {
			last, due = len(list), time.Now().Add(s.Patience)
		}
		hole, ok := b.hole()
		// Only what the summarizer has not come to yet can still appear.
		if !ok || hole.to < path[len(path)-1].To || !time.Now().Before(due) {
			return list, nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s Summaries) list(ctx context.Context, path []Leg) (out []summary, err error) {
	b := New(path, 1)
	rows, err := s.Server.Query(ctx, "SELECT tli, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()")
	if err != nil {
		return nil, err
	}
	var timeline int64
	var from, to string
	_, err = pgx.ForEachRow(rows, []any{&timeline, &from, &to}, func() error {
		var whole span
		var err1, err2 error
		whole.from, err1 = lsn.Parse(from)
		whole.to, err2 = lsn.Parse(to)
		if part, ok := b.clip(uint32(timeline), whole); ok {
			out = append(out, summary{uint32(timeline), whole, part})
		}
		return errors.Join(err1, err2)
	})
	return out, err
}

// read merges one summary. The server lists a fork's limit and blocks together, the
// blocks in no order.
func (s Summaries) read(ctx context.Context, b *Builder, one summary) error {
	rows, err := s.Server.Query(ctx, `SELECT relfilenode, reltablespace, reldatabase, relforknumber, relblocknumber, is_limit_block
		FROM pg_wal_summary_contents($1, $2::text::pg_lsn, $3::text::pg_lsn)`, int64(one.timeline), one.whole.from.String(), one.whole.to.String())
	if err != nil {
		return err
	}
	f := walrec.ForkChanges{From: walrec.NoBlock}
	flush := func() (err error) {
		if f.Database|f.Tablespace != 0 && (f.Fork == walrec.MainFork || f.Fork == walrec.InitFork) {
			slices.Sort(f.Blocks)
			err = b.m.add(f)
		}
		f.From, f.Blocks = walrec.NoBlock, f.Blocks[:0]
		return err
	}
	var rel walrec.Relation
	var fork int16
	var block int64
	var limit bool
	_, err = pgx.ForEachRow(rows, []any{&rel.Node, &rel.Tablespace, &rel.Database, &fork, &block, &limit}, func() error {
		if rel != f.Relation || Fork(fork) != f.Fork || len(f.Blocks) == maxBatch {
			if err := flush(); err != nil {
				return err
			}
			f.Relation, f.Fork = rel, Fork(fork)
		}
		if limit {
			f.From = uint32(block)
		} else {
			f.Blocks = append(f.Blocks, uint32(block))
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	b.spans = append(b.spans, one.span)
	return err
}

// maxBatch bounds the blocks of a fork that are merged at once.
const maxBatch = 1 << 16

package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/changemap"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// What tells which blocks must be read again.
const (
	CandidatesAuto = ""    // the WAL, where there is enough to spare
	CandidatesAll  = "all" // every block is read and compared
	CandidatesWAL  = "wal" // the indexes of the archived WAL
)

// worthAsking is how large a cluster is before its WAL is asked what changed:
// reading less takes no longer than that.
const worthAsking = 256 << 20

// changesBound bounds the memory of what changed.
const changesBound = 24 << 20

// maxIndex bounds the plaintext of a WAL index.
const maxIndex = 64 << 20

// changes tell which blocks can differ from what is known: since the base, and
// since an interrupted attempt began. nil: any can.
type changes struct{ base, attempt *changemap.Map }

// findChanges asks what changed up to start.
func (t *take) findChanges(ctx context.Context, start lsn.LSN, timeline uint32) error {
	if t.cfg.Candidates == CandidatesAll {
		return nil
	}
	if b := t.base; b != nil && (t.cfg.Candidates == CandidatesWAL || b.snap.RawBytes >= worthAsking) {
		t.changes.base = t.since(ctx, changemap.Base{Timeline: b.snap.Timeline, Start: b.snap.StartLSN, Stop: b.snap.StopLSN}, timeline, start)
	}
	if t.making.resumed {
		t.changes.attempt = t.since(ctx, changemap.Base{Timeline: timeline, Start: t.from, Stop: t.from}, timeline, start)
	}
	return context.Cause(ctx)
}

// since is what changed from a base on; nil: nobody can tell. That costs time and
// nothing else: then every block is read.
func (t *take) since(ctx context.Context, b changemap.Base, timeline uint32, start lsn.LSN) *changemap.Map {
	path, err := changemap.Path(b, timeline, start, nil)
	if err == nil && t.cfg.Summaries && t.srv.facts.SummarizeWAL {
		m, err := t.summarised(ctx, path)
		if err == nil {
			return m
		}
		t.log.Info("the server's WAL summaries do not tell what changed", zap.Error(err))
	}
	var m *changemap.Map
	if err == nil {
		m, err = t.logged(ctx, path)
	}
	if err != nil {
		t.log.Info("every block is read", zap.Error(err))
		return nil
	}
	return m
}

// logged merges the indexes of the archived WAL, up to the backup's start.
func (t *take) logged(ctx context.Context, path []changemap.Leg) (*changemap.Map, error) {
	leg := path[0] // one history: see fits
	if err := t.awaitWAL(ctx, leg.To, t.cfg.ArchiveCheck); err != nil {
		return nil, err
	}
	all, err := t.cfg.Catalog.WALEntries(ctx, t.cfg.Cluster, catalog.WALDir(t.cfg.Cluster, t.cfg.Epoch, leg.Timeline))
	if err != nil {
		return nil, err
	}
	chosen, err := cover(all.List, leg.From, leg.To)
	if err != nil {
		return nil, err
	}
	b := changemap.New(path, changesBound)
	if err := t.addIndexes(ctx, chosen, b); err != nil {
		return nil, err
	}
	return b.Map()
}

// parallelIndexes is how many WAL indexes are fetched at a time.
const parallelIndexes = 8

func (t *take) addIndexes(ctx context.Context, entries []catalog.WALEntry, b *changemap.Builder) error {
	for batch := range slices.Chunk(entries, parallelIndexes) {
		indexes := make([]walrec.Index, len(batch))
		group, ctx := errgroup.WithContext(ctx)
		for i, e := range batch {
			group.Go(func() (err error) {
				indexes[i], err = t.walIndex(ctx, e.Name)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for i, ix := range indexes {
			if err := b.Add(batch[i].Timeline, ix); err != nil {
				return err
			}
		}
	}
	return nil
}

// walIndex reads the index that a WAL note vouches for.
func (t *take) walIndex(ctx context.Context, name string) (ix walrec.Index, err error) {
	w, _, err := walNote(ctx, t.cfg.Store, t.cfg.Trust, t.cfg.Cluster, name)
	if err != nil {
		return ix, err
	}
	if w.Index.Name == "" {
		return walrec.Index{From: w.From, To: w.To, Unknown: "it was archived without an index"}, nil
	}
	sealed, err := t.cfg.Store.Get(ctx, w.Index.Name, w.Index.Size, w.Index.SHA256)
	if err != nil {
		return ix, err
	}
	plain, err := seal.OpenBlob(sealed, t.cfg.Identities, maxIndex)
	if err == nil {
		err = json.Unmarshal(plain, &ix)
	}
	if err != nil {
		return ix, fmt.Errorf("read %s: %w", w.Index.Name, err)
	}
	return ix, nil
}

// summarised asks the server, on a connection of its own: the backup's serves
// nothing else (C-2).
func (t *take) summarised(ctx context.Context, path []changemap.Leg) (*changemap.Map, error) {
	conn, err := postgres.Connect(ctx, t.cfg.DSN, postgres.ConnectOptions{AppName: "holdfast snapshot"})
	if err != nil {
		return nil, err
	}
	s := changemap.Summaries{
		Server: conn.Pgx(), Version: t.srv.facts.ServerNum, AnyMinor: t.cfg.AnyMinor, Patience: t.cfg.ArchiveCheck, Bound: changesBound,
	}
	m, err := s.Map(ctx, path)
	return m, errors.Join(err, conn.Close())
}

// of says which blocks of a relation's file can differ from an old leaf; all: any.
func (c changes) of(name datadir.RelationFile) suspects {
	fork, ok := walrec.ParseFork(name.Fork)
	s := suspects{base: blockList{all: true}, attempt: blockList{all: true}}
	if ok && c.base != nil {
		s.base.list, s.base.all = c.base.Changed(name.Tablespace, name.Database, name.Node, fork, int(name.Segment))
	}
	if ok && c.attempt != nil {
		s.attempt.list, s.attempt.all = c.attempt.Changed(name.Tablespace, name.Database, name.Node, fork, int(name.Segment))
	}
	return s
}

// suspects are the blocks of a file that can differ from the base's, and from those
// of an interrupted attempt.
type suspects struct{ base, attempt blockList }

// against chooses by where the old leaf is from.
func (s *suspects) against(old *oldLeaf) *blockList {
	if old.at.Count == 0 {
		return &s.attempt
	}
	return &s.base
}

// blockList is a list of blocks, ascending.
type blockList struct {
	list []uint32
	all  bool
}

// has says whether a block is in the list; any says it of n blocks from first on.
func (b *blockList) has(block int64) bool { return b.any(block, 1) }

func (b *blockList) any(first, n int64) bool {
	if b.all {
		return true
	}
	at, _ := slices.BinarySearch(b.list, uint32(first))
	return at < len(b.list) && int64(b.list[at]) < first+n
}

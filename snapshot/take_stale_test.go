package snapshot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// roundsOf is how many snapshots HOLDFAST_ROUNDS wants, or few.
func roundsOf(t *testing.T) int {
	t.Helper()
	text := os.Getenv("HOLDFAST_ROUNDS")
	if text == "" {
		return 5
	}
	n, err := strconv.Atoi(text)
	noErr(t, err)
	return n
}

// pageLSNs are the positions that the server shows in the pages of a relation.
func pageLSNs(t *testing.T, pg *pgtest.Cluster, rel string) []lsn.LSN {
	t.Helper()
	var out []lsn.LSN
	for n := range pgtest.Value[int](pg, fmt.Sprintf("SELECT (pg_relation_size('%s') / %d)::int", rel, page.Size)) {
		at, err := lsn.Parse(pgtest.Value[string](pg, fmt.Sprintf("SELECT lsn::text FROM page_header(get_raw_page('%s', %d))", rel, n)))
		noErr(t, err)
		out = append(out, at)
	}
	return out
}

// A page that a snapshot holds is never older than the server's was when the backup
// began, whatever told which blocks are read and however often it was interrupted:
// WAL before the start brings nothing up to date. One of which an interrupted attempt
// left the commit alone began before.
func TestNoPageOfASnapshotIsOlderThanTheServersWas(t *testing.T) { // promise 1
	pg := startPG(t)
	pg.Exec("CREATE EXTENSION pageinspect")
	r := newRig(t)
	base := r.config(pg, SourceFiles)
	base.ArchiveCheck = 0
	r.archiving(pg, &base)
	oracle := pg.StartOracle(0)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range roundsOf(t) {
		oracle.AwaitMore(50 + random.IntN(800))
		cfg := base
		cfg.Source = []string{SourceFiles, SourceStream}[random.IntN(2)]
		cfg.Candidates = []string{CandidatesAll, CandidatesWAL}[random.IntN(2)]
		for range random.IntN(3) {
			r.takeUntil(cfg, random.IntN(7))
			oracle.AwaitMore(1 + random.IntN(400))
		}
		before := map[string][]lsn.LSN{}
		for _, rel := range []string{"oracle", "oracle_pkey"} {
			before[pgtest.Value[string](pg, "SELECT pg_relation_filepath('"+rel+"')")] = pageLSNs(t, pg, rel)
		}
		s := r.take(cfg)
		if v := r.verify(s, VerifyConfig{Identities: r.data, Digests: r.digests}); !v.OK() {
			t.Errorf("%s by %s, %s: %+v", s.ID, cfg.Source, cfg.Candidates, v.Deep.Faults)
		}
		m, dir := r.manifest(s), t.TempDir()
		r.unpack(m, dir)
		for rel, want := range before {
			data, err := os.ReadFile(filepath.Join(dir, rel))
			noErr(t, err)
			for block, at := range want {
				if at == 0 || at >= s.StartLSN {
					continue // empty, or of after the backup began, which its WAL brings
				}
				if is := page.LSN(data[block*page.Size:]); is < at {
					t.Errorf("%s by %s, %s (base %s): block %d of %s is of %s, the server's was of %s before it began",
						s.ID, cfg.Source, cfg.Candidates, m.Header.Base, block, rel, is, at)
				}
			}
		}
	}
	oracle.Stop()
	base.Candidates = CandidatesWAL
	r.holds(r.take(base), pg.DataDir)
}

// cutOff is a store whose connection is lost at the n-th write.
type cutOff struct {
	vault.Writer
	cancel context.CancelCauseFunc
	left   atomic.Int64
}

func (c *cutOff) lost() error {
	if c.left.Add(-1) >= 0 {
		return nil
	}
	c.cancel(errLost)
	return errLost
}

func (c *cutOff) Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error) {
	if err := c.lost(); err != nil {
		return vault.Stored{}, err
	}
	return c.Writer.Put(ctx, name, body, opt)
}

func (c *cutOff) PutNote(ctx context.Context, name string, body []byte, needs []vault.Need, opt vault.PutOptions) (vault.Stored, error) {
	if err := c.lost(); err != nil {
		return vault.Stored{}, err
	}
	return c.Writer.PutNote(ctx, name, body, needs, opt)
}

// takeUntil begins a snapshot that is interrupted behind so many writes.
func (r *rig) takeUntil(cfg TakeConfig, writes int) {
	r.t.Helper()
	ctx, cancel := context.WithCancelCause(r.t.Context())
	defer cancel(nil)
	store := &cutOff{Writer: r.vault.Writer(), cancel: cancel}
	store.left.Store(int64(writes))
	cfg.Store = store
	if _, err := Take(ctx, cfg); err != nil && !errors.Is(err, errLost) {
		r.t.Errorf("interrupted behind %d writes: %v", writes, err)
	}
}

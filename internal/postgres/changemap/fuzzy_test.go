package changemap

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// busy changes rows of all tables but t3 on connections of its own until the returned function is called.
func busy(t *testing.T, c *pgtest.Cluster, rng *rand.Rand) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for range cap(done) {
		conn, own := c.Conn("postgres"), rand.New(rand.NewPCG(rng.Uint64(), 1))
		go func() { done <- churn(ctx, conn, own) }()
	}
	return func() {
		cancel()
		for range cap(done) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
}

func churn(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
	steps := []string{
		"UPDATE #t SET v = v || 'y' WHERE id BETWEEN #n AND #n + 20", "DELETE FROM #t WHERE id = #n", "SELECT count(*) FROM #t WHERE id < #n",
		"INSERT INTO #t SELECT 3000 + #n, 'later', ARRAY[#n] ON CONFLICT DO NOTHING", "VACUUM #t",
	}
	for ctx.Err() == nil {
		sql := strings.ReplaceAll(steps[rng.IntN(len(steps))], "#t", "t"+strconv.Itoa(rng.IntN(tables-1)))
		_, err := conn.Exec(context.WithoutCancel(ctx), strings.ReplaceAll(sql, "#n", strconv.Itoa(rng.IntN(3000))))
		if err != nil && !strings.Contains(err.Error(), "deadlock") {
			return err
		}
	}
	return nil
}

// Both copies are taken while the server writes. A block that differs and is not
// in the map was written after the second one's start: replay brings it.
func TestWhatTheMapLeavesOutReplayBrings(t *testing.T) {
	later := 0 // such blocks
	for _, major := range pgtest.Installed() {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			rng := seeded(t)
			c := room(t, major)
			c.Exec("VACUUM t3") // so that none comes by itself
			stop := busy(t, c, rng)
			// A second checkpoint brings into the files what a long reading would meet.
			from := checkpoint(t, c)
			checkpoint(t, c)
			before := relations(t, c)
			c.Exec("INSERT INTO t1 SELECT n, 'much' FROM generate_series(6001, 9000) n; DELETE FROM t2 WHERE id % 3 = 0")
			to := checkpoint(t, c)
			c.Exec("UPDATE t3 SET v = 'late' WHERE id % 50 = 0")
			checkpoint(t, c)
			after := relations(t, c)
			stop()
			b := New([]Leg{{1, from, to}}, 0)
			archive(t, c, b, 1, rng, false)
			m, err := b.Map()
			if err != nil {
				t.Fatal(err)
			}
			for r, block := range left(m, before, after) {
				for _, n := range block {
					if pageLSN(t, c, r, n, after[r]) < to {
						t.Errorf("block %d of %+v differs, is not in the map, and was not written since %s", n, r, to)
					}
					later++
				}
			}
		})
	}
	if later < 5*len(pgtest.Installed()) {
		t.Errorf("%d blocks were written after the map's end: this proves little", later)
	}
}

// left lists the blocks that differ and are not in the map.
func left(m *Map, before, after map[datadir.RelationFile][]byte) map[datadir.RelationFile][]int {
	out := map[datadir.RelationFile][]int{}
	for r, now := range after {
		fork, _ := walrec.ParseFork(r.Fork)
		list, all := m.Changed(r.Tablespace, r.Database, r.Node, fork, int(r.Segment))
		old := before[r]
		for at := 0; !all && at+8192 <= min(len(old), len(now)); at += 8192 {
			if _, in := slices.BinarySearch(list, uint32(at/8192)); !in && !bytes.Equal(old[at:at+8192], now[at:at+8192]) {
				out[r] = append(out[r], at/8192)
			}
		}
	}
	return out
}

// pageLSN is the LSN of a block as it was read or, when it was read in the midst
// of being written, as it is now.
func pageLSN(t *testing.T, c *pgtest.Cluster, r datadir.RelationFile, n int, file []byte) lsn.LSN {
	t.Helper()
	of := func(page []byte) lsn.LSN {
		return lsn.LSN(binary.LittleEndian.Uint32(page))<<32 | lsn.LSN(binary.LittleEndian.Uint32(page[4:]))
	}
	name := filepath.Join(c.DataDir, "base", strconv.Itoa(int(r.Database)), strconv.Itoa(int(r.Node)))
	now, err := os.ReadFile(name)
	if err != nil || len(now) < 8192*(n+1) {
		return of(file[8192*n:])
	}
	return max(of(file[8192*n:]), of(now[8192*n:]))
}

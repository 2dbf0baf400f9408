package snapshot

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// archiving archives the WAL of pg into the rig, and lets cfg know.
func (r *rig) archiving(pg *pgtest.Cluster, cfg *TakeConfig) {
	r.t.Helper()
	s := serverOf(r.t, pg)
	seg := pgtest.Value[int64](pg, "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'")
	l := catalog.Lineage{Cluster: "main", Epoch: 1, SystemID: s.SystemID, Major: s.Major, Timeline: s.Timeline, StartLSN: s.LSN, Node: "node"}
	w, err := OpenWriter(WriterConfig{
		Lineage: l, Store: r.vault.Writer(), Trust: r.trust, Signer: r.signer, Keys: r.keys, Data: r.dataTo,
		Index: slices.Concat(r.indexTo, r.dataTo), Spool: filepath.Join(r.t.TempDir(), "spool"), Now: time.Now,
	})
	noErr(r.t, err)
	a := NewArchiver(ArchiveConfig{DSN: pg.DSN("postgres"), Slot: "holdfast", SegSize: seg, MaxLag: 200 * time.Millisecond}, w)
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		<-done
	})
	cfg.WAL, cfg.WALRefs = a, a.WALRefs
}

// steps are what a day may bring: #t is a table, #n a number below 3000; what a
// double semicolon separates cannot be one transaction.
var steps = []string{
	"UPDATE #t SET v = v || 'x' WHERE id BETWEEN #n AND #n + 300", "DELETE FROM #t WHERE id % 7 = #n % 7", "VACUUM #t", "VACUUM (FREEZE) #t",
	"INSERT INTO #t SELECT 3000 + n, 'new' FROM generate_series(#n, #n + 500) n ON CONFLICT DO NOTHING", "SELECT count(*) FROM #t WHERE v > 'a'",
	"CHECKPOINT", "TRUNCATE #t", "BEGIN; UPDATE #t SET v = 'undone' WHERE id < #n; ROLLBACK", "DELETE FROM #t WHERE id > 500;; VACUUM (TRUNCATE) #t",
	"CREATE INDEX CONCURRENTLY IF NOT EXISTS made_#t ON #t (v)", "DROP INDEX IF EXISTS made_#t", "REINDEX TABLE #t", "VACUUM FULL #t",
	"ALTER TABLE #t SET TABLESPACE side", "ALTER TABLE #t SET TABLESPACE pg_default",
	"ALTER TABLE #t SET UNLOGGED; INSERT INTO #t (id) VALUES (-#n) ON CONFLICT DO NOTHING; ALTER TABLE #t SET LOGGED",
	"CREATE UNLOGGED TABLE IF NOT EXISTS light AS SELECT generate_series(1, 3000) i;; DELETE FROM light WHERE i < #n",
	"CREATE TEMP TABLE IF NOT EXISTS passing AS SELECT generate_series(1, 2000) i;; UPDATE passing SET i = 1",
	"DROP TABLE #t; CREATE TABLE #t AS SELECT n AS id, repeat(md5(n::text), n % 9) AS v FROM generate_series(1, 2000) n; ALTER TABLE #t ADD PRIMARY KEY (id)",
	"DROP DATABASE IF EXISTS copied;; CREATE DATABASE copied STRATEGY file_copy", "DROP DATABASE IF EXISTS logged;; CREATE DATABASE logged STRATEGY wal_log",
	"ALTER DATABASE copied SET TABLESPACE side", "ALTER DATABASE copied SET TABLESPACE pg_default",
}

// bigSteps are what comes over a table of two segments: changes in both, its end cut
// back into the first, where ten rows stay, and out of it again. Each comes once.
var bigSteps = []string{
	"UPDATE big SET v = repeat('c', 3000 + #n) WHERE id BETWEEN 11 AND 200", "UPDATE big SET v = v || 'e' WHERE id BETWEEN 900 AND 1200",
	"DELETE FROM big WHERE id > 10 AND ctid >= '(131060,0)';; VACUUM (TRUNCATE, INDEX_CLEANUP ON) big", "DELETE FROM big WHERE id > 2000 AND id % 2 = 0", "VACUUM (FREEZE) big",
	"INSERT INTO big SELECT 2000 + n, repeat('d', 7000) FROM generate_series(1, 1200) n", "INSERT INTO big SELECT 4000 + n, 'small' FROM generate_series(1, #n) n",
}

// segmentPages are the blocks of a file of a relation (RELSEG_SIZE).
const segmentPages = 1 << 30 / page.Size

// growBig makes the table big, which goes on in a second file, without writing a
// gigabyte: beneath a stopped server it gets pages of zeros, as a crash after an
// extension leaves them, and a visibility map by which nothing is to be found there,
// so that its space is used at the end alone.
func growBig(t *testing.T, pg *pgtest.Cluster) {
	t.Helper()
	const zeros = segmentPages - 40
	pg.Exec("CREATE TABLE big (id int, v text); ALTER TABLE big ALTER v SET STORAGE PLAIN")
	path := filepath.Join(pg.DataDir, pgtest.Value[string](pg, "SELECT pg_relation_filepath('big')"))
	pg.Stop()
	noErr(t, os.Truncate(path, zeros*page.Size))
	noErr(t, os.WriteFile(path+"_vm", frozenMap(zeros-64), 0o600))
	noErr(t, pgtest.Own(path+"_vm"))
	pg.Start()
	pg.Exec("INSERT INTO big SELECT n, repeat('b', 7000) FROM generate_series(1, 1200) n; CREATE INDEX ON big (id)")
	pg.Exec("CHECKPOINT")
	if st, err := os.Stat(path + ".1"); err != nil || st.Size() < 1000*page.Size {
		t.Fatalf("big has no second segment: %v, %v", st, err)
	}
}

// frozenMap is a visibility map by which the first blocks of a heap are frozen:
// two bits a block behind each page's header (visibilitymap.c).
func frozenMap(blocks int) []byte {
	const header, perPage = 24, (page.Size - 24) * 4
	var out []byte
	for at := 0; at < blocks; at += perPage {
		p := make([]byte, page.Size)
		le := binary.LittleEndian
		le.PutUint16(p[12:], header)
		le.PutUint16(p[14:], page.Size)
		le.PutUint16(p[16:], page.Size)
		le.PutUint16(p[18:], page.Size|4) // version 4 of the layout
		for i := range min(perPage, blocks-at) / 4 {
			p[header+i] = 0xff
		}
		le.PutUint16(p[8:], page.Checksum(p, uint32(at/perPage)))
		out = append(out, p...)
	}
	return out
}

// workload is n random steps and more, in any order.
func workload(t *testing.T, pg *pgtest.Cluster, rng *rand.Rand, more []string, n int) {
	t.Helper()
	todo := slices.Clone(more)
	for range n {
		todo = append(todo, strings.ReplaceAll(steps[rng.IntN(len(steps))], "#t", "t"+strconv.Itoa(rng.IntN(3))))
	}
	rng.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	for _, step := range todo {
		for _, sql := range strings.Split(strings.ReplaceAll(step, "#n", strconv.Itoa(rng.IntN(3000))), ";;") {
			if strings.Contains(sql, "DATABASE") {
				_, _ = pg.Conn("postgres").Exec(context.Background(), sql) // copied may not be there
				continue
			}
			pg.Exec(sql)
		}
		if strings.HasSuffix(step, "VACUUM (TRUNCATE, INDEX_CLEANUP ON) big") && pgtest.Value[int64](pg, "SELECT pg_relation_size('big')") > segmentPages*page.Size {
			t.Error("big was not cut back into its first segment")
		}
	}
}

// Over one frozen copy the three sources of candidates give what a snapshot
// of everything gives, after whatever happened between.
func TestEachSourceOfCandidatesRestoresTheSame(t *testing.T) {
	for _, major := range slices.DeleteFunc(pgtest.Installed(), func(m int) bool { return m != 15 && m < 17 }) {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			opts := []pgtest.Option{pgtest.WithMajor(major), pgtest.WithTablespace(), pgtest.WithInitdb("--wal-segsize=1"), pgtest.WithSetting("autovacuum", "off")}
			if major >= 17 {
				opts = append(opts, pgtest.WithSetting("summarize_wal", "on"))
			}
			pg := startPG(t, opts...)
			for n := range 3 {
				pg.Exec(strings.ReplaceAll(`CREATE TABLE #t (id int PRIMARY KEY, v text);
					INSERT INTO #t SELECT n, repeat(md5(n::text), n % 20) FROM generate_series(1, 3000) n`, "#t", "t"+strconv.Itoa(n)))
			}
			var big []string
			if major == 15 || os.Getenv("HOLDFAST_SCALE") == "full" { // minutes for each, which `make soak` has
				growBig(t, pg)
				big = bigSteps
			}
			pg.Exec("CREATE DATABASE copied")
			compareSources(t, pg, major >= 17, big, nil)
		})
	}
}

// Without page checksums hint bits are written without a record of the WAL. Where the
// server logs them all the same, restores are equal byte for byte; where not, all but
// the hints is.
func TestEachSourceOfCandidatesRestoresTheSameWithoutChecksums(t *testing.T) {
	for logged, mask := range map[string]func(p []byte){"on": nil, "off": maskHints} {
		t.Run("wal_log_hints="+logged, func(t *testing.T) {
			opts := []pgtest.Option{pgtest.WithoutChecksums(), pgtest.WithSetting("wal_log_hints", logged), pgtest.WithTablespace(), pgtest.WithInitdb("--wal-segsize=1"), pgtest.WithSetting("autovacuum", "off")}
			summaries := slices.Contains(pgtest.Installed(), 17)
			if summaries {
				opts = append(opts, pgtest.WithMajor(17), pgtest.WithSetting("summarize_wal", "on"))
			}
			pg := startPG(t, opts...)
			for n := range 3 {
				pg.Exec(strings.ReplaceAll(`CREATE TABLE #t (id int PRIMARY KEY, v text);
					INSERT INTO #t SELECT n, repeat(md5(n::text), n % 20) FROM generate_series(1, 3000) n`, "#t", "t"+strconv.Itoa(n)))
			}
			pg.Exec("CREATE DATABASE copied")
			compareSources(t, pg, summaries, []string{"SELECT count(*) FROM t0", "SELECT count(v) FROM t1 WHERE id > #n", "SELECT sum(id) FROM t2"}, mask)
		})
	}
}

// maskHints takes out of a page what a server without checksums changes unlogged: see
// heap_mask and btree_mask of PostgreSQL, which stand behind wal_consistency_checking.
func maskHints(p []byte) {
	const header, lineSize, normal, dead = 24, 4, 1, 3
	le := binary.LittleEndian
	lower, special := int(le.Uint16(p[12:])), int(le.Uint16(p[16:]))
	if lower < header || lower > page.Size || special > page.Size || special < lower {
		return
	}
	le.PutUint16(p[10:], le.Uint16(p[10:])&^3) // PD_HAS_FREE_LINES, PD_PAGE_FULL
	le.PutUint32(p[20:], 0)                    // pd_prune_xid
	index := page.Size-special == 16           // a b-tree's page
	for at := header; at+lineSize <= lower; at += lineSize {
		line := le.Uint32(p[at:])
		off, flags, n := int(line&0x7fff), line>>15&3, int(line>>17)
		switch {
		case index && flags == dead && n > 0: // killed by a scan
			le.PutUint32(p[at:], line&^(3<<15)|normal<<15)
		case special == page.Size && flags == normal && off+22 <= page.Size:
			le.PutUint16(p[off+20:], le.Uint16(p[off+20:])&^0x0f00) // HEAP_XMIN_ and HEAP_XMAX_ COMMITTED, INVALID
		}
	}
	if index {
		le.PutUint16(p[special+12:], le.Uint16(p[special+12:])&^(1<<6)) // BTP_HAS_GARBAGE
		le.PutUint16(p[special+14:], 0)                                 // btpo_cycleid
	}
}

func compareSources(t *testing.T, pg *pgtest.Cluster, summaries bool, more []string, mask func([]byte)) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t)
	r.mask = mask
	cfg := r.config(pg, SourceFiles)
	r.archiving(pg, &cfg)
	how := map[string]func(*TakeConfig){
		"all": func(c *TakeConfig) { c.Candidates = CandidatesAll },
		"wal": func(c *TakeConfig) { c.Candidates = CandidatesWAL },
	}
	if summaries {
		how["summaries"] = func(c *TakeConfig) { c.Candidates, c.Summaries = CandidatesWAL, true }
		how["stream"] = func(c *TakeConfig) { c.Candidates, c.Summaries, c.Source = CandidatesWAL, true, SourceStream }
	}
	base := r.take(cfg)
	workload(t, pg, rng, more, 20)
	whole := cfg
	whole.Full, whole.State = true, t.TempDir()
	r.forget(r.take(whole).ID) // what it asks leaves hint bits, once
	pg.Exec("CHECKPOINT")
	all := r.take(whole)
	r.forget(all.ID)
	want := r.unpacked(all)
	for name, change := range how {
		c := cfg
		change(&c)
		var without []string
		if c.Summaries {
			without = belowTheGate(pg, &c)
		}
		var read int64
		c.Progress = func(p Progress) { read = p.Read }
		s := r.take(c)
		m := r.manifest(s)
		r.check(m)
		if m.Header.Base != base.ID || s.Suspect {
			t.Errorf("%s: base %q, suspect %v", name, m.Header.Base, s.Reasons)
		}
		r.sameAs(want, s, without...)
		t.Logf("%s: %d of %d bytes were read", name, read, s.RawBytes)
		if (name == "all") != (read == s.RawBytes) {
			t.Errorf("%s: %d of %d bytes were read", name, read, s.RawBytes)
		}
		r.forget(s.ID)
	}
}

package walrec

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

const segSize = 1 << 20

// start gives a cluster whose segments are small, so that much crosses their ends.
func start(t testing.TB, major int, settings ...pgtest.Option) *pgtest.Cluster {
	return pgtest.Start(t, append([]pgtest.Option{
		pgtest.WithMajor(major), pgtest.WithInitdb("--wal-segsize=1"), pgtest.WithSetting("wal_keep_size", "1GB"),
		pgtest.WithSetting("max_prepared_transactions", "5"), pgtest.WithSetting("track_commit_timestamp", "on"),
		pgtest.WithSetting("autovacuum", "off"),
	}, settings...)...)
}

// work leaves every kind of record that the package decodes, among others.
func work(t testing.TB, c *pgtest.Cluster) {
	for _, sql := range []string{
		"CREATE TABLE t (id int PRIMARY KEY, v text)",
		"INSERT INTO t SELECT n, repeat('x', n % 300) FROM generate_series(1, 5000) n",
		"BEGIN; INSERT INTO t VALUES (-1); ROLLBACK",
		"BEGIN; INSERT INTO t VALUES (-2); SAVEPOINT a; INSERT INTO t VALUES (-3); SAVEPOINT b; INSERT INTO t VALUES (-4); COMMIT",
		"BEGIN; CREATE TABLE gone (n int); DROP TABLE t CASCADE; CREATE TABLE t (id int); INSERT INTO gone VALUES (1); SAVEPOINT s; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'one'",
		"COMMIT PREPARED 'one'",
		"BEGIN; CREATE TABLE never (n int); PREPARE TRANSACTION 'two'",
		"ROLLBACK PREPARED 'two'",
		"SELECT pg_create_restore_point('before the accident')",
		"SELECT pg_logical_emit_message(false, 'long', repeat('y', 5000000))",
		"SELECT pg_switch_wal()",
		"CHECKPOINT",
		"INSERT INTO t SELECT generate_series(1, 1000)",
		"SELECT pg_create_restore_point('after it')",
		"SELECT pg_switch_wal()",
		"SELECT pg_switch_wal()",
	} {
		c.Exec(sql)
	}
}

// segments joins the cluster's whole segments of one timeline, up to now.
func segments(t testing.TB, c *pgtest.Cluster, timeline uint32) (from lsn.LSN, wal []byte) {
	c.SwitchWAL()
	now, err := lsn.Parse(c.LSN())
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(c.DataDir, "pg_wal", fmt.Sprintf("%08X????????????????", timeline)))
	if err != nil || len(names) == 0 {
		t.Fatalf("no WAL segments: %v", err)
	}
	slices.Sort(names)
	for i, name := range names {
		_, at, err := lsn.ParseSegmentName(filepath.Base(name), segSize)
		if err != nil {
			t.Fatal(err)
		}
		if at+segSize > now.SegmentStart(segSize) {
			break // recycled or being written
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			from = at
		}
		wal = append(wal, data...)
	}
	return from, wal
}

type dumped struct {
	rmgr              string
	length            uint32
	xid               uint32
	start, prev       lsn.LSN
	kind              string
	commitXid         uint32
	commitTime, point string
}

var (
	dumpLine   = regexp.MustCompile(`^rmgr: (\S+)\s+len \(rec/tot\):\s*\d+/\s*(\d+), tx:\s*(\d+), lsn: (\S+), prev (\S+), desc: (.*)$`)
	commitDesc = regexp.MustCompile(`^(COMMIT|ABORT)(?:_PREPARED (\d+):)? (\d{4}-\S+ \S+) UTC`)
	rmgrNames  = strings.Fields("XLOG Transaction Storage CLOG Database Tablespace MultiXact RelMap Standby Heap2 Heap " +
		"Btree Hash Gin Gist Sequence SPGist BRIN CommitTs ReplicationOrigin Generic LogicalMessage")
)

// waldump runs PostgreSQL's own reader over the same segments.
func waldump(t *testing.T, c *pgtest.Cluster, timeline uint32, from lsn.LSN, size int) []dumped {
	t.Helper()
	out := c.Run("pg_waldump", "-p", filepath.Join(c.DataDir, "pg_wal"), "-t", strconv.Itoa(int(timeline)),
		"-s", from.String(), "-e", (from + lsn.LSN(size)).String())
	var all []dumped
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		m := dumpLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		length, _ := strconv.Atoi(m[2])
		xid, _ := strconv.Atoi(m[3])
		at, err1 := lsn.Parse(m[4])
		prev, err2 := lsn.Parse(m[5])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		d := dumped{rmgr: m[1], length: uint32(length), xid: uint32(xid), start: at, prev: prev}
		if k := commitDesc.FindStringSubmatch(m[6]); k != nil && m[1] == "Transaction" {
			d.kind, d.commitXid, d.commitTime = k[1], uint32(xid), k[3]
			if k[2] != "" {
				n, _ := strconv.Atoi(k[2])
				d.commitXid = uint32(n)
			}
		}
		if name, ok := strings.CutPrefix(m[6], "RESTORE_POINT "); ok {
			d.point = name
		}
		all = append(all, d)
	}
	return all
}

func read(t testing.TB, cfg Config, wal []byte) (all []dumped) {
	t.Helper()
	r, err := NewReader(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = r.Feed(wal, func(r *Record) error {
		d := dumped{rmgr: rmgrNames[r.Rmgr], length: r.Length, xid: r.Xid, start: r.Start, prev: r.Prev}
		m, err := r.Decode()
		if err != nil {
			return err
		}
		switch m.Kind {
		case CommitKind, AbortKind:
			d.kind, d.commitXid = strings.ToUpper(string(m.Kind)), m.Xid
			d.commitTime = m.Time.Format("2006-01-02 15:04:05.000000")
		case RestorePointKind:
			d.point = m.Name
		}
		all = append(all, d)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compare(t *testing.T, got, want []dumped) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("record %d:\n got %+v\nwant %+v", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, pg_waldump has %d", len(got), len(want))
	}
}

func TestReadsWhatPgWaldumpReads(t *testing.T) {
	c := start(t, 15)
	work(t, c)
	from, wal := segments(t, c, 1)
	got := read(t, Config{SegSize: segSize, Major: 15, Start: from}, wal)
	compare(t, got, waldump(t, c, 1, from, len(wal)))
	kinds := map[string]int{}
	for _, d := range got {
		kinds[d.kind]++
	}
	if kinds["COMMIT"] < 10 || kinds["ABORT"] < 2 || len(wal) < 8*segSize {
		t.Errorf("the WAL is too poor to prove anything: %v in %d bytes", kinds, len(wal))
	}
}

func TestRecordCutByACrashIsPassedOver(t *testing.T) {
	c := start(t, 15)
	c.Exec("CREATE TABLE t (n int)")
	c.SwitchWAL()
	// As src/test/recovery/t/026_overwrite_contrecord.pl: the segment into which a
	// record goes on is lost with a crash.
	before := c.LSN()
	c.Exec("SELECT pg_logical_emit_message(true, 'long', repeat('z', 1500000))")
	at, _ := lsn.Parse(before)
	c.Crash()
	for n := range uint64(8) {
		os.Remove(filepath.Join(c.DataDir, "pg_wal", lsn.SegmentName(1, at.Segment(segSize)+1+n, segSize)))
	}
	c.Start()
	c.Exec("INSERT INTO t VALUES (1)")
	from, wal := segments(t, c, 1)
	ix, _, err := BuildIndex(Config{SegSize: segSize, Major: 15, Start: from}, Carry{}, wal)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(ix.Marks, func(m Mark) bool { return m.Kind == Overwrite && m.LSN >= at }) {
		t.Errorf("no overwritten record after %s among %+v", at, ix.Marks)
	}
	compare(t, read(t, Config{SegSize: segSize, Major: 15, Start: from}, wal), waldump(t, c, 1, from, len(wal)))
}

func TestFirstSegmentOfATimelineHoldsItsParentsPages(t *testing.T) {
	c := start(t, 15)
	s := c.Standby(t)
	c.Exec("CREATE TABLE t AS SELECT 1")
	s.AwaitReplay(c.LSN())
	s.Promote()
	s.Exec("INSERT INTO t SELECT generate_series(1, 1000)") // enough for pages of its own
	from, wal := segments(t, s, 2)
	cfg := Config{SegSize: segSize, Major: 15, Timeline: 2, Start: from}
	ix, _, err := BuildIndex(cfg, Carry{}, wal)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(ix.Marks, func(m Mark) bool { return m.Kind == EndOfRecovery })
	if i < 0 || ix.Marks[i].ThisTimeline != 2 || ix.Marks[i].PrevTimeline != 1 || ix.Timeline != 2 {
		t.Errorf("timeline %d, marks %+v: want an end of recovery from 1 to 2", ix.Timeline, ix.Marks)
	}
	cfg.Timeline = 1
	if _, _, err := BuildIndex(cfg, Carry{}, wal); err == nil {
		t.Error("pages of timeline 2 were taken for timeline 1's")
	}
}

func TestIndexOfPiecesIsTheIndexOfTheWhole(t *testing.T) {
	c := start(t, 15)
	work(t, c)
	from, wal := segments(t, c, 1)
	cfg := Config{SegSize: segSize, Major: 15, Start: from}
	whole, _, err := BuildIndex(cfg, Carry{}, wal)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{segSize, 777_777, 100_001, 8192, 61} {
		var sum Index
		var pieces []Index
		var carry Carry
		data, base := wal, from
		if size < 10_000 {
			// Every cut costs a round through JSON: from the first commit on, a part.
			base = whole.Commits[0].Start / PageSize * PageSize
			data = wal[base-from:][:100*size+PageSize]
		}
		for at := 0; at < len(data); at += size {
			cfg.Start = base + lsn.LSN(at)
			ix, next, err := BuildIndex(cfg, carry, data[at:min(at+size, len(data))])
			if err != nil {
				t.Fatalf("pieces of %d: %v", size, err)
			}
			carry = throughJSON(t, next)
			sum.Records += ix.Records
			sum.Commits = append(sum.Commits, throughJSON(t, ix).Commits...)
			sum.RestorePoints = append(sum.RestorePoints, ix.RestorePoints...)
			sum.Marks = append(sum.Marks, ix.Marks...)
			sum.LastRecordEnd = ix.LastRecordEnd
			pieces = append(pieces, throughJSON(t, ix))
		}
		want := whole
		if len(data) < len(wal) {
			cfg.Start = base
			if want, _, err = BuildIndex(cfg, Carry{}, data); err != nil || len(want.Commits) == 0 {
				t.Fatalf("%d commits, %v", len(want.Commits), err)
			}
		}
		if got := union(t, pieces...); !reflect.DeepEqual(got, union(t, want)) || len(got) < 2 {
			t.Errorf("pieces of %d: %d forks changed, the whole: %d", size, len(got), len(union(t, want)))
		}
		if sum.Records != want.Records || sum.LastRecordEnd != want.LastRecordEnd || !slices.Equal(sum.Commits, want.Commits) ||
			!reflect.DeepEqual(sum.RestorePoints, want.RestorePoints) || !reflect.DeepEqual(sum.Marks, want.Marks) {
			t.Errorf("pieces of %d: %d records, %d commits to %s; whole: %d, %d to %s", size, sum.Records, len(sum.Commits),
				sum.LastRecordEnd, want.Records, len(want.Commits), want.LastRecordEnd)
		}
	}
}

// union merges what indexes say of changes.
func union(t testing.TB, indexes ...Index) map[string]ForkChanges {
	sum := map[string]ForkChanges{}
	for _, ix := range indexes {
		if ix.Changes == nil {
			t.Fatalf("the changes from %s to %s are unknown: %s", ix.From, ix.To, ix.Unknown)
		}
		for _, f := range forksOf(t, ix) {
			name := describe([]ForkChanges{{Relation: f.Relation, Fork: f.Fork, From: NoBlock}})
			if old, ok := sum[name]; ok {
				f.From = min(f.From, old.From)
				f.Blocks = append(f.Blocks, old.Blocks...)
			}
			slices.Sort(f.Blocks)
			f.Blocks = slices.DeleteFunc(slices.Compact(f.Blocks), func(b uint32) bool { return b >= f.From })
			if sum[name] = f; len(f.Blocks) == 0 {
				sum[name] = ForkChanges{Relation: f.Relation, Fork: f.Fork, From: f.From}
			}
		}
	}
	return sum
}

func throughJSON[T any](t testing.TB, v T) (out T) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Every supported major says through SQL what its WAL holds.
func TestIndexAgreesWithTheServerOfEveryMajor(t *testing.T) {
	for _, major := range pgtest.Installed() {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			c := start(t, major)
			o := c.StartOracle(0)
			o.AwaitMore(100)
			acked := o.Stop()
			work(t, c)
			c.Exec("CHECKPOINT")
			point, err := lsn.Parse(pgtest.Value[string](c, "SELECT pg_create_restore_point('this')::text"))
			if err != nil {
				t.Fatal(err)
			}
			var checkpoint string
			var redo string
			var at time.Time
			c.QueryRow([]any{&checkpoint, &redo, &at}, "SELECT checkpoint_lsn::text, redo_lsn::text, checkpoint_time FROM pg_control_checkpoint()")
			sysid := pgtest.Value[int64](c, "SELECT system_identifier FROM pg_control_system()")
			from, wal := segments(t, c, 1)
			cfg := Config{SegSize: segSize, Major: major, Start: from, SystemID: uint64(sysid), Timeline: 1}
			ix, _, err := BuildIndex(cfg, Carry{}, wal)
			if err != nil {
				t.Fatal(err)
			}
			commits := map[uint32]Commit{}
			for _, k := range ix.Commits {
				commits[k.Xid] = k
			}
			for _, a := range acked {
				end, _ := lsn.Parse(a.LSN)
				if k := commits[a.Xid]; !k.Time.Equal(a.Time) || k.Abort || k.End > end || k.Start >= k.End {
					t.Fatalf("acknowledged %+v, the index has %+v", a, k)
				}
			}
			if n := len(ix.RestorePoints); n < 3 || ix.RestorePoints[n-2].Name != "this" || ix.RestorePoints[n-2].End != point {
				t.Errorf("restore points %+v: want 'this' ending at %s", ix.RestorePoints, point)
			}
			if !slices.ContainsFunc(ix.Marks, func(m Mark) bool {
				return m.Kind == CheckpointOnline && m.Start.String() == checkpoint && m.LSN.String() == redo && m.Time.Equal(at) && m.ThisTimeline == 1
			}) {
				t.Errorf("no checkpoint at %s, redo %s, %s among %+v", checkpoint, redo, at, ix.Marks)
			}
			if err := CheckSegmentHeader(wal, Header{Major: major, SystemID: uint64(sysid) + 1}); !errors.Is(err, ErrForeign) {
				t.Errorf("another cluster's segment: %v", err) // C-41
			}
		})
	}
}

func TestBackupEndAndParametersAreMarks(t *testing.T) {
	c := start(t, 15)
	c.Backup(filepath.Join(c.Mkdir("b"), "data"))
	c.Exec("ALTER SYSTEM SET max_connections = 77")
	c.Restart()
	from, wal := segments(t, c, 1)
	ix, _, err := BuildIndex(Config{SegSize: segSize, Major: 15, Start: from}, Carry{}, wal)
	if err != nil {
		t.Fatal(err)
	}
	found := map[Kind]Mark{}
	for _, m := range ix.Marks {
		found[m.Kind] = m
	}
	if m := found[BackupEnd]; m.LSN == 0 || m.LSN >= m.Start {
		t.Errorf("backup end: %+v", m)
	}
	if m := found[ParameterChange]; m.Params == nil || m.Params.MaxConnections != 77 || m.Params.WALLevel != 1 || !m.Params.TrackCommitTimeOn {
		t.Errorf("parameters: %+v", m.Params)
	}
	if m := found[CheckpointShutdown]; m.Time.IsZero() {
		t.Errorf("shutdown checkpoint: %+v", m)
	}
}

func BenchmarkIndex(b *testing.B) {
	c := start(b, 15)
	c.Exec("CREATE TABLE t (id bigserial PRIMARY KEY, v text)")
	for range 20 {
		c.Exec("INSERT INTO t (v) SELECT repeat('x', n % 100) FROM generate_series(1, 20000) n")
	}
	from, wal := segments(b, c, 1)
	b.SetBytes(int64(len(wal)))
	for b.Loop() {
		if _, _, err := BuildIndex(Config{SegSize: segSize, Major: 15, Start: from}, Carry{}, wal); err != nil {
			b.Fatal(err)
		}
	}
}

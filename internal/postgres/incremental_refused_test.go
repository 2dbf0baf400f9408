package postgres_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// C-33: which versions may be believed.
func TestSummariesOfOldMinorsAreNotBelieved(t *testing.T) {
	for num, want := range map[int]bool{
		140020: false, 160012: false, 170000: false, 170010: false, 170011: true, 170012: true,
		180000: false, 180004: false, 180005: true, 190000: true,
	} {
		if err := postgres.Summarizes(num, false); (err == nil) != want || err != nil && !errors.Is(err, postgres.ErrNoIncremental) {
			t.Errorf("%d: %v", num, err)
		}
		if err := postgres.Summarizes(num, true); (err == nil) != (num >= 170000) {
			t.Errorf("%d with the gate lifted: %v", num, err)
		}
	}
}

// refused asks for an incremental backup that cannot be and wants to hear so before
// anything came.
func refused(t *testing.T, c *pgtest.Cluster, name, words string, p postgres.Prior) {
	t.Helper()
	conn := replication(t, c)
	defer conn.Close()
	b := &rebuilt{folder: newFolder(""), came: map[string]postgres.ChangedFile{}}
	started := false
	_, err := postgres.BaseBackup(t.Context(), conn, postgres.BaseBackupOptions{
		Fast: true, Since: &p, Started: func(lsn.LSN, uint32) { started = true },
	}, b)
	if !errors.Is(err, postgres.ErrNoIncremental) || !strings.Contains(err.Error(), words) || started || len(b.size) > 0 {
		t.Errorf("%s: %v; started %v, %d files", name, err, started, len(b.size))
	}
}

// C-27, C-28, C-33: each reason for which there is no incremental backup is told
// before the first file, as one that a whole backup gets round.
func TestWhatStandsInTheWayOfAnIncrementalIsToldFirst(t *testing.T) {
	for _, major := range summarizing() {
		c := pgtest.Start(t, pgtest.WithMajor(major))
		r, b := backup(t, c, "", nil, "")
		good := *priorOf(t, c, r, b.folder)
		sql := connect(t, c)
		refused(t, c, "off", "summarize_wal is off", good)
		if err := postgres.CheckSummaries(t.Context(), sql, good); !errors.Is(err, postgres.ErrNoIncremental) || !strings.Contains(err.Error(), "is off") {
			t.Error(err)
		}
		c.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000)")
		c.Exec("CHECKPOINT")
		c.Exec("ALTER SYSTEM SET summarize_wal = on")
		c.Exec("SELECT pg_reload_conf()")
		c.Await("SELECT current_setting('summarize_wal') = 'on'")
		gated := good
		gated.AnyMinor = false
		if err := postgres.Summarizes(sql.ServerNum(), false); err != nil {
			refused(t, c, "an old minor", "from 17.11 and 18.5", gated)
		}
		foreign, future, unknown := good, good, good
		foreign.SystemID++
		refused(t, c, "another cluster's", "system identifier", foreign)
		future.End += 1 << 40
		refused(t, c, "later than now", "", future)
		unknown.Timeline = 7
		refused(t, c, "a timeline that never was", "timeline 7", unknown)
		c.Await("SELECT summarized_lsn > $1::text::pg_lsn FROM pg_get_wal_summarizer_state()", good.End.String())
		if err := postgres.CheckSummaries(t.Context(), sql, good); !errors.Is(err, postgres.ErrNoIncremental) || !strings.Contains(err.Error(), "wal_summary_keep_time") {
			t.Errorf("summaries that begin after the prior backup: %v", err)
		}
		refused(t, c, "summaries missing", "summaries", good)
	}
}

// C-28: a standby that has replayed no checkpoint since the prior backup refuses, and
// sends what changed once it has.
func TestAStandbySendsAnIncrementalOnceItHasMovedOn(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithMajor(slices.Max(summarizing())), pgtest.WithSetting("autovacuum", "off"))
	c.Exec("CREATE TABLE t AS SELECT g AS id, repeat('x', 100) AS body FROM generate_series(1, 20000) g")
	c.Exec("VACUUM t") // sets hint bits, which would change every page later
	s := c.Standby(t, "summarize_wal = on")
	c.Exec("CHECKPOINT")
	s.AwaitReplay(c.LSN())
	first := filepath.Join(s.Mkdir("first"), "data")
	r, b := backup(t, s, first, nil, "")
	prior := priorOf(t, s, r, b.folder)
	early := *prior
	early.End += 1 << 20
	refused(t, s, "a standby that stands still", "final timeline 1", early)
	c.Exec("UPDATE t SET body = 'new' WHERE id % 1000 = 0")
	c.Exec("CHECKPOINT")
	s.AwaitReplay(c.LSN())
	second := filepath.Join(s.Mkdir("second"), "data")
	_, b2 := backup(t, s, second, prior, first)
	path := pgtest.Value[string](c, "SELECT pg_relation_filepath('t')")
	if n := len(b2.came[path].Blocks); n == 0 || n > 100 {
		t.Errorf("%d blocks of the table came", n)
	}
	whole := filepath.Join(s.Mkdir("whole"), "data")
	backup(t, s, whole, nil, "")
	sameRelations(t, second, whole, false)
}

// What fails on our side is no reason to take a whole backup instead.
func TestAPriorThatCannotBeReadFailsTheBackup(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithMajor(summarizing()[0]), pgtest.WithSetting("summarize_wal", "on"))
	broken := errors.New("the manifest in the repository is spoilt")
	p := postgres.Prior{SystemID: 1, Timeline: 1, AnyMinor: postgres.Summarizes(c.ServerNum(), false) != nil, Files: func(yield func(postgres.ManifestFile, error) bool) {
		_ = yield(postgres.ManifestFile{Path: "x"}, nil) && yield(postgres.ManifestFile{}, broken)
	}}
	b := &rebuilt{folder: newFolder("")}
	_, err := postgres.BaseBackup(t.Context(), replication(t, c), postgres.BaseBackupOptions{Since: &p}, b)
	if !errors.Is(err, broken) || errors.Is(err, postgres.ErrNoIncremental) {
		t.Error(err)
	}
	if _, err := postgres.BaseBackup(t.Context(), replication(t, c), postgres.BaseBackupOptions{Since: &p}, b.folder); err == nil || errors.Is(err, postgres.ErrNoIncremental) {
		t.Errorf("a sink for whole files: %v", err)
	}
}

// incremental makes an INCREMENTAL file of pages that hold their block's number.
func incremental(keep uint32, blocks ...uint32) []byte {
	out := binary.LittleEndian.AppendUint32(nil, 0xd3ae1f0d)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(blocks)))
	out = binary.LittleEndian.AppendUint32(out, keep)
	for _, b := range blocks {
		out = binary.LittleEndian.AppendUint32(out, b)
	}
	for len(blocks) > 0 && len(out)%page.Size != 0 {
		out = append(out, 0)
	}
	for _, b := range blocks {
		out = append(out, bytes.Repeat([]byte{byte(b)}, page.Size)...)
	}
	return out
}

type blocksOf struct {
	*folder
	came []postgres.ChangedFile
	data []byte
}

func (b *blocksOf) Blocks(_ context.Context, c postgres.ChangedFile, pages io.Reader) (err error) {
	b.came = append(b.came, c)
	b.data, err = io.ReadAll(pages)
	return err
}

// readIncremental reads a backup whose archive holds a label and one file more.
func readIncremental(name string, body []byte) (*blocksOf, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct {
		name string
		body []byte
	}{{"backup_label", []byte(label)}, {name, body}} {
		h := regular(f.name)
		h.Size = int64(len(f.body))
		if err := errors.Join(w.WriteHeader(&h), onlyErr(w.Write(f.body))); err != nil {
			panic(err)
		}
	}
	w.Close()
	b := &blocksOf{folder: newFolder("")}
	said := honest(buf.Bytes(), manifestOf("2,\n\"System-Identifier\": 1", entry(name, len(body))))
	_, err := postgres.ReadBackup(170011, postgres.BaseBackupOptions{Since: &postgres.Prior{}}, b, said...)
	return b, err
}

// C-29
func TestIncrementalFilesAreReadAsTheFormatSays(t *testing.T) {
	for name, c := range map[string]struct {
		keep   uint32
		blocks []uint32
		size   int64
	}{
		"nothing changed":                {7, nil, 7},
		"cut to nothing":                 {0, nil, 0},
		"some changed":                   {10, []uint32{0, 3, 9}, 10},
		"grown":                          {10, []uint32{3, 14}, 15},
		"cut and grown again":            {2, []uint32{5}, 6},
		"the last block":                 {131072, []uint32{131071}, 131072},
		"numbers that fill a page":       {4000, ascending(2045), 4000},
		"numbers that begin a page more": {4000, ascending(2046), 4000},
	} {
		b, err := readIncremental("base/5/INCREMENTAL.16385.1", incremental(c.keep, c.blocks...))
		if err != nil || len(b.came) != 1 || len(b.size) != 0 {
			t.Errorf("%s: %v, %d came", name, err, len(b.came))
			continue
		}
		got := b.came[0]
		if got.Path != "base/5/16385.1" || got.Keep != c.keep || !slices.Equal(got.Blocks, c.blocks) || got.Size != c.size*page.Size || len(b.data) != len(c.blocks)*page.Size {
			t.Errorf("%s: %s of %d bytes, keeping %d, blocks %v", name, got.Path, got.Size, got.Keep, got.Blocks)
		}
	}
}

func ascending(n int) (out []uint32) {
	for i := range n {
		out = append(out, uint32(i))
	}
	return out
}

// C-29: what is not the format is not taken for a relation.
func TestABrokenIncrementalFileEndsTheBackup(t *testing.T) {
	whole := incremental(4, 1, 2)
	spoilt := func(at int, b byte) []byte {
		out := bytes.Clone(whole)
		out[at] ^= b
		return out
	}
	for name, c := range map[string]struct {
		path string
		body []byte
	}{
		"empty":                     {"base/5/INCREMENTAL.1", nil},
		"no header":                 {"base/5/INCREMENTAL.1", whole[:11]},
		"cut":                       {"base/5/INCREMENTAL.1", whole[:len(whole)-1]},
		"longer":                    {"base/5/INCREMENTAL.1", append(bytes.Clone(whole), 0)},
		"another magic":             {"base/5/INCREMENTAL.1", spoilt(0, 1)},
		"another count":             {"base/5/INCREMENTAL.1", spoilt(4, 1)},
		"a count beyond memory":     {"base/5/INCREMENTAL.1", spoilt(7, 0xff)},
		"keeping beyond a segment":  {"base/5/INCREMENTAL.1", spoilt(11, 1)},
		"a block beyond a segment":  {"base/5/INCREMENTAL.1", spoilt(19, 1)},
		"blocks in no order":        {"base/5/INCREMENTAL.1", incremental(4, 2, 1)},
		"a block twice":             {"base/5/INCREMENTAL.1", incremental(4, 2, 2)},
		"padding that says more":    {"base/5/INCREMENTAL.1", spoilt(100, 1)},
		"of no relation":            {"base/5/INCREMENTAL.PG_VERSION", whole},
		"of a map of free space":    {"base/5/INCREMENTAL.1_fsm", whole},
		"outside of all databases":  {"INCREMENTAL.1", whole},
		"outside the data at large": {"../INCREMENTAL.1", whole},
	} {
		if b, err := readIncremental(c.path, c.body); err == nil || len(b.came) > 0 {
			t.Errorf("%s was taken: %v", name, err)
		}
	}
}

// C-32: a directory with these lines in its label starts no server.
func TestTheLabelOfAnIncrementalIsThatOfAWhole(t *testing.T) {
	said := "START WAL LOCATION: 0/2000028 (file 1)\nINCREMENTAL FROM LSN: 0/1\nLABEL: INCREMENTAL FROM x\nINCREMENTAL FROM TLI: 1\nSTART TIMELINE: 1"
	if got := postgres.WholeLabel([]byte(said)); string(got) != "START WAL LOCATION: 0/2000028 (file 1)\nLABEL: INCREMENTAL FROM x\nSTART TIMELINE: 1" {
		t.Errorf("%q", got)
	}
}

func FuzzIncrementalFile(f *testing.F) {
	f.Add(incremental(4, 1, 2))
	f.Add(incremental(7))
	f.Add(incremental(0, 131071)[:40])
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := readIncremental("base/5/INCREMENTAL.16385", body)
		if err != nil {
			return
		}
		c := b.came[0]
		if len(b.data) != len(c.Blocks)*page.Size || c.Size%page.Size != 0 || c.Size < int64(c.Keep)*page.Size || !slices.IsSorted(c.Blocks) {
			t.Fatalf("%+v with %d bytes", c, len(b.data))
		}
		if n := len(c.Blocks); n > 0 && int64(c.Blocks[n-1]) >= c.Size/page.Size {
			t.Fatalf("block %d of %d", c.Blocks[n-1], c.Size/page.Size)
		}
	})
}

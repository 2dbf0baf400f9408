package walrec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func tablespaceData(oid uint32, path string) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, oid), path+"\x00"...)
}

// paths reads the WAL again, every checksum with it, and lists what it creates.
func paths(t *testing.T, cfg Config, wal []byte) (out []string) {
	t.Helper()
	s, err := ScanTablespaces(cfg, wal)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Found {
		out = append(out, fmt.Sprintf("%d=%s", n.OID, n.Path))
	}
	return out
}

// C-65, at every place of a record to the end of a page.
func TestTablespacePathsAreTakenOutWhereverTheRecordLies(t *testing.T) {
	cfg := Config{SegSize: 1 << 20, Major: 16, Start: 5 << 20}
	path := "/var/lib/production/" + strings.Repeat("p", 300)
	for fill := PageSize - 480; fill < PageSize+16; fill += 8 {
		b := newBuilder(cfg)
		b.record(rmgrXact, 0, 7, commit(1))
		b.record(rmgrXLOG, 0x30, 0, make([]byte, fill-int(b.pos()%PageSize)-recordHeader-5))
		b.record(rmgrTablespace, tablespaceCreate, 9, tablespaceData(16400, path))
		b.record(rmgrXact, 0, 9, commit(2))
		wal := slices.Clone(b.buf)
		s, err := ScanTablespaces(cfg, wal)
		if err != nil || len(s.Found) != 1 || s.Found[0].OID != 16400 || s.Found[0].Path != path {
			t.Fatalf("filled to %d: %+v, %v", fill, s, err)
		}
		Apply(wal, cfg.Start, s.Found[0].Edits)
		if got := paths(t, cfg, wal); !slices.Equal(got, []string{"16400="}) {
			t.Errorf("filled to %d, then: %q", fill, got)
		}
		if bytes.Contains(wal, []byte("production")) || len(wal) != len(b.buf) {
			t.Errorf("filled to %d: the path is still there", fill)
		}
	}
}

// A record on the seam of two segments is seen from both, and mended in both.
func TestTablespaceRecordOnASeamIsNoticedOnBothSides(t *testing.T) {
	cfg := Config{SegSize: 1 << 20, Major: 18, Start: 8 << 20}
	for left := 8; left <= 400; left += 8 { // bytes of the record before the seam
		b := newBuilder(cfg)
		b.record(rmgrXact, 0, 7, commit(1))
		for b.pos() < cfg.Start+1<<20-PageSize {
			b.record(rmgrXLOG, 0x30, 0, make([]byte, 4000))
		}
		b.record(rmgrXLOG, 0x30, 0, make([]byte, (PageSize-left-int(b.pos()%PageSize)-recordHeader-5)&^7))
		at := b.record(rmgrTablespace, tablespaceCreate, 9, tablespaceData(16401, "/production/"+strings.Repeat("q", 400)))
		b.record(rmgrXact, 0, 9, commit(2))
		seam := cfg.Start + 1<<20
		if at >= seam {
			t.Fatalf("%d: the record begins at %s, behind the seam", left, at)
		}
		cut := int(seam - cfg.Start)
		one, two := slices.Clone(b.buf[:cut]), slices.Clone(b.buf[cut:])
		behind := cfg
		behind.Start = seam
		s1, err1 := ScanTablespaces(cfg, one)
		s2, err2 := ScanTablespaces(behind, two)
		if err1 != nil || err2 != nil || !s1.Open || !s2.Joins || len(s1.Found)+len(s2.Found) != 0 {
			t.Fatalf("%d: %+v, %v; %+v, %v", left, s1, err1, s2, err2)
		}
		page := cfg
		page.Start = seam - PageSize
		s, err := ScanTablespaces(page, append(slices.Clone(one[cut-PageSize:]), two...))
		if err != nil || len(s.Found) != 1 {
			t.Fatalf("%d: %+v, %v", left, s, err)
		}
		Apply(one, cfg.Start, s.Found[0].Edits)
		Apply(two, seam, s.Found[0].Edits)
		if got := paths(t, cfg, append(one, two...)); !slices.Equal(got, []string{"16401="}) {
			t.Errorf("%d: %q", left, got)
		}
	}
}

func TestOrdinaryRecordsOnASeamAreOfNoInterest(t *testing.T) {
	cfg := Config{SegSize: 1 << 20, Major: 14, Start: 8 << 20}
	b := newBuilder(cfg)
	for b.pos() < cfg.Start+1<<20-5000 {
		b.record(rmgrXLOG, 0x30, 0, make([]byte, 4000))
	}
	b.record(rmgrXLOG, 0x30, 0, make([]byte, 9000))
	s, err := ScanTablespaces(cfg, b.buf[:1<<20])
	if err != nil || s.Open {
		t.Errorf("%+v, %v", s, err)
	}
}

// The real thing, of every major.
func TestTablespacesOfARealServerAreFound(t *testing.T) {
	for _, major := range pgtest.Installed() {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			c := start(t, major)
			var want []string
			for i := range 3 {
				dir := c.Mkdir(fmt.Sprint("space", i))
				c.Exec(fmt.Sprintf("CREATE TABLESPACE space%d LOCATION '%s'", i, dir))
				oid := pgtest.Value[uint32](c, fmt.Sprintf("SELECT oid FROM pg_tablespace WHERE spcname = 'space%d'", i))
				want = append(want, fmt.Sprintf("%d=%s", oid, dir))
				c.Exec(fmt.Sprintf("CREATE TABLE t%d TABLESPACE space%d AS SELECT generate_series(1, 100)", i, i))
			}
			c.Exec("DROP TABLE t1")
			c.Exec("DROP TABLESPACE space1")
			from, wal := segments(t, c, 1)
			cfg := Config{SegSize: segSize, Major: major, Start: from}
			if got := paths(t, cfg, wal); !slices.Equal(got, want) {
				t.Errorf("found %q, want %q", got, want)
			}
			s, err := ScanTablespaces(cfg, wal)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range s.Found {
				Apply(wal, from, n.Edits)
			}
			if got := paths(t, cfg, wal); len(got) != 3 || strings.Contains(strings.Join(got, ""), "/") {
				t.Errorf("then %q", got)
			}
		})
	}
}

func FuzzScanTablespaces(f *testing.F) {
	cfg := Config{SegSize: 1 << 20, Major: 17, Start: 3 << 20, Padded: true}
	b := newBuilder(cfg)
	b.record(rmgrTablespace, tablespaceCreate, 9, tablespaceData(16401, "/production"))
	f.Add(b.buf)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ScanTablespaces(cfg, data)
		for _, n := range s.Found {
			Apply(data, cfg.Start, n.Edits)
		}
		again, err2 := ScanTablespaces(cfg, data)
		if (err == nil) != (err2 == nil) || len(again.Found) != len(s.Found) {
			t.Fatalf("%v, then %v", err, err2)
		}
		for _, n := range again.Found {
			if n.Path != "" || n.Edits[0].At < cfg.Start || n.Edits[0].At > cfg.Start+lsn.LSN(len(data)) {
				t.Fatalf("%+v", n)
			}
		}
	})
}

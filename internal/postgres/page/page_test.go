package page_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// written makes a page as PostgreSQL leaves one: stamped at at, summed for block.
func written(seed uint64, at lsn.LSN, block uint32) []byte {
	p := make([]byte, page.Size)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := 24; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
	binary.LittleEndian.PutUint32(p, uint32(at>>32))
	binary.LittleEndian.PutUint32(p[4:], uint32(at))
	binary.LittleEndian.PutUint16(p[12:], 40)
	binary.LittleEndian.PutUint16(p[14:], 8000)
	binary.LittleEndian.PutUint16(p[8:], page.Checksum(p, block))
	return p
}

// C-19: every page of every relation of a real server, over all forks.
func TestChecksumAgreesWithEveryPageOfARealServer(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("CREATE TABLE seen AS SELECT g AS id, repeat(md5(g::text), 8) AS body FROM generate_series(1, 20000) g")
	c.Exec("CREATE INDEX ON seen (body)")
	c.Exec("VACUUM seen")
	c.Stop()
	layout, err := datadir.Scan(c.DataDir, datadir.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all page.Report
	for f := range layout.Files.All() {
		if f.Kind != datadir.Relation {
			continue
		}
		data, err := os.ReadFile(f.Source)
		if err != nil {
			t.Fatal(err)
		}
		v := page.NewVerifier(lsn.LSN(1)<<63, f.Name.Segment, nil)
		if err := v.Check(data); err != nil {
			t.Fatal(err)
		}
		if r := v.Report(); r.Bad > 0 || r.Recent > 0 || r.Short > 0 {
			t.Errorf("%s: %+v", f.Path, r)
		}
		all.Add(v.Report())
	}
	if all.Good < 3000 || all.Pages != all.Good+all.New {
		t.Errorf("%+v, want some thousands of good pages and no others", all)
	}
}

// C-19: a real page that a disk spoilt is found under its number in the relation.
func TestARealPageWithOneBitFlippedIsBad(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("CREATE TABLE hurt AS SELECT g FROM generate_series(1, 5000) g")
	path := filepath.Join(c.DataDir, pgtest.Value[string](c, "SELECT pg_relation_filepath('hurt')"))
	c.Stop()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[3*page.Size+5000] ^= 4
	v := page.NewVerifier(lsn.LSN(1)<<62, 0, nil)
	if err := v.Check(data); err != nil {
		t.Fatal(err)
	}
	if r := v.Report(); r.Bad != 1 || len(r.BadBlocks) != 1 || r.BadBlocks[0] != 3 || r.Clean() {
		t.Errorf("%+v, want block 3 bad", r)
	}
}

// C-19
func TestBlocksAreCountedOverTheWholeRelation(t *testing.T) {
	const block = 2*page.SegmentBlocks + 5
	p := written(1, 100, block)
	if page.Judge(p, 5, 1000) != page.Bad || page.Judge(p, block, 1000) != page.Good {
		t.Error("a page of segment 2 must be summed with its number in the relation")
	}
	v := page.NewVerifier(1000, 2, nil)
	for n := range uint32(5) {
		v.Check(written(1, 100, 2*page.SegmentBlocks+n))
	}
	v.Check(p)
	if r := v.Report(); r.Good != 6 {
		t.Errorf("%+v, want 6 good", r)
	}
}

// C-19
func TestJudgements(t *testing.T) {
	torn := written(2, 5000, 7)
	torn[6000]++
	old := written(2, 4999, 7)
	old[6000]++
	claimsNew := make([]byte, page.Size)
	claimsNew[8000] = 1
	for name, c := range map[string]struct {
		data []byte
		want page.Verdict
	}{
		"whole":                                {written(2, 4999, 7), page.Good},
		"whole and recent":                     {written(2, 9000, 7), page.Good},
		"torn at the start LSN":                {torn, page.Recent},
		"torn before it":                       {old, page.Bad},
		"zero":                                 {make([]byte, page.Size), page.New},
		"says it is new and is not empty":      {claimsNew, page.Bad},
		"another block's page written over it": {written(2, 4999, 8), page.Bad},
	} {
		if got := page.Judge(c.data, 7, 5000); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// tornPage is a page in two states, of which the second is whole.
func tornPage() (torn, whole []byte) {
	whole = written(3, 100, 0)
	torn = append([]byte(nil), whole...)
	copy(torn[4096:], written(4, 90, 0)[4096:])
	return torn, whole
}

// C-19: mismatch, read again: changed is accepted, however late the writer goes on.
func TestAMismatchIsReadAgain(t *testing.T) {
	torn, whole := tornPage()
	for late := 1; late <= 4; late++ {
		synctest.Test(t, func(t *testing.T) {
			reads := 0
			v := page.NewVerifier(1000, 0, func(p []byte, _ int64) error {
				if reads++; reads < late {
					copy(p, torn)
				} else {
					copy(p, whole)
				}
				return nil
			})
			data := append([]byte(nil), torn...)
			if err := v.Check(data); err != nil || v.Report().Changed != 1 || !v.Report().Clean() || reads != late {
				t.Errorf("changed: %+v, %v, %d reads, want %d", v.Report(), err, reads, late)
			}
			if page.Judge(data, 0, 1000) != page.Good {
				t.Error("the newer bytes must take the place of the torn ones")
			}
		})
	}
	v := page.NewVerifier(1000, 0, func([]byte, int64) error { return errDisk })
	if err := v.Check(torn); !errors.Is(err, errDisk) {
		t.Errorf("a failed second read gave %v", err)
	}
}

var errDisk = errors.New("disk")

// C-19: unchanged is bad, and a file full of damage is not waited for page by page.
func TestAPageThatStaysWrongIsBad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		torn, _ := tornPage()
		v := page.NewVerifier(1000, 0, func(p []byte, _ int64) error { copy(p, torn); return nil })
		begun := time.Now()
		for n := int64(1); n <= 1000; n++ {
			if err := v.Check(append([]byte(nil), torn...)); err != nil || v.Report().Bad != n {
				t.Fatalf("unchanged: %+v, %v", v.Report(), err)
			}
		}
		if took := time.Since(begun); took > 3*time.Second || took < time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// C-19: a short last page ends the checks of the file and is reported. C-21
func TestAPartialPageStopsTheChecksAndIsReported(t *testing.T) {
	v := page.NewVerifier(1000, 0, nil)
	v.Check(append(written(5, 1, 0), 1, 2, 3))
	v.Check(written(5, 1, 1))
	if r := v.Report(); r.Short != 1 || r.Pages != 1 || r.Clean() {
		t.Errorf("%+v, want one page checked and one short file", r)
	}
}

// C-21: every page is in exactly one count, and names are bounded.
func TestReportsAddUpAndStayBounded(t *testing.T) {
	var all page.Report
	for range 3 {
		v := page.NewVerifier(1000, 0, nil)
		for n := range uint32(80) {
			p := written(6, 1, n)
			p[7000]++
			v.Check(p)
		}
		v.Check(make([]byte, page.Size))
		all.Add(v.Report())
	}
	if all.Bad != 240 || all.New != 3 || all.Pages != 243 || len(all.BadBlocks) != 100 {
		t.Errorf("%d bad, %d new, %d pages, %d named", all.Bad, all.New, all.Pages, len(all.BadBlocks))
	}
}

func FuzzVerifier(f *testing.F) {
	f.Add(written(1, 1, 0), uint64(100), uint32(0))
	f.Add(make([]byte, page.Size+1), uint64(0), uint32(3))
	f.Add([]byte{1}, uint64(1)<<63, uint32(1)<<15)
	f.Fuzz(func(t *testing.T, data []byte, start uint64, segment uint32) {
		v := page.NewVerifier(lsn.LSN(start), segment, func(p []byte, i int64) error {
			copy(p, data[i*page.Size:])
			return nil
		})
		if err := v.Check(data); err != nil {
			t.Fatal(err)
		}
		r := v.Report()
		if r.Pages != r.Good+r.New+r.Recent+r.Changed+r.Bad || r.Pages != int64(len(data)/page.Size) {
			t.Fatalf("%+v of %d bytes", r, len(data))
		}
		if (r.Short == 1) != (len(data)%page.Size != 0) {
			t.Fatalf("%+v of %d bytes", r, len(data))
		}
	})
}

func BenchmarkChecksum(b *testing.B) {
	p := written(1, 1, 1)
	b.SetBytes(page.Size)
	for b.Loop() {
		page.Checksum(p, 1)
	}
}

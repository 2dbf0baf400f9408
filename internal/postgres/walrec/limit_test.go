package walrec

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// raw adds a record of which body is all behind the header.
func (b *builder) raw(rmgr, info uint8, body ...byte) lsn.LSN {
	b.page(0, 0)
	at := b.pos()
	b.put(rawFrame(b.prev, rmgr, info, body))
	b.pad()
	b.prev = at
	return at
}

func rawFrame(prev lsn.LSN, rmgr, info uint8, body []byte) []byte {
	rec := append(make([]byte, recordHeader), body...)
	binary.LittleEndian.PutUint32(rec, uint32(len(rec)))
	binary.LittleEndian.PutUint64(rec[8:], uint64(prev))
	rec[16], rec[17] = info, rmgr
	crc := crc32.Update(crc32.Checksum(body, castagnoli), castagnoli, rec[:20])
	binary.LittleEndian.PutUint32(rec[20:], crc)
	return rec
}

// le puts numbers end to end: uint8, uint16 and uint32 by their types.
func le(list ...any) []byte {
	var buf bytes.Buffer
	for _, v := range list {
		if err := binary.Write(&buf, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return buf.Bytes()
}

var someRelation = le(uint32(1663), uint32(5), uint32(16384))

// changesOf reads WAL of a major that the body of one record makes.
func changesOf(t testing.TB, major int, rmgr, info uint8, body ...byte) ([]ForkChanges, string) {
	t.Helper()
	cfg := testConfig
	cfg.Major = major
	b := newBuilder(cfg)
	b.raw(rmgr, info, body...)
	ix, err := index(t, cfg, b.buf)
	if err != nil {
		t.Fatal(err)
	}
	return forksOf(t, ix), ix.Unknown
}

func forksOf(t testing.TB, ix Index) (out []ForkChanges) {
	t.Helper()
	if ix.Changes == nil {
		return nil
	}
	err := ix.Changes.Each(func(f ForkChanges) error {
		f.Blocks = slices.Clone(f.Blocks)
		out = append(out, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// main is the header of a record's own data, and the data.
func main(data []byte) []byte { return append([]byte{idDataShort, byte(len(data))}, data...) }

func TestRecordsThatMakeOrRemoveFilesSetLimits(t *testing.T) {
	rel := func(node uint32) string { return fmt.Sprintf("1663/5/%d", node) }
	commitOf := func(info uint32, rest []byte) []byte { return main(append(append(commit(1), le(info)...), rest...)) }
	db := le(uint32(7), uint32(1663))
	drop := le(uint32(7), uint32(2), uint32(1663), uint32(20000))
	dropped := append(le(uint32(2)), append(slices.Clone(someRelation), le(uint32(1663), uint32(5), uint32(16385))...)...)
	for name, c := range map[string]struct {
		majors     []int
		rmgr, info uint8
		body       []byte
		want       string
	}{
		"create":                   {all, 2, 0x11, main(append(slices.Clone(someRelation), le(uint32(0))...)), rel(16384) + " main from 0"},
		"create an init fork":      {all, 2, 0x11, main(append(slices.Clone(someRelation), le(uint32(3))...)), rel(16384) + " init from 0"},
		"create free space":        {all, 2, 0x11, main(append(slices.Clone(someRelation), le(uint32(1))...)), ""},
		"truncate":                 {all, 2, 0x21, main(append(append(le(uint32(9)), someRelation...), le(uint32(7))...)), rel(16384) + " main from 9"},
		"truncate free space only": {all, 2, 0x21, main(append(append(le(uint32(9)), someRelation...), le(uint32(4))...)), ""},
		"copy a database":          {all, 4, 0x01, main(append(slices.Clone(db), le(uint32(1), uint32(1663))...)), "1663/7/0 main from 0"},
		"log a database":           {all[1:], 4, 0x11, main(db), "1663/7/0 main from 0"},
		"drop a database":          {all[1:], 4, 0x21, main(drop), "1663/7/0 main from 0, 20000/7/0 main from 0"},
		"drop a database in 14":    {all[:1], 4, 0x11, main(drop), "1663/7/0 main from 0, 20000/7/0 main from 0"},
		"commit that drops":        {all, 1, 0x81, commitOf(hasRelations, dropped), rel(16384) + " main from 0, " + rel(16384) + " init from 0, " + rel(16385) + " main from 0, " + rel(16385) + " init from 0"},
		"abort behind all else": {
			all, 1, 0xA1, commitOf(hasRelations|hasDatabase|hasSubxacts, append(le(uint32(5), uint32(1663), uint32(1), uint32(99)), dropped...)),
			rel(16384) + " main from 0, " + rel(16384) + " init from 0, " + rel(16385) + " main from 0, " + rel(16385) + " init from 0",
		},
		"prepared commit without": {all, 1, 0xB0, commitOf(hasTwophase, le(uint32(77))), ""},
		"plain commit":            {all, 1, 0x00, main(commit(1)), ""},
	} {
		for _, major := range c.majors {
			forks, unknown := changesOf(t, major, c.rmgr, c.info, c.body...)
			if got := describe(forks); got != c.want || unknown != "" {
				t.Errorf("%s in %d: %q, want %q; %s", name, major, got, c.want, unknown)
			}
		}
	}
}

var all = []int{14, 15, 16, 17, 18}

func describe(forks []ForkChanges) string {
	var out []string
	for _, f := range forks {
		s := fmt.Sprintf("%d/%d/%d %s", f.Tablespace, f.Database, f.Node, f.Fork)
		if f.From != NoBlock {
			s += fmt.Sprintf(" from %d", f.From)
		}
		for _, b := range f.Blocks {
			s += fmt.Sprintf(" %d", b)
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func TestWhatCannotBeUnderstoodMakesTheStretchUnknown(t *testing.T) {
	minimal := append(make([]byte, 20), le(uint32(0), uint32(0))...)
	for name, c := range map[string]struct {
		rmgr, info uint8
		body       []byte
		want       string
	}{
		"an extension's way to change files": {130, 0x01, main([]byte{1}), "it alone knows"},
		"wal_level minimal":                  {0, xlogParameterChange, main(minimal), "minimal"},
		"an unknown storage record":          {2, 0x31, main(make([]byte, 20)), "unknown kind"},
		"an unknown database record":         {4, 0x31, main(make([]byte, 20)), "unknown kind"},
		"a short truncation":                 {2, 0x21, main(make([]byte, 12)), "too short"},
		"a header of no kind":                {10, 0, []byte{77}, "unknown header"},
		"a block of no relation":             {10, 0, le(uint8(0), uint8(0x80), uint16(0), uint32(1)), "as none"},
		"blocks out of order":                {10, 0, append(le(uint8(1), uint8(0), uint16(0)), append(slices.Clone(someRelation), le(uint32(1), uint8(1), uint8(0x80), uint16(0), uint32(2))...)...), "after block"},
		"a cut header":                       {10, 0, le(uint8(0), uint8(0), uint16(0), uint32(1)), "ends within"},
		"data that is not there":             {10, 0, append(append(le(uint8(0), uint8(0x20), uint16(9)), someRelation...), le(uint32(1))...), "says 9"},
		"data without its flag":              {10, 0, append(append(le(uint8(0), uint8(0), uint16(1)), someRelation...), le(uint32(1), uint8(0))...), "with 1 bytes"},
		"an unknown fork":                    {10, 0, append(append(le(uint8(0), uint8(4), uint16(0)), someRelation...), le(uint32(1))...), "unknown fork"},
	} {
		if forks, unknown := changesOf(t, 17, c.rmgr, c.info, c.body...); forks != nil || !strings.Contains(unknown, c.want) {
			t.Errorf("%s: %s, %q", name, describe(forks), unknown)
		}
	}
}

// imageOf is a block header with an image of n bytes.
func imageOf(n, hole uint16, info uint8, rest ...byte) []byte {
	h := append(le(uint8(0), uint8(0x10), uint16(0), n, hole, info), rest...)
	return append(append(append(h, someRelation...), le(uint32(42))...), make([]byte, n)...)
}

// The flags of page images differ between 14 and later versions (xlogrecord.h).
func TestPageImagesOfEveryVersionAreUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		majors []int
		body   []byte
		bad    bool
	}{
		"whole":                     {all, imageOf(8192, 0, 0), false},
		"with a hole":               {all, imageOf(1000, 24, 0x01), false},
		"to apply, 14":              {all[:1], imageOf(1000, 24, 0x05), false},
		"to apply":                  {all[1:], imageOf(1000, 24, 0x03), false},
		"squeezed in 14":            {all[:1], imageOf(500, 0, 0x06), false},
		"squeezed with hole in 14":  {all[:1], imageOf(500, 24, 0x07, 1, 2), false},
		"pglz":                      {all[1:], imageOf(500, 0, 0x06), false},
		"lz4 with a hole":           {all[1:], imageOf(500, 24, 0x0b, 1, 2), false},
		"zstd with a hole":          {all[1:], imageOf(500, 24, 0x13, 1, 2), false},
		"lz4 is unknown to 14":      {all[:1], imageOf(500, 24, 0x0d, 1, 2), true},
		"short without a reason":    {all, imageOf(500, 0, 0), true},
		"whole with a hole":         {all, imageOf(8192, 24, 0x01), true},
		"longer than a page":        {all, imageOf(8193, 0, 0), true},
		"a hole that is nowhere":    {all, imageOf(8192, 24, 0), true},
		"hole length left out, lz4": {all[1:], imageOf(500, 24, 0x0b), true},
	} {
		for _, major := range c.majors {
			forks, unknown := changesOf(t, major, 128, 0, c.body...) // an extension's: the same headers
			if got := describe(forks); !c.bad && got != "1663/5/16384 main 42" || c.bad != (unknown != "") {
				t.Errorf("%s in %d: %q, %q", name, major, got, unknown)
			}
		}
	}
}

func TestIndexesWithoutChangesMeanThatNothingIsKnown(t *testing.T) {
	var ix Index
	if err := json.Unmarshal([]byte(`{"format":1,"timeline":1,"from":"0/1","to":"0/2","records":0,"commits":[]}`), &ix); err != nil || ix.Changes != nil {
		t.Errorf("%+v, %v", ix, err)
	}
	if err := json.Unmarshal([]byte(`{"changes":{"from":"0/1","to":"0/2","blocks":"////"}}`), &ix); err != nil {
		t.Errorf("damaged changes keep the rest from being read: %v", err)
	} else if err := ix.Changes.Each(func(ForkChanges) error { return nil }); err == nil {
		t.Error("damaged changes were read")
	}
}

func TestCommitsThatDropMoreThanIsKeptAreUnknown(t *testing.T) {
	const subxacts = 300_000
	data := append(commit(1), le(uint32(hasSubxacts|hasRelations), uint32(subxacts))...)
	data = append(append(append(data, make([]byte, 4*subxacts)...), le(uint32(1))...), someRelation...)
	b := newBuilder(testConfig)
	b.record(rmgrXact, xactCommit|xactHasInfo, 3, data)
	ix, err := index(t, testConfig, b.buf)
	if err != nil || ix.Changes != nil || !strings.Contains(ix.Unknown, "too short") || len(ix.Commits) != 1 {
		t.Errorf("%+v, %v", ix, err)
	}
}

func TestTooManyChangesAreUnknown(t *testing.T) {
	c := newCollector(0)
	add := func(n uint32) error {
		body := append(append(le(uint8(0), uint8(0), uint16(0)), someRelation...), le(n)...)
		rec := rawFrame(0, 10, 0, body)
		c.add(&Record{Rmgr: 10, Length: uint32(len(rec)), Data: rec, major: 17})
		return c.unknown
	}
	for n := range uint32(4 * maxChanges) {
		if err := add(n * 7 % 100_000 * 3); err != nil {
			t.Fatalf("many references to few blocks: %v", err)
		}
	}
	var err error
	for n := uint32(0); err == nil && n < 2*maxChanges; n++ {
		err = add(n)
	}
	if !errors.Is(err, errTooMany) {
		t.Errorf("%v", err)
	}
}

// A reader that begins within a record needs not know it: the piece where the
// record begins tells its blocks, or else does not vouch for it.
func TestARecordThatAPieceCutsIsToldWhereItBegins(t *testing.T) {
	ref := append(append(le(uint8(0), uint8(0x20), uint16(9000)), someRelation...), le(uint32(42))...)
	b := newBuilder(testConfig)
	b.record(rmgrXact, xactCommit, 3, commit(1))
	at := b.raw(10, 0, append(ref, make([]byte, 9000)...)...)
	start := int(at - testConfig.Start)
	for cut := start + 1; cut < start+100; cut++ {
		ix, carry, err := BuildIndex(testConfig, Carry{}, b.buf[:cut])
		if err != nil {
			t.Fatal(err)
		}
		whole := cut >= start+recordHeader+len(ref)
		if known := ix.Changes.To == carry.Next(); known != whole || known != (describe(forksOf(t, ix)) != "") || !known && ix.Changes.To != at {
			t.Errorf("cut %d bytes behind its start: vouched up to %s, %s", cut-start, ix.Changes.To, describe(forksOf(t, ix)))
		}
		cfg := testConfig
		cfg.Start = carry.Next()
		next, _, err := BuildIndex(cfg, carry, b.buf[cut:])
		if err != nil || next.Changes.From != at || describe(forksOf(t, next)) != "1663/5/16384 main 42" {
			t.Errorf("the next piece: %+v, %v", next.Changes, err)
		}
	}
	cfg := testConfig
	cfg.Start += PageSize
	if ix, err := index(t, cfg, b.buf[PageSize:]); err != nil || ix.Changes.From != cfg.Start || len(forksOf(t, ix)) > 0 {
		t.Errorf("from within the record: %+v, %v", ix.Changes, err)
	}
}

// FuzzBlocks: whatever stands behind a record's header, nothing panics; what is
// understood leaves changes that can be read; and where the bytes are cut, all that
// was there is found or it is an error.
func FuzzBlocks(f *testing.F) {
	f.Add(uint8(14), uint8(10), uint8(0), imageOf(500, 24, 0x07, 1, 2), uint16(60))
	f.Add(uint8(18), uint8(2), uint8(0x21), main(append(append(le(uint32(9)), someRelation...), le(uint32(7))...)), uint16(30))
	f.Add(uint8(15), uint8(4), uint8(0x21), main(le(uint32(7), uint32(2), uint32(1663), uint32(20000))), uint16(26))
	f.Add(uint8(16), uint8(1), uint8(0x81), main(append(append(commit(1), le(uint32(4), uint32(1))...), someRelation...)), uint16(40))
	f.Fuzz(func(t *testing.T, major, rmgr, info uint8, body []byte, kept uint16) {
		rec := rawFrame(0, rmgr, info, body)
		r := Record{Rmgr: rmgr, Info: info, Length: uint32(len(rec)), Data: rec, major: 14 + int(major)%5}
		c := newCollector(8)
		c.add(&r)
		whole := c.unknown == nil
		changes, err := c.finish(&Reader{s: state{Pos: 16}})
		if whole != (err == nil) {
			t.Fatalf("unknown: %t, %v", !whole, err)
		}
		r.Data = rec[:max(recordHeader, int(kept)%(len(rec)+1))]
		cut := newCollector(8)
		cut.add(&r)
		if !whole || cut.unknown != nil {
			return
		}
		part, err := cut.finish(&Reader{s: state{Pos: 16}})
		if err != nil || !bytes.Equal(part.Blocks, changes.Blocks) {
			t.Fatalf("of %d bytes %d: %x instead of %x, %v", len(rec), len(r.Data), part.Blocks, changes.Blocks, err)
		}
	})
}

// FuzzChanges: what can be read is written again to the same bytes or shorter ones.
func FuzzChanges(f *testing.F) {
	f.Add([]byte{0xff, 0x0c, 5, 0x80, 0x80, 1, 1, 9, 2, 3, 0})
	f.Add([]byte{0, 0, 0, 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		var forks []ForkChanges
		err := Changes{Blocks: b}.Each(func(f ForkChanges) error {
			if !slices.IsSorted(f.Blocks) || len(f.Blocks) > 0 && f.Blocks[len(f.Blocks)-1] >= f.From {
				t.Fatalf("%+v", f)
			}
			f.Blocks = slices.Clone(f.Blocks)
			forks = append(forks, f)
			return nil
		})
		if err != nil {
			return
		}
		again, err := NewChanges(0, 0, forks)
		if err != nil || len(again.Blocks) > len(b) {
			t.Fatalf("%x became %x, %v", b, again.Blocks, err)
		}
	})
}

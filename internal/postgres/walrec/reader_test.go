package walrec

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

var testConfig = Config{SegSize: segSize, Major: 17, Start: 3 * segSize, SystemID: 42}

// sample holds records of many lengths, one across a segment's end, a switch, and a tail of zeros.
func sample() *builder {
	b := newBuilder(testConfig)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range uint32(2000) {
		b.record(10, 0, i+3, make([]byte, rng.IntN(400)))
		b.record(rmgrXact, xactCommit, i+3, commit(uint64(i)*1e6))
	}
	b.record(21, 0, 0, bytes.Repeat([]byte("long"), 300_000))
	b.record(rmgrXact, xactAbort, 9999, commit(1))
	b.record(rmgrXLOG, xlogSwitch, 0, nil)
	for b.pos()%segSize != 0 {
		b.page(0, 0)
		b.buf = append(b.buf, make([]byte, PageSize-b.pos()%PageSize)...)
	}
	b.record(rmgrXact, xactCommit, 10000, commit(2))
	return b
}

func index(t testing.TB, cfg Config, wal []byte) (Index, error) {
	t.Helper()
	ix, _, err := BuildIndex(cfg, Carry{}, wal)
	return ix, err
}

func TestZerosEndTheLogCleanly(t *testing.T) {
	b := sample()
	end := b.pos()
	for _, zeros := range []int{1, 3, 7, 8, 24, 8192, 100_000} {
		ix, err := index(t, testConfig, append(bytes.Clone(b.buf), make([]byte, zeros)...))
		if err != nil || ix.LastRecordEnd != end || ix.Commits[len(ix.Commits)-1].Xid != 10000 || ix.Ended != (zeros >= 4) {
			t.Errorf("%d zeros: end %s, ended %t, %v; want %s", zeros, ix.LastRecordEnd, ix.Ended, err, end)
		}
	}
	wal := append(bytes.Clone(b.buf), make([]byte, 20_000)...)
	wal[len(wal)-1] = 1
	if _, err := index(t, testConfig, wal); err == nil {
		t.Error("bytes after the zeros were passed over")
	}
}

func TestEveryFlippedBitOfARecordIsNoticed(t *testing.T) {
	b := newBuilder(testConfig)
	for i := range uint32(4) {
		b.record(rmgrXact, xactCommit, i+3, commit(uint64(i)))
	}
	whole, err := index(t, testConfig, b.buf)
	if err != nil {
		t.Fatal(err)
	}
	for bit := longHeader * 8; bit < len(b.buf)*8; bit++ {
		wal := bytes.Clone(b.buf)
		wal[bit/8] ^= 1 << (bit % 8)
		ix, err := index(t, testConfig, wal)
		// A length that grew beyond the end leaves a record pending, which is not in the index.
		padding := wal[bit/8]&^(1<<(bit%8)) == 0 && err == nil && ix.Records == whole.Records
		if err == nil && !padding && ix.Records >= whole.Records {
			t.Fatalf("bit %d: %+v", bit, ix)
		}
		if padding && !slices.Equal(ix.Commits, whole.Commits) {
			t.Fatalf("bit %d changed the commits unseen", bit)
		}
	}
}

func TestWrongPagesAreErrors(t *testing.T) {
	for name, damage := range map[string]struct {
		change func(page []byte)
		want   string
	}{
		"magic of another major":    {func(p []byte) { binary.LittleEndian.PutUint16(p, 0xD110) }, "magic"},
		"another address":           {func(p []byte) { p[9] ^= 1 }, "lies at"},
		"unknown flags":             {func(p []byte) { p[3] = 1 }, "flags"},
		"a later timeline":          {func(p []byte) { p[4] = 2 }, "timeline 2"},
		"timeline 0":                {func(p []byte) { p[4] = 0 }, "timeline 0"},
		"a wrong remainder":         {func(p []byte) { p[16] ^= 8 }, "continues"},
		"no continuation":           {func(p []byte) { p[2] &^= flagContinues }, "continues"},
		"continued and overwritten": {func(p []byte) { p[2] |= flagOverwrite }, "both"},
	} {
		b := newBuilder(testConfig)
		b.record(21, 0, 0, make([]byte, 3*PageSize))
		damage.change(b.buf[PageSize:])
		cfg := testConfig
		cfg.Timeline = 1
		if _, err := index(t, cfg, b.buf); err == nil || !strings.Contains(err.Error(), damage.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// C-41: a segment's first page says whose it is.
func TestForeignSegmentsHaveTheirOwnError(t *testing.T) {
	b := sample()
	cfg := testConfig
	cfg.SystemID = 43
	if _, err := index(t, cfg, b.buf); !errors.Is(err, ErrForeign) {
		t.Errorf("another system identifier: %v", err)
	}
	good := Header{Major: 17, Timeline: 1, Page: testConfig.Start, SystemID: 42, SegSize: segSize}
	if err := CheckSegmentHeader(b.buf, good); err != nil {
		t.Error(err)
	}
	if err := CheckSegmentHeader(b.buf, Header{}); err != nil {
		t.Error(err)
	}
	for _, want := range []Header{
		{Major: 16, Timeline: 1, Page: good.Page, SystemID: 42, SegSize: segSize},
		{Major: 17, Timeline: 1, Page: good.Page + segSize, SystemID: 42, SegSize: segSize},
		{Major: 17, Timeline: 1, Page: good.Page, SystemID: 42, SegSize: 2 * segSize},
	} {
		if err := CheckSegmentHeader(b.buf, want); err == nil {
			t.Errorf("%+v was accepted", want)
		}
	}
	for _, data := range [][]byte{nil, b.buf[:39], make([]byte, 100), b.buf[PageSize:]} {
		if _, err := ParseHeader(data); err == nil {
			t.Errorf("a header was found in %d bytes", len(data))
		}
	}
}

func TestRecordCutByZerosEndsPaddedWALOnly(t *testing.T) {
	b := newBuilder(testConfig)
	b.record(rmgrXact, xactCommit, 3, commit(7))
	end := b.pos()
	b.record(10, 0, 4, bytes.Repeat([]byte{1}, 500))
	wal := append(b.buf[:len(b.buf)-200:len(b.buf)-200], make([]byte, 9000)...)
	if _, err := index(t, testConfig, wal); err == nil {
		t.Error("a torn record was passed over in a stream")
	}
	cfg := testConfig
	cfg.Padded = true
	ix, err := index(t, cfg, wal)
	if err != nil || ix.LastRecordEnd != end || !ix.Ended || len(ix.Commits) != 1 {
		t.Errorf("%+v, %v", ix, err)
	}
	wal[len(wal)-5] = 9
	if _, err := index(t, cfg, wal); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("bytes after a torn record: %v", err)
	}
}

func TestReadingMayBeginInsideARecord(t *testing.T) {
	b := sample()
	cfg := testConfig
	cfg.Start += segSize // where the long record goes on
	ix, err := index(t, cfg, b.buf[segSize:])
	if err != nil || len(ix.Commits) != 2 || !ix.Commits[0].Abort {
		t.Errorf("%+v, %v: want the abort and the commit after the long record", ix, err)
	}
	cfg.Start = testConfig.Start + longHeader
	whole, err := index(t, cfg, b.buf[longHeader:]) // at a record
	if err != nil || len(whole.Commits) != 2002 {
		t.Errorf("%d commits, %v", len(whole.Commits), err)
	}
	for _, at := range []lsn.LSN{1, 8, 16, 41} {
		if _, err := NewReader(Config{SegSize: segSize, Major: 17, Start: testConfig.Start + at}); err == nil {
			t.Errorf("reading began at offset %d", at)
		}
	}
}

func TestHugeRecordsAreCheckedAndNotKept(t *testing.T) {
	b := newBuilder(testConfig)
	data := make([]byte, 5<<20) // a commit with more than a million subtransactions
	binary.LittleEndian.PutUint64(data, 99)
	binary.LittleEndian.PutUint32(data[8:], hasSubxacts)
	binary.LittleEndian.PutUint32(data[12:], uint32(len(data)-16)/4)
	b.record(rmgrXact, xactCommit|xactHasInfo, 3, data)
	r, err := NewReader(testConfig)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = r.Feed(b.buf, func(r *Record) error {
		seen++
		d, err := r.Decode()
		if len(r.Data) != KeepBytes || d.Subxacts != (len(data)-16)/4 || d.Xid != 3 || err != nil {
			t.Errorf("%d bytes kept, %+v, %v", len(r.Data), d, err)
		}
		return nil
	})
	if err != nil || seen != 1 {
		t.Errorf("%d records, %v", seen, err)
	}
	b.buf[3<<20+5000] ^= 1
	if _, err := index(t, testConfig, b.buf); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("a flipped bit behind what is kept: %v", err)
	}
}

func TestCarryRefusesWhatDoesNotFollow(t *testing.T) {
	b := sample()
	_, carry, err := BuildIndex(testConfig, Carry{}, b.buf[:10_001])
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig
	cfg.Start = carry.Next() + 8
	if _, _, err := BuildIndex(cfg, carry, b.buf[10_009:]); err == nil {
		t.Error("a hole was passed over")
	}
	for _, text := range []string{
		`{`, `{"pos":"0/300010","mode":9}`, `{"pos":"0/300010","got":5}`, `{"pos":"0/300010","skip":5}`,
		`{"pos":"0/300010","mode":1}`, `{"pos":"0/300010","got":4,"record":"AQAAAA=="}`, `{"pos":"0/300001","header":"AAAA"}`,
	} {
		var c Carry
		if err := json.Unmarshal([]byte(text), &c); err == nil {
			t.Errorf("carry %s was accepted", text)
		}
	}
}

func TestMalformedCommitIsAnError(t *testing.T) {
	for name, data := range map[string][]byte{
		"no time":           {1, 2, 3},
		"no xinfo":          commit(1),
		"negative subxacts": append(commit(1), 2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff),
		"missing subxacts":  append(commit(1), 2, 0, 0, 0, 9, 0, 0, 0),
		"missing twophase":  append(commit(1), 16, 0, 0, 0),
	} {
		b := newBuilder(testConfig)
		b.record(rmgrXact, xactCommit|xactHasInfo, 3, data)
		if _, err := index(t, testConfig, b.buf); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzReader: nothing panics; how the stream is cut changes nothing that is read
// nor whether it is an error; a carry through JSON is as good as the reader. The
// WAL is sound records of the given lengths (in units of 100 bytes), one byte of
// it damaged, and after it anything.
func FuzzReader(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint32(0), byte(0), []byte(nil), uint16(61), false)
	f.Add([]byte{255, 255, 255, 1, 255, 255, 255}, uint32(8200), byte(1), []byte{0, 0, 0}, uint16(8192), false)
	f.Add([]byte{9, 0, 9}, uint32(300), byte(255), make([]byte, 9000), uint16(7), true)
	f.Fuzz(func(t *testing.T, lengths []byte, at uint32, xor byte, tail []byte, cut uint16, padded bool) {
		b := newBuilder(testConfig)
		b.page(0, 0)
		for i, n := range lengths[:min(len(lengths), 50)] {
			b.record(rmgrXact, xactCommit, uint32(i+3), append(commit(uint64(i)), make([]byte, 100*int(n))...))
		}
		wal := append(b.buf, tail...)
		wal[int(at)%len(wal)] ^= xor
		cfg := testConfig
		cfg.Padded = padded
		whole, _, wholeErr := BuildIndex(cfg, Carry{}, wal)
		var carry Carry
		var commits Commits
		var records int
		step := max(int(cut), len(wal)/20+1)
		for at := 0; at < len(wal); at += step {
			cfg.Start = testConfig.Start + lsn.LSN(at)
			ix, next, err := BuildIndex(cfg, carry, wal[at:min(at+step, len(wal))])
			if err != nil {
				if wholeErr == nil {
					t.Fatalf("pieces of %d: %v; the whole is fine", step, err)
				}
				return
			}
			carry = throughJSON(t, next)
			commits = append(commits, throughJSON(t, ix).Commits...)
			records += ix.Records
		}
		if wholeErr != nil {
			t.Fatalf("the whole: %v; pieces of %d are fine", wholeErr, step)
		}
		if records != whole.Records || !slices.Equal(commits, whole.Commits) {
			t.Fatalf("pieces of %d: %d records, %d commits; the whole: %d, %d", step, records, len(commits), whole.Records, len(whole.Commits))
		}
	})
}

// FuzzDecode: a record's body with a right checksum may still be anything.
func FuzzDecode(f *testing.F) {
	f.Add(uint8(rmgrXact), uint8(xactCommitPrepared|xactHasInfo), append(commit(1), 0xff, 1, 0, 0, 1, 2, 3, 4), uint8(18))
	f.Add(uint8(rmgrXLOG), uint8(xlogRestorePoint), make([]byte, 72), uint8(14))
	f.Add(uint8(rmgrXLOG), uint8(xlogCheckpointOnline), make([]byte, 88), uint8(15))
	f.Fuzz(func(t *testing.T, rmgr, info uint8, data []byte, major uint8) {
		rec := frame(0, rmgr, info, 3, data)
		d, err := (&Record{Rmgr: rmgr, Info: info, Length: uint32(len(rec)), Data: rec, major: int(major)}).Decode()
		if err == nil && d.Subxacts < 0 {
			t.Fatalf("%+v", d)
		}
		r := Record{Rmgr: rmgr, Info: info, Length: uint32(recordHeader + len(data)), Data: append(rec[:recordHeader:recordHeader], data...)}
		_, _ = r.Decode()
	})
}

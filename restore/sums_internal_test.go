package restore

import (
	"hash/crc32"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// C-26: the sums of a restored directory's manifest.
func TestAFilesSumComesFromItsPiecesInAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 7, 8192, 100_001, 1 << 20} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		type piece struct{ from, to int }
		var pieces []piece
		for at := 0; at < size; {
			n := min(size-at, 1+r.IntN(20_000))
			if r.IntN(4) == 0 {
				clear(data[at : at+n]) // a hole: nobody adds it
			} else {
				pieces = append(pieces, piece{at, at + n})
			}
			at += n
		}
		r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		var sum atomic.Uint32
		for _, p := range pieces {
			addSum(&sum, data[p.from:p.to], int64(p.from), int64(size))
		}
		if got, want := finishSum(sum.Load(), int64(size)), crc32.Checksum(data, castagnoli); got != want {
			t.Errorf("%d bytes in %d pieces: %08x, want %08x", size, len(pieces), got, want)
		}
	}
}

func TestRecordsComeSortedByPackHoweverManyRunsWereSpilled(t *testing.T) {
	rs, err := newRecords(t.TempDir()+"/records", 100)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	const n = 2550
	var total int64
	for i := range n {
		x := record{file: uint32(i), from: r.Uint32(), n: uint32(r.IntN(1 << 20)), at: r.Int64()}
		x.frame.Pack, x.frame.Off, x.frame.Len, x.frame.Raw, x.frame.SHA256[3] = uint32(r.IntN(40)), int64(r.IntN(50))<<33, 77, 99, byte(i)
		total += int64(x.n)
		if parseRecord(x.append(nil)) != x {
			t.Fatalf("%+v does not come back", x)
		}
		if err := rs.add(x); err != nil {
			t.Fatal(err)
		}
	}
	seen, last := map[uint32]bool{}, record{}
	packs := 0
	err = rs.byPack(func(list []record) error {
		packs++
		return frames(list, func(same []record) error {
			for _, x := range same {
				if x.order(last) < 0 || x.frame.Pack != list[0].frame.Pack || x.frame.Off != same[0].frame.Off || seen[x.file] {
					t.Errorf("%+v after %+v", x, last)
				}
				seen[x.file], last = true, x
			}
			return nil
		})
	})
	if err != nil || len(seen) != n || packs != 40 || rs.total != total {
		t.Errorf("%v; %d records of %d packs, %d bytes", err, len(seen), packs, rs.total)
	}
	if err := rs.close(); err != nil {
		t.Error(err)
	}
}

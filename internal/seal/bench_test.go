package seal

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"
)

// pages are what to compress: the file that HOLDFAST_BENCH_PAGES names, for
// figures that mean something (a relation's file, or several end to end), else
// rows made up.
func pages(b *testing.B) []byte {
	name := os.Getenv("HOLDFAST_BENCH_PAGES")
	if name == "" {
		return rows(8*MaxFrame, 5)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return data
}

func BenchmarkCompress(b *testing.B) {
	data := pages(b)
	b.Log(Encoder)
	for _, name := range levelNames {
		for _, size := range []int{128 << 10, 256 << 10, 512 << 10, MaxFrame} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				c := NewCompressor(name)
				var out int
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					out = 0
					for rest := data; len(rest) > 0; rest = rest[min(size, len(rest)):] {
						c.scratch = c.enc.encode(c.scratch, rest[:min(size, len(rest))])
						out += len(c.scratch)
					}
				}
				b.ReportMetric(100*float64(out)/float64(len(data)), "%size")
			})
		}
	}
}

func BenchmarkDecodePack(b *testing.B) {
	ids, rec := pair(b, false)
	var raws [][]byte
	for i := range 16 {
		raws = append(raws, rows(MaxFrame, uint64(i)))
	}
	s := packOf(b, rec, raws...)
	b.SetBytes(16 * MaxFrame)
	b.ReportAllocs()
	for b.Loop() {
		if err := DecodePack(s.Body, ids, s.Frames, func(int, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompressAndSeal is what a snapshot cannot be faster than: each core
// compresses frames and seals them into packs of its own, in memory.
func BenchmarkCompressAndSeal(b *testing.B) {
	data := pages(b)
	_, rec := pair(b, false)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		var next atomic.Int64
		var group errgroup.Group
		for range runtime.GOMAXPROCS(0) {
			group.Go(func() error { return sealAll(data, &next, rec) })
		}
		if err := group.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// sealAll takes the next MaxFrame of data until there is none.
func sealAll(data []byte, next *atomic.Int64, to []age.Recipient) error {
	c := NewCompressor(DefaultLevel)
	w, err := NewPackWriter(to, PackTarget)
	if err != nil {
		return err
	}
	for {
		off := int(next.Add(MaxFrame)) - MaxFrame
		if off >= len(data) {
			_, err = w.Seal()
			return err
		}
		if _, err := w.Add(c.Compress(data[off:min(off+MaxFrame, len(data))])); err != nil {
			return err
		}
		if !w.Full() {
			continue
		}
		if _, err := w.Seal(); err != nil {
			return err
		}
		if w, err = NewPackWriter(to, PackTarget); err != nil {
			return err
		}
	}
}

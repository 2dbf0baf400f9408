package seal

import (
	"fmt"
	"os"
	"testing"
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

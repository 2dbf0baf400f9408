package seal

import (
	"fmt"
	"testing"
)

func BenchmarkCompress(b *testing.B) {
	for _, level := range []string{"fastest", "default", "better"} {
		for _, size := range []int{64 << 10, 256 << 10, MaxFrame} {
			b.Run(fmt.Sprintf("%s/%dKiB", level, size>>10), func(b *testing.B) {
				raw, c := rows(size, 5), NewCompressor(level)
				var out int
				b.SetBytes(int64(size))
				for b.Loop() {
					out = c.Compress(raw).Len()
				}
				b.ReportMetric(float64(size)/float64(out), "ratio")
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

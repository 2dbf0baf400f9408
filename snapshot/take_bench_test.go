package snapshot

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// BenchmarkTake reports MB/s of raw bytes and how many times as long a Take lasts
// as reading the same files once, and as compressing them on one core.
func BenchmarkTake(b *testing.B) {
	pg := startPG(b)
	pg.Run("pgbench", "-i", "-q", "-s", "10", "-h", pg.SocketDir, "-p", port(pg), "-U", "postgres", "postgres")
	pg.Exec("CHECKPOINT")
	read, compress := floor(b, filepath.Join(pg.DataDir, "base"))
	for _, source := range []string{SourceFiles, SourceStream} {
		b.Run(source, func(b *testing.B) {
			r := newRig(b)
			for b.Loop() {
				b.SetBytes(r.take(r.config(pg, source)).RawBytes)
			}
			each := b.Elapsed() / time.Duration(b.N)
			b.ReportMetric(float64(each)/float64(read), "x-read")
			b.ReportMetric(float64(each)/float64(compress), "x-zstd")
		})
	}
}

// floor is how long the files below dir take to read, and to compress.
func floor(b *testing.B, dir string) (read, compress time.Duration) {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	noErr(b, err)
	c := seal.NewCompressor("fastest")
	for _, name := range files {
		begun := time.Now()
		data, err := os.ReadFile(name)
		noErr(b, err)
		read += time.Since(begun)
		begun = time.Now()
		for len(data) > 0 {
			n := min(len(data), seal.MaxFrame)
			c.Compress(data[:n])
			data = data[n:]
		}
		compress += time.Since(begun)
	}
	return read, compress
}

package restore_test

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// BenchmarkFetch fetches a cluster of 400 MB of content into an empty directory,
// and over one that has all of it. cpu-s/GB is what the cores spend on a gigabyte,
// however many there are and whoever else uses them.
func BenchmarkFetch(b *testing.B) {
	pg := pgtest.Start(b, pgtest.WithSetting("max_wal_size", "4GB"))
	load := exec.CommandContext(b.Context(), "psql", "-X", "-q", "-v", "mb=400", "-d", pg.DSN("postgres"), "-f", "../bench/cms.sql")
	if out, err := load.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	pg.Exec("CHECKPOINT")
	w := newWorld(b, pg)
	snap := w.take(snapshot.SourceFiles)
	w.flush()
	p := w.plan(restore.Target{Kind: restore.Immediate})
	for _, delta := range []bool{false, true} {
		b.Run(map[bool]string{false: "empty", true: "delta"}[delta], func(b *testing.B) {
			b.SetBytes(snap.RawBytes)
			opt := w.options(w.target())
			fetch := func() {
				if _, err := restore.Fetch(b.Context(), w.repo(), p, opt); err != nil {
					b.Fatal(err)
				}
			}
			if opt.Delta = delta; delta {
				fetch()
			}
			before := cpu(b)
			for b.Loop() {
				fetch()
				if b.StopTimer(); !delta {
					if err := restore.Discard(opt.To); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
			}
			b.ReportMetric((cpu(b)-before)/float64(b.N)/float64(snap.RawBytes)*1e9, "cpu-s/GB")
			if delta {
				if err := restore.Discard(opt.To); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func cpu(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

package snapshot

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// However long a server was away, it is asked again within seconds: commits that
// wait for the archiver stand until then.
func TestAServerThatIsAwayIsAskedEveryFewSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWALRepo(t)
		v := r.vault()
		w := r.writer(v, r.claim(v, "s", primary), t.TempDir())
		core, logs := observer.New(zap.WarnLevel)
		w.c.Log = zap.New(core)
		a := NewArchiver(ArchiveConfig{DSN: "host=" + t.TempDir() + " user=nobody dbname=none", Slot: "holdfast", SegSize: walSeg}, w)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		time.Sleep(10 * time.Minute)
		cancel()
		okay(t, <-done)
		if n := logs.FilterMessageSnippet("connecting again").Len(); n < int(10*time.Minute/connectMost) {
			t.Errorf("asked %d times in ten minutes", n)
		}
	})
}

package vault

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// On the bubble's clock: what is sent takes no time, what waits does.

func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want*92/100 || got > want*108/100 {
		t.Errorf("%s took %s, want about %s", what, got, want)
	}
}

func TestAllBulkTogetherKeepsToTheRateInSmallPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(1 << 20)
		begun := time.Now()
		ends := make([]time.Duration, 4)
		var wg sync.WaitGroup
		for i := range ends {
			wg.Go(func() {
				if err := p.bulk(t.Context(), 5<<20); err != nil {
					t.Error(err)
				}
				ends[i] = time.Since(begun)
			})
		}
		wg.Wait()
		for _, end := range ends { // they share: none has to wait for another's end
			near(t, "5 of 20 MiB at 1 MiB/s", end, 20*time.Second)
		}
		<-time.After(time.Hour) // what was not sent does not add up
		begun = time.Now()
		if err := p.bulk(t.Context(), 2<<20); err != nil || time.Since(begun) < 2*time.Second-burst-p.cost(p.piece())-time.Millisecond {
			t.Errorf("after an hour's rest 2 MiB took %s: %v", time.Since(begun), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.bulk(ctx, 1<<30); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("its caller gave up: %v", err)
		}
	})
}

func TestUrgentBytesNeverWaitAndAreTakenFromBulk(t *testing.T) {
	const rate = 1 << 20
	for _, c := range []struct {
		each int           // urgent bytes a second
		want time.Duration // for 20 MiB of bulk
	}{
		{0, 20 * time.Second},
		{rate / 2, 40 * time.Second},
		{3 * rate, 200 * time.Second}, // a tenth is left
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPacer(rate)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				for tick := time.NewTicker(100 * time.Millisecond); ; {
					select {
					case <-tick.C:
					case <-ctx.Done():
						return
					}
					begun := time.Now()
					if err := p.urgent(ctx, c.each/10); err != nil || time.Since(begun) > 0 {
						t.Errorf("it waited %s: %v", time.Since(begun), err)
					}
				}
			})
			begun := time.Now()
			if err := p.bulk(ctx, 20*rate); err != nil {
				t.Error(err)
			}
			near(t, "20 MiB at 1 MiB/s beside urgent bytes", time.Since(begun), c.want)
			cancel()
			wg.Wait()
			if c.each > rate {
				begun = time.Now()
				if err := p.bulk(t.Context(), 20*rate); err != nil || time.Since(begun) > 20*time.Second+memory {
					t.Errorf("what urgent bytes took before is made up for during %s: %v", time.Since(begun), err)
				}
			}
		})
	}
}

func TestWhatMayWait(t *testing.T) {
	for name, want := range map[string]bool{
		"clusters/cms/snapshots/20260101T000000Z-00abcd/packs/1-ff.age":               true,
		"clusters/cms/snapshots/20260101T000000Z-00abcd/maps/1-ff.age":                true,
		"clusters/cms/snapshots/20260101T000000Z-00abcd/manifest.age":                 true,
		"clusters/cms/snapshots/20260101T000000Z-00abcd/objects.list":                 true,
		"clusters/cms/snapshots/20260101T000000Z-00abcd/intent.note":                  false,
		"clusters/cms/snapshots/20260101T000000Z-00abcd/snapshot.note":                false,
		"clusters/cms/wal/1/1/000000010000000000000001-ff.age":                        false,
		"clusters/cms/wal/1/1/000000010000000000000001-000000010000000000000002.note": false,
		"clusters/cms/lineages/1.note":                                                false,
		"ledger/db1/checkpoint/1":                                                     false,
	} {
		if mayWait(name) != want {
			t.Errorf("%s may wait: %t", name, mayWait(name))
		}
	}
}

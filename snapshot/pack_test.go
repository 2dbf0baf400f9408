package snapshot

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// noise is n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	_, _ = src.Read(b)
	return b
}

func TestPagesAreNeverSplitAndSmallFilesShareFrames(t *testing.T) {
	var frames []*chunk
	cut := &cutter{cur: newChunk(), took: func(int) error { return nil }, emit: func(c *chunk) (*chunk, error) {
		frames = append(frames, &chunk{raw: bytes.Clone(c.raw), extents: append([]*catalog.Extent(nil), c.extents...)})
		c.place(0, len(frames)-1)
		return newChunk(), nil
	}}
	sizes := []int{3<<20 + 5*page.Size, 100, page.Size, 0, 70, 1 << 20, 40*page.Size + 13}
	data := noise(4 << 20)
	var files []*file
	for _, n := range sizes {
		f := &file{kind: catalog.FileRelation}
		noErr(t, cut.file(f, bytes.NewReader(data[:n]), int64(n)))
		files = append(files, f)
	}
	noErr(t, cut.flush())
	for i, f := range files {
		var got []byte
		for _, e := range f.extents {
			if len(got)%page.Size != 0 {
				t.Errorf("file %d: an extent begins inside a page, at %d", i, len(got))
			}
			got = append(got, frames[e.Frame].raw[e.Off:e.Off+e.Len]...)
		}
		if !bytes.Equal(got, data[:sizes[i]]) || f.size != int64(sizes[i]) {
			t.Errorf("file %d did not come back", i)
		}
		if sizes[i] <= seal.MaxFrame && len(f.extents) > 1 {
			t.Errorf("file %d of %d bytes is in %d frames", i, sizes[i], len(f.extents))
		}
	}
	if len(frames) != 6 {
		t.Errorf("%d frames, want 3 and one of the rest and the small files, one of the next, one of the last", len(frames))
	}
}

func TestShortSourceIsAnErrorThatNamesTheFile(t *testing.T) {
	cut := &cutter{cur: newChunk(), took: func(int) error { return nil }}
	err := cut.file(&file{path: "base/5/1"}, bytes.NewReader(make([]byte, 10)), 11)
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("base/5/1")) {
		t.Errorf("got %v", err)
	}
}

// Promise 11: with zones that take no more, the workers wait.
func TestMemoryAndSendsAreBoundedWhileZonesAreSlow(t *testing.T) {
	const lanes = 2
	_, to := identity(t)
	var flying, most, heap atomic.Int64
	raise := func(a *atomic.Int64, v int64) {
		for old := a.Load(); v > old && !a.CompareAndSwap(old, v); old = a.Load() {
		}
	}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	p := newPacker(t.Context(), lanes, "fastest", to, func(context.Context, int, []byte, [32]byte) (catalog.Ref, error) {
		raise(&most, flying.Add(1))
		defer flying.Add(-1)
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		raise(&heap, int64(m.HeapAlloc)-int64(before.HeapAlloc))
		return catalog.Ref{}, nil
	})
	raw := noise(seal.MaxFrame)
	var group errgroup.Group
	for range lanes {
		group.Go(func() error {
			l := p.lane()
			for range 80 {
				c := newChunk()
				c.raw = append(c.raw, raw...)
				if err := l.add(c); err != nil {
					return err
				}
			}
			return l.flush()
		})
	}
	noErr(t, group.Wait())
	noErr(t, p.wait())
	if most.Load() > lanes || len(p.packs) != 6 {
		t.Errorf("%d packs on their way at once, %d in all; want at most %d, and 6", most.Load(), len(p.packs), lanes)
	}
	// A pack in the making, one being sealed and one on its way, and a compressor, for each.
	if limit := int64(lanes * (3*(seal.PackTarget+2*seal.MaxFrame) + 24<<20)); heap.Load() > limit {
		t.Errorf("%d MiB of heap, want at most %d", heap.Load()>>20, limit>>20)
	}
}

func TestFailedSendEndsThePacking(t *testing.T) {
	_, to := identity(t)
	full := errors.New("zones are full")
	p := newPacker(t.Context(), 1, "fastest", to, func(context.Context, int, []byte, [32]byte) (catalog.Ref, error) { return catalog.Ref{}, full })
	l := p.lane()
	raw := noise(seal.MaxFrame)
	for range 1000 {
		c := newChunk()
		c.raw = append(c.raw, raw...)
		if err := l.add(c); err != nil {
			if !errors.Is(p.wait(), full) {
				t.Errorf("got %v", p.wait())
			}
			return
		}
	}
	t.Error("a thousand frames were taken after the zones were full")
}

func TestPaceHoldsTheRateOverAllWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace{rate: 1 << 20}
		begun := time.Now()
		var group errgroup.Group
		for range 4 {
			group.Go(func() error {
				for range 5 {
					if err := p.wait(t.Context(), 1<<20); err != nil {
						return err
					}
				}
				return nil
			})
		}
		noErr(t, group.Wait())
		if took := time.Since(begun); took != 20*time.Second {
			t.Errorf("20 MiB at 1 MiB/s took %s", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.wait(ctx, 1<<30); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLargestFirstThenSmallOnesByPathAndNoControl(t *testing.T) {
	got := queueOrder([]datadir.File{
		{Path: "b", Size: 10},
		{Path: "global/pg_control", Kind: datadir.Control},
		{Path: "a", Size: 900},
		{Path: "c", Size: 2 << 20},
		{Path: "d", Size: 9 << 20},
	})
	var order string
	for _, f := range got {
		order += f.Path
	}
	if order != "dcab" {
		t.Errorf("order %s, want dcab", order)
	}
}

func TestIDsSortByTime(t *testing.T) {
	now := time.Date(2026, 11, 22, 18, 5, 1, 0, time.FixedZone("", 7200))
	a, b := NewID(now), NewID(now.Add(time.Second))
	if a >= b || len(a) != len("20261122T160501Z-abcdef") || a[:17] != "20261122T160501Z-" || catalog.CheckID(a) != nil {
		t.Errorf("ids %s and %s", a, b)
	}
}

func TestConnectionStringTakesAnotherDatabase(t *testing.T) {
	for dsn, want := range map[string]string{
		"host=/run user=p dbname=a":                 `host=/run user=p dbname=a dbname='it\'s'`,
		"postgres://p@h:5/a?sslmode=disable":        "postgres://p@h:5/it%27s?sslmode=disable",
		"postgresql://p@h/?dbname=a&sslmode=prefer": "postgresql://p@h/it%27s?sslmode=prefer",
	} {
		if got, err := inDatabase(dsn, "it's"); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", dsn, got, err, want)
		}
	}
}

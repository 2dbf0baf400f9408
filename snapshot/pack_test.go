package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
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

// cutting is a cutter whose chunks come to lie in frames, one behind the other, of
// pack 0, and whose leaves are kept.
type cutting struct {
	cutter
	frames []*chunk
	leaves []*leafMaker
}

func newCutting() *cutting {
	c := &cutting{}
	c.cutter = cutter{
		cur: newChunk(), digest: page.NewDigester([32]byte{1}).Sum, took: func(int) error { return nil }, passed: func(int) {},
		whole: func(l []*leafMaker) error {
			c.leaves = append(c.leaves, l...)
			return nil
		},
		emit: func(x *chunk) (*chunk, error) {
			c.frames = append(c.frames, &chunk{raw: bytes.Clone(x.raw)})
			at := catalog.LeafFrame{Off: int64(len(c.frames) - 1), Len: 1, Raw: len(x.raw)}
			return newChunk(), c.whole(x.place(at))
		},
	}
	return c
}

// bytes puts a file together from its leaves.
func (c *cutting) bytes(t *testing.T, f *file) ([]byte, map[int64]bool) {
	t.Helper()
	out, used := make([]byte, f.size), map[int64]bool{}
	for _, m := range c.leaves {
		if m.file != f {
			continue
		}
		if _, err := catalog.AppendLeaf(nil, m.leaf); err != nil {
			t.Errorf("leaf at %d of a file of %d bytes: %v", m.first, f.size, err)
		}
		for _, r := range m.leaf.Runs {
			if r.Frame == catalog.ZeroFrame {
				continue
			}
			n := m.leaf.Frames[r.Frame].Off
			used[n] = true
			copy(out[(m.first+int64(r.First))*page.Size:], c.frames[n].raw[r.Off:r.Off+r.Bytes(m.first, f.size)])
		}
	}
	return out, used
}

func TestPagesAreNeverSplitAndSmallFilesShareFrames(t *testing.T) {
	cut := newCutting()
	sizes := []int{3<<20 + 5*page.Size, 100, page.Size, 0, 70, 1 << 20, 40*page.Size + 13}
	data := noise(4 << 20)
	var files []*file
	for _, n := range sizes {
		f := (&take{}).newFile(datadir.File{Kind: datadir.Relation, Size: int64(n)})
		noErr(t, cut.piece(piece{f: f, count: f.blocks(), r: bytes.NewReader(data[:n])}))
		files = append(files, f)
	}
	noErr(t, cut.flush())
	for i, f := range files {
		got, used := cut.bytes(t, f)
		if !bytes.Equal(got, data[:sizes[i]]) {
			t.Errorf("file %d did not come back", i)
		}
		if sizes[i] <= seal.MaxFrame && len(used) > 1 {
			t.Errorf("file %d of %d bytes is in %d frames", i, sizes[i], len(used))
		}
	}
	if len(cut.frames) != 6 {
		t.Errorf("%d frames, want 3 and one of the rest and the small files, one of the next, one of the last", len(cut.frames))
	}
}

func TestBlocksOfZerosAreNotStored(t *testing.T) {
	cut := newCutting()
	data := make([]byte, 10<<20+77) // two leaves, the second with a short end
	copy(data[3*page.Size:], noise(page.Size))
	copy(data[700*page.Size:], noise(40*page.Size))
	f := (&take{}).newFile(datadir.File{Kind: datadir.Other, Size: int64(len(data))})
	noErr(t, cut.piece(piece{f: f, count: f.blocks(), r: bytes.NewReader(data)}))
	noErr(t, cut.flush())
	if got, _ := cut.bytes(t, f); !bytes.Equal(got, data) {
		t.Error("the file did not come back")
	}
	if len(cut.frames) != 1 || len(cut.frames[0].raw) != 41*page.Size || len(cut.leaves) != 2 || cut.leaves[0].leaf.Zero() == cut.leaves[1].leaf.Zero() {
		t.Errorf("%d frames, %d leaves: want 41 blocks in one, and one leaf of zeros", len(cut.frames), len(cut.leaves))
	}
}

func TestShortSourceIsAnErrorThatNamesTheFile(t *testing.T) {
	cut := newCutting()
	f := (&take{}).newFile(datadir.File{Path: "base/5/1", Size: 11})
	err := cut.piece(piece{f: f, count: 1, r: bytes.NewReader(make([]byte, 10))})
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("base/5/1")) {
		t.Errorf("got %v", err)
	}
}

// Promise 11: with zones that take no more, the workers wait.
func TestMemoryAndSendsAreBoundedWhileZonesAreSlow(t *testing.T) {
	const workers, packsFlying = 2, 2
	_, to := identity(t)
	var flying, most, heap atomic.Int64
	raise := func(a *atomic.Int64, v int64) {
		for old := a.Load(); v > old && !a.CompareAndSwap(old, v); old = a.Load() {
		}
	}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	p := newPacker(t.Context(), to, packsFlying, func(context.Context, int, []byte, [32]byte) (catalog.Ref, error) {
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
	for range workers {
		group.Go(func() error {
			comp := seal.NewCompressor("fastest")
			for range 80 {
				if _, err := p.add(comp.Compress(raw)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	noErr(t, group.Wait())
	noErr(t, p.flush())
	noErr(t, p.wait())
	if most.Load() > packsFlying || len(p.packs) != 5 {
		t.Errorf("%d packs on their way at once, %d in all; want at most %d, and 5", most.Load(), len(p.packs), packsFlying)
	}
	// The pack in the making, those on their way, one of them with its frames still, and the compressors.
	if limit := int64((2+packsFlying)*(seal.PackTarget+2*seal.MaxFrame) + workers*24<<20); heap.Load() > limit {
		t.Errorf("%d MiB of heap, want at most %d", heap.Load()>>20, limit>>20)
	}
}

func TestFailedSendEndsThePacking(t *testing.T) {
	_, to := identity(t)
	full := errors.New("zones are full")
	p := newPacker(t.Context(), to, 2, func(context.Context, int, []byte, [32]byte) (catalog.Ref, error) { return catalog.Ref{}, full })
	frame := seal.NewCompressor("fastest").Compress(noise(seal.MaxFrame))
	for range 1000 {
		if _, err := p.add(frame); err != nil {
			if !errors.Is(p.wait(), full) {
				t.Errorf("got %v", p.wait())
			}
			return
		}
	}
	t.Error("a thousand frames were taken after the zones were full")
}

func TestLargestStretchesFirstThenSmallFilesByPathAndNoControl(t *testing.T) {
	var got []string
	var files datadir.Files
	for _, f := range []datadir.File{
		{Path: "b", Size: 10},
		{Path: "global/pg_control", Kind: datadir.Control},
		{Path: "a", Size: 900},
		{Path: "c", Size: 2 << 20},
		{Path: "d", Size: 65<<20 + 1},
		{Path: "e", Size: 1<<20 - 900},
	} {
		files.Add(f)
	}
	var r take
	r.roll.adopt(&files, r.base.find)
	for _, b := range queue(&files, r.roll.kept()) {
		var names string
		for _, n := range b.files {
			s := r.stretch(int(n), b)
			names += fmt.Sprintf("%s%d+%d ", s.d.Path, s.first, s.count)
		}
		got = append(got, names)
	}
	want := []string{"d0+8192 ", "c0+256 ", "d8192+129 ", "a0+1 b0+1 ", "e0+128 "}
	if !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

func TestIDsSortByTime(t *testing.T) {
	now := time.Date(2026, 11, 22, 18, 5, 1, 0, time.FixedZone("", 7200))
	a, b := NewID(now), NewID(now.Add(time.Second))
	for ms := range 999 { // those of one second too: the newest must be found to build on
		if a, b := NewID(now.Add(time.Duration(ms)*time.Millisecond)), NewID(now.Add(time.Duration(ms+1)*time.Millisecond)); a >= b {
			t.Fatalf("%d ms: %s is not before %s", ms, a, b)
		}
	}
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

// Whatever changes, and whatever more is said to have changed, a file comes back as it is
// by what is kept of the leaf before, whose runs lie in many frames by then.
func TestAFileComesBackThroughManyLeavesAndCandidates(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	data := noise(40 * page.Size)
	cut := newCutting()
	var last *leafMaker
	for round := range 300 {
		var asked blockList
		for i := range len(data) / page.Size {
			block := data[i*page.Size : (i+1)*page.Size]
			switch random.IntN(8) {
			case 0:
				copy(block, noise(page.Size))
				block[0], block[1] = byte(round), byte(round>>8)
			case 1:
				clear(block)
			case 2: // said to have changed, and did not
			default:
				continue
			}
			asked.list = append(asked.list, uint32(i))
		}
		f := (&take{}).newFile(datadir.File{Kind: datadir.Other, Size: int64(len(data))})
		p := piece{f: f, count: f.blocks()}
		r := bytes.NewReader(data)
		p.r, p.seek = r, func(off int64) { _, _ = r.Seek(off, io.SeekStart) }
		if last != nil {
			p.old = []*oldLeaf{{leaf: last.leaf, at: catalog.LeafRef{Count: 1}, size: f.size, renew: make([]bool, len(last.leaf.Frames))}}
			p.suspects = &suspects{base: asked, attempt: asked}
		}
		noErr(t, cut.piece(p))
		noErr(t, cut.flush())
		if got, _ := cut.bytes(t, f); !bytes.Equal(got, data) {
			t.Fatalf("seed %d: the file did not come back in round %d", seed, round)
		}
		last = cut.leaves[len(cut.leaves)-1]
		if !last.changed {
			last.leaf = p.old[0].leaf
		}
	}
}

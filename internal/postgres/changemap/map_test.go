package changemap

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

var table = walrec.Relation{Tablespace: 1663, Database: 5, Node: 16384}

// piece is an index that vouches for [from, to) and names the changes.
func piece(t testing.TB, from, to lsn.LSN, changes ...walrec.ForkChanges) walrec.Index {
	t.Helper()
	c, err := walrec.NewChanges(from, to, changes)
	if err != nil {
		t.Fatal(err)
	}
	return walrec.Index{From: from, To: to, Changes: &c}
}

func blocksOf(list ...uint32) walrec.ForkChanges {
	return walrec.ForkChanges{Relation: table, From: walrec.NoBlock, Blocks: list}
}

func build(t testing.TB, path []Leg, bound int64, pieces ...walrec.Index) (*Map, error) {
	t.Helper()
	b := New(path, bound)
	for _, p := range pieces {
		if err := b.Add(1, p); err != nil {
			return nil, err
		}
	}
	return b.Map()
}

var line = []Leg{{1, 100, 1000}}

func TestPiecesEndToEndMakeOneMap(t *testing.T) {
	m, err := build(t, line, 0, piece(t, 700, 1200, blocksOf(1)), piece(t, 50, 400, blocksOf(3, 9)), piece(t, 400, 700), piece(t, 300, 500, blocksOf(3)))
	if err != nil {
		t.Fatal(err)
	}
	if got, all := m.Changed(1663, 5, 16384, walrec.MainFork, 0); all || !slices.Equal(got, []uint32{1, 3, 9}) {
		t.Errorf("%v, all %t", got, all)
	}
	for _, other := range []walrec.Relation{{Tablespace: 1663, Database: 5, Node: 16385}, {Tablespace: 1663, Database: 6, Node: 16384}, {Tablespace: 1664, Database: 5, Node: 16384}} {
		if got, all := m.Changed(other.Tablespace, other.Database, other.Node, walrec.MainFork, 0); all || len(got) > 0 {
			t.Errorf("%+v: %v, all %t", other, got, all)
		}
	}
}

// C-27: what is not wholly covered vouches for nothing.
func TestAHoleOrASilentPieceMakesAllUnknown(t *testing.T) {
	silent := walrec.Index{From: 400, To: 700, Unknown: "wal_level is minimal"}
	damaged := piece(t, 100, 1000, blocksOf(1))
	damaged.Changes.Blocks = damaged.Changes.Blocks[:3]
	for name, c := range map[string]struct {
		pieces []walrec.Index
		want   string
	}{
		"nothing":                 {nil, "0/64 to 0/3E8"},
		"a hole at the start":     {[]walrec.Index{piece(t, 101, 1000)}, "0/64 to 0/65"},
		"a hole within":           {[]walrec.Index{piece(t, 100, 400), piece(t, 401, 1000)}, "0/190 to 0/191"},
		"a hole at the end":       {[]walrec.Index{piece(t, 100, 999)}, "0/3E7 to 0/3E8"},
		"an index of old":         {[]walrec.Index{piece(t, 100, 400), {From: 400, To: 700}, piece(t, 700, 1000)}, "does not name"},
		"a piece that is unknown": {[]walrec.Index{piece(t, 100, 400), silent, piece(t, 700, 1000)}, "minimal"},
		"a damaged index":         {[]walrec.Index{damaged}, "damaged"},
	} {
		if _, err := build(t, line, 0, c.pieces...); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := build(t, line, 0, silent, piece(t, 100, 600), piece(t, 500, 1000)); err != nil {
		t.Errorf("a silent piece that others cover: %v", err)
	}
}

func TestAPathLeadsThroughProvenAncestorsOnly(t *testing.T) {
	history := []lsn.Switch{{Timeline: 1, LSN: 500}, {Timeline: 3, LSN: 800}}
	base := Base{Timeline: 1, Start: 100, Stop: 200}
	for name, c := range map[string]struct {
		base     Base
		timeline uint32
		to       lsn.LSN
		history  []lsn.Switch
		want     []Leg
	}{
		"one timeline":                {base, 1, 300, nil, []Leg{{1, 100, 300}}},
		"ancestors":                   {base, 4, 900, history, []Leg{{1, 100, 500}, {3, 500, 800}, {4, 800, 900}}},
		"a base on the way":           {Base{3, 600, 700}, 4, 900, history, []Leg{{3, 600, 800}, {4, 800, 900}}},
		"no history":                  {base, 4, 900, nil, nil},
		"not an ancestor":             {Base{2, 100, 200}, 4, 900, history, nil},
		"left before the base's end":  {Base{1, 100, 501}, 4, 900, history, nil},
		"left before the base":        {Base{1, 600, 700}, 4, 900, history, nil},
		"a descendant":                {Base{4, 100, 200}, 1, 900, nil, nil},
		"backwards":                   {base, 1, 99, nil, nil},
		"before the base was whole":   {base, 1, 150, nil, nil},
		"before the last branch":      {base, 4, 700, history, nil},
		"from a place to itself":      {Base{1, 100, 100}, 1, 100, nil, []Leg{{1, 100, 100}}},
		"a newer base, old timeline":  {Base{4, 850, 860}, 3, 900, history[:1], nil},
		"the end of a base's branch":  {Base{1, 100, 500}, 4, 900, history, []Leg{{1, 100, 500}, {3, 500, 800}, {4, 800, 900}}},
		"its own timeline in history": {base, 3, 900, history, []Leg{{1, 100, 500}, {3, 500, 900}}},
	} {
		got, err := Path(c.base, c.timeline, c.to, c.history)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) || err != nil && !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestWALBehindAForkVouchesForNothing(t *testing.T) {
	path := []Leg{{1, 100, 500}, {2, 500, 900}}
	add := func(b *Builder, timeline uint32, p walrec.Index) {
		if err := b.Add(timeline, p); err != nil {
			t.Fatal(err)
		}
	}
	b := New(path, 0)
	add(b, 1, piece(t, 100, 900)) // the old primary went on
	add(b, 3, piece(t, 100, 900))
	if _, err := b.Map(); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "0/1F4 to 0/384") {
		t.Errorf("the old timeline stands for the new one: %v", err)
	}
	add(b, 2, piece(t, 450, 950, blocksOf(7))) // a segment that begins with its parent's WAL
	m, err := b.Map()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := m.Changed(1663, 5, 16384, walrec.MainFork, 0); !slices.Equal(got, []uint32{7}) {
		t.Errorf("%v", got)
	}
	if b.Wants(1, 500, 600) || b.Wants(3, 100, 900) || b.Wants(2, 900, 950) || !b.Wants(2, 450, 950) {
		t.Error("the wrong pieces are wanted")
	}
}

func TestFilesMadeCutOrRemovedAreChangedFromThereOn(t *testing.T) {
	cut := walrec.ForkChanges{Relation: table, From: 2*SegmentBlocks - 2, Blocks: []uint32{SegmentBlocks + 5}}
	whole := walrec.ForkChanges{Relation: walrec.Relation{Tablespace: 1663, Database: 9}}
	init := walrec.ForkChanges{Relation: table, Fork: walrec.InitFork}
	m, err := build(t, line, 0, piece(t, 100, 500, cut, init), piece(t, 500, 1000, blocksOf(SegmentBlocks, 2*SegmentBlocks-1, 2*SegmentBlocks), whole))
	if err != nil {
		t.Fatal(err)
	}
	for segment, want := range [][]uint32{nil, {0, 5, SegmentBlocks - 2, SegmentBlocks - 1}} {
		if got, all := m.Changed(1663, 5, 16384, walrec.MainFork, segment); all || !slices.Equal(got, want) {
			t.Errorf("segment %d: %v, all %t", segment, got, all)
		}
	}
	for name, c := range map[string]struct {
		db, rel uint32
		fork    Fork
		segment int
	}{
		"behind the cut": {5, 16384, walrec.MainFork, 2}, "the init fork": {5, 16384, walrec.InitFork, 0},
		"a database's relation": {9, 77, walrec.MainFork, 3}, "free space": {5, 99, walrec.FSMFork, 0},
		"visibility": {5, 99, walrec.VMFork, 0}, "an unknown fork": {5, 99, 9, 0}, "no segment": {5, 99, 0, -1}, "no such segment": {5, 99, 0, 32768},
	} {
		if got, all := m.Changed(1663, c.db, c.rel, c.fork, c.segment); !all || got != nil {
			t.Errorf("%s: %v, all %t", name, got, all)
		}
	}
}

func TestTheBoundMakesAllUnknown(t *testing.T) {
	few := blocksOf(1, 1<<20)
	if _, err := build(t, line, 1000, piece(t, 100, 1000, few)); err != nil {
		t.Errorf("two blocks in 1000 bytes: %v", err)
	}
	var many []uint32
	for n := range uint32(5000) {
		many = append(many, n<<10)
	}
	if _, err := build(t, line, 100_000, piece(t, 100, 1000, blocksOf(many...))); !errors.Is(err, ErrUnknown) {
		t.Errorf("5000 blocks of 39 GiB in 100,000 bytes: %v", err)
	}
	m, err := build(t, line, 1<<20, piece(t, 100, 1000, blocksOf(many...)))
	if err != nil || m.Bytes() > 1<<20 {
		t.Errorf("5000 blocks of 39 GiB in 1 MiB: %v", err)
	}
	var forks []walrec.ForkChanges
	for n := range uint32(1000) {
		forks = append(forks, walrec.ForkChanges{Relation: walrec.Relation{Tablespace: 1663, Database: 5, Node: n + 1}})
	}
	if _, err := build(t, line, 100_000, piece(t, 100, 1000, forks...)); !errors.Is(err, ErrUnknown) {
		t.Errorf("a thousand relations in 100,000 bytes: %v", err)
	}
}

// Whatever is merged in whatever order, the map holds the union.
func TestAMapIsTheUnionOfItsPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	for round := range 8 {
		var pieces []walrec.Index
		want := map[uint32]bool{}
		from, reach := uint32(walrec.NoBlock), uint32(1+rng.IntN(3*SegmentBlocks))
		for at := lsn.LSN(100); at < 1000; at += 50 {
			var list []uint32
			for range rng.IntN(1 + 1000*round) {
				list = append(list, rng.Uint32N(reach))
			}
			slices.Sort(list)
			list = slices.Compact(list)
			c := blocksOf(list...)
			if rng.IntN(40) == 0 {
				c.From = rng.Uint32N(reach)
				list = slices.DeleteFunc(list, func(b uint32) bool { return b >= c.From })
				c.Blocks, from = list, min(from, c.From)
			}
			for _, b := range list {
				want[b] = true
			}
			pieces = append(pieces, piece(t, at, at+50, c))
		}
		rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		m, err := build(t, line, 0, pieces...)
		if err != nil {
			t.Fatal(err)
		}
		for segment := range 3 {
			first := uint32(segment) * SegmentBlocks
			got, all := m.Changed(1663, 5, 16384, walrec.MainFork, segment)
			if all != (from <= first) {
				t.Fatalf("round %d, segment %d: all is %t, cut at %d", round, segment, all, from)
			}
			var expect []uint32
			for b := range uint32(SegmentBlocks) {
				if want[first+b] || first+b >= from {
					expect = append(expect, b)
				}
			}
			if !all && !slices.Equal(got, expect) {
				t.Fatalf("round %d, segment %d: %d blocks, want %d", round, segment, len(got), len(expect))
			}
		}
	}
}

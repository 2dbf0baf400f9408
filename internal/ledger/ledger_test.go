package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

var (
	errDown = errors.New("zone is down")
	start   = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
)

// zones are directories with a quorum over them; a zone that is down does not
// answer. before may fail any act.
type zones struct {
	dirs   []string
	quorum int

	mu     sync.Mutex
	down   map[int]bool
	before func(act, name string) error
	puts   []string
}

func newZones(t testing.TB, n, quorum int) *zones {
	z := &zones{quorum: quorum, down: map[int]bool{}}
	for range n {
		z.dirs = append(z.dirs, t.TempDir())
	}
	return z
}

func (z *zones) set(down bool, which ...int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, i := range which {
		z.down[i] = down
	}
}

func (z *zones) up(act, name string) (dirs []string, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.before != nil {
		if err := z.before(act, name); err != nil {
			return nil, err
		}
	}
	for i, d := range z.dirs {
		if !z.down[i] {
			dirs = append(dirs, d)
		}
	}
	return dirs, nil
}

func (z *zones) Put(_ context.Context, name string, body []byte) error {
	dirs, err := z.up("put", name)
	if err != nil {
		return err
	}
	held := 0
	for _, d := range dirs {
		path := filepath.Join(d, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		err := durable.Create(path, body, 0o600)
		if there, rerr := os.ReadFile(path); errors.Is(err, fs.ErrExist) && (rerr != nil || !bytes.Equal(there, body)) {
			return err
		}
		held++
	}
	if held < z.quorum {
		return fmt.Errorf("put %s: %w: %d of %d", name, errDown, held, z.quorum)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.puts = append(z.puts, name)
	return nil
}

func (z *zones) Fetch(ctx context.Context, name string, accept func(string, []byte) error) ([]byte, error) {
	dirs, err := z.up("get", name)
	last := cmpOr(err, errDown)
	for _, d := range dirs {
		body, err := Dir(d).Fetch(ctx, name, accept)
		if err == nil {
			return body, nil
		}
		last = err
	}
	return nil, last
}

func (z *zones) List(ctx context.Context, prefix string) ([]string, error) {
	dirs, err := z.up("list", prefix)
	if err != nil || len(dirs) < len(z.dirs)-z.quorum+1 {
		return nil, cmpOr(err, errDown)
	}
	var names []string
	for _, d := range dirs {
		n, err := Dir(d).List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		names = append(names, n...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// bench is a node with its key and the zones.
type bench struct {
	t     testing.TB
	zones *zones
	conf  Config
	trust seal.Trust
}

func newBench(t testing.TB) *bench {
	t.Helper()
	skey, vkey, err := seal.NewSigningKey("db1")
	if err != nil {
		t.Fatal(err)
	}
	signer, _, err := seal.LoadSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, May: []string{"ledger"}}})
	if err != nil {
		t.Fatal(err)
	}
	z := newZones(t, 3, 2)
	var mu sync.Mutex
	now := start
	return &bench{t, z, Config{
		Dir: t.TempDir(), Repository: "repo1", Origin: "db1", Signer: signer, Trust: trust, Store: z,
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(time.Second); return now },
	}, trust}
}

func (b *bench) open() *Ledger {
	b.t.Helper()
	l, err := Open(b.conf)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	return l
}

func (b *bench) append(l *Ledger, n int) {
	b.t.Helper()
	for i := range n {
		_, err := l.Append(b.t.Context(), Entry{Type: TypeConfig, Body: map[string]int{"n": i}})
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) anchor(l *Ledger) Checkpoint {
	b.t.Helper()
	c, err := l.Anchor(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) verify(src Source) Report {
	b.t.Helper()
	r, err := Verify(b.t.Context(), src, b.trust, VerifyOptions{Repository: "repo1", Now: start.Add(time.Hour)})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bench) sound(src Source) Report {
	b.t.Helper()
	r := b.verify(src)
	if len(r.Faults) > 0 {
		b.t.Fatalf("%d faults, the first: %v", len(r.Faults), r.Faults[0])
	}
	return r
}

func TestWhatIsAppendedIsAnchoredInEveryZoneAndVerifies(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 3)
	index, err := l.AppendAnchored(t.Context(), Entry{
		Type: TypeRemovalIntent, Subject: map[string]string{"cluster": "cms"}, Actor: Actor{Kind: "human", KeyID: "k"},
		Body: map[string]any{"objects": []string{"a", "b"}}, NotAssessed: []NotAssessed{{"zone c", "down"}},
	})
	if err != nil || index != 3 {
		t.Fatalf("index %d: %v", index, err)
	}
	for _, d := range b.zones.dirs {
		r := b.sound(Dir(d))
		if len(r.Origins) != 1 || r.Origins[0].Size != 5 || r.Origins[0].Origin != l.Origin() || r.Origins[0].Signers[0] != "db1" {
			t.Errorf("report %+v", r)
		}
	}
	c, err := Latest(t.Context(), b.zones, b.trust, "repo1", l.Origin())
	if err != nil || c.Size != 5 {
		t.Fatalf("latest %+v: %v", c, err)
	}
	got, err := Read(t.Context(), b.zones, c, 3, -1)
	if err != nil || len(got) != 2 || got[0].Type != TypeRemovalIntent || got[0].Subject["cluster"] != "cms" || got[1].Type != TypeOrigin {
		t.Fatalf("read %+v: %v", got, err)
	}
	mine, err := l.Entries(t.Context(), 3, 4)
	if err != nil || len(mine) != 1 || !bytes.Equal(mine[0].Leaf, got[0].Leaf) {
		t.Errorf("entries %+v: %v", mine, err)
	}
}

// TestTheCheckpointIsSentAfterAllThatItCovers cites DESIGN section 4, "Ledger".
func TestTheCheckpointIsSentAfterAllThatItCovers(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 300)
	b.anchor(l)
	last := b.zones.puts[len(b.zones.puts)-1]
	if !strings.HasSuffix(last, "/checkpoint/301") {
		t.Errorf("the last object sent is %s", last)
	}
	seenTile := false
	for _, name := range b.zones.puts {
		isEntries := strings.Contains(name, "/tile/entries/")
		seenTile = seenTile || strings.Contains(name, "/tile/0/")
		if isEntries && seenTile {
			t.Errorf("%s was sent after a tile that stands for it", name)
		}
	}
}

// plant writes a state of n leaves as it would stand on disk, in one go, and
// returns the leaves with all hashes that tlog computes for them.
func plant(t *testing.T, path string, n int) (leaves [][]byte, oracle hashes) {
	t.Helper()
	for i := range n {
		leaves, oracle = grown(t, leaves, oracle, fmt.Sprint("leaf ", i))
	}
	base := n / width * width
	for _, tile := range tlog.NewTiles(height, 0, int64(base)) {
		if tile.W < width {
			continue
		}
		data, err := tlog.ReadTileData(tile, oracle)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(path, tilePath(tile)), data)
	}
	for b := 0; b < base; b += width {
		write(t, filepath.Join(path, tilePath(bundleOf(int64(b/width), width))), encodeBundle(leaves[b:b+width]))
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := durable.OpenLog(filepath.Join(path, "tail.log"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	head := mustJSON(header{Format: 1, Repository: "r", Origin: "o", Base: int64(base)})
	if err := log.Append(append([][]byte{head}, leaves[base:]...)...); err != nil {
		t.Fatal(err)
	}
	return leaves, oracle
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// hashes are all that tlog stores, in its order.
type hashes []tlog.Hash

func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = h[x]
	}
	return out, nil
}

type failer interface{ Fatal(...any) }

func grown(t failer, leaves [][]byte, oracle hashes, leaf string) ([][]byte, hashes) {
	h, err := tlog.StoredHashes(int64(len(leaves)), []byte(leaf), oracle)
	if err != nil {
		t.Fatal(err)
	}
	return append(leaves, []byte(leaf)), append(oracle, h...)
}

// TestTheLogIsTheOneThatTlogComputes compares every hash, over reopenings and
// around the widths of tiles, with golang.org/x/mod/sumdb/tlog.
func TestTheLogIsTheOneThatTlogComputes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(t.TempDir(), "state")
		leaves, oracle := plant(t, path, rapid.SampledFrom([]int{0, 1, 250, 255, 256, 257, 510, 1000}).Draw(rt, "planted"))
		for range rapid.IntRange(1, 3).Draw(rt, "rounds") {
			s, err := openState(path, header{Format: 1, Repository: "r", Origin: "other"})
			if err != nil {
				rt.Fatal(err)
			}
			for range rapid.IntRange(0, 7).Draw(rt, "appends") {
				leaf := rapid.StringN(0, 20, 60).Draw(rt, "leaf")
				i, err := s.append([]byte(leaf))
				if err != nil || i != int64(len(leaves)) {
					rt.Fatalf("index %d, want %d: %v", i, len(leaves), err)
				}
				leaves, oracle = grown(rt, leaves, oracle, leaf)
			}
			same(rt, s, leaves, oracle)
			s.log.Close()
		}
	})
}

func TestTheLogIsTheOneThatTlogComputesWhereASecondLevelFills(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	leaves, oracle := plant(t, path, width*width-2)
	s, err := openState(path, header{Format: 1, Repository: "r"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.log.Close()
	for i := range 5 {
		if _, err := s.append(fmt.Append(nil, "new ", i)); err != nil {
			t.Fatal(err)
		}
		leaves, oracle = grown(t, leaves, oracle, fmt.Sprint("new ", i))
	}
	if _, err := os.Stat(s.path("tile/1/000")); err != nil {
		t.Errorf("the full tile of the second level: %v", err)
	}
	for n := int64(len(leaves)) - 6; n <= int64(len(leaves)); n++ {
		want, err := tlog.TreeHash(n, oracle)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tlog.TreeHash(n, s); err != nil || got != want {
			t.Errorf("root of %d entries: %v", n, err)
		}
		for _, tile := range tlog.NewTiles(height, n-1, n) {
			want, err := tlog.ReadTileData(tile, oracle)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.object(tile); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %v", tilePath(tile), err)
			}
		}
	}
}

// same compares every hash and every bundle.
func same(t *rapid.T, s *state, leaves [][]byte, oracle hashes) {
	all := make([]int64, len(oracle))
	for i := range all {
		all[i] = int64(i)
	}
	step := max(1, len(all)/200)
	for i := 0; i < len(all); i += step {
		got, err := s.ReadHashes(all[i : i+1])
		if err != nil || got[0] != oracle[i] {
			t.Fatalf("hash %d of %d entries: %v", i, len(leaves), err)
		}
	}
	for n := int64(0); n*width < int64(len(leaves)); n++ {
		w := min(width, len(leaves)-int(n)*width)
		e, err := s.entries(n, w)
		if err != nil || !slices.EqualFunc(e, leaves[n*width:int(n)*width+w], bytes.Equal) {
			t.Fatalf("bundle %d: %v", n, err)
		}
	}
}

func TestObjectsHaveTheNamesAndBytesOfC2SP(t *testing.T) {
	for path, tile := range map[string]tlog.Tile{
		"tile/0/000":               {H: 8, L: 0, N: 0, W: 256},
		"tile/1/x001/x234/067.p/8": {H: 8, L: 1, N: 1234067, W: 8},
		"tile/entries/x001/000":    {H: 8, L: entriesLevel, N: 1000, W: 256},
		"tile/entries/000.p/255":   {H: 8, L: entriesLevel, N: 0, W: 255},
	} {
		if got := tilePath(tile); got != path {
			t.Errorf("%v is %s, want %s", tile, got, path)
		}
		if got, ok := parseTilePath(path); !ok || got != tile {
			t.Errorf("%s is %v", path, got)
		}
	}
	for _, bad := range []string{"", "tile/0", "tile/8/0/000", "tile/0/0", "tile/0/000.p/256", "tile/0/000.p/0", "tile/data/000", "tile/0/x000/000", "checkpoint/01"} {
		if got, ok := parseTilePath(bad); ok {
			t.Errorf("%q is %v", bad, got)
		}
	}
	for _, bad := range []string{"checkpoint/01", "checkpoint/0", "checkpoint/-1", "checkpoint/", "checkpoint/9223372036854775808"} {
		if _, ok := parseCheckpointPath(bad); ok {
			t.Errorf("%q was read", bad)
		}
	}
	if got := encodeBundle([][]byte{[]byte("ab"), nil}); !bytes.Equal(got, []byte{0, 2, 'a', 'b', 0, 0}) {
		t.Errorf("bundle %x", got)
	}
	c := Checkpoint{Origin: "db1-00000000", Size: 7}
	if got := checkpointText("repo1", c); got != "holdfast/repo1/db1-00000000\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n" {
		t.Errorf("checkpoint %q", got)
	}
}

func TestALeafIsBoundedAndCanonical(t *testing.T) {
	b := newBench(t)
	l := b.open()
	for what, e := range map[string]Entry{
		"too long":    {Type: TypeConfig, Body: map[string]string{"x": strings.Repeat("x", MaxLeaf)}},
		"no type":     {Body: struct{}{}},
		"no body":     {Type: TypeConfig},
		"list":        {Type: TypeConfig, Body: []int{1}},
		"would round": {Type: TypeConfig, Body: map[string]int64{"x": 1 << 60}},
		"not sayable": {Type: TypeConfig, Body: map[string]any{"x": func() {}}},
	} {
		if _, err := l.Append(t.Context(), e); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if n := l.Status().Size; n != 0 {
		t.Errorf("%d entries from refused appends", n)
	}
	b.append(l, 1)
	r, err := l.Entries(t.Context(), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	again, err := seal.CanonicalJSON(json.RawMessage(r[0].Leaf))
	if err != nil || !bytes.Equal(again, r[0].Leaf) || len(r[0].RecordID) != 26 || r[0].Host.Node != "db1" {
		t.Errorf("leaf %s", r[0].Leaf)
	}
	if a, z := newULID(start), newULID(start.Add(time.Millisecond)); a[:10] >= z[:10] || a[:10] == "0000000000" {
		t.Errorf("ULIDs %s and %s do not sort by time", a, z)
	}
	if got := newULID(time.UnixMilli(1469918176385))[:10]; got != "01ARYZ6S41" { // the example of the ULID specification
		t.Errorf("ULID of 1469918176385 begins %s, want 01ARYZ6S41", got)
	}
}

func TestTwoOpeningsOfOneDirectoryAreRefused(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 300) // the lock must survive the rewriting of the tail
	if _, err := Open(b.conf); !errors.Is(err, durable.ErrHeld) {
		t.Errorf("second opening: %v", err)
	}
	l.Close()
	b.open()
}

func TestWithoutAQuorumAppendWorksAndAnchorSaysWhatWaits(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 2)
	b.anchor(l)
	b.zones.set(true, 0, 1)
	b.append(l, 4)
	var waiting *WaitingError
	_, err := l.Anchor(t.Context())
	if !errors.As(err, &waiting) || waiting.From != 3 || waiting.To != 7 || !errors.Is(err, errDown) || !strings.Contains(err.Error(), "anchored_late") {
		t.Fatalf("anchor: %v", err)
	}
	index, err := l.AppendAnchored(t.Context(), Entry{Type: TypeRemovalIntent, Body: struct{}{}})
	if index != 7 || !errors.As(err, &waiting) || !strings.Contains(err.Error(), "entry 7 is not in the quorum") {
		t.Fatalf("append anchored: %d %v", index, err)
	}
	if st := l.Status(); st.Failing.IsZero() || st.Size != 8 || st.Anchored.Size != 3 {
		t.Errorf("status %+v", st)
	}
	b.zones.set(false, 0, 1)
	b.anchor(l)
	if c := b.anchor(l); c.Size != 9 {
		t.Errorf("checkpoint of size %d, want 9", c.Size)
	}
	r, err := l.Entries(t.Context(), 8, 9)
	if err != nil || r[0].Type != TypeAnchoredLate {
		t.Fatalf("what was late is not recorded: %+v %v", r, err)
	}
	var late Late
	if err := json.Unmarshal(r[0].Body, &late); err != nil || late.From != 3 || late.To != 8 || !late.Until.After(late.Since) {
		t.Errorf("late %+v: %v", late, err)
	}
	if st := l.Status(); !st.Failing.IsZero() {
		t.Errorf("status %+v", st)
	}
	b.sound(b.zones)
}

func TestOneZoneDownDoesNotStopTheLedger(t *testing.T) {
	for which := range 3 {
		b := newBench(t)
		l := b.open()
		b.zones.set(true, which)
		if _, err := l.AppendAnchored(t.Context(), Entry{Type: TypeConfig, Body: struct{}{}}); err != nil {
			t.Errorf("zone %d down: %v", which, err)
		}
	}
}

// TestACrashAtAnyStepContinuesWithoutAFork ends the process before the n-th act
// on the zones, for every n, and opens the state again.
func TestACrashAtAnyStepContinuesWithoutAFork(t *testing.T) {
	crash := errors.New("crash")
	b := newBench(t)
	l := b.open()
	b.append(l, 254)
	b.anchor(l)
	b.append(l, 4)
	l.Close()
	state, dirs := b.conf.Dir, b.zones.dirs
	for n, ended := 0, false; !ended; n++ {
		b.conf.Dir, b.zones.dirs = copyTree(t, state), nil
		for _, d := range dirs {
			b.zones.dirs = append(b.zones.dirs, copyTree(t, d))
		}
		l := b.open()
		acts := 0
		b.zones.before = func(string, string) error {
			if acts++; acts > n {
				return crash
			}
			return nil
		}
		_, err := l.Anchor(t.Context())
		l.Close()
		b.zones.before = nil
		l = b.open()
		if l.Status().Size != 259 {
			t.Fatalf("after a crash at act %d: %+v", n, l.Status())
		}
		b.append(l, 3)
		if c := b.anchor(l); c.Size != 262 {
			t.Fatalf("after a crash at act %d: checkpoint of size %d", n, c.Size)
		}
		b.sound(b.zones)
		if ended = err == nil; ended && n < 5 {
			t.Errorf("Anchor took only %d acts", n)
		}
	}
}

// TestACrashWhileTheTailIsFoldedContinues leaves what each step of fold leaves.
func TestACrashWhileTheTailIsFoldedContinues(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 256)
	l.Close()
	tail, err := os.ReadFile(filepath.Join(b.conf.Dir, "tail.log"))
	if err != nil {
		t.Fatal(err)
	}
	l = b.open()
	b.append(l, 1) // folds
	l.Close()
	// the tail is the old one, bundle and tile are there
	if err := os.WriteFile(filepath.Join(b.conf.Dir, "tail.log"), tail, 0o600); err != nil {
		t.Fatal(err)
	}
	l = b.open()
	b.append(l, 10)
	b.anchor(l)
	if r := b.sound(b.zones); r.Origins[0].Size != 267 {
		t.Errorf("size %d", r.Origins[0].Size)
	}
}

func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestACopyOfAnOlderStateRefusesToSign(t *testing.T) {
	for _, ahead := range []int{1, 3, 300} {
		t.Run(fmt.Sprint(ahead, " ahead"), func(t *testing.T) {
			b := newBench(t)
			l := b.open()
			b.append(l, 5)
			b.anchor(l)
			l.Close()
			old := copyTree(t, b.conf.Dir)
			l = b.open()
			b.append(l, ahead)
			b.anchor(l)
			l.Close()

			b.conf.Dir = old
			l = b.open()
			sent := len(b.zones.puts)
			_, err := l.AppendAnchored(t.Context(), Entry{Type: TypeConfig, Body: map[string]int{"n": -1}})
			if !errors.Is(err, ErrRolledBack) && !errors.Is(err, ErrForked) {
				t.Fatalf("older copy: %v", err)
			}
			for _, name := range b.zones.puts[sent:] {
				if strings.Contains(name, "/checkpoint/") {
					t.Errorf("it sent %s", name)
				}
			}
			b.sound(b.zones)
		})
	}
}

func TestACloneThatRunsBesideRefusesToSign(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 5)
	b.anchor(l)
	l.Close()
	other := *b
	other.conf.Dir = copyTree(t, b.conf.Dir)
	l, clone := b.open(), other.open()
	b.anchor(l)
	other.anchor(clone)
	b.append(l, 2)
	other.append(clone, 1)
	b.anchor(l)
	if _, err := clone.Anchor(t.Context()); !errors.Is(err, ErrRolledBack) {
		t.Errorf("clone behind: %v", err)
	}
	other.append(clone, 1)
	if _, err := clone.Anchor(t.Context()); !errors.Is(err, ErrForked) {
		t.Errorf("clone beside: %v", err)
	}
	b.sound(b.zones)
}

func TestALostStateBeginsANewOriginThatNamesTheOld(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 5)
	last := b.anchor(l)
	l.Close()
	b.conf.Dir = t.TempDir()
	b.zones.set(true, 0, 1)
	fresh := b.open() // no zone is needed to begin
	b.append(fresh, 1)
	if _, err := fresh.Anchor(t.Context()); err == nil {
		t.Fatal("anchored without zones")
	}
	b.zones.set(false, 0, 1)
	b.anchor(fresh)
	r, err := fresh.Entries(t.Context(), 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	var o Origin
	if err := json.Unmarshal(r[0].Body, &o); err != nil || r[0].Type != TypeOrigin || len(o.After) != 1 {
		t.Fatalf("entry %s: %v", r[0].Leaf, err)
	}
	if want := (Predecessor{l.Origin(), last.Size, last.Root}); o.After[0] != want || fresh.Origin() == l.Origin() {
		t.Errorf("it names %+v, want %+v", o.After[0], want)
	}
	if r := b.sound(b.zones); len(r.Origins) != 2 {
		t.Errorf("%d origins", len(r.Origins))
	}
	// whoever cuts the old log is found out by the new one
	for _, d := range b.zones.dirs {
		if err := os.RemoveAll(filepath.Join(d, OriginDir(l.Origin()))); err != nil {
			t.Fatal(err)
		}
	}
	if r := b.verify(b.zones); len(r.Faults) != 1 || r.Faults[0].Origin != l.Origin() || r.Faults[0].Index != last.Size {
		t.Errorf("a removed origin: %v", r.Faults)
	}
}

func TestADamagedStateIsNotSigned(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 300)
	b.anchor(l)
	l.Close()
	path := filepath.Join(b.conf.Dir, "tile/0/000")
	flip(t, path, 40)
	if _, err := Open(b.conf); !errors.Is(err, ErrState) {
		t.Errorf("changed tile: %v", err)
	}
	flip(t, path, 40)
	if err := os.Remove(filepath.Join(b.conf.Dir, "tail.log")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(b.conf); !errors.Is(err, ErrState) {
		t.Errorf("tail.log lost: %v", err)
	}
}

func TestAStateOfAnotherRepositoryOrKeyIsRefused(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.anchor(l)
	l.Close()
	conf := b.conf
	conf.Repository = "repo2"
	if _, err := Open(conf); err == nil || !strings.Contains(err.Error(), "repo2") {
		t.Errorf("other repository: %v", err)
	}
	conf = b.conf
	conf.Trust = seal.Trust{}
	if _, err := Open(conf); !errors.Is(err, seal.ErrUntrusted) {
		t.Errorf("own key is not trusted: %v", err)
	}
}

func flip(t testing.TB, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

package ledger

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

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

package ledger

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// The layout of C2SP tlog-tiles: tiles 256 wide, entries in bundles of as many.
const (
	height = 8
	width  = 1 << height
	dir    = "ledger/"
)

// entriesLevel is how tlog tells the tiles of raw entries from those of hashes.
const entriesLevel = -1

// MaxLeaf bounds an entry's bytes, below what C2SP's 16-bit length can say.
const MaxLeaf = 60 << 10

var originRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,71}$`)

// OfNode says whether a log is one of a node's: its name, a dash and eight hexadecimal
// digits.
func OfNode(origin, node string) bool {
	digits, ok := strings.CutPrefix(origin, node+"-")
	return ok && len(digits) == 8 && strings.Trim(digits, "0123456789abcdef") == ""
}

// OriginDir holds all objects of an origin.
func OriginDir(origin string) string { return dir + origin + "/" }

// tilePath is C2SP's path of a tile, which fixes the height and leaves it out.
func tilePath(t tlog.Tile) string {
	rest := strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", height))
	if t.L == entriesLevel {
		rest = "entries" + strings.TrimPrefix(rest, "data")
	}
	return "tile/" + rest
}

// parseTilePath is the inverse of tilePath.
func parseTilePath(path string) (tlog.Tile, bool) {
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok {
		return tlog.Tile{}, false
	}
	if r, ok := strings.CutPrefix(rest, "entries/"); ok {
		rest = "data/" + r
	}
	t, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", height, rest))
	return t, err == nil && tilePath(t) == path
}

func checkpointPath(size int64) string { return fmt.Sprintf("checkpoint/%d", size) }

// parseCheckpointPath is the inverse of checkpointPath.
func parseCheckpointPath(path string) (size int64, ok bool) {
	digits, ok := strings.CutPrefix(path, "checkpoint/")
	size, err := strconv.ParseInt(digits, 10, 64)
	return size, ok && err == nil && size > 0 && checkpointPath(size) == path
}

// bundleOf is the tile of raw entries number n with its first w entries.
func bundleOf(n int64, w int) tlog.Tile { return tlog.Tile{H: height, L: entriesLevel, N: n, W: w} }

// encodeBundle is C2SP's entry bundle: each entry behind its length.
func encodeBundle(leaves [][]byte) []byte {
	var b []byte
	for _, leaf := range leaves {
		b = binary.BigEndian.AppendUint16(b, uint16(len(leaf)))
		b = append(b, leaf...)
	}
	return b
}

// decodeBundle wants exactly n entries.
func decodeBundle(b []byte, n int) ([][]byte, error) {
	leaves := make([][]byte, 0, n)
	for len(b) > 0 && len(leaves) < n {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return leaves, fmt.Errorf("entry bundle: cut in its entry %d", len(leaves))
		}
		size := int(binary.BigEndian.Uint16(b))
		leaves = append(leaves, b[2:2+size:2+size])
		b = b[2+size:]
	}
	if len(leaves) < n || len(b) > 0 {
		return leaves, fmt.Errorf("entry bundle: %d entries and %d bytes more, want %d entries", len(leaves), len(b), n)
	}
	return leaves, nil
}

package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

// state is the log on this machine. The entries since the last multiple of 256
// (base) stand in tail.log, which is also the lock; all before them in full
// bundles and tiles, in the layout that the zones have. Memory holds the tail.
type state struct {
	dir    string
	head   header
	log    *durable.Log
	tail   [][]byte
	hashes []tlog.Hash // of the tail
}

// header is tail.log's first record.
type header struct {
	Format     int    `json:"format"`
	Repository string `json:"repository"`
	Origin     string `json:"origin"`
	Base       int64  `json:"base"`
}

// openState opens or begins a log; fresh is the header of a new one.
func openState(path string, fresh header) (*state, error) {
	if err := durable.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	s := &state{dir: path}
	log, err := durable.OpenLog(filepath.Join(path, "tail.log"), s.replay)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	s.log = log
	if err := s.begin(fresh); err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", path, errors.Join(err, log.Close()))
	}
	return s, nil
}

func (s *state) replay(record []byte) error {
	if s.head.Format == 0 {
		if err := json.Unmarshal(record, &s.head); err != nil || s.head.Format != 1 || s.head.Base%width != 0 || s.head.Base < 0 {
			return fmt.Errorf("%w: tail.log does not begin with a header of format 1", ErrState)
		}
		return nil
	}
	s.push(record)
	return nil
}

func (s *state) push(leaf []byte) {
	s.tail = append(s.tail, leaf)
	s.hashes = append(s.hashes, tlog.RecordHash(leaf))
}

func (s *state) begin(fresh header) error {
	if s.head.Format != 0 {
		if s.head.Repository != fresh.Repository {
			return fmt.Errorf("it belongs to repository %q, want %q: give another state directory", s.head.Repository, fresh.Repository)
		}
		if len(s.tail) > width {
			return fmt.Errorf("%w: %d entries in tail.log", ErrState, len(s.tail))
		}
		return nil
	}
	if _, err := os.Stat(s.path("tile")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: tiles without tail.log: move the directory away, and a new origin begins", ErrState)
	}
	s.head = fresh
	return s.log.Append(mustJSON(fresh))
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("ledger: a struct of strings and numbers does not marshal: " + err.Error())
	}
	return b
}

func (s *state) size() int64          { return s.head.Base + int64(len(s.tail)) }
func (s *state) path(p string) string { return filepath.Join(s.dir, filepath.FromSlash(p)) }

// append makes leaf durable. A full tail is moved into tiles first.
func (s *state) append(leaf []byte) (index int64, err error) {
	if len(s.tail) == width {
		if err := s.fold(); err != nil {
			return 0, err
		}
	}
	if err := s.log.Append(leaf); err != nil {
		return 0, err
	}
	s.push(leaf)
	return s.size() - 1, nil
}

// fold writes the full bundle and the tiles that it completes, then begins an
// empty tail; a crash on the way is done again from the old tail.
func (s *state) fold() error {
	if err := s.keep(bundleOf(s.head.Base/width, width), encodeBundle(s.tail)); err != nil {
		return err
	}
	for _, t := range tlog.NewTiles(height, s.head.Base, s.size()) {
		if t.W < width {
			continue
		}
		data, err := tlog.ReadTileData(t, s)
		if err == nil {
			err = s.keep(t, data)
		}
		if err != nil {
			return err
		}
	}
	next := s.head
	next.Base += width
	if err := s.log.Rewrite([][]byte{mustJSON(next)}); err != nil {
		return err
	}
	s.head, s.tail, s.hashes = next, nil, nil
	return nil
}

func (s *state) keep(t tlog.Tile, data []byte) error {
	path := s.path(tilePath(t))
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	err := durable.Create(path, data, 0o600)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if there, err := os.ReadFile(path); err != nil || !bytes.Equal(there, data) {
		return cmpOr(err, fmt.Errorf("%w: %s differs from what the entries give", ErrState, path))
	}
	return nil
}

// entries returns the first w entries of bundle n.
func (s *state) entries(n int64, w int) ([][]byte, error) {
	if n*width >= s.head.Base {
		return s.tail[:w], nil
	}
	path := s.path(tilePath(bundleOf(n, width)))
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	leaves, err := decodeBundle(data, width)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrState, path, err)
	}
	return leaves[:w], nil
}

// object is the content of a tile of any kind.
func (s *state) object(t tlog.Tile) ([]byte, error) {
	if t.L != entriesLevel {
		return tlog.ReadTileData(t, s)
	}
	leaves, err := s.entries(t.N, t.W)
	return encodeBundle(leaves), err
}

// ReadHashes implements tlog.HashReader from the tail and the full tiles.
func (s *state) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		h, err := s.hash(level, n)
		if err != nil {
			return nil, err
		}
		out[i] = h
	}
	return out, nil
}

// hash is the root of the leaves [n<<level, (n+1)<<level).
func (s *state) hash(level int, n int64) (tlog.Hash, error) {
	first, end := n<<level, (n+1)<<level
	if end > s.size() {
		return tlog.Hash{}, fmt.Errorf("hash %d of level %d is not in a log of %d entries", n, level, s.size())
	}
	if level == 0 && first >= s.head.Base {
		return s.hashes[first-s.head.Base], nil
	}
	t := tlog.TileForIndex(height, tlog.StoredHashIndex(level, n))
	t.W = width
	if (t.N+1)<<(height*(t.L+1)) <= s.head.Base {
		path := s.path(tilePath(t))
		data, err := os.ReadFile(path)
		if err != nil || len(data) != width*tlog.HashSize {
			return tlog.Hash{}, fmt.Errorf("%w: %s: %d bytes: %w", ErrState, path, len(data), cmpOr(err, fs.ErrInvalid))
		}
		return tlog.HashFromTile(t, data, tlog.StoredHashIndex(level, n))
	}
	left, err := s.hash(level-1, 2*n)
	if err != nil {
		return tlog.Hash{}, err
	}
	right, err := s.hash(level-1, 2*n+1)
	return tlog.NodeHash(left, right), err
}

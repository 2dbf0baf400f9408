package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
)

// entry is a sealed part on its way: exactly these bytes are sent, however often
// that takes, because sealing again would make other bytes of one name (A1).
type entry struct {
	WAL    catalog.WAL `json:"wal"`
	Note   string      `json:"note"` // its note's name
	object []byte
	index  []byte
}

// head is the newest note of this node's chain. It is durable before the note is
// sent, so that a number is never signed twice.
type head struct {
	Epoch  int    `json:"epoch"`
	Number int64  `json:"number"`
	Hash   string `json:"hash"`
	Object string `json:"object"` // whose note it is
	Name   string `json:"name"`
	Note   []byte `json:"note"`
}

const (
	headFile    = "head.json"
	entrySuffix = ".wal"
)

// spool keeps sealed parts on disk until the vault has them in its quorum and
// the debt for the rest. A part is one file, so it is there whole or not at all:
// a line of JSON, then the object's bytes, then the index's.
type spool struct {
	dir   string
	quota *quota

	mu      sync.Mutex
	entries map[string]*entry // by object name; bodies stay on disk
	head    head
}

// openSpool reads what an earlier process left for epoch. What it left for other
// epochs is dropped: nothing of it was acknowledged, and a writer that lost its
// epoch must not write under it.
func openSpool(dir string, epoch int, q *quota) (*spool, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the WAL spool: %w", err)
	}
	s := &spool{dir: dir, quota: q, entries: map[string]*entry{}}
	if err := s.readHead(epoch); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the WAL spool: %w", err)
	}
	for _, f := range files {
		if err := s.open(f, epoch); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// open takes in a file of the directory, or removes it: what a writer that died left
// unfinished as well.
func (s *spool) open(f fs.DirEntry, epoch int) error {
	path := filepath.Join(s.dir, f.Name())
	switch {
	case strings.HasSuffix(f.Name(), entrySuffix):
		e, err := readEntry(path)
		info, ierr := f.Info()
		if err == nil && ierr == nil && e.WAL.Epoch == epoch {
			e.object, e.index = nil, nil
			s.entries[e.WAL.Object.Name] = e
			s.quota.written(e.WAL.Object.Name, info.Size(), nil)
			return nil
		}
	case !strings.HasPrefix(f.Name(), durable.TempPrefix):
		return nil
	}
	if err := durable.Remove(path); err != nil {
		return fmt.Errorf("clearing the WAL spool: %w", err)
	}
	return nil
}

func (s *spool) readHead(epoch int) error {
	data, err := os.ReadFile(filepath.Join(s.dir, headFile))
	if errors.Is(err, fs.ErrNotExist) {
		s.head = head{Epoch: epoch}
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the end of the chain of WAL notes: %w", err)
	}
	if err := json.Unmarshal(data, &s.head); err != nil {
		return fmt.Errorf("reading the end of the chain of WAL notes in %s: %w; move the file away and claim a new epoch (holdfast lineage open --take-over)", s.dir, err)
	}
	if s.head.Epoch != epoch {
		s.head = head{Epoch: epoch}
	}
	return nil
}

func (s *spool) path(object string) string {
	sum := sha256.Sum256([]byte(object))
	return filepath.Join(s.dir, hex.EncodeToString(sum[:16])+entrySuffix)
}

// keep makes e durable in the room that was promised for it. e's bodies come to lie in
// one buffer, so that what they lay in before can be freed.
func (s *spool) keep(e *entry, r *room) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("spooling %s: %w", e.WAL.File, err)
	}
	body := slices.Concat(line, []byte("\n"), e.object, e.index)
	if err := durable.WriteFile(s.path(e.WAL.Object.Name), body, 0o600); err != nil {
		return fmt.Errorf("spooling %s: %w", e.WAL.File, err)
	}
	s.quota.written(e.WAL.Object.Name, int64(len(body)), r)
	at := len(line) + 1 + len(e.object)
	e.object, e.index = body[len(line)+1:at:at], bytes.Clone(body[at:]) // a write of it that hangs must not hold the object
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[e.WAL.Object.Name] = &entry{WAL: e.WAL, Note: e.Note}
	return nil
}

// find returns the sealed bytes of an object that was spooled before, or nil.
func (s *spool) find(object string) (*entry, error) {
	s.mu.Lock()
	_, ok := s.entries[object]
	s.mu.Unlock()
	if !ok {
		return nil, nil
	}
	return readEntry(s.path(object))
}

// meta is find without the bodies.
func (s *spool) meta(object string) (catalog.WAL, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[object]
	if !ok {
		return catalog.WAL{}, false
	}
	return e.WAL, true
}

// left lists what is spooled, in the order in which it is to be sent.
func (s *spool) left() []catalog.WAL {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]catalog.WAL, 0, len(s.entries))
	for _, e := range s.entries {
		out = append(out, e.WAL)
	}
	slices.SortFunc(out, func(a, b catalog.WAL) int {
		return compareSpans(a.Timeline, b.Timeline, a.From, b.From, a.To, b.To)
	})
	return out
}

// drop forgets an object whose note is in the quorum.
func (s *spool) drop(object string) error {
	s.mu.Lock()
	_, ok := s.entries[object]
	delete(s.entries, object)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	if err := durable.Remove(s.path(object)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clearing the WAL spool: %w", err)
	}
	s.quota.gone(object)
	return nil
}

// advance makes h the end of the chain.
func (s *spool) advance(h head) error {
	data, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("writing the end of the chain of WAL notes: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(s.dir, headFile), data, 0o600); err != nil {
		return fmt.Errorf("writing the end of the chain of WAL notes: %w", err)
	}
	s.head = h
	return nil
}

func readEntry(path string) (*entry, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the WAL spool: %w", err)
	}
	e, err := decodeEntry(data)
	if err != nil {
		return nil, fmt.Errorf("reading the WAL spool's %s: %w", filepath.Base(path), err)
	}
	return e, nil
}

// decodeEntry is the inverse of what keep writes; the bytes must be those that
// the entry's own references bind.
func decodeEntry(data []byte) (*entry, error) {
	line, bodies, ok := bytes.Cut(data, []byte("\n"))
	var e entry
	if !ok {
		return nil, errors.New("no first line")
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, err
	}
	n := e.WAL.Object.Size
	if n < 0 || e.WAL.Index.Size < 0 || n > int64(len(bodies)) || int64(len(bodies))-n != e.WAL.Index.Size {
		return nil, fmt.Errorf("%d bytes of objects, want %d and %d", len(bodies), n, e.WAL.Index.Size)
	}
	e.object, e.index = bodies[:n:n], bytes.Clone(bodies[n:]) // a write of it that hangs must not hold the object
	for ref, body := range map[catalog.Ref][]byte{e.WAL.Object: e.object, e.WAL.Index: e.index} {
		if ref.Name != "" && refOf(ref.Name, body) != ref {
			return nil, fmt.Errorf("the bytes of %s are not those that were sealed", ref.Name)
		}
	}
	return &e, nil
}

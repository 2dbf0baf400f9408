package snapshot

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// attempt is a snapshot in the making, as the next process finds it. Beside it lie
// the packs that the quorum holds and the spool of leaves.
type attempt struct {
	ID          string    `json:"id"`
	StartedAt   time.Time `json:"started_at"`
	Base        string    `json:"base,omitempty"`
	From        lsn.LSN   `json:"from_lsn"` // no page in its packs is older
	SystemID    string    `json:"system_id"`
	Timeline    uint32    `json:"timeline"`
	Epoch       int       `json:"epoch"`
	Major       int       `json:"major"`
	DigestEpoch int       `json:"digest_epoch"`
	Checksums   int       `json:"data_checksums"`
	Recipients  []string  `json:"recipients"`
}

// maxAttempt is how old an attempt may be to be continued.
const maxAttempt = 24 * time.Hour

// making is the directory of the snapshot in the making.
type making struct {
	dir   string
	spool *leafSpool

	mu      sync.Mutex
	log     *durable.Log // of packs that the quorum holds; one process has it
	packs   []ownPack    // those that an earlier process sent
	journal map[leafKey]journalLeaf
	resumed bool
	closing *closing // all but its end was done by an earlier process
}

type leafKey struct {
	path string
	n    int64 // which leaf of the file
}

// journalLeaf is where a leaf of an earlier process lies in the spool.
type journalLeaf struct {
	leafPlace
	size int64 // of the file, when it was read
}

// loggedPack is a record of the log of packs.
type loggedPack struct {
	N int `json:"n"`
	ownPack
}

// openMaking opens the directory of the snapshot in the making, with what an
// earlier process left there. Without a state it is a new one.
func (t *take) openMaking() (err error) {
	dir := filepath.Join(t.cfg.State, "making")
	if t.cfg.State == "" {
		dir, err = os.MkdirTemp("", "holdfast-making-")
	} else {
		err = durable.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make a directory for the snapshot in the making: %w", err)
	}
	m := &making{dir: dir}
	m.log, err = durable.OpenLog(filepath.Join(dir, "packs"), func(record []byte) error {
		var p loggedPack
		if err := json.Unmarshal(record, &p); err != nil || p.N < 0 || p.N > 1<<20 {
			return fmt.Errorf("a pack of the snapshot in the making: %w", errors.Join(err, durable.ErrCorrupt))
		}
		m.note(p.N, p.ownPack)
		return nil
	})
	if errors.Is(err, durable.ErrHeld) {
		return fmt.Errorf("another snapshot of this cluster is being taken here: %w", err)
	}
	if err != nil {
		return fmt.Errorf("read what was left of a snapshot in the making: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "leaves"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return errors.Join(fmt.Errorf("open the spool of page maps: %w", err), m.log.Close())
	}
	m.spool = &leafSpool{f: f}
	t.making = m
	return nil
}

func (m *making) note(n int, p ownPack) {
	for len(m.packs) <= n {
		m.packs = append(m.packs, ownPack{})
	}
	m.packs[n] = p
}

// sent keeps that the quorum holds a pack.
func (m *making) sent(n int, p ownPack) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	record, err := json.Marshal(loggedPack{n, p})
	if err == nil {
		err = m.log.Append(record)
	}
	if err != nil {
		return fmt.Errorf("keep that pack %d is sent: %w", n, err)
	}
	return nil
}

// close leaves what is there to the next process, unless nothing is left to do or
// nobody would find it.
func (t *take) closeMaking(done bool) {
	m := t.making
	err := errors.Join(m.log.Close(), m.spool.f.Close())
	if done || t.cfg.State == "" {
		err = errors.Join(err, os.RemoveAll(m.dir))
	}
	if err != nil {
		t.log.Warn("what was in the making stays behind", zap.String("directory", m.dir), zap.Error(err))
	}
}

// begin continues an interrupted attempt under its own id, or announces a new one.
func (t *take) begin(ctx context.Context) error {
	at := filepath.Join(t.making.dir, "attempt.json")
	if old, err := t.interrupted(at); err == nil {
		t.resume(old)
		if t.making.closing = t.closed(); t.making.closing != nil {
			return nil
		}
		return t.making.load(t.log)
	} else if !errors.Is(err, os.ErrNotExist) {
		t.log.Info("an interrupted snapshot is not continued", zap.Error(err))
	}
	m := t.making
	m.packs = nil
	if err := errors.Join(forget(filepath.Join(m.dir, closingName)), m.log.Rewrite(nil), m.spool.f.Truncate(0), m.spool.f.Sync()); err != nil {
		return fmt.Errorf("begin a spool: %w", err)
	}
	from, err := t.putIntent(ctx)
	if err != nil {
		return err
	}
	text, err := json.Marshal(t.attempt(from))
	if err == nil {
		err = durable.WriteFile(at, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep that the snapshot began: %w", err)
	}
	return nil
}

func forget(path string) error {
	if err := durable.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (t *take) attempt(from lsn.LSN) attempt {
	f := t.header.Facts
	return attempt{
		ID: t.id, StartedAt: t.startedAt, Base: t.header.Base, From: from, SystemID: f.SystemID, Timeline: f.Timeline, Epoch: t.cfg.Epoch,
		Major: f.Major, DigestEpoch: t.cfg.Keys.Epoch, Checksums: f.ChecksumsStart, Recipients: t.cfg.Fingerprints,
	}
}

// interrupted reads an attempt that this process can continue.
func (t *take) interrupted(path string) (attempt, error) {
	var old attempt
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &old)
	}
	if err != nil {
		return old, fmt.Errorf("read %s: %w", path, err)
	}
	same := t.attempt(old.From)
	same.ID, same.StartedAt, same.Recipients = old.ID, old.StartedAt, old.Recipients
	a, _ := json.Marshal(same)
	b, _ := json.Marshal(old)
	_, marked := t.snapshots.Forgotten[old.ID]
	begun := slices.ContainsFunc(t.snapshots.Intents, func(n catalog.Noted[catalog.Intent]) bool { return n.Body.ID == old.ID })
	switch {
	case t.cfg.Keys.Epoch == 0:
		return old, errors.New("without digest keys nothing can be compared")
	case string(a) != string(b) || !slices.Equal(old.Recipients, t.cfg.Fingerprints):
		return old, fmt.Errorf("%s began under other circumstances: %s, now %s", old.ID, b, a)
	case t.cfg.Now().Sub(old.StartedAt) > maxAttempt || t.cfg.Now().Before(old.StartedAt):
		return old, fmt.Errorf("%s began at %s", old.ID, old.StartedAt)
	case marked || !begun:
		return old, fmt.Errorf("%s is committed, or its packs may be removed", old.ID)
	}
	return old, nil
}

func (t *take) resume(old attempt) {
	t.id, t.startedAt, t.from = old.ID, old.StartedAt, old.From
	t.header.Snapshot = old.ID
	t.log = t.cfg.Log.With(zap.String("cluster", t.cfg.Cluster), zap.String("snapshot", t.id))
	t.making.resumed = true
}

// load finds the leaves in the spool whose packs the quorum holds. What a power cut
// left is passed over: a record's sum tells.
func (m *making) load(log *zap.Logger) error {
	m.journal = map[leafKey]journalLeaf{}
	r := bufio.NewReaderSize(io.NewSectionReader(m.spool.f, 0, 1<<62), 1<<20)
	for {
		size, err := m.loadOne(r)
		if err != nil {
			break
		}
		m.spool.end += size
	}
	log.Info("an interrupted snapshot is continued", zap.Int("leaves", len(m.journal)), zap.Int("packs", len(m.packs)))
	if err := m.spool.f.Truncate(m.spool.end); err != nil {
		return fmt.Errorf("cut the spool of page maps: %w", err)
	}
	return nil
}

// maxSpooled bounds a record: a path and a leaf.
const maxSpooled = 1 << 20

func (m *making) loadOne(r *bufio.Reader) (int64, error) {
	var head [spoolHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.LittleEndian.Uint32(head[4:]))
	if n < spoolEntry || n > maxSpooled {
		return 0, durable.ErrCorrupt
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, err
	}
	path := spoolEntry + int(binary.LittleEndian.Uint16(body[12:]))
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(head[:]) || path > n {
		return 0, durable.ErrCorrupt
	}
	l, _, err := catalog.ParseLeaf(body[path:])
	if err != nil {
		return 0, err
	}
	whole := int64(spoolHead + n)
	for _, f := range l.Frames {
		if f.Pack&basePack == 0 && (int(f.Pack) >= len(m.packs) || m.packs[f.Pack].Ref.Name == "") {
			return whole, nil // it was not sent
		}
	}
	key := leafKey{string(body[spoolEntry:path]), int64(binary.LittleEndian.Uint32(body[8:]))}
	m.journal[key] = journalLeaf{
		leafPlace{off: m.spool.end + int64(spoolHead+path), len: int32(n - path)}, int64(binary.LittleEndian.Uint64(body)),
	}
	return whole, nil
}

// known is what is known of the leaves from..to-1 (in blocks) of f: what an earlier
// process made of them, else what the base holds.
func (t *take) known(ctx context.Context, f *file, from, to int64) ([]*oldLeaf, error) {
	old, err := t.base.leaves(ctx, f.base, from, to)
	if err != nil || len(t.making.journal) == 0 {
		return old, err
	}
	for first := from; first < to; first += catalog.LeafBlocks {
		j, ok := t.making.journal[leafKey{f.path, first / catalog.LeafBlocks}]
		if !ok {
			continue
		}
		l, err := t.making.spool.leaf(j.leafPlace)
		if err != nil {
			return nil, err
		}
		n := int((first - from) / catalog.LeafBlocks)
		for len(old) <= n {
			old = append(old, nil)
		}
		old[n] = &oldLeaf{leaf: l, spooled: j.leafPlace, size: j.size, renew: t.base.renewed(l)}
	}
	return old, nil
}

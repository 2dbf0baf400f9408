package snapshot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// WALStore is where WAL goes: the writing side of a vault.
type WALStore interface {
	catalog.Source
	Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error)
	PutNote(ctx context.Context, name string, body []byte, needs []vault.Need, opt vault.PutOptions) (vault.Stored, error)
}

// WriterConfig is what every writer of WAL needs, by stream or by push. One
// state directory has one [WALWriter].
type WriterConfig struct {
	Lineage catalog.Lineage // claimed
	Store   WALStore
	Trust   catalog.Truster
	Signer  note.Signer
	Keys    seal.DigestKeys
	// Data are the recipients of WAL itself, Index those of its indexes (the
	// index recipient and the data recipients).
	Data, Index []age.Recipient
	Level       string // of compression; "" is the default
	Spool       string // directory on this node, for sealed bytes on their way
	Quota       int64  // bytes that the spool may take, or one part where that is more; 0: no limit
	Disk        Disk   // asked for room before a part is sealed; nil: nobody is
	// Parallel bounds how many parts are sealed and sent at a time (2). Each takes
	// about three times a segment's size of memory while it is sealed, and once that
	// while it is sent.
	Parallel  int
	LockUntil func(time.Time) time.Time // of WAL objects; nil: no lock
	Now       func() time.Time
	Log       *zap.Logger
}

// WALWriter makes parts of WAL durable: sealed once, spooled, sent as object,
// index and note in this order, acknowledged when the quorum holds the note. It
// keeps the chain of notes. It is safe for concurrent use.
type WALWriter struct {
	c      WriterConfig
	reader *catalog.Reader
	spool  *spool
	done   *progress
	trying keyed         // object names on their way
	chain  chan struct{} // held while a note is signed and sent
	comps  chan *seal.Compressor
	fault  troubles
	// at is called at named points; a test's kill -9 hangs there.
	at func(point string)
}

// OpenWriter opens the spool and sends nothing yet.
func OpenWriter(c WriterConfig) (*WALWriter, error) {
	if c.Lineage.Epoch < 1 {
		return nil, errors.New("archiving WAL: no epoch was claimed")
	}
	if c.Parallel < 1 {
		c.Parallel = 2
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	s, err := openSpool(c.Spool, c.Lineage.Epoch, newQuota(c.Quota, c.Disk))
	if err != nil {
		return nil, err
	}
	w := &WALWriter{
		c: c, reader: catalog.NewReader(c.Store, c.Trust), spool: s, done: newProgress(),
		chain: make(chan struct{}, 1), comps: make(chan *seal.Compressor, c.Parallel), at: func(string) {},
	}
	for range c.Parallel {
		w.comps <- seal.NewCompressor(c.Level)
	}
	return w, nil
}

// Recover sends what an earlier process left in the spool, in order.
func (w *WALWriter) Recover(ctx context.Context) error {
	for _, left := range w.spool.left() {
		err := w.holding(ctx, left.Object.Name, func() error {
			e, err := w.spool.find(left.Object.Name)
			if err != nil || e == nil {
				return err
			}
			return w.deliver(ctx, e, nil)
		})
		if err != nil {
			return fmt.Errorf("sending what was left in the WAL spool: %w", err)
		}
	}
	return nil
}

// store makes p durable, or says at once that it has no room in the spool.
func (w *WALWriter) store(ctx context.Context, p part) error {
	r, err := w.spool.quota.admit(p.most())
	if err != nil {
		return err
	}
	defer r.release()
	return w.bring(ctx, &p, p.names(w.c.Lineage, w.c.Keys), r, &turn{})
}

// bring makes p durable in the room that was promised for it, when its turn comes. What
// p holds is let go of once it is in the spool; calling again is safe.
func (w *WALWriter) bring(ctx context.Context, p *part, n names, r *room, t *turn) error {
	return w.holding(ctx, n.object, func() error {
		// A part of a stream is sealed before zones are asked about it: they may be away.
		if p.shelved || !t.ordered() {
			if done, err := w.archived(ctx, p, n); err != nil || done {
				return err
			}
		}
		e, err := w.sealed(ctx, p, n, r, t)
		if err != nil {
			return err
		}
		p.data, p.marks.index, p.shelved = nil, nil, true
		if err := t.take(ctx, e); err != nil {
			return err
		}
		if t.ordered() {
			if done, err := w.archived(ctx, p, n); err != nil || done {
				return err
			}
		}
		if e.object == nil {
			if e, err = w.spool.find(n.object); err != nil {
				return err
			}
		}
		p.known = true
		return w.deliver(ctx, e, t.after)
	})
}

// archived says whether p, if that may be, is archived already: then the spool need not
// keep it.
func (w *WALWriter) archived(ctx context.Context, p *part, n names) (bool, error) {
	if !p.known {
		return false, nil
	}
	found, err := w.reinforce(ctx, n)
	if err == nil && found {
		err = w.spool.drop(n.object)
	}
	return found, err
}

// holding runs f while nobody else works on the object.
func (w *WALWriter) holding(ctx context.Context, object string, f func() error) error {
	release, err := w.trying.lock(ctx, object)
	if err != nil {
		return err
	}
	defer release()
	return f()
}

// sealed returns the spooled bytes of p, or seals and spools it when its turn comes.
func (w *WALWriter) sealed(ctx context.Context, p *part, n names, r *room, t *turn) (*entry, error) {
	e, err := w.spool.find(n.object)
	if e != nil {
		return e, t.keep(ctx, func() error { return nil })
	}
	if err != nil {
		return nil, err
	}
	if p.shelved {
		return nil, permanent{fmt.Errorf("the WAL spool has lost %s, which was sealed", n.object)}
	}
	comp := <-w.comps
	to := w.c.Data
	if strings.HasSuffix(p.file, ".history") {
		to = w.c.Index // it holds no data, and a plan must know the way
	}
	body, err := seal.SealFile(p.data, comp, to)
	w.comps <- comp
	if err != nil {
		return nil, fmt.Errorf("sealing %s: %w", p.file, err)
	}
	e = &entry{Note: n.note, object: body.Body}
	object := catalog.Ref{Name: n.object, Size: int64(len(body.Body)), SHA256: hex.EncodeToString(body.SHA256[:])}
	if n.index != "" {
		if e.index, err = seal.SealBlob(p.marks.index, w.c.Index); err != nil {
			return nil, fmt.Errorf("sealing the index of %s: %w", p.file, err)
		}
	}
	e.WAL = p.record(w.c.Lineage, n, object, e.index)
	if err := t.keep(ctx, func() error { return w.spool.keep(e, r) }); err != nil {
		return nil, err
	}
	w.at("spooled")
	return e, nil
}

// deliver sends object and index, and then the note.
func (w *WALWriter) deliver(ctx context.Context, e *entry, after <-chan struct{}) error {
	both, bctx := errgroup.WithContext(ctx)
	send := func(ref catalog.Ref, body []byte, point string) {
		both.Go(func() error {
			err := w.put(bctx, e, ref, body)
			w.at(point)
			return err
		})
	}
	send(e.WAL.Object, e.object, "object")
	if e.WAL.Index.Name != "" {
		send(e.WAL.Index, e.index, "index")
	}
	err := both.Wait()
	if errors.Is(err, errNoted) {
		return w.spool.drop(e.WAL.Object.Name)
	}
	if err != nil {
		return err
	}
	if after != nil {
		select {
		case <-after:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return w.commit(ctx, e)
}

// errNoted says that a note vouches for other sealed bytes of the same content.
var errNoted = errors.New("archived already")

// put stores one object in the quorum. Other bytes under its name are of the
// same content (the name's MAC says so), sealed by a process whose spool is
// lost: they stay where a note vouches for them, and are replaced where none does.
func (w *WALWriter) put(ctx context.Context, e *entry, ref catalog.Ref, body []byte) error {
	opt := w.options(e.WAL.Slice)
	return w.persist(ctx, func() error {
		_, err := w.c.Store.Put(ctx, ref.Name, body, opt)
		if !errors.Is(err, vault.ErrConflict) {
			return err
		}
		found, err := w.reinforce(ctx, names{object: e.WAL.Object.Name, note: e.Note})
		if err != nil {
			return err
		}
		if found {
			return errNoted
		}
		opt.Conflict = vault.Repair
		_, err = w.c.Store.Put(ctx, ref.Name, body, opt)
		return err
	})
}

// sliceLock is how long a slice is locked at most: the full segment that takes its
// place is locked as long as all else, and the slice can then be removed.
const sliceLock = 24 * time.Hour

func (w *WALWriter) options(slice bool) vault.PutOptions {
	if w.c.LockUntil == nil {
		return vault.PutOptions{}
	}
	now := w.c.Now()
	until := w.c.LockUntil(now)
	if last := now.Add(sliceLock); slice && until.After(last) {
		until = last
	}
	return vault.PutOptions{LockUntil: until}
}

// reinforce looks for a note of n's content and, where there is one, makes sure
// that the quorum holds it and what it vouches for (C-35).
func (w *WALWriter) reinforce(ctx context.Context, n names) (bool, error) {
	listing, err := w.c.Store.List(ctx, n.note)
	if err != nil {
		return false, fmt.Errorf("looking whether %s is archived: %w", n.object, err)
	}
	if len(listing.Objects) == 0 {
		if !listing.Complete {
			return false, fmt.Errorf("looking whether %s is archived: %w: %w", n.object, catalog.ErrIncomplete, zoneErrors(listing))
		}
		return false, nil
	}
	var there catalog.WAL
	body, err := w.c.Store.Fetch(ctx, n.note, func(_ string, body []byte) error {
		return w.open(body, &there)
	})
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", n.note, err)
	}
	if there.Object.Name != n.object {
		return false, fmt.Errorf("%s vouches for %s, not for %s: another content has the same stretch and the same first digits; keep both and report this", n.note, there.Object.Name, n.object)
	}
	if _, err := w.c.Store.PutNote(ctx, n.note, body, needs(there), w.options(there.Slice)); err != nil {
		return false, fmt.Errorf("making sure of %s: %w", n.object, err)
	}
	w.done.add(there)
	return true, nil
}

func needs(w catalog.WAL) []vault.Need {
	out := []vault.Need{vault.Need(w.Object)}
	if w.Index.Name != "" {
		out = append(out, vault.Need(w.Index))
	}
	return out
}

// persist repeats f with growing pauses until it succeeds, fails for good, or
// ctx ends; what it waits for is visible in Position.
func (w *WALWriter) persist(ctx context.Context, f func() error) error {
	id := w.fault.begin()
	defer w.fault.end(id)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 15*time.Second) {
		err := f()
		if err == nil || errors.Is(err, errNoted) || errors.Is(err, vault.ErrRemoved) || errors.Is(err, vault.ErrReadOnly) || errors.Is(err, vault.ErrConflict) || errors.As(err, new(permanent)) {
			return err
		}
		w.fault.set(id, err)
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w; the last try said: %w", context.Cause(ctx), err)
		}
	}
}

// insist repeats f, whose faults may pass, until it succeeds or ctx ends.
func (w *WALWriter) insist(ctx context.Context, f func() error) error {
	return w.persist(ctx, func() error {
		if err := f(); err != nil && final(err) {
			return permanent{err}
		} else if err != nil {
			return err
		}
		return nil
	})
}

// permanent marks an error that persist must not repeat.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// WALRefs names the objects, indexes and notes that hold [from,to) of a timeline:
// full segments where there are, slices for the rest.
func (w *WALWriter) WALRefs(ctx context.Context, timeline uint32, from, to lsn.LSN) ([]catalog.Ref, error) {
	dir := catalog.WALDir(w.c.Lineage.Cluster, w.c.Lineage.Epoch, timeline)
	entries, err := w.reader.WALEntries(ctx, w.c.Lineage.Cluster, dir)
	if err != nil {
		return nil, err
	}
	var hold []catalog.WALEntry
	at := from
	for _, e := range entries.List { // by From, the longer first
		if e.From < to && e.To > at {
			hold = append(hold, e)
			at = e.To
		}
	}
	var out []catalog.Ref
	for _, e := range hold {
		var body catalog.WAL
		msg, err := w.c.Store.Fetch(ctx, e.Name, func(_ string, msg []byte) error {
			return w.open(msg, &body)
		})
		if err != nil {
			return nil, fmt.Errorf("naming the WAL from %s to %s: %w", from, to, err)
		}
		out = append(out, body.Object)
		if body.Index.Name != "" {
			out = append(out, body.Index)
		}
		out = append(out, refOf(e.Name, msg))
	}
	return out, nil
}

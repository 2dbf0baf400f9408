package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// ErrStateLost means that the repository has notes of this state directory that
// the directory does not know: it was rolled back or copied, and two writers may
// hold it.
var ErrStateLost = errors.New("the state directory is older than what was archived from it")

// commit signs e's note as the next of the chain and brings it into the quorum.
// One note is on its way at a time; one that an earlier call left goes first.
func (w *WALWriter) commit(ctx context.Context, e *entry) error {
	select {
	case w.chain <- struct{}{}:
		defer func() { <-w.chain }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := w.finishHead(ctx); err != nil {
		return err
	}
	if !w.heads(e.WAL) {
		if err := w.sign(e); err != nil {
			return err
		}
		w.at("signed")
	}
	return w.finishHead(ctx)
}

// sign makes e's note the end of the chain.
func (w *WALWriter) sign(e *entry) error {
	last := w.spool.head
	body := e.WAL
	body.Link = catalog.Link{Number: last.Number + 1, Prev: last.Hash}
	body.ArchivedAt = w.c.Now().UTC()
	msg, err := seal.SignNote(catalog.KindWAL, body, w.c.Signer)
	if err != nil {
		return fmt.Errorf("signing the note of %s: %w", e.WAL.File, err)
	}
	// A note that no reader of this configuration believes is no archive: it must not be
	// sent, and no number is used for it.
	if err := w.open(msg, new(catalog.WAL)); err != nil {
		return permanent{fmt.Errorf("signing the note of %s: this node's own signing key is not trusted for the WAL of %s: give it `may: [wal]` in repository.trusted_signers: %w", e.WAL.File, w.c.Lineage.Cluster, err)}
	}
	return w.spool.advance(head{
		Epoch: body.Epoch, Number: body.Number, Hash: catalog.HashNote(msg), Object: body.Object.Name, Name: e.Note, Note: msg,
	})
}

// heads says whether the chain's last note vouches for these very bytes. Those of its
// content may have been sealed again since it reached the quorum. A note that nobody can
// read any more vouches for nothing: the part is signed for once more.
func (w *WALWriter) heads(part catalog.WAL) bool {
	h := w.spool.head
	if h.Object != part.Object.Name {
		return false
	}
	var last catalog.WAL
	return w.open(h.Note, &last) == nil && last.Object == part.Object
}

func (w *WALWriter) open(msg []byte, body *catalog.WAL) error {
	_, err := w.c.Trust.Open(msg, catalog.KindWAL, string(catalog.DutyWAL), w.c.Lineage.Cluster, body)
	return err
}

// finishHead brings the chain's last note into the quorum, if its part is still
// spooled.
func (w *WALWriter) finishHead(ctx context.Context) error {
	h := w.spool.head
	body, ok := w.spool.meta(h.Object)
	if !ok || !w.heads(body) {
		return nil
	}
	err := w.persist(ctx, func() error {
		_, err := w.c.Store.PutNote(ctx, h.Name, h.Note, needs(body), w.options(body.Slice))
		return err
	})
	if errors.Is(err, vault.ErrConflict) {
		found, err := w.reinforce(ctx, names{object: h.Object, note: h.Name})
		if err != nil || !found {
			return fmt.Errorf("the note %s cannot be stored: %w", h.Name, errors.Join(vault.ErrConflict, err))
		}
	} else if err != nil {
		return fmt.Errorf("storing the note of %s: %w", body.File, err)
	}
	w.at("noted")
	w.done.add(body) // the quorum has it: who waits need not wait for our tidying up
	return w.spool.drop(h.Object)
}

// checkChain refuses to go on where newest, a note of this epoch from the
// repository, has a higher number than this state directory ever signed.
func (w *WALWriter) checkChain(newest catalog.WAL) error {
	if newest.Number <= w.spool.head.Number {
		return nil
	}
	return fmt.Errorf("cluster %s, epoch %d: %w: it signed %d notes, the repository shows number %d; see that no copy of this node runs, then claim a new epoch: holdfast lineage open %s --take-over",
		newest.Cluster, newest.Epoch, ErrStateLost, w.spool.head.Number, newest.Number, newest.Cluster)
}

// keyed is a lock for each name.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (k *keyed) lock(ctx context.Context, name string) (release func(), err error) {
	for {
		k.mu.Lock()
		other, busy := k.held[name]
		if !busy {
			mine := make(chan struct{})
			if k.held == nil {
				k.held = map[string]chan struct{}{}
			}
			k.held[name] = mine
			k.mu.Unlock()
			return func() { k.release(name, mine) }, nil
		}
		k.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (k *keyed) release(name string, mine chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.held, name)
	close(mine)
}

// troubles are the faults that writes are being retried for.
type troubles struct {
	mu   sync.Mutex
	next int
	open map[int]error
}

func (t *troubles) begin() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	return t.next
}

func (t *troubles) set(id int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[int]error{}
	}
	t.open[id] = err
}

func (t *troubles) end(id int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, id)
}

// err is one of the faults, nil when nothing is being retried.
func (t *troubles) err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, err := range t.open {
		return err
	}
	return nil
}

package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// WaitingError says which entries stand on this machine alone.
type WaitingError struct {
	From, To int64 // entries [From, To)
	Since    time.Time
	Err      error
}

func (e *WaitingError) Error() string {
	return fmt.Sprintf("anchor ledger: entries %d to %d wait on this machine since %s (anchored_late): %v",
		e.From, e.To-1, e.Since.UTC().Format(time.RFC3339), e.Err)
}

func (e *WaitingError) Unwrap() error { return e.Err }

// Anchor sends what the zones lack, signs a checkpoint when the write quorum
// holds it, and returns when the quorum holds the checkpoint. It covers all that
// was appended before the call. Entries that were kept back by an earlier failure
// are recorded in an entry of type anchored_late, which the next Anchor sends.
// An error is a [*WaitingError]; [ErrRolledBack] and [ErrForked] in it are for good.
func (l *Ledger) Anchor(ctx context.Context) (Checkpoint, error) {
	select {
	case l.anchoring <- struct{}{}:
	case <-ctx.Done():
		return Checkpoint{}, l.waiting(ctx.Err())
	}
	defer func() { <-l.anchoring }()
	c, err := l.anchor(ctx)
	if err != nil {
		return Checkpoint{}, l.waiting(err)
	}
	l.recordLate(ctx)
	return c, nil
}

// waiting notes the failure and says what it keeps back.
func (l *Ledger) waiting(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed.IsZero() {
		l.failed = l.conf.Now()
	}
	return &WaitingError{From: l.anchored.Size, To: l.state.size(), Since: l.failed, Err: err}
}

// recordLate appends what was anchored late, once it is known. What cannot be
// appended now is tried after the next anchoring: the disk that refused it will
// refuse the next Append aloud.
func (l *Ledger) recordLate(ctx context.Context) {
	l.mu.Lock()
	late := l.late
	l.mu.Unlock()
	if late.To == 0 {
		return
	}
	if _, err := l.Append(ctx, Entry{Type: TypeAnchoredLate, Actor: Actor{Kind: "holdfast"}, Body: late}); err != nil {
		return
	}
	l.mu.Lock()
	l.late = Late{}
	l.mu.Unlock()
}

func (l *Ledger) anchor(ctx context.Context) (Checkpoint, error) {
	if l.conf.Store == nil {
		return Checkpoint{}, errors.New("no zones are configured for the ledger")
	}
	if err := l.look(ctx); err != nil {
		return Checkpoint{}, err
	}
	st := l.Status()
	if st.Size == st.Anchored.Size {
		l.done(st.Anchored)
		return st.Anchored, nil
	}
	if err := l.send(ctx, st.Anchored.Size, st.Size); err != nil {
		return Checkpoint{}, err
	}
	c, err := l.sign(ctx, st.Size)
	if err != nil {
		return Checkpoint{}, err
	}
	if err := l.put(ctx, checkpointPath(c.Size), c.Signed); err != nil {
		return Checkpoint{}, err
	}
	if err := l.save("anchored", c.Signed); err != nil {
		return Checkpoint{}, err
	}
	l.done(c)
	return c, nil
}

// done notes that the quorum holds c, and what of it came late.
func (l *Ledger) done(c Checkpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.failed.IsZero() && c.Size > l.anchored.Size {
		from, since := l.anchored.Size, l.failed
		if l.late.To > 0 { // not recorded yet: one span covers both
			from, since = l.late.From, l.late.Since
		}
		l.late = Late{From: from, To: c.Size, Since: since, Until: l.conf.Now()}
	}
	l.anchored, l.failed = c, time.Time{}
}

// look asks the zones for anything of this origin that this state does not hold,
// before anything is signed.
func (l *Ledger) look(ctx context.Context) error {
	if !l.looked {
		if err := l.lookForCheckpoints(ctx); err != nil {
			return err
		}
		if err := l.introduce(ctx); err != nil {
			return err
		}
		l.looked = true
	}
	return l.lookAhead(ctx)
}

// lookForCheckpoints refuses where a zone shows a larger one of this origin that
// a trusted key has signed. It is done once: later, another copy of this state
// would be seen by its entries, which go first.
func (l *Ledger) lookForCheckpoints(ctx context.Context) error {
	names, err := l.conf.Store.List(ctx, OriginDir(l.Origin())+"checkpoint/")
	if err != nil {
		return err
	}
	mine := l.Status().Size
	for _, name := range names {
		size, ok := parseCheckpointPath(strings.TrimPrefix(name, OriginDir(l.Origin())))
		if !ok || size <= mine {
			continue
		}
		if _, err := fetchCheckpoint(ctx, l.conf.Store, l.conf, l.Origin(), size); err == nil {
			return l.rolledBack(fmt.Sprintf("a signed checkpoint of size %d", size))
		}
	}
	return nil
}

// lookAhead lists the bundle that the next entry after ours would stand in: a
// wider one is of a later state, and one that we did not anchor must be ours.
func (l *Ledger) lookAhead(ctx context.Context) error {
	st := l.Status()
	mine := st.Size
	have := int(mine % width)
	prefix := OriginDir(l.Origin()) + tilePath(bundleOf(mine/width, width))
	names, err := l.conf.Store.List(ctx, prefix)
	if err != nil {
		return err
	}
	for _, name := range names {
		t, ok := parseTilePath(strings.TrimPrefix(name, OriginDir(l.Origin())))
		switch {
		case !ok || t.L != entriesLevel || t.N != mine/width:
		case t.W > have:
			return l.rolledBack(name)
		case t.N*width+int64(t.W) > st.Anchored.Size:
			if err := l.isOurs(ctx, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// isOurs says whether a bundle that the zones show holds our entries: a copy of
// this state that runs beside may have sent its own.
func (l *Ledger) isOurs(ctx context.Context, t tlog.Tile) error {
	l.mu.Lock()
	own, err := l.state.object(t)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = l.conf.Store.Fetch(ctx, OriginDir(l.Origin())+tilePath(t), func(_ string, body []byte) error {
		if !bytes.Equal(body, own) {
			return fmt.Errorf("%w: %s holds other entries than %s: stop the other copy, move the directory away and start again, and a new origin begins", ErrForked, tilePath(t), l.conf.Dir)
		}
		return nil
	})
	return err
}

func (l *Ledger) rolledBack(what string) error {
	return fmt.Errorf("%w: %s has %d entries of %s, and the zones show %s: move the directory away and start again, and a new origin that names this one begins",
		ErrRolledBack, l.conf.Dir, l.Status().Size, l.Origin(), what)
}

// introduce makes sure that a log says who writes it and which logs of the same
// node went before it.
func (l *Ledger) introduce(ctx context.Context) error {
	if l.Status().Anchored.Size > 0 {
		return nil
	}
	records, err := l.Entries(ctx, 0, -1)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Type == TypeOrigin {
			return nil
		}
	}
	after, err := l.predecessors(ctx)
	if err != nil {
		return err
	}
	_, err = l.Append(ctx, Entry{Type: TypeOrigin, Actor: Actor{Kind: "holdfast"}, Body: Origin{Node: l.conf.Origin, After: after}})
	return err
}

// predecessors finds the largest signed checkpoint of each earlier origin of
// this node.
func (l *Ledger) predecessors(ctx context.Context) ([]Predecessor, error) {
	names, err := l.conf.Store.List(ctx, dir+l.conf.Origin+"-")
	if err != nil {
		return nil, err
	}
	after := []Predecessor{}
	for _, o := range origins(names) {
		if o.name == l.Origin() || !OfNode(o.name, l.conf.Origin) {
			continue
		}
		for i := len(o.checkpoints) - 1; i >= 0; i-- {
			c, err := fetchCheckpoint(ctx, l.conf.Store, l.conf, o.name, o.checkpoints[i])
			if err == nil {
				after = append(after, Predecessor{Origin: o.name, Size: c.Size, Root: c.Root})
				break
			}
		}
	}
	return after, nil
}

// send puts the bundles and tiles of a tree of size to that one of size from
// lacks: entries first, so that no tile stands for an entry that nobody has.
func (l *Ledger) send(ctx context.Context, from, to int64) error {
	var tiles []tlog.Tile
	for n := from / width; n*width < to; n++ {
		tiles = append(tiles, bundleOf(n, int(min(width, to-n*width))))
	}
	for _, t := range append(tiles, tlog.NewTiles(height, from, to)...) {
		l.mu.Lock()
		body, err := l.state.object(t)
		l.mu.Unlock()
		if err != nil {
			return err
		}
		if err := l.put(ctx, tilePath(t), body); err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger) put(ctx context.Context, path string, body []byte) error {
	err := l.conf.Store.Put(ctx, OriginDir(l.Origin())+path, body)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: stop the other copy, move %s away and start again, and a new origin begins: %w", ErrForked, l.conf.Dir, err)
	}
	return err
}

// sign makes the checkpoint of a size, the same bytes at each attempt: they are
// kept before they are sent, whatever key signs after a restart, and whichever
// witnesses answered.
func (l *Ledger) sign(ctx context.Context, size int64) (Checkpoint, error) {
	if data, err := os.ReadFile(l.state.path("signed")); err == nil {
		c, err := openCheckpoint(data, l.conf.Repository, l.Origin(), l.conf.Trust)
		if err == nil && c.Size == size {
			return c, nil
		}
	}
	l.mu.Lock()
	root, err := tlog.TreeHash(size, l.state)
	l.mu.Unlock()
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := signCheckpoint(l.conf.Repository, Checkpoint{Origin: l.Origin(), Size: size, Root: root}, l.conf.Signer)
	if err != nil {
		return c, err
	}
	if _, err := openCheckpoint(c.Signed, l.conf.Repository, l.Origin(), l.conf.Trust); err != nil {
		return c, fmt.Errorf("own key %s: %w", l.conf.Signer.Name(), err)
	}
	own := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.state.ReadHashes(indexes)
	})
	seen, err := l.conf.Witnesses.cosign(ctx, l.conf, c, own)
	if err != nil {
		return c, err
	}
	// What is kept can never be another: no line that a witness gave may spoil it.
	if _, err := openCheckpoint(seen.Signed, l.conf.Repository, l.Origin(), l.conf.Trust); err == nil {
		c = seen
	}
	return c, l.save("signed", c.Signed)
}

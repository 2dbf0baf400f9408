package snapshot

import (
	"context"
	"sync"
)

// turn is a part's place in the order of a stream. Parts are sealed side by side, but
// come into the spool in their order: what a process that dies leaves there is sent by
// the next one, which then goes on behind it, and must not leave a hole. From the spool
// they are sent in their order, a few at a time: one that was let in before an earlier
// one would hold the place that the earlier one needs. The zero value waits for nobody.
type turn struct {
	before  *turn         // nil: there is none, or it was let in
	lies    chan struct{} // closed when the part lies in the spool, by laid
	laid    func()
	begun   chan struct{} // closed when the part was let in
	done    chan struct{} // closed when it is durable
	after   <-chan struct{}
	sending chan struct{} // places of those that are being sent; nil: without limit
	spooled func()        // gives back the place among those that are being sealed, once
	let     bool
}

// follow makes the turn of the part behind t's, which has a place in sealing.
func (t *turn) follow(sealing, sending chan struct{}, woken func()) *turn {
	next := &turn{before: t, lies: make(chan struct{}), begun: make(chan struct{}), done: make(chan struct{}), sending: sending}
	if t != nil {
		next.after = t.done
	}
	next.laid = sync.OnceFunc(func() { close(next.lies) })
	next.spooled = sync.OnceFunc(func() {
		<-sealing
		woken()
	})
	return next
}

// keep has f bring the part into the spool when the one before lies there. Calling
// again is safe.
func (t *turn) keep(ctx context.Context, f func() error) error {
	if t.before != nil { // one that was let in lay there
		select {
		case <-t.before.lies:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := f(); err != nil {
		return err
	}
	if t.laid != nil {
		t.laid()
	}
	return nil
}

// ordered says that the part belongs to a stream.
func (t *turn) ordered() bool { return t.sending != nil }

// take waits until it is the turn of e, which is in the spool. Where that is not now its
// bytes are let go of meanwhile. The place is kept until the part is durable, through
// all that fails: those behind it wait for it.
func (t *turn) take(ctx context.Context, e *entry) error {
	if !t.ordered() || t.let {
		return nil
	}
	if !t.ready() {
		e.object, e.index = nil, nil
	}
	t.spooled()
	if t.before != nil {
		select {
		case <-t.before.begun:
			t.before = nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case t.sending <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	t.let = true
	close(t.begun)
	return nil
}

// leave gives all places back.
func (t *turn) leave() {
	t.spooled()
	if t.let {
		<-t.sending
	}
}

// ready says whether the turn may come at once.
func (t *turn) ready() bool {
	if t.before != nil {
		select {
		case <-t.before.begun:
		default:
			return false
		}
	}
	return len(t.sending) < cap(t.sending)
}

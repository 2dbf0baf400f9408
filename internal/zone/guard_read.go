package zone

import (
	"context"
	"errors"
	"io"
	"time"
)

// chunk is how much of a body is read ahead, twice.
const chunk = 128 << 10

// Read implements [Reader]. The body ends with ErrUnreachable when its bytes
// come slower than Options allow, counting only the time that a Read waits.
func (z *Zone) Read(ctx context.Context, name, version string, off, length int64) (io.ReadCloser, error) {
	// The body outlives this call, so its context does, too; Close ends it.
	life, end := context.WithCancelCause(ctx)
	rc, err := call(ctx, z, z.opt.Timeout, func(context.Context) (io.ReadCloser, error) {
		return z.d.Read(life, name, version, off, length)
	}, func(rc io.ReadCloser) { rc.Close() })
	if err != nil {
		end(err)
		return nil, z.wrap("read", name, z.confirm(ctx, err, -1))
	}
	size := int64(chunk)
	if length >= 0 {
		size = min(size, length+1)
	}
	b := &body{z: z, name: name, ctx: life, end: end, full: make(chan piece), free: make(chan []byte, 2)}
	b.free <- make([]byte, size)
	b.free <- make([]byte, size)
	go b.pump(rc)
	return b, nil
}

// body hands on what pump reads, so that a Read that hangs in the kernel can be
// left behind without its writing into the caller's buffer later.
type body struct {
	z    *Zone
	name string
	ctx  context.Context
	end  context.CancelCauseFunc
	full chan piece
	free chan []byte

	rest   []byte
	buf    []byte
	err    error
	got    int64
	waited time.Duration
}

type piece struct {
	buf []byte
	n   int
	err error
}

var errClosed = errors.New("closed")

func (b *body) pump(rc io.ReadCloser) {
	defer rc.Close()
	for {
		var p piece
		select {
		case p.buf = <-b.free:
		case <-b.ctx.Done():
			return
		}
		select { // a slot only while in the driver: open bodies must not starve other calls
		case b.z.slots <- struct{}{}:
		case <-b.ctx.Done():
			return
		}
		p.n, p.err = rc.Read(p.buf)
		<-b.z.slots
		select {
		case b.full <- p:
		case <-b.ctx.Done():
			return
		}
		if p.err != nil {
			return
		}
	}
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	for len(b.rest) == 0 && b.err == nil {
		b.next()
	}
	if len(b.rest) == 0 {
		return 0, b.err
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// next waits for a piece, as long as the bytes so far have earned.
func (b *body) next() {
	if b.buf != nil {
		b.free <- b.buf
		b.buf = nil
	}
	limit := b.z.opt.Timeout + time.Duration(float64(b.got)/float64(b.z.opt.MinRate)*float64(time.Second))
	timer := time.NewTimer(limit - b.waited)
	defer timer.Stop()
	begin := time.Now()
	select {
	case p := <-b.full:
		b.waited += time.Since(begin)
		b.got += int64(p.n)
		b.buf, b.rest, b.err = p.buf, p.buf[:p.n], p.err
		if p.err != nil && !errors.Is(p.err, io.EOF) {
			b.err = b.z.wrap("read", b.name, p.err)
		}
	case <-timer.C:
		b.fail(ended(context.Background(), limit, "too slow a body"))
	case <-b.ctx.Done():
		b.fail(ended(b.ctx, 0, "body not read to its end"))
	}
}

func (b *body) fail(err error) {
	b.err = b.z.wrap("read", b.name, err)
	b.end(b.err)
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.end(errClosed)
	b.err, b.rest = errClosed, nil
	return nil
}

// List implements [Lister]. What yield got is the zone's word only when List
// returns nil: the identity is looked at when the last object has come.
func (z *Zone) List(ctx context.Context, prefix string, yield func(Object) error) error {
	return z.list(ctx, prefix, z.d.List, yield)
}

// ListVersions implements [VersionLister], as List.
func (z *Zone) ListVersions(ctx context.Context, prefix string, yield func(Object) error) error {
	return z.list(ctx, prefix, z.d.ListVersions, yield)
}

type lister func(context.Context, string, func(Object) error) error

// list calls yield on the caller's goroutine, and gives the driver its deadline
// anew with each object, so that neither a slow caller nor a long listing counts
// as a hung zone.
func (z *Zone) list(outer context.Context, prefix string, from lister, yield func(Object) error) error {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	timer := time.NewTimer(z.opt.Timeout)
	defer timer.Stop()
	select {
	case z.slots <- struct{}{}:
	case <-timer.C:
		return z.wrap("list", prefix, ended(outer, z.opt.Timeout, "waiting for one of its calls to end"))
	case <-ctx.Done():
		return z.wrap("list", prefix, ended(outer, 0, "not begun"))
	}
	objects, done := make(chan Object), make(chan error, 1)
	go func() {
		defer func() { <-z.slots }()
		done <- from(ctx, prefix, func(o Object) error {
			select {
			case objects <- o:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	for {
		timer.Reset(z.opt.Timeout)
		select {
		case o := <-objects:
			if err := yield(o); err != nil {
				return err
			}
		case err := <-done:
			if err == nil {
				err = z.verify(outer, -1)
			} else if outer.Err() != nil {
				err = ended(outer, 0, err.Error())
			}
			return z.wrap("list", prefix, err)
		case <-timer.C:
			return z.wrap("list", prefix, ended(outer, z.opt.Timeout, "no answer"))
		case <-ctx.Done():
			return z.wrap("list", prefix, ended(outer, 0, "not read to its end"))
		}
	}
}

package restore

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// Sizes of what is asked of a zone at once. A pack's plaintext is encrypted in
// chunks (C2SP age); a header of a few recipients fits into headRoom, and what
// does not is asked for on its own.
const (
	windowEach  = 24 << 20 // bytes in memory for each worker
	spanSize    = 8 << 20
	spanGap     = 256 << 10 // less between two pieces is read with them
	headRoom    = 8 << 10
	sealedChunk = 64<<10 + 16
)

// extent is a stretch of a stored object.
type extent struct{ from, to int64 }

// spans are what must be read of the job's pack, in the order it is read: the
// end, which tells that the pack is whole, then ascending.
func (j *job) spans() []extent {
	size := j.pack.Ref.Size
	var need int64
	var out []extent
	_ = frames(j.list, func(same []record) error {
		f := same[0].frame
		from := f.Off / (64 << 10) * sealedChunk
		to := (f.Off+int64(f.Len)+64<<10-1)/(64<<10)*sealedChunk + headRoom
		need += int64(f.Len)
		if n := len(out); n > 0 && from-out[n-1].to < spanGap {
			out[n-1].to = max(out[n-1].to, to)
		} else {
			out = append(out, extent{from, to})
		}
		return nil
	})
	switch {
	case 2*need > size:
		out = []extent{{0, size}}
	case out[0].from < spanGap:
		out[0].from = 0
	default:
		out = slices.Insert(out, 0, extent{0, headRoom})
	}
	return append([]extent{{max(0, size-sealedChunk), size}}, cut(out, size)...)
}

// cut keeps spans within the object and to a size that memory has room for.
func cut(list []extent, size int64) []extent {
	var out []extent
	for _, e := range list {
		for e.to = min(e.to, size); e.from < e.to; e.from += spanSize {
			out = append(out, extent{e.from, min(e.to, e.from+spanSize)})
		}
	}
	return out
}

// source reads a stored object by spans that are fetched ahead. What it gives is
// not verified. One goroutine reads while another runs.
type source struct {
	ctx    context.Context // of the restore: io.ReaderAt has none
	reader vault.Reader
	ref    catalog.Ref
	window *window
	spans  []*span // the object's end, then ascending
	freed  int     // those before it were given back, but for the first

	mu    sync.Mutex
	zones []string // that gave bytes
}

type span struct {
	extent
	ready chan struct{}
	body  []byte
	err   error
}

// window bounds the bytes that are asked for ahead, and keeps the memory of whole spans:
// large memory that is let go of and made anew is filled with zeros each time, and found
// page by page.
type window struct {
	*semaphore.Weighted
	spare chan []byte // of spanSize
}

func newWindow(workers int) *window {
	n := workers * windowEach
	return &window{semaphore.NewWeighted(int64(n)), make(chan []byte, n/spanSize)}
}

func (w *window) memory(n int64) []byte {
	var b []byte
	select {
	case b = <-w.spare:
	default:
	}
	if n == int64(len(b)) {
		return b
	}
	return make([]byte, n) // in the place of the spare one, which is let go of
}

func (w *window) giveBack(body []byte, n int64) {
	if len(body) == spanSize {
		select {
		case w.spare <- body:
		default:
		}
	}
	w.Release(n)
}

func newSource(ctx context.Context, r vault.Reader, ref catalog.Ref, window *window, list []extent) *source {
	s := &source{ctx: ctx, reader: r, ref: ref, window: window, freed: 1}
	for _, e := range list {
		s.spans = append(s.spans, &span{extent: e, ready: make(chan struct{})})
	}
	return s
}

// run fetches the spans in order, as far as the window lets it: whoever reads
// them gives them back in the same order.
func (s *source) run() error {
	for _, p := range s.spans {
		if err := s.window.Acquire(s.ctx, p.to-p.from); err != nil {
			return context.Cause(s.ctx)
		}
		go func() {
			defer close(p.ready)
			p.body, p.err = s.ask(p.from, p.to-p.from)
		}()
	}
	return nil
}

func (s *source) ask(off, n int64) ([]byte, error) {
	return s.reader.RangeAccept(s.ctx, vault.Need(s.ref), off, n, s.window.memory, func(zone string, _ []byte) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.Contains(s.zones, zone) {
			s.zones = append(s.zones, zone)
		}
		return nil
	})
}

// whole reads the object again and checks it as a whole: first from those zones
// whose bytes were wrong, so that it is known which they are.
func (s *source) whole() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, z := range s.zones {
		if body, err := s.reader.Only(z).Get(s.ctx, s.ref.Name, s.ref.Size, s.ref.SHA256); err == nil {
			return body, nil
		}
	}
	return s.reader.Get(s.ctx, s.ref.Name, s.ref.Size, s.ref.SHA256)
}

// free gives back what lies before off.
func (s *source) free(off int64) {
	for s.freed < len(s.spans) && s.spans[s.freed].to <= off && s.give(s.spans[s.freed]) {
		s.freed++
	}
}

func (s *source) give(p *span) bool {
	select {
	case <-p.ready:
		s.window.giveBack(p.body, p.to-p.from)
		p.body = nil
		return true
	case <-s.ctx.Done():
		return false
	}
}

// close gives back the rest. A second call does nothing.
func (s *source) close() {
	if s.freed <= len(s.spans) && s.give(s.spans[0]) {
		s.free(s.ref.Size)
		s.freed = len(s.spans) + 1
	}
}

// ReadAt implements io.ReaderAt; offsets ascend but for the object's end.
func (s *source) ReadAt(b []byte, off int64) (n int, err error) {
	if off < s.spans[0].from {
		s.free(off)
	}
	for n < len(b) && off+int64(n) < s.ref.Size {
		got, err := s.some(b[n:], off+int64(n))
		if err != nil {
			return n, err
		}
		n += got
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (s *source) some(b []byte, off int64) (int, error) {
	for i, p := range s.spans {
		if off < p.from || off >= p.to || 0 < i && i < s.freed {
			continue
		}
		select {
		case <-p.ready:
		case <-s.ctx.Done():
			return 0, context.Cause(s.ctx)
		}
		if p.err != nil {
			return 0, p.err
		}
		return copy(b, p.body[off-p.from:]), nil
	}
	// A header of very many recipients.
	body, err := s.ask(off, int64(len(b)))
	if err == nil && len(body) == 0 {
		err = fmt.Errorf("%s: nothing at %d", s.ref.Name, off)
	}
	return copy(b, body), err
}

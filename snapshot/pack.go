package snapshot

import (
	"context"
	"fmt"
	"sync"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// chunk is the raw bytes of one frame and the extents that lie in it.
type chunk struct {
	raw     []byte // at most seal.MaxFrame
	extents []*catalog.Extent
}

func newChunk() *chunk { return &chunk{raw: make([]byte, 0, seal.MaxFrame)} }

func (c *chunk) reset() {
	c.raw = c.raw[:0]
	c.extents = c.extents[:0]
}

// place says where the frame came to lie.
func (c *chunk) place(pack, frame int) {
	for _, e := range c.extents {
		e.Pack, e.Frame = pack, frame
	}
}

// packer fills packs, seals each once in memory, and sends them. Memory: a pack
// and a frame for each lane, and as many sealed packs on their way as lanes.
type packer struct {
	put        func(ctx context.Context, n int, body []byte, sum [32]byte) (catalog.Ref, error)
	recipients []age.Recipient
	level      string
	group      *errgroup.Group
	ctx        context.Context //nolint:containedctx // the group's own, for the puts it runs
	sending    chan struct{}

	mu     sync.Mutex
	packs  []catalog.ManifestPack // by number; complete after wait
	stored int64
}

func newPacker(ctx context.Context, lanes int, level string, to []age.Recipient,
	put func(ctx context.Context, n int, body []byte, sum [32]byte) (catalog.Ref, error),
) *packer {
	group, gctx := errgroup.WithContext(ctx)
	return &packer{put: put, recipients: to, level: level, group: group, ctx: gctx, sending: make(chan struct{}, lanes)}
}

// wait ends the sending: nil when every pack is in the quorum.
func (p *packer) wait() error { return p.group.Wait() }

// reserve gives out the next pack's number.
func (p *packer) reserve() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.packs = append(p.packs, catalog.ManifestPack{N: len(p.packs)})
	return len(p.packs) - 1
}

func (p *packer) send(n int, pack *seal.Pack) error {
	select {
	case p.sending <- struct{}{}:
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
	sealed, err := pack.Seal(p.recipients)
	if err != nil {
		<-p.sending
		return fmt.Errorf("seal pack %d: %w", n, err)
	}
	p.group.Go(func() error {
		defer func() { <-p.sending }()
		ref, err := p.put(p.ctx, n, sealed.Body, sealed.SHA256)
		if err != nil {
			return fmt.Errorf("send pack %d: %w", n, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.packs[n].Ref = ref
		p.packs[n].Frames = make([]catalog.Frame, len(sealed.Frames))
		for i, f := range sealed.Frames {
			p.packs[n].Frames[i] = catalog.Frame(f)
		}
		p.stored += ref.Size
		return nil
	})
	return nil
}

// lane is one worker's way into the packs; it belongs to one goroutine.
type lane struct {
	p    *packer
	comp *seal.Compressor
	pack *seal.Pack
	n    int
}

func (p *packer) lane() *lane { return &lane{p: p, comp: seal.NewCompressor(p.level)} }

// add makes c a frame of the lane's pack. c is free again when it returns.
func (l *lane) add(c *chunk) error {
	if len(c.raw) == 0 {
		return nil
	}
	if err := l.p.ctx.Err(); err != nil {
		return context.Cause(l.p.ctx)
	}
	if l.pack == nil {
		l.pack, l.n = seal.NewPack(), l.p.reserve()
	}
	frame := l.pack.Add(l.comp.Compress(c.raw))
	c.place(l.n, frame)
	if l.pack.Size() >= seal.PackTarget || frame+1 >= catalog.MaxPackFrames {
		return l.flush()
	}
	return nil
}

// flush sends the pack in the making.
func (l *lane) flush() error {
	if l.pack == nil {
		return nil
	}
	pack := l.pack
	l.pack = nil
	return l.p.send(l.n, pack)
}

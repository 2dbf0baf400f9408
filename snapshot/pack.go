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

// packer fills one pack at a time with the frames of all workers, sealed as they
// come, and sends each full one. Memory: the pack in the making and the few that
// are on their way, whatever the number of workers.
type packer struct {
	put        func(ctx context.Context, n int, body []byte, sum [32]byte) (catalog.Ref, error)
	kept       func(n int, p ownPack) error // told of each pack that the quorum holds
	recipients []age.Recipient
	group      *errgroup.Group
	ctx        context.Context //nolint:containedctx // the group's own, for the puts it runs
	sending    chan struct{}

	mu     sync.Mutex // held while a full pack waits for room: who sends must do without
	making *seal.PackWriter
	off    int64 // where the next frame begins

	table sync.Mutex
	packs []ownPack // by number; with their names after wait
}

// ownPack is a pack of the snapshot in the making.
type ownPack struct {
	Ref catalog.Ref `json:"ref"`
	Raw int64       `json:"raw"`
}

// newPacker makes a packer of which up to flying packs are on their way at once.
func newPacker(ctx context.Context, to []age.Recipient, flying int,
	put func(ctx context.Context, n int, body []byte, sum [32]byte) (catalog.Ref, error),
) *packer {
	group, gctx := errgroup.WithContext(ctx)
	return &packer{
		put: put, recipients: to, group: group, ctx: gctx, sending: make(chan struct{}, flying),
		kept: func(int, ownPack) error { return nil },
	}
}

// wait ends the sending: nil when every pack is in the quorum.
func (p *packer) wait() error { return p.group.Wait() }

// add makes f a frame of the pack in the making and says where it lies. It waits
// while too many packs are on their way.
func (p *packer) add(f seal.CompressedFrame) (catalog.LeafFrame, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.making == nil {
		var err error
		if p.making, err = seal.NewPackWriter(p.recipients, seal.PackTarget); err != nil {
			return catalog.LeafFrame{}, err
		}
		p.off = 0
		p.number()
	}
	n := p.count(int64(f.Raw()))
	at := catalog.LeafFrame{Pack: uint32(n), Off: p.off, Len: f.Len(), Raw: f.Raw(), SHA256: f.SHA256()}
	if _, err := p.making.Add(f); err != nil {
		return at, fmt.Errorf("pack %d: %w", n, err)
	}
	p.off += int64(f.Len())
	if p.making.Full() {
		return at, p.send()
	}
	return at, nil
}

// number gives the next pack its number.
func (p *packer) number() {
	p.table.Lock()
	defer p.table.Unlock()
	p.packs = append(p.packs, ownPack{})
}

// count adds raw bytes to the pack in the making and returns its number.
func (p *packer) count(raw int64) int {
	p.table.Lock()
	defer p.table.Unlock()
	n := len(p.packs) - 1
	p.packs[n].Raw += raw
	return n
}

// name says how pack n is called, now that it is sent.
func (p *packer) name(n int, ref catalog.Ref) ownPack {
	p.table.Lock()
	defer p.table.Unlock()
	p.packs[n].Ref = ref
	return p.packs[n]
}

// flush sends the pack in the making.
func (p *packer) flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.making == nil {
		return nil
	}
	return p.send()
}

// send waits for room among those on their way and sends the pack in the making.
// The lock is held meanwhile: else each worker would fill another.
func (p *packer) send() error {
	select {
	case p.sending <- struct{}{}:
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
	n := p.count(0)
	sealed, err := p.making.Seal()
	p.making = nil
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
		return p.kept(n, p.name(n, ref))
	})
	return nil
}

package snapshot

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

func compareSpans(ta, tb uint32, fa, fb, ea, eb lsn.LSN) int {
	return cmp.Or(cmp.Compare(ta, tb), cmp.Compare(fa, fb), cmp.Compare(ea, eb))
}

// span is a stretch of WAL without a hole, to exclusive.
type span struct {
	timeline uint32
	from, to lsn.LSN
}

// maxSpans bounds what a progress remembers: with more holes than that the
// oldest stretches are forgotten, and found again in the repository.
const maxSpans = 512

// progress knows which WAL is durable in the quorum, and lets others wait for it.
type progress struct {
	mu      sync.Mutex
	spans   []span    // sorted, disjoint, not touching
	commit  time.Time // newest commit or abort that is durable, the server's clock
	server  time.Time // the server's clock at the newest durable byte
	changed chan struct{}
	dead    error
}

func newProgress() *progress { return &progress{changed: make(chan struct{})} }

// add says that w is durable.
func (p *progress) add(w catalog.WAL) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.commit, p.server = later(p.commit, w.LastTime), later(p.server, w.ServerTime)
	if w.To > w.From {
		p.cover(span{w.Timeline, w.From, w.To})
	}
	p.wake()
}

// start says that everything before at is known to be durable, or is not asked for.
func (p *progress) start(timeline uint32, at lsn.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cover(span{timeline, at, at})
	p.wake()
}

// forget drops every stretch: what follows is another branch.
func (p *progress) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spans = nil
	p.wake()
}

// cover joins s with what it touches.
func (p *progress) cover(s span) {
	var rest []span
	for _, o := range p.spans {
		if o.timeline == s.timeline && o.from <= s.to && s.from <= o.to {
			s.from, s.to = min(s.from, o.from), max(s.to, o.to)
			continue
		}
		rest = append(rest, o)
	}
	i, _ := slices.BinarySearchFunc(rest, s, func(a, b span) int {
		return compareSpans(a.timeline, b.timeline, a.from, b.from, a.to, b.to)
	})
	p.spans = slices.Insert(rest, i, s)
	if len(p.spans) > maxSpans {
		p.spans = p.spans[len(p.spans)-maxSpans:]
	}
}

func (p *progress) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// end lets every waiter go with err: nothing more will become durable.
func (p *progress) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = err
	p.wake()
}

// newest is the end of the last stretch of the newest timeline.
func (p *progress) newest() (timeline uint32, at lsn.LSN, commit, server time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.spans); n > 0 {
		timeline, at = p.spans[n-1].timeline, p.spans[n-1].to
	}
	return timeline, at, p.commit, p.server
}

// covered says whether the newest timeline's stretch that holds to, or ends with
// it, is without a hole down to its start.
func (p *progress) covered(to lsn.LSN) bool {
	n := len(p.spans)
	for i := n - 1; i >= 0 && p.spans[i].timeline == p.spans[n-1].timeline; i-- {
		if p.spans[i].from <= to && to <= p.spans[i].to {
			return true
		}
	}
	return false
}

// has says whether everything before to is durable on the newest timeline.
func (p *progress) has(to lsn.LSN) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.covered(to)
}

// wait returns when everything before to is durable on the newest timeline.
func (p *progress) wait(ctx context.Context, to lsn.LSN) error {
	for {
		p.mu.Lock()
		done, dead, changed := p.covered(to), p.dead, p.changed
		p.mu.Unlock()
		switch {
		case done:
			return nil
		case dead != nil:
			return dead
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

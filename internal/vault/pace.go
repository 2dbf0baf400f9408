package vault

import (
	"context"
	"regexp"
	"sync"
	"time"
)

// pacer holds what is sent to all zones together to rate bytes a second. Bulk
// (packs, maps, copies from zone to zone) waits; what is urgent (WAL and every note)
// never does, and is paid for by the bulk behind it.
type pacer struct {
	rate int64         // 0: no limit
	turn chan struct{} // one piece of bulk at a time waits for the clock

	mu      sync.Mutex
	paid    time.Time // when all that was sent is paid for
	granted time.Time // when the last piece of bulk was let go
}

const (
	// burst is for how long nothing may have been sent and still be made use of.
	burst = 250 * time.Millisecond
	// leastShare of the rate is left to bulk whatever else is sent: a snapshot must
	// end, and its WAL with it, where WAL alone is more than the limit.
	leastShare = 10
	// memory is how much of what urgent bytes took beyond the rate is made up for.
	memory = 10 * time.Second
)

func newPacer(rate int64) *pacer { return &pacer{rate: rate, turn: make(chan struct{}, 1)} }

// piece is what bulk sends at a time: a tenth of a second, so that many share.
func (p *pacer) piece() int { return int(min(max(p.rate/10, 1<<10), 256<<10)) }

func (p *pacer) cost(n int) time.Duration {
	return time.Duration(float64(n) / float64(p.rate) * float64(time.Second))
}

// urgent counts n bytes that do not wait.
func (p *pacer) urgent(_ context.Context, n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.spend(now, n)
	if latest := now.Add(memory); p.paid.After(latest) {
		p.paid = latest
	}
	return nil
}

// spend takes n bytes from what may be sent. The caller holds the lock.
func (p *pacer) spend(now time.Time, n int) {
	if earliest := now.Add(-burst); p.paid.Before(earliest) {
		p.paid = earliest
	}
	p.paid = p.paid.Add(p.cost(n))
}

// bulk waits until n more bytes may be sent.
func (p *pacer) bulk(ctx context.Context, n int) error {
	for n > 0 {
		some := min(n, p.piece())
		if err := p.wait(ctx, some); err != nil {
			return err
		}
		n -= some
	}
	return nil
}

func (p *pacer) wait(ctx context.Context, n int) error {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		pause := p.grant(n)
		if pause <= 0 {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// grant lets n bytes of bulk go, or says how long to wait before asking again:
// urgent bytes may have come in between.
func (p *pacer) grant(n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	pause := min(p.paid.Sub(now), p.granted.Add(leastShare*p.cost(n)).Sub(now))
	if pause > 0 {
		return pause
	}
	p.spend(now, n)
	p.granted = now
	return 0
}

// mayWait says of a new object that nobody's commit waits for it: it is a snapshot's
// and none of its notes.
func mayWait(name string) bool { return bulkName.MatchString(name) }

var bulkName = regexp.MustCompile(`^clusters/[^/]+/snapshots/[^/]+/.*[^/]\.(age|list)$`)

// pace is what an object's bytes are counted by.
func (c *core) pace(bulk bool) func(context.Context, int) error {
	switch {
	case c.pacer.rate <= 0:
		return nil
	case bulk:
		return c.pacer.bulk
	}
	return c.pacer.urgent
}

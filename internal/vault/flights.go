package vault

import (
	"context"
	"fmt"
	"sync"
)

// flights knows what is being written under each name, so that a removal can
// end it first: a write that arrives after a removal would bring back what was
// removed.
type flights struct {
	mu   sync.Mutex
	open map[string]map[*flight]struct{}
}

type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (f *flights) init() { f.open = map[string]map[*flight]struct{}{} }

func (f *flights) begin(ctx context.Context, name string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	fl := &flight{cancel: cancel, done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[name] == nil {
		f.open[name] = map[*flight]struct{}{}
	}
	f.open[name][fl] = struct{}{}
	return ctx, func() { f.end(name, fl) }
}

func (f *flights) end(name string, fl *flight) {
	fl.cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open[name], fl)
	if len(f.open[name]) == 0 {
		delete(f.open, name)
	}
	close(fl.done)
}

func (f *flights) busy(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open[name]) > 0
}

// ground cancels the writes of a name and waits until they have ended.
func (f *flights) ground(ctx context.Context, name string) error {
	f.mu.Lock()
	var waiting []*flight
	for fl := range f.open[name] {
		fl.cancel()
		waiting = append(waiting, fl)
	}
	f.mu.Unlock()
	for _, fl := range waiting {
		select {
		case <-fl.done:
		case <-ctx.Done():
			return fmt.Errorf("waiting for writes of %s to end: %w", name, ctx.Err())
		}
	}
	return nil
}

// begin registers a write of name, unless the name is being removed. The check
// comes after the registration: a removal either sees the write or is seen.
func (c *core) begin(ctx context.Context, name string) (context.Context, func(), error) {
	ctx, end := c.flights.begin(ctx, name)
	if c.removals.has(name) {
		end()
		return nil, nil, fmt.Errorf("writing %s: %w", name, ErrRemoved)
	}
	return ctx, end, nil
}

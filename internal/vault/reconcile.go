package vault

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// reconcileNowAndThen compares the zones, which closes debts that a lost state
// directory or an overflowing journal left out.
func (c *core) reconcileNowAndThen(ctx context.Context) {
	for ctx.Err() == nil {
		missed := c.reconcile(ctx)
		again := time.NewTimer(c.cfg.ReconcileEvery)
		for waiting := true; waiting && ctx.Err() == nil; {
			select {
			case <-again.C:
				waiting = false
			case <-c.recheck:
				waiting = !c.relist.Swap(false) && !slices.ContainsFunc(missed, back)
			case <-ctx.Done():
			}
		}
		again.Stop()
	}
}

func back(m *member) bool {
	_, fault := m.health()
	return fault == nil
}

// reconcile lists all zones and journals what each lacks of what another shows.
// It returns the zones that it has to look at again: they did not answer, or
// lack more than the journal holds.
func (c *core) reconcile(ctx context.Context) []*member {
	again := map[*member]bool{}
	for _, prefix := range c.cfg.Prefixes {
		lacks, faults := c.compare(ctx, prefix)
		for m, err := range faults {
			again[m] = true
			if ctx.Err() == nil {
				c.log.Info("a zone could not be listed to compare it", zap.String("zone", m.name), zap.String("prefix", prefix), zap.Error(err))
			}
		}
		for m, missing := range lacks {
			if err := c.oweMissing(m, missing); err != nil {
				again[m] = true
				c.log.Warn("what a zone lacks could not be journalled", zap.String("zone", m.name), zap.Error(err))
			}
		}
	}
	var out []*member
	for _, m := range c.all {
		if again[m] {
			out = append(out, m)
		}
	}
	return out
}

// oweMissing journals objects before notes, so that back-fill never sees a note
// as all that is missing.
func (c *core) oweMissing(m *member, missing []zone.Object) error {
	for phase := range phases {
		for _, o := range missing {
			if phaseOf(o.Name) != phase || c.barred(o.Name) {
				continue
			}
			owed := debt{Size: o.Size, SHA256: digestIn(o.Name), LockUntil: o.LockedUntil}
			if err := m.debts.owe(o.Name, owed); err != nil {
				return err
			}
		}
	}
	if len(missing) > 0 {
		c.log.Info("a zone lacks objects that others hold", zap.String("zone", m.name), zap.Int("objects", len(missing)))
		m.wake()
	}
	return nil
}

// listed is a zone's listing as it arrives.
type listed struct {
	m       *member
	objects chan zone.Object
	head    zone.Object
	open    bool
	err     error // once objects is closed
}

func (l *listed) next() { l.head, l.open = <-l.objects }

// compare walks the zones' listings side by side, in constant memory but for
// what it finds. A zone lacks only what its own complete listing did not show.
func (c *core) compare(ctx context.Context, prefix string) (map[*member][]zone.Object, map[*member]error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	streams := make([]*listed, len(c.all))
	for i, m := range c.all {
		streams[i] = c.stream(ctx, m, prefix)
	}
	for _, l := range streams {
		l.next()
	}
	lacks := map[*member][]zone.Object{}
	for {
		name, any := lowest(streams)
		if !any {
			break
		}
		c.weigh(name, streams, lacks)
	}
	faults := map[*member]error{}
	for _, l := range streams {
		if l.err != nil {
			faults[l.m] = l.err
			delete(lacks, l.m)
		}
	}
	return lacks, faults
}

func (c *core) stream(ctx context.Context, m *member, prefix string) *listed {
	l := &listed{m: m, objects: make(chan zone.Object, 1024)}
	go func() {
		defer close(l.objects)
		last := ""
		l.err = m.List(ctx, prefix, func(o zone.Object) error {
			if o.Name <= last {
				return fmt.Errorf("listing %s: %q came after %q", prefix, o.Name, last)
			}
			last = o.Name
			select {
			case l.objects <- o:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		m.saw(l.err, 0)
	}()
	return l
}

func lowest(streams []*listed) (name string, any bool) {
	for _, l := range streams {
		if l.open && (!any || l.head.Name < name) {
			name, any = l.head.Name, true
		}
	}
	return name, any
}

// weigh takes one name off the streams that show it and notes it for the zones
// that do not and where it belongs. What is being written is nobody's loss yet.
func (c *core) weigh(name string, streams []*listed, lacks map[*member][]zone.Object) {
	var shown zone.Object
	var without []*member
	for _, l := range streams {
		if l.open && l.head.Name == name {
			shown = l.head
			l.next()
		} else {
			without = append(without, l.m)
		}
	}
	if len(without) == 0 || c.barred(name) || c.flights.busy(name) {
		return
	}
	placed := c.root().placed(name).members
	for _, m := range without {
		if slices.Contains(placed, m) && len(lacks[m]) <= maxDebts && !m.owes(name) {
			lacks[m] = append(lacks[m], shown)
		}
	}
}

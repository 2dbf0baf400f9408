package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// SlotView is the replication slot on one of the servers, as it was last seen.
type SlotView struct {
	Host   string
	SeenAt time.Time
	Err    error // why it could not be seen then
	postgres.SlotState
	// Growth is how much more WAL the server keeps for the slot each second, over
	// the last minutes; not above 0 when it does not pile up.
	Growth float64
}

// FullIn forecasts when room bytes more of kept WAL are used up.
func (v SlotView) FullIn(room int64) (time.Duration, bool) {
	if v.Growth <= 0 {
		return 0, false
	}
	const most = 365 * 24 * time.Hour
	if s := float64(max(room, 0)) / v.Growth; s < most.Seconds() {
		return time.Duration(s * float64(time.Second)), true
	}
	return 0, false
}

// slotWindow is how far back Growth looks.
const slotWindow = 10 * time.Minute

type slotSample struct {
	at     time.Time
	behind int64
}

// growth drops the samples that are too old and returns the others' slope.
func growth(samples []slotSample) ([]slotSample, float64) {
	last := samples[len(samples)-1]
	for len(samples) > 2 && last.at.Sub(samples[0].at) > slotWindow {
		samples = samples[1:]
	}
	t := last.at.Sub(samples[0].at)
	if t < time.Minute { // too short to tell a burst from a trend
		return samples, 0
	}
	return samples, float64(last.behind-samples[0].behind) / t.Seconds()
}

// watchSlots looks at the slot on every server that the connection string names. On
// those that are not streamed from, it makes one and moves it on behind the
// archive, so that after a switchover the new primary still has what is not yet
// archived: PostgreSQL copies no slots of its own accord (C-51).
func (a *Archiver) watchSlots(ctx context.Context) error {
	hosts, err := postgres.Hosts(a.c.DSN)
	if err != nil {
		return err
	}
	samples := make([][]slotSample, len(hosts))
	tick := time.NewTicker(a.c.SlotEvery)
	defer tick.Stop()
	for {
		views := make([]SlotView, len(hosts))
		for i, h := range hosts {
			v := SlotView{Host: h.String(), SeenAt: time.Now()}
			v.SlotState, v.Err = a.lookAtSlot(ctx, h, len(hosts) > 1)
			if v.Err == nil {
				samples[i], v.Growth = growth(append(samples[i], slotSample{v.SeenAt, v.Behind}))
			}
			views[i] = v
		}
		a.seen(views)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// seen keeps what was seen of the slots. Where we are a synchronous standby,
// commits wait for us from now on.
func (a *Archiver) seen(views []SlotView) {
	a.mu.Lock()
	a.st.slots = views
	a.st.sync = slices.ContainsFunc(views, func(v SlotView) bool { return v.Synchronous })
	a.mu.Unlock()
	select {
	case a.nudge <- struct{}{}:
	default:
	}
}

// Slots is the slot on each server as it was last seen; nil before the first look.
func (a *Archiver) Slots() []SlotView {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.st.slots
}

func (a *Archiver) lookAtSlot(ctx context.Context, h postgres.Host, keep bool) (postgres.SlotState, error) {
	ctx, cancel := context.WithTimeout(ctx, max(a.c.SlotEvery, 10*time.Second))
	defer cancel()
	sql, err := postgres.Connect(ctx, a.c.DSN, postgres.ConnectOptions{AppName: a.c.AppName, Only: &h, Any: true})
	if err != nil {
		return postgres.SlotState{}, err
	}
	defer func() { _ = sql.Close() }()
	st, err := postgres.GetSlotState(ctx, sql, a.c.Slot)
	if !keep || err == nil && st.Active || err != nil && !errors.Is(err, postgres.ErrNoSlot) {
		return st, err
	}
	if err := a.keepSlot(ctx, h, sql, st); err != nil {
		return st, fmt.Errorf("keeping the slot on %s: %w", h, err)
	}
	return postgres.GetSlotState(ctx, sql, a.c.Slot)
}

// keepSlot makes or renews the slot of a server that nobody streams from, and lets
// it go of what is archived. A server whose history does not hold the archive's end
// (a dead branch, or an old primary) keeps what it has.
func (a *Archiver) keepSlot(ctx context.Context, h postgres.Host, sql *postgres.Conn, st postgres.SlotState) error {
	repl, err := postgres.Connect(ctx, a.c.DSN, postgres.ConnectOptions{Replication: true, AppName: a.c.AppName, Only: &h, Any: true})
	if err != nil {
		return err
	}
	defer func() { _ = repl.Close() }()
	server, err := a.identify(ctx, repl)
	if err != nil {
		return err
	}
	if st.Lost() {
		if err := postgres.DropSlot(ctx, repl, a.c.Slot); err != nil {
			return err
		}
	}
	if st.Lost() || st.Restart == 0 {
		if _, err := postgres.EnsureSlot(ctx, repl, a.c.Slot); err != nil {
			return err
		}
	}
	timeline, at, _, _ := a.w.done.newest()
	if at == lsn.LSN(0) || !server.passes(Place{timeline, at}) {
		return nil
	}
	return postgres.AdvanceSlot(ctx, sql, a.c.Slot, at)
}

package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/scheduler"
)

// told records what a runner says of missed slots.
type told struct {
	mu    sync.Mutex
	slots []string
	err   error
}

func (m *told) missed(_ context.Context, s scheduler.Schedule, slots []time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, slot := range slots {
		m.slots = append(m.slots, s.Name+" "+slot.Format("01-02 15:04"))
	}
	return m.err
}

func (m *told) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	slots := m.slots
	m.slots = nil
	return slots
}

// scheduled is a bench with the schedule "hourly" at each full hour, from 12:00.
func scheduled(t *testing.T, handler scheduler.Handler) (*bench, *told) {
	b, m := newBench(t, map[string]scheduler.Handler{"k": handler}), &told{}
	b.r.Schedules = []scheduler.Schedule{{Name: "hourly", Spec: "0 * * * *", Kind: "k", Lane: "cms", Payload: json.RawMessage(`{"cluster":"cms"}`), Limit: time.Hour}}
	b.r.OnMissed = m.missed
	return b, m
}

// known waits until the runner has taken up its schedules.
func (b *bench) known() {
	b.Helper()
	until(b.T, "the schedule is known", func() bool {
		states, err := b.q.SlotStates(b.Context())
		return err == nil && len(states) == len(b.r.Schedules) && states["hourly"].Spec == b.r.Schedules[0].Spec
	})
}

// again makes a fresh runner on the same queue, as after a restart.
func (b *bench) again() {
	b.r = &scheduler.Runner{
		Queue: b.q, Handlers: b.r.Handlers, Schedules: b.r.Schedules, OnMissed: b.r.OnMissed, OnFinished: b.r.OnFinished,
		Now: b.r.Now, Poll: b.r.Poll, Heartbeat: b.r.Heartbeat, Grace: b.r.Grace, Backoff: b.r.Backoff,
	}
}

func wantSlot(t *testing.T, job scheduler.Job, slot string) {
	t.Helper()
	if got := job.Slot.Format("01-02 15:04"); got != slot || job.State != scheduler.Done || job.Key != scheduler.SlotKey("hourly", job.Slot) {
		t.Fatalf("job %s of slot %s is %s (%s), want slot %s", job.Key, got, job.State, job.Error, slot)
	}
}

func TestMissedSlotsAreMadeUpOnceAndTheEarlierOnesTold(t *testing.T) {
	b, m := scheduled(t, done)
	b.start()
	b.known()
	b.clock.Move(time.Hour) // 13:00: due while it runs
	job := receive(t, b.finished)
	wantSlot(t, job, "03-01 13:00")
	if job.Lane != "cms" || string(job.Payload) != `{"cluster":"cms"}` || !job.Deadline.Equal(b.clock.Now().Add(time.Hour)) {
		t.Errorf("%+v", job)
	}
	b.stop()
	b.clock.Move(4*time.Hour + 10*time.Minute) // 17:10: four slots while nothing ran
	b.again()
	b.start()
	wantSlot(t, receive(t, b.finished), "03-01 17:00")
	if got, want := m.take(), []string{"hourly 03-01 14:00", "hourly 03-01 15:00", "hourly 03-01 16:00"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	b.stop()
	b.again()
	b.start() // nothing is due twice
	b.clock.Move(50 * time.Minute)
	wantSlot(t, receive(t, b.finished), "03-01 18:00")
	b.stop()
	if jobs, err := b.q.List(t.Context(), scheduler.Filter{}); err != nil || len(jobs) != 3 || len(m.take()) > 0 {
		t.Errorf("%d jobs, %v", len(jobs), err)
	}
}

func TestMissedSlotsThatCannotBeRecordedAreToldAgain(t *testing.T) {
	b, m := scheduled(t, done)
	b.start()
	b.known()
	m.mu.Lock()
	m.err = errors.New("the ledger is full")
	m.mu.Unlock()
	b.clock.Move(3 * time.Hour)
	until(t, "they were told twice", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.slots) >= 4 })
	if jobs, err := b.q.List(t.Context(), scheduler.Filter{}); err != nil || len(jobs) > 0 {
		t.Fatalf("%d jobs were made before the missed slots were recorded, %v", len(jobs), err)
	}
	m.mu.Lock()
	m.err = nil
	m.mu.Unlock()
	wantSlot(t, receive(t, b.finished), "03-01 15:00")
}

func TestSlotsWaitForASlowJobInsteadOfQueueingBehindIt(t *testing.T) {
	begun, release := make(chan struct{}, 10), make(chan struct{}, 10)
	b, m := scheduled(t, func(context.Context, scheduler.Job, func(any)) (any, error) {
		begun <- struct{}{}
		<-release
		return nil, nil
	})
	b.start()
	b.known()
	b.clock.Move(time.Hour)
	receive(t, begun)
	b.clock.Move(3 * time.Hour)
	release <- struct{}{}
	wantSlot(t, receive(t, b.finished), "03-01 13:00")
	receive(t, begun)
	release <- struct{}{}
	wantSlot(t, receive(t, b.finished), "03-01 16:00")
	if got, want := m.take(), []string{"hourly 03-01 14:00", "hourly 03-01 15:00"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
}

func TestAClockThatJumpsNeitherRepeatsNorStopsASchedule(t *testing.T) {
	b, m := scheduled(t, done)
	b.start()
	b.known()
	b.clock.Move(time.Hour)
	wantSlot(t, receive(t, b.finished), "03-01 13:00")
	b.clock.Move(-20 * time.Minute) // a correction: 12:40
	b.clock.Move(30 * time.Minute)  // 13:10: 13:00 has run
	b.clock.Move(50 * time.Minute)
	wantSlot(t, receive(t, b.finished), "03-01 14:00")
	b.clock.Move(365 * 24 * time.Hour) // far ahead: more slots than one batch
	wantSlot(t, receive(t, b.finished), "03-01 14:00")
	if got := len(m.take()); got != 365*24-1 {
		t.Errorf("%d slots were told", got)
	}
	b.clock.Move(-365*24*time.Hour + time.Minute) // and back: 14:01
	until(t, "the schedule follows the clock", func() bool {
		states, err := b.q.SlotStates(t.Context())
		return err == nil && states["hourly"].Last.Equal(b.clock.Now())
	})
	b.clock.Move(time.Hour)
	wantSlot(t, receive(t, b.finished), "03-01 15:00")
	if jobs, err := b.q.List(t.Context(), scheduler.Filter{}); err != nil || len(jobs) != 4 {
		t.Errorf("%d jobs, %v", len(jobs), err)
	}
}

func TestAChangedScheduleMissesNothingThatWasNeverDue(t *testing.T) {
	b, m := scheduled(t, done)
	b.start()
	b.known()
	b.stop()
	b.clock.Move(2*time.Hour + 30*time.Minute) // 14:30: two slots of the old expression
	b.r.Schedules[0].Spec = "*/10 * * * *"
	b.again()
	b.start()
	wantSlot(t, receive(t, b.finished), "03-01 14:00")
	b.known()
	if got, want := m.take(), []string{"hourly 03-01 13:00"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	b.clock.Move(10 * time.Minute)
	wantSlot(t, receive(t, b.finished), "03-01 14:40")
	b.stop()
	b.r.Schedules = nil
	b.again()
	b.start()
	until(t, "a schedule that is gone is forgotten", func() bool {
		states, err := b.q.SlotStates(t.Context())
		return err == nil && len(states) == 0
	})
}

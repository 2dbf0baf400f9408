package schedulertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/scheduler"
)

func cancelling(f *fixture) {
	running, waiting := f.enqueue(scheduler.Job{Kind: "k"}), f.enqueue(scheduler.Job{Kind: "w"})
	job := f.claim("k")
	for _, id := range []int64{running, waiting} {
		if err := f.q.Cancel(f.Context(), id); err != nil {
			f.Fatal(err)
		}
	}
	f.want(f.get(waiting), scheduler.Cancelled, 0)
	f.claimNothing("w")
	f.want(f.get(running), scheduler.Running, 1)
	if err := f.q.Heartbeat(f.Context(), job, nil); !errors.Is(err, scheduler.ErrCancelled) {
		f.Errorf("heartbeat: %v", err)
	}
	f.restart()
	f.want(f.get(running), scheduler.Cancelled, 1)
	for _, id := range []int64{running, 1 << 40} {
		if err := f.q.Cancel(f.Context(), id); !errors.Is(err, scheduler.ErrNoJob) {
			f.Errorf("cancelling job %d: %v", id, err)
		}
	}
}

func slots(f *fixture) {
	states := func() map[string]scheduler.SlotState {
		got, err := f.q.SlotStates(f.Context())
		if err != nil {
			f.Fatal(err)
		}
		return got
	}
	state := scheduler.SlotState{Spec: "0 4 * * 1", Last: f.clock.Now()}
	job := scheduler.Job{Kind: "k", Key: "weekly@now"}
	if created, err := f.q.TakeSlot(f.Context(), "weekly", state, &job); err != nil || !created {
		f.Fatalf("created %v, %v", created, err)
	}
	if created, err := f.q.TakeSlot(f.Context(), "weekly", state, &job); err != nil || created {
		f.Errorf("a second time: created %v, %v", created, err)
	}
	if got := states()["weekly"]; got.Spec != state.Spec || !got.Last.Equal(state.Last) {
		f.Errorf("stored %+v", got)
	}
	// A job that cannot be stored leaves the slot untaken.
	next := scheduler.SlotState{Spec: state.Spec, Last: f.clock.Now().Add(time.Hour)}
	if _, err := f.q.TakeSlot(f.Context(), "weekly", next, &scheduler.Job{}); err == nil {
		f.Error("a job without a kind was taken")
	}
	if got := states()["weekly"]; !got.Last.Equal(state.Last) {
		f.Errorf("the slot was taken without its job: %+v", got)
	}
	if created, err := f.q.TakeSlot(f.Context(), "weekly", next, nil); err != nil || created {
		f.Errorf("created %v, %v", created, err)
	}
	if err := f.q.ForgetSchedule(f.Context(), "weekly"); err != nil || len(states()) > 0 {
		f.Errorf("left %v, %v", states(), err)
	}
}

func listings(f *fixture) {
	for i := range 120 {
		f.enqueue(scheduler.Job{Kind: fmt.Sprint("k", i%2), Lane: fmt.Sprint("l", i%3), Schedule: fmt.Sprint("s", i%5)})
	}
	f.claim("k0")
	for name, tt := range map[string]struct {
		filter scheduler.Filter
		want   int
	}{
		"all, bounded":       {scheduler.Filter{}, 100},
		"a limit":            {scheduler.Filter{Limit: 7}, 7},
		"a kind and a lane":  {scheduler.Filter{Kind: "k1", Lane: "l1"}, 20},
		"a schedule":         {scheduler.Filter{Schedule: "s2"}, 24},
		"running":            {scheduler.Filter{States: []scheduler.State{scheduler.Running}}, 1},
		"running or waiting": {scheduler.Filter{States: []scheduler.State{scheduler.Running, scheduler.Available}, Limit: 1000}, 120},
		"nothing":            {scheduler.Filter{Kind: "k9"}, 0},
	} {
		jobs, err := f.q.List(f.Context(), tt.filter)
		if err != nil || len(jobs) != tt.want {
			f.Errorf("%s: %d jobs, %v", name, len(jobs), err)
		}
		for i := 1; i < len(jobs); i++ {
			if jobs[i-1].ID <= jobs[i].ID {
				f.Errorf("%s: %d stands before %d", name, jobs[i-1].ID, jobs[i].ID)
			}
		}
	}
}

func pruning(f *fixture) {
	old := f.enqueue(scheduler.Job{Kind: "k", Key: "old"})
	f.settle(f.claim("k"), scheduler.Outcome{State: scheduler.Failed})
	waiting, running := f.enqueue(scheduler.Job{Kind: "w"}), f.enqueue(scheduler.Job{Kind: "k"})
	f.claim("k")
	f.clock.Move(time.Hour)
	fresh := f.enqueue(scheduler.Job{Kind: "k"})
	f.settle(f.claim("k"), scheduler.Outcome{State: scheduler.Done})
	if n, err := f.q.Prune(f.Context(), f.clock.Now()); err != nil || n != 1 {
		f.Errorf("pruned %d, %v", n, err)
	}
	if _, err := f.q.Get(f.Context(), old); !errors.Is(err, scheduler.ErrNoJob) {
		f.Errorf("the old job: %v", err)
	}
	for _, id := range []int64{waiting, running, fresh} {
		f.get(id)
	}
}

func durability(f *fixture) {
	state := scheduler.SlotState{Spec: "@daily", Last: f.clock.Now()}
	if _, err := f.q.TakeSlot(f.Context(), "s", state, &scheduler.Job{Kind: "k", Key: "s@1"}); err != nil {
		f.Fatal(err)
	}
	done := f.enqueue(scheduler.Job{Kind: "d"})
	f.settle(f.claim("d"), scheduler.Outcome{State: scheduler.Done, Output: json.RawMessage(`1`)})
	f.restart()
	f.want(f.get(done), scheduler.Done, 1)
	if job := f.claim("k"); job.Key != "s@1" {
		f.Errorf("claimed %+v", job)
	}
	if states, err := f.q.SlotStates(context.WithoutCancel(f.Context())); err != nil || !states["s"].Last.Equal(state.Last) {
		f.Errorf("%v, %v", states, err)
	}
}

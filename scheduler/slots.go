package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Schedule makes a job of each slot of a cron expression.
type Schedule struct {
	Name        string // unique; slots are remembered under it
	Spec        string // for ParseCron
	Kind, Lane  string
	Payload     json.RawMessage
	Limit       time.Duration // from the job's making to its deadline; zero: none
	MaxAttempts int
}

// SlotKey is the key of the job of a slot: one slot is one job.
func SlotKey(schedule string, slot time.Time) string {
	return schedule + "@" + slot.UTC().Format(time.RFC3339)
}

type parsedSchedule struct {
	Schedule
	cron Cron
}

func (r *Runner) parseSchedules() ([]parsedSchedule, error) {
	var parsed []parsedSchedule
	names := map[string]bool{}
	for _, s := range r.Schedules {
		c, err := ParseCron(s.Spec)
		if err != nil {
			return nil, fmt.Errorf("schedule %s: %w", s.Name, err)
		}
		if s.Name == "" || names[s.Name] {
			return nil, fmt.Errorf("schedule %q: its name must be given, and once", s.Name)
		}
		if r.Handlers[s.Kind] == nil {
			return nil, fmt.Errorf("schedule %s: no handler does %q", s.Name, s.Kind)
		}
		names[s.Name] = true
		parsed = append(parsed, parsedSchedule{s, c})
	}
	return parsed, nil
}

// slotBatch bounds how many slots are held at once; more are told in turns.
const slotBatch = 1000

// clockSlack is how far a clock may go back before its schedules follow it:
// less is a correction, and the slots of that time have been dealt with.
const clockSlack = time.Hour

// takeSlots deals with what is due in each schedule. A fault leaves the slots
// for the next turn.
func (r *Runner) takeSlots(ctx context.Context, schedules []parsedSchedule) {
	states, err := r.Queue.SlotStates(ctx)
	if err == nil {
		known := map[string]bool{}
		for _, s := range schedules {
			known[s.Name] = true
			state, found := states[s.Name]
			if fault := r.takeDue(ctx, s, state, found); fault != nil && ctx.Err() == nil {
				r.Log.Error("a schedule's slots wait", zap.String("schedule", s.Name), zap.Error(fault))
			}
		}
		for name := range states {
			// A schedule that is gone misses nothing; should it come back, it begins anew.
			if !known[name] && err == nil {
				err = r.Queue.ForgetSchedule(ctx, name)
			}
		}
	}
	if err != nil && ctx.Err() == nil {
		r.Log.Error("the schedules wait", zap.Error(err))
	}
}

func (r *Runner) takeDue(ctx context.Context, s parsedSchedule, state SlotState, found bool) error {
	now := r.Now().UTC()
	if !found {
		_, err := r.Queue.TakeSlot(ctx, s.Name, SlotState{Spec: s.Spec, Last: now}, nil)
		return err
	}
	if state.Last.After(now.Add(clockSlack)) {
		r.Log.Warn("the clock went back: the schedule follows it", zap.String("schedule", s.Name), zap.Time("last_slot", state.Last), zap.Time("now", now))
		_, err := r.Queue.TakeSlot(ctx, s.Name, SlotState{Spec: s.Spec, Last: now}, nil)
		return err
	}
	if state.Spec == s.Spec {
		_, err := r.makeUp(ctx, s, s.cron, state.Last, now)
		return err
	}
	// Until this moment the old expression was in force.
	if old, err := ParseCron(state.Spec); err == nil {
		if waits, err := r.makeUp(ctx, s, old, state.Last, now); err != nil || waits {
			return err
		}
	}
	_, err := r.Queue.TakeSlot(ctx, s.Name, SlotState{Spec: s.Spec, Last: now}, nil)
	return err
}

// makeUp enqueues the newest slot in (last, now] and reports the others. While
// the schedule's job before is not finished, slots wait, so that a slow job
// never has a queue behind it.
func (r *Runner) makeUp(ctx context.Context, s parsedSchedule, c Cron, last, now time.Time) (waits bool, err error) {
	if !c.due(last, now) {
		return false, nil
	}
	open, err := r.Queue.List(ctx, Filter{Schedule: s.Name, States: []State{Available, Running}, Limit: 1})
	if err != nil || len(open) > 0 {
		return len(open) > 0, err
	}
	for {
		due := c.Slots(last, now, slotBatch)
		newest := due[len(due)-1]
		more := c.due(newest, now)
		missed := due[:len(due)-1]
		if more {
			missed = due
		}
		if len(missed) > 0 && r.OnMissed != nil {
			if err := r.OnMissed(ctx, s.Schedule, missed); err != nil {
				return false, fmt.Errorf("recording %d missed slots: %w", len(missed), err)
			}
		}
		state := SlotState{Spec: c.String(), Last: newest}
		if !more {
			job := s.job(newest, now)
			_, err := r.Queue.TakeSlot(ctx, s.Name, state, &job)
			return false, err
		}
		if _, err := r.Queue.TakeSlot(ctx, s.Name, state, nil); err != nil {
			return false, err
		}
		last = newest
	}
}

func (s parsedSchedule) job(slot, now time.Time) Job {
	job := Job{
		Kind: s.Kind, Lane: s.Lane, Key: SlotKey(s.Name, slot), Schedule: s.Name, Slot: slot,
		Payload: s.Payload, RunAt: slot, MaxAttempts: s.MaxAttempts,
	}
	if s.Limit > 0 {
		job.Deadline = now.Add(s.Limit)
	}
	return job
}

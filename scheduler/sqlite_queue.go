package scheduler

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

const columns = `id, kind, lane, coalesce(key, ''), schedule, slot, payload, run_at, deadline, state, attempt, max_attempts,
	owner, progress, output, error, created_at, started_at, finished_at`

func scanJob(row interface{ Scan(...any) error }) (Job, error) {
	var j Job
	var slot, runAt, deadline, created, started, finished int64
	var payload, progress, output []byte
	err := row.Scan(&j.ID, &j.Kind, &j.Lane, &j.Key, &j.Schedule, &slot, &payload, &runAt, &deadline, &j.State, &j.Attempt, &j.MaxAttempts,
		&j.Owner, &progress, &output, &j.Error, &created, &started, &finished)
	j.Payload, j.Progress, j.Output = payload, progress, output
	j.Slot, j.RunAt, j.Deadline = fromMicros(slot), fromMicros(runAt), fromMicros(deadline)
	j.CreatedAt, j.StartedAt, j.FinishedAt = fromMicros(created), fromMicros(started), fromMicros(finished)
	return j, err
}

func scanJobs(rows *sql.Rows, err error) ([]Job, error) {
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what went wrong
	var jobs []Job
	for rows.Next() {
		j, err := scanJob(rows)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, j)
	}
	return jobs, rows.Err()
}

// Enqueue implements [Enqueuer].
func (q *SQLite) Enqueue(ctx context.Context, job Job) (id int64, created bool, err error) {
	err = q.tx(ctx, func(tx *sql.Tx) error {
		id, created, err = q.insert(ctx, tx, job)
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("enqueueing a job %s %s: %w", job.Kind, job.Key, err)
	}
	return id, created, nil
}

func (q *SQLite) insert(ctx context.Context, tx *sql.Tx, job Job) (id int64, created bool, err error) {
	if job.Kind == "" {
		return 0, false, errors.New("it has no kind")
	}
	now := q.now()
	if job.RunAt.IsZero() {
		job.RunAt = now
	}
	var key any
	if job.Key != "" {
		key = job.Key
	}
	err = tx.QueryRowContext(ctx, `INSERT INTO jobs (kind, lane, key, schedule, slot, payload, run_at, deadline, state, max_attempts, created_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'available', ?, ?) ON CONFLICT (key) WHERE key IS NOT NULL DO NOTHING RETURNING id`,
		job.Kind, job.Lane, key, job.Schedule, micros(job.Slot), []byte(job.Payload), micros(job.RunAt), micros(job.Deadline),
		cmp.Or(job.MaxAttempts, DefaultAttempts), micros(now)).Scan(&id)
	if !errors.Is(err, sql.ErrNoRows) {
		return id, err == nil, err
	}
	return id, false, tx.QueryRowContext(ctx, "SELECT id FROM jobs WHERE key = ?", key).Scan(&id)
}

// Claim implements [Claimer].
func (q *SQLite) Claim(ctx context.Context, kinds []string) (Job, bool, error) {
	list, err := json.Marshal(kinds)
	if err != nil {
		return Job{}, false, err
	}
	now := micros(q.now())
	job, err := scanJob(q.db.QueryRowContext(ctx, `UPDATE jobs SET state = 'running', owner = ?, attempt = attempt + 1, started_at = ?, progress = NULL
		WHERE id = (SELECT id FROM jobs AS j WHERE state = 'available' AND run_at <= ? AND kind IN (SELECT value FROM json_each(?))
			AND NOT EXISTS (SELECT 1 FROM jobs AS r WHERE r.state = 'running' AND r.lane <> '' AND r.lane = j.lane)
			ORDER BY run_at, id LIMIT 1)
		RETURNING `+columns, q.owner, now, now, string(list)))
	if errors.Is(err, sql.ErrNoRows) {
		return Job{}, false, nil
	}
	if err != nil {
		return Job{}, false, fmt.Errorf("claiming a job: %w", err)
	}
	return job, true, nil
}

// mine holds for a job as it was claimed: a second attempt, or another owner,
// is another claim.
const mine = ` WHERE id = ? AND state = 'running' AND owner = ? AND attempt = ?`

// Heartbeat implements [Claimer].
func (q *SQLite) Heartbeat(ctx context.Context, job Job, progress json.RawMessage) error {
	var cancelling bool
	err := q.db.QueryRowContext(ctx, "UPDATE jobs SET progress = coalesce(?, progress)"+mine+" RETURNING cancelling",
		[]byte(progress), job.ID, job.Owner, job.Attempt).Scan(&cancelling)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		err = ErrLost
	case err == nil && cancelling:
		err = ErrCancelled
	}
	if err != nil {
		return fmt.Errorf("heartbeat of job %d (%s): %w", job.ID, job.Kind, err)
	}
	return nil
}

// Settle implements [Claimer].
func (q *SQLite) Settle(ctx context.Context, job Job, o Outcome) error {
	refund, finished, runAt := 0, int64(0), micros(job.RunAt)
	switch {
	case o.State.Finished():
		finished = micros(q.now())
	case o.State == Available:
		runAt = micros(o.RetryAt)
	default:
		return fmt.Errorf("settling job %d (%s): %q is no outcome", job.ID, job.Kind, o.State)
	}
	if o.Refund {
		refund = 1
	}
	res, err := q.db.ExecContext(ctx, `UPDATE jobs SET state = ?, output = ?, error = ?, run_at = ?, attempt = attempt - ?, finished_at = ?, owner = '', cancelling = 0`+mine,
		o.State, []byte(o.Output), o.Error, runAt, refund, finished, job.ID, job.Owner, job.Attempt)
	if err == nil {
		err = oneRow(res, ErrLost)
	}
	if err != nil {
		return fmt.Errorf("settling job %d (%s) as %s: %w", job.ID, job.Kind, o.State, err)
	}
	return nil
}

func oneRow(res sql.Result, otherwise error) error {
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return otherwise
	}
	return err
}

// Get implements [Reader].
func (q *SQLite) Get(ctx context.Context, id int64) (Job, error) {
	job, err := scanJob(q.db.QueryRowContext(ctx, "SELECT "+columns+" FROM jobs WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNoJob
	}
	if err != nil {
		return Job{}, fmt.Errorf("reading job %d: %w", id, err)
	}
	return job, nil
}

// List implements [Reader].
func (q *SQLite) List(ctx context.Context, f Filter) ([]Job, error) {
	where, args := []string{"true"}, []any{}
	for column, value := range map[string]string{"kind": f.Kind, "lane": f.Lane, "schedule": f.Schedule} {
		if value != "" {
			where, args = append(where, column+" = ?"), append(args, value)
		}
	}
	if len(f.States) > 0 {
		states, err := json.Marshal(f.States)
		if err != nil {
			return nil, err
		}
		where, args = append(where, "state IN (SELECT value FROM json_each(?))"), append(args, string(states))
	}
	args = append(args, cmp.Or(f.Limit, 100))
	jobs, err := scanJobs(q.db.QueryContext(ctx, "SELECT "+columns+" FROM jobs WHERE "+strings.Join(where, " AND ")+" ORDER BY id DESC LIMIT ?", args...))
	if err != nil {
		return nil, fmt.Errorf("listing jobs: %w", err)
	}
	return jobs, nil
}

// SlotStates implements [Slots].
func (q *SQLite) SlotStates(ctx context.Context) (map[string]SlotState, error) {
	rows, err := q.db.QueryContext(ctx, "SELECT name, spec, last FROM schedules")
	if err != nil {
		return nil, fmt.Errorf("reading the schedules' last slots: %w", err)
	}
	defer func() { _ = rows.Close() }() // rows.Err says what went wrong
	states := map[string]SlotState{}
	for rows.Next() {
		var name, spec string
		var last int64
		if err := rows.Scan(&name, &spec, &last); err != nil {
			return nil, fmt.Errorf("reading the schedules' last slots: %w", err)
		}
		states[name] = SlotState{Spec: spec, Last: fromMicros(last)}
	}
	return states, rows.Err()
}

// TakeSlot implements [Slots].
func (q *SQLite) TakeSlot(ctx context.Context, schedule string, state SlotState, job *Job) (created bool, err error) {
	err = q.tx(ctx, func(tx *sql.Tx) error {
		if job != nil {
			if _, created, err = q.insert(ctx, tx, *job); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO schedules (name, spec, last) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, last = excluded.last`, schedule, state.Spec, micros(state.Last))
		return err
	})
	if err != nil {
		return false, fmt.Errorf("taking slot %v of schedule %s: %w", state.Last, schedule, err)
	}
	return created, nil
}

// ForgetSchedule implements [Slots].
func (q *SQLite) ForgetSchedule(ctx context.Context, schedule string) error {
	if _, err := q.db.ExecContext(ctx, "DELETE FROM schedules WHERE name = ?", schedule); err != nil {
		return fmt.Errorf("forgetting schedule %s: %w", schedule, err)
	}
	return nil
}

// Recover implements [Keeper]: this process holds the lock, so every other
// owner is dead.
func (q *SQLite) Recover(ctx context.Context) ([]Job, error) {
	now := micros(q.now())
	jobs, err := scanJobs(q.db.QueryContext(ctx, `UPDATE jobs SET owner = '', cancelling = 0, run_at = ?,
		error = 'the process ended during attempt ' || attempt,
		finished_at = CASE WHEN cancelling OR attempt >= max_attempts THEN ? ELSE 0 END,
		state = CASE WHEN cancelling THEN 'cancelled' WHEN attempt >= max_attempts THEN 'failed' ELSE 'available' END
		WHERE state = 'running' AND owner <> ? RETURNING `+columns, now, now, q.owner))
	if err != nil {
		return nil, fmt.Errorf("recovering the jobs of processes that ended: %w", err)
	}
	return jobs, nil
}

// Cancel implements [Keeper].
func (q *SQLite) Cancel(ctx context.Context, id int64) error {
	res, err := q.db.ExecContext(ctx, `UPDATE jobs SET
		cancelling = (state = 'running'),
		finished_at = CASE state WHEN 'available' THEN ? ELSE 0 END,
		state = CASE state WHEN 'available' THEN 'cancelled' ELSE state END
		WHERE id = ? AND state IN ('available', 'running')`, micros(q.now()), id)
	if err == nil {
		err = oneRow(res, ErrNoJob)
	}
	if errors.Is(err, ErrNoJob) {
		err = fmt.Errorf("%w that waits or runs", err)
	}
	if err != nil {
		return fmt.Errorf("cancelling job %d: %w", id, err)
	}
	return nil
}

// Prune implements [Keeper].
func (q *SQLite) Prune(ctx context.Context, before time.Time) (int64, error) {
	res, err := q.db.ExecContext(ctx, "DELETE FROM jobs WHERE finished_at > 0 AND finished_at < ?", micros(before))
	if err != nil {
		return 0, fmt.Errorf("pruning jobs finished before %v: %w", before, err)
	}
	return res.RowsAffected()
}

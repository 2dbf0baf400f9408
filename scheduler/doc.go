// Package scheduler decides when: cron schedules with a name for each of their
// slots, durable jobs in lanes, and the runner that carries jobs to handlers.
//
// It knows nothing of backups: the program registers a handler for each kind of
// job. It never runs two jobs of one lane at once, never makes a slot into two
// jobs, never forgets a slot that fell due while nothing ran, and never takes a
// job from a process that may still be alive. It fails by leaving jobs where
// they are: whatever was not settled is found again at the next start, and
// losing its database loses no backup.
package scheduler

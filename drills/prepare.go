package drills

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/restore"
)

// prepare restores into a scratch directory of the environment. What it took from
// began until the copy answers queries is the recovery time.
func (r *run) prepare(ctx context.Context, began time.Time) {
	if !r.phase(ctx, "environment", r.makeRoom) {
		return
	}
	ctx, stop := r.scratch.watch(ctx, r.def.Limits.Disk)
	defer stop()
	r.phase(ctx, "restore", func(ctx context.Context) (err error) {
		r.room, err = restore.Prepare(ctx, r.deps.Repo, *r.restore, restore.Options{
			To: r.scratch.data(), Binaries: r.def.Environment.Binaries, User: r.def.Environment.User, Role: r.deps.Role, Program: r.deps.Program,
			Workers: r.deps.Workers, Replay: r.replayer(), Digests: r.deps.Digests, Log: r.deps.ServerLog, Stall: r.deps.Stall,
			Progress: func(p restore.Progress) {
				if r.deps.Progress != nil {
					r.deps.Progress(r.rec.ID, p)
				}
			},
		})
		return err
	})
	if r.room == nil {
		return
	}
	r.rec.RTO = measure(r.def.Objectives.RTO, ptr(time.Since(began)), "from the start of the plan until the restored copy answered, deleted projects removed")
	r.settle(ctx)
}

// makeRoom looks for what the restore needs and makes the scratch directory.
func (r *run) makeRoom(context.Context) (err error) {
	if _, err := sandbox.FindPrograms(r.restore.Major, r.def.Environment.Binaries); err != nil {
		return fmt.Errorf("%w: %w", errPrereq, err)
	}
	if free, err := freeBytes(r.def.Environment.Directory); err == nil && free < r.restore.DiskNeeded {
		return fmt.Errorf("%w: %s has %d bytes free and the restore needs up to %d", errPrereq, r.def.Environment.Directory, free, r.restore.DiskNeeded)
	}
	r.scratch, err = newScratch(r.def.Environment, leftover{Drill: r.rec.ID, Name: r.def.Name, Slot: r.slot.Key, StartedAt: r.rec.StartedAt})
	if err != nil {
		return fmt.Errorf("%w: %w", errPrereq, err)
	}
	return nil
}

// replayer is the one given, its faults told from those of the restore.
func (r *run) replayer() restore.Replayer {
	if r.deps.Replay == nil {
		return nil
	}
	return func(ctx context.Context, connect func(context.Context, string) (*pgx.Conn, error), tombs []catalog.Tombstone) ([]restore.AppliedTombstone, error) {
		applied, err := r.deps.Replay(ctx, connect, tombs)
		if err != nil {
			err = fmt.Errorf("%w: %w", errPurge, err)
		}
		return applied, err
	}
}

// settle notes what the restore came to.
func (r *run) settle(ctx context.Context) {
	res := r.room.Result
	r.rec.Reached = &res.Reached
	r.rec.Phases = append(
		r.rec.Phases,
		Phase{Name: "restore.fetch", Seconds: res.Seconds.Fetch, Bytes: res.Bytes, Outcome: "done"},
		Phase{Name: "restore.replay", Seconds: res.Seconds.Replay, Bytes: int64(r.restore.WAL.To - r.restore.WAL.From), Outcome: "done"},
		Phase{Name: "restore.tombstones", Seconds: res.Seconds.Verify, Outcome: "done"},
	)
	r.rec.Cost.BytesRead += res.Bytes
	room := r.room.Server.Room()
	r.rec.Place.Room = &room
	if t := r.restore.Target; t.Kind == restore.AtTime && !res.Reached.Time.IsZero() {
		r.rec.RPO.AtTarget = ptr(t.Time.Sub(res.Reached.Time).Seconds())
	}
	if conn, err := r.room.Server.Conn(ctx, "postgres"); err == nil {
		defer conn.Close(ctx)
		r.rec.Place.Server = conn.PgConn().ParameterStatus("server_version")
	}
}

// clean removes the copy and looks whether anything is left.
func (r *run) clean(ctx context.Context) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleaning)
	defer cancel()
	if r.scratch == nil {
		r.rec.Cleanup = Cleanup{Verified: true, VerifiedAt: r.deps.Now().UTC()}
		return
	}
	r.rec.Cost.Disk = max(r.scratch.peak.Load(), used(r.scratch.dir))
	var err error
	if r.room != nil {
		err = r.room.Discard(ctx)
	}
	r.rec.Cleanup = r.scratch.remove(ctx, err)
	r.rec.Cleanup.VerifiedAt = r.deps.Now().UTC()
	p := Phase{Name: "cleanup", Seconds: time.Since(began).Seconds(), Outcome: "done"}
	if !r.rec.Cleanup.Verified {
		p.Outcome = "failed"
	}
	r.rec.Phases = append(r.rec.Phases, p)
}

// cleaning bounds the removal of a copy.
const cleaning = 5 * time.Minute

// errLeft means that something of a drill is still there.
var errLeft = errors.New("something is left of the drill")

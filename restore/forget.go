package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

// ReplayWith removes projects as internal/tenancy does, with the keys of their
// tombstones' digest epochs.
func ReplayWith(keys func(ctx context.Context, epoch int) (seal.DigestKeys, error)) Replayer {
	return func(ctx context.Context, connect func(context.Context, string) (*pgx.Conn, error), tombs []catalog.Tombstone) ([]AppliedTombstone, error) {
		done, err := tenancy.Replay(ctx, connect, tombs, func(epoch int) (seal.DigestKeys, error) { return keys(ctx, epoch) })
		out := make([]AppliedTombstone, len(done))
		for i, a := range done {
			out[i] = AppliedTombstone(a)
		}
		return out, err
	}
}

// due reads the tombstones as they are now, those added after the plan as well.
// An incomplete set ends the restore, or quarantines it.
func (room *Room) due(ctx context.Context, all Repo) ([]catalog.Tombstone, error) {
	tombs, err := tombstones(ctx, all, room.Plan.Cluster)
	if errors.Is(err, ErrTombstones) {
		if !room.opt.Quarantine {
			return nil, fmt.Errorf("%w, or use --quarantine", err)
		}
		room.Result.Quarantined, err = true, nil
	}
	return tombs, err
}

// tombstones reads a cluster's; with those that there are, [ErrTombstones] where there
// may be more.
func tombstones(ctx context.Context, all Repo, cluster string) ([]catalog.Tombstone, error) {
	tombs, err := all.Catalog.Tombstones(ctx, cluster)
	if err != nil {
		return nil, fmt.Errorf("reading tombstones: %w", err)
	}
	if err := errors.Join(tombs.Require(), joined(tombs.Faults)); err != nil {
		return tombs.Bodies(), fmt.Errorf("%w: %w; reach more zones", ErrTombstones, err)
	}
	return tombs.Bodies(), nil
}

// ErrTombstones means that a deleted project could come back.
var ErrTombstones = errors.New("the set of tombstones is not known to be complete, and a deleted project must not come back")

// forget replays the tombstones that apply.
func (room *Room) forget(ctx context.Context, all Repo) error {
	tombs, err := room.due(ctx, all)
	if err != nil || len(tombs) == 0 {
		return err
	}
	absences, err := all.Catalog.Absences(ctx)
	if err != nil {
		return fmt.Errorf("reading tombstones: %w", err)
	}
	legs, err := room.legs(ctx)
	if err != nil {
		return err
	}
	tombs = slices.DeleteFunc(tombs, func(t catalog.Tombstone) bool {
		return !applies(t, absences, room.Plan.SystemID, legs, room.Result.Reached.LSN)
	})
	if len(tombs) == 0 {
		return nil
	}
	for i := range tombs {
		if last := legs[len(legs)-1]; last.Timeline != tombs[i].Timeline {
			tombs[i].OID = 0 // another history may have given it to another project
		}
	}
	if room.opt.Replay == nil {
		return fmt.Errorf("%d deleted projects must be removed from the restored database, and nothing here can", len(tombs))
	}
	applied, err := room.opt.Replay(ctx, room.Server.Conn, tombs)
	room.Result.Tombstones = append(room.Result.Tombstones, applied...)
	if err != nil {
		return fmt.Errorf("removing deleted projects from the restored database: %w", err)
	}
	return nil
}

func joined(list []catalog.Fault) error {
	var errs []error
	for _, f := range list {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// legs is the path that was restored along.
func (room *Room) legs(ctx context.Context) ([]leg, error) {
	g := &gatherer{Repo: room.repo, cluster: room.Plan.Cluster}
	g.in.Timeline = room.Plan.Timeline
	if g.in.Timeline == 1 {
		return path(1, nil), nil
	}
	for _, f := range room.Plan.Files {
		if f.Name == historyName(room.Plan.Timeline) {
			data, _, err := assemble(ctx, room.repo, f)
			if err != nil {
				return nil, err
			}
			return parsePath(room.Plan.Timeline, data)
		}
	}
	return nil, fmt.Errorf("the plan has no %s", historyName(room.Plan.Timeline))
}

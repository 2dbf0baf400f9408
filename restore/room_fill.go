package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

// doFetch fills the directory: all files, then what recovery needs, pg_control
// last. Nothing is made before all that could be refused was looked at.
func (room *Room) doFetch(ctx context.Context) (err error) {
	began := time.Now()
	if room.programs, err = sandbox.FindPrograms(room.Plan.Major, room.opt.Binaries); err != nil {
		return err
	}
	room.programs.User = room.opt.User
	if err := room.checkTarget(); err != nil {
		return err
	}
	if room.Snapshot, err = room.repo.Catalog.Snapshot(ctx, room.Plan.Cluster, room.Plan.Snapshot); err != nil {
		return err
	}
	l, err := readManifest(ctx, room.repo, room.Snapshot)
	if err != nil {
		return err
	}
	room.Header, room.Files, room.Packs = l.header, len(l.files), len(l.packs)
	if err := fit(room.Header.Facts, room.programs.Bin); err != nil {
		return err
	}
	if err := room.tryFetch(ctx); err != nil {
		return err
	}
	t := &tree{root: room.opt.To, layout: l, own: room.programs.Own, held: map[int][]byte{}, ours: map[string]bool{}}
	if t.spaces, err = room.placeSpaces(); err != nil {
		return err
	}
	if err := room.checkRoom(t); err != nil {
		return err
	}
	if err := room.makeDirs(t); err != nil {
		return err
	}
	if room.whole(t) {
		room.Result.SavedWAL, room.Result.BySize = room.before.SavedWAL, true
		return nil
	}
	return room.bring(ctx, t, began)
}

// bring makes the directory what recovery needs.
func (room *Room) bring(ctx context.Context, t *tree, began time.Time) error {
	if err := room.openDigests(ctx, t); err != nil {
		return err
	}
	if room.delta {
		if err := room.prepareDelta(t); err != nil {
			return err
		}
	}
	if err := t.fill(ctx, room, func(done, total int64) { room.tell("fetch", done, total, "", began) }); err != nil {
		return err
	}
	if err := t.prepareRecovery(); err != nil {
		return err
	}
	if err := room.mark(stateFetched); err != nil {
		return err
	}
	return t.finish()
}

// openDigests lets blocks be known by their digests. A delta needs that; without it a
// restore into an empty directory is none the worse, but for a check, and says so.
func (room *Room) openDigests(ctx context.Context, t *tree) error {
	epoch := t.header.DigestEpoch
	if epoch == 0 || room.opt.Digests == nil {
		return nil
	}
	keys, err := room.opt.Digests(ctx, epoch)
	switch {
	case err == nil:
		t.digester = page.NewDigester(keys.Key)
	case room.delta:
		return fmt.Errorf("comparing with what is there: %w", err)
	case ctx.Err() == nil:
		room.Result.Unchecked = err.Error()
	}
	return context.Cause(ctx)
}

// prepareDelta makes what the directory holds ours, and fit to be compared.
func (room *Room) prepareDelta(t *tree) error {
	if err := room.seize(); err != nil {
		return err
	}
	t.like = newLikeness(t.digester, t.header.Facts.ChecksumsStart != 0)
	if err := room.dropSpaces(t); err != nil {
		return err
	}
	return t.sweep()
}

// dropSpaces removes tablespaces beside the data directory that are none of the
// snapshot's: replay made them, or the cluster that is gone over.
func (room *Room) dropSpaces(t *tree) error {
	parent := room.opt.To + ".tablespaces"
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if dir := filepath.Join(parent, e.Name()); !slices.Contains(values(t.spaces), dir) {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// fill makes directories and files and brings what they hold, each byte once.
func (t *tree) fill(ctx context.Context, room *Room, progress func(done, total int64)) (err error) {
	if err := t.directories(); err != nil {
		return err
	}
	scratch, err := newRecords(filepath.Join(room.dir, "records"), inMemory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.close()) }()
	if err := t.layAll(ctx, room, scratch); err != nil {
		return err
	}
	if scratch.total == 0 {
		progress(0, 0)
		return nil
	}
	room.Result.Bytes, err = t.fetch(ctx, room.repo, room.opt.Workers, scratch, progress)
	return err
}

func (t *tree) layAll(ctx context.Context, room *Room, out *records) (err error) {
	dir := filepath.Join(room.dir, "maps")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	fetch := func(ctx context.Context, r catalog.Ref) ([]byte, error) {
		return room.repo.Reader.Get(ctx, r.Name, r.Size, r.SHA256)
	}
	maps := catalog.NewMapSet(dir, t.maps, t.packs, fetch, room.repo.identities())
	defer func() { err = errors.Join(err, maps.Close(), os.RemoveAll(dir)) }()
	return t.lay(ctx, maps, room.opt.Workers, out)
}

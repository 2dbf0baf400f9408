package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

// Close stops the server cleanly and ends the room; the directory is then ready
// for pg_ctl start.
func (room *Room) Close(ctx context.Context) error {
	if room.Result.Quarantined {
		if err := room.readSupers(ctx); err != nil {
			return fmt.Errorf("closing %s: %w", room.opt.To, err)
		}
	}
	if err := room.leave(ctx, sandbox.Fast); err != nil {
		return fmt.Errorf("closing %s: %w", room.opt.To, err)
	}
	if err := room.release(ctx); err != nil {
		return fmt.Errorf("closing %s: %w", room.opt.To, err)
	}
	return nil
}

// release makes all durable, and only then gives the directory the file without
// which nothing starts there.
func (room *Room) release(ctx context.Context) error {
	state, err := room.settle(ctx)
	if err != nil {
		return err
	}
	for _, root := range append([]string{room.opt.To}, values(room.tree.spaces)...) {
		if err := syncTree(root); err != nil {
			return fmt.Errorf("making the restored cluster durable: %w", err)
		}
	}
	if err := room.mark(state); err != nil {
		return err
	}
	return disclose(room.opt.To)
}

// settle writes the settings that the directory is left with, and names its state.
func (room *Room) settle(ctx context.Context) (string, error) {
	switch {
	case room.standby() != nil:
		return stateStandby, room.follow(ctx)
	case room.Result.Quarantined:
		more, err := room.quarantine()
		if err != nil {
			return "", err
		}
		return "quarantined", writeAuto(room.opt.To, room.programs, more)
	}
	return "closed", writeAuto(room.opt.To, room.programs, nil)
}

// Discard stops the server and removes all that the restore made.
func (room *Room) Discard(ctx context.Context) error {
	err := room.leave(ctx, sandbox.Immediate)
	return errors.Join(err, Discard(room.opt.To))
}

// Discard removes a directory that a restore made, and what belongs to it.
func Discard(dir string) error {
	m, err := ReadMarker(dir)
	if err != nil {
		return fmt.Errorf("discarding: %w", err)
	}
	if pid := running(dir); pid != 0 {
		return fmt.Errorf("discarding %s: a server runs there (process %d); stop it first", dir, pid)
	}
	if err := notUnderWay(dir); err != nil {
		return fmt.Errorf("discarding %s: %w", dir, err)
	}
	// pg_control goes first: what is left half-way cannot start.
	if err := os.Remove(filepath.Join(dir, controlFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discarding %s: %w", dir, err)
	}
	for _, space := range m.Tablespaces { // never what the links say: WAL may have led them elsewhere
		if err := empty(space); err != nil {
			return fmt.Errorf("discarding %s: %w", dir, err)
		}
	}
	return errors.Join(os.RemoveAll(dir+".tablespaces"), os.RemoveAll(dir+".room"), os.RemoveAll(dir))
}

// notUnderWay looks whether a restore into dir lives, in whatever process.
func notUnderWay(dir string) error {
	path := filepath.Join(dir+".room", lockName)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := durable.Acquire(path)
	if err != nil {
		return fmt.Errorf("a restore into it is under way; cancel that first: %w", err)
	}
	return lock.Release()
}

// leave stops the server and the fetching, and removes the room's own directory.
func (room *Room) leave(ctx context.Context, mode sandbox.Mode) (err error) {
	room.closing.Do(func() {
		if room.Server != nil {
			stop, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			err = room.Server.Stop(stop, mode)
		}
		if room.stopped != nil {
			room.stopped()
		}
		if room.made {
			err = errors.Join(err, os.RemoveAll(room.sockets), os.RemoveAll(room.dir))
		}
		if room.lock != nil {
			err = errors.Join(err, room.lock.Release())
		}
	})
	return err
}

// abandon ends a restore that failed: what is there cannot start.
func (room *Room) abandon(ctx context.Context) error {
	err := room.leave(ctx, sandbox.Immediate)
	if room.tree == nil {
		return err
	}
	if e := os.Remove(filepath.Join(room.opt.To, controlFile)); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

// checkTarget wants the data directory to hold nothing, or what a delta may go
// over (C-53).
func (room *Room) checkTarget() error {
	to := room.opt.To
	if !filepath.IsAbs(to) {
		return fmt.Errorf("%s: want an absolute path", to)
	}
	entries, err := os.ReadDir(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case len(entries) == 0:
		return nil
	case room.opt.Delta:
		room.delta = true
		return room.recognise()
	}
	return fmt.Errorf("%w: %s holds %s and more; give another --to, `restore discard` what is there, or go over it with --delta", ErrNotEmpty, to, entries[0].Name())
}

// makeDirs makes the room's own directory, the data directory beside it and the
// tablespaces'.
func (room *Room) makeDirs(t *tree) error {
	if err := room.lockDir(); err != nil {
		return err
	}
	if err := room.makeDir(room.opt.To, fs.ErrExist); err != nil {
		return err
	}
	room.tree = t
	if !room.delta {
		if err := room.mark(stateFetching); err != nil {
			return err
		}
	}
	for _, dir := range append(room.ownSpaces(t), values(t.spaces)...) {
		if err := room.makeDir(dir, fs.ErrExist); err != nil {
			return fmt.Errorf("making a tablespace's directory: %w", err)
		}
	}
	if len(room.dir)+len("/s/.s.PGSQL.5432") < maxSocketPath {
		return nil
	}
	var err error
	if room.sockets, err = os.MkdirTemp("", "holdfast-"); err != nil {
		return err
	}
	return room.programs.Own(room.sockets)
}

// lockName is a file in the room's own directory that is locked while it lives.
const lockName = "lock"

// lockDir makes the room's own directory. One that a restore left which is dead
// is taken away first; that of a live one is not.
func (room *Room) lockDir() (err error) {
	old := filepath.Join(room.dir, lockName)
	if _, err := os.Lstat(old); err == nil {
		lock, err := durable.Acquire(old)
		if err != nil {
			return fmt.Errorf("another restore into %s is under way: %w", room.opt.To, err)
		}
		err = errors.Join(os.RemoveAll(room.dir), lock.Release())
		if err != nil {
			return err
		}
	}
	if err := room.makeDir(room.dir, nil); err != nil {
		return fmt.Errorf("making the room's own directory: %w; remove it if it is nobody's", err)
	}
	room.made, room.sockets = true, room.dir
	room.lock, err = durable.Acquire(old)
	return err
}

// ownSpaces is the directory beside the data directory that tablespaces go to
// for which no other was given.
func (room *Room) ownSpaces(t *tree) []string {
	own := room.opt.To + ".tablespaces"
	for _, dir := range t.spaces {
		if filepath.Dir(dir) == own {
			return []string{own}
		}
	}
	return nil
}

// maxSocketPath is the room in sockaddr_un (unix(7)).
const maxSocketPath = 107

func (room *Room) makeDir(dir string, except error) error {
	if err := durable.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && (except == nil || !errors.Is(err, except)) {
		return err
	}
	// It is there: MkdirAll makes its name durable.
	return errors.Join(os.Chmod(dir, 0o700), room.programs.Own(dir), durable.MkdirAll(dir, 0o700))
}

package restore

import (
	"context"
	"path/filepath"
	"time"
)

// Serve answers restore_command for p until ctx ends.
func Serve(ctx context.Context, r Repo, p Plan, dir string) (socket string, err error) {
	socket = filepath.Join(dir, "wal.sock")
	s, err := newFetchServer(ctx, r, p, dir, socket, filepath.Join(dir, "wal"), func(...string) error { return nil })
	if err != nil {
		return "", err
	}
	s.retry = 300 * time.Millisecond
	go func() { _ = s.Run(ctx) }()
	return socket, nil
}

// SetAheadIdle sets how long a run of FetchAhead waits for recovery, until restored.
func SetAheadIdle(d time.Duration) (restore func()) {
	old := aheadIdle
	aheadIdle = d
	return func() { aheadIdle = old }
}

package restore

import (
	"context"
	"path/filepath"
	"time"
)

// Fetch does a restore's first phase alone: the directory is ready for recovery.
func Fetch(ctx context.Context, r Repo, p Plan, opt Options) error {
	room := &Room{Plan: p, repo: r, opt: opt, dir: opt.To + ".room"}
	room.opt.Workers = 2
	return room.doFetch(ctx)
}

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

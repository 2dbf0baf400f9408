package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// StartDaemon starts a server outside any room, with its own settings, to go on
// when this process ends: a restored cluster that was opened for its users. It
// returns when the server accepts connections.
func (p Programs) StartDaemon(ctx context.Context, dataDir, log string) error {
	return p.ctl(ctx, log, "start", "-D", dataDir, "-l", log, "-w", "-t", "300", "-s")
}

// StopDaemon stops a server that StartDaemon started.
func (p Programs) StopDaemon(ctx context.Context, dataDir string) error {
	return p.ctl(ctx, "", "stop", "-D", dataDir, "-m", "fast", "-w", "-t", "300", "-s")
}

func (p Programs) ctl(ctx context.Context, log string, args ...string) error {
	cred, err := p.credential()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.Bin, "pg_ctl"), args...)
	cmd.Env = []string{"PATH=" + p.Bin + ":/usr/bin:/bin", "LC_ALL=C", "HOME=/nonexistent"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setsid: true}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if tail, rerr := os.ReadFile(log); rerr == nil {
		out = append(out, tail[max(0, len(tail)-4096):]...)
	}
	return fmt.Errorf("pg_ctl %s: %w: %s", args[0], err, out)
}

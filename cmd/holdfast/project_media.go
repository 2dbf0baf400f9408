package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
)

// media lets the configured command fetch what a project keeps outside PostgreSQL,
// and adds it; nil where there is no command.
func (x *exporting) media(ctx context.Context, key, name, dir string) (_ *portable.MediaFiles, err error) {
	m := x.cluster.Projects.Media
	if m == nil || x.out == nil {
		return nil, nil
	}
	tmp, err := x.out.TempDir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	ctx, cancel := context.WithTimeout(ctx, m.Within.Std())
	defer cancel()
	cmd := exec.CommandContext(ctx, m.Command[0], m.Command[1:]...)
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "HOLDFAST_MEDIA="+tmp, "HOLDFAST_CLUSTER="+x.cluster.Name, "HOLDFAST_PROJECT="+key, "HOLDFAST_PROJECT_NAME="+name)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = x.e.err, &firstWords{to: &said, left: 4 << 10}
	// The whole group: what a shell began would go on in a directory that is removed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("fetching the project's files outside PostgreSQL by %s: %w: %s", m.Command[0], errors.Join(err, ctx.Err()), strings.TrimSpace(said.String()))
	}
	out := &portable.MediaFiles{Command: m.Command[0]}
	if out.Files, err = x.out.AddTree(dir+"media", tmp); err != nil {
		return nil, err
	}
	for i := range out.Files {
		out.Files[i].Name = strings.TrimPrefix(out.Files[i].Name, dir)
	}
	return out, nil
}

// firstWords keeps the first left bytes of what a program says.
type firstWords struct {
	to   *strings.Builder
	left int
}

func (t *firstWords) Write(p []byte) (int, error) {
	n := min(len(p), t.left)
	t.left -= n
	t.to.Write(p[:n])
	return len(p), nil
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DefaultPattern is where Debian keeps a major's programs.
const DefaultPattern = "/usr/lib/postgresql/{major}/bin"

// Programs are one major version's programs and who they run as.
type Programs struct {
	Bin string
	// User is the operating system user; empty is our own, or postgres when we are root.
	User string
}

// FindPrograms finds the programs of a major version. In pattern {major} stands
// for the number; empty is [DefaultPattern]. The server program is asked for its version.
func FindPrograms(major int, pattern string) (Programs, error) {
	if pattern == "" {
		pattern = DefaultPattern
	}
	bin := strings.ReplaceAll(pattern, "{major}", strconv.Itoa(major))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return Programs{}, fmt.Errorf("find PostgreSQL %d's programs in %s: %w; install that major version, or correct the environment's binaries", major, bin, err)
	}
	if got := parseMajor(string(out)); got != major {
		return Programs{}, fmt.Errorf("find PostgreSQL %d's programs in %s: postgres there says %q", major, bin, strings.TrimSpace(string(out)))
	}
	return Programs{Bin: bin}, nil
}

// parseMajor reads "postgres (PostgreSQL) 15.18 (Debian …)", "… 19beta1".
func parseMajor(version string) int {
	_, rest, _ := strings.Cut(version, "(PostgreSQL) ")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	n, _ := strconv.Atoi(rest[:end])
	return n
}

// credential is the user to switch to; nil is none.
func (p Programs) credential() (*syscall.Credential, error) {
	name := p.User
	if os.Geteuid() != 0 {
		if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); name != "" && (err != nil || u.Username != name) {
			return nil, fmt.Errorf("run PostgreSQL as %s: only root can; run Holdfast as that user or as root", name)
		}
		return nil, nil
	}
	if name == "" {
		name = "postgres"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("run PostgreSQL, which refuses to run as root, as %s: %w", name, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("run PostgreSQL as %s: %w", name, err)
	}
	if uid == 0 {
		return nil, fmt.Errorf("run PostgreSQL as %s: that is root, as which PostgreSQL refuses to run", name)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// Own gives paths to the user that the programs run as, when we are root; what is
// theirs is left alone.
func (p Programs) Own(paths ...string) error {
	cred, err := p.credential()
	if err != nil || cred == nil {
		return err
	}
	for _, path := range paths {
		if info, err := os.Lstat(path); err == nil {
			if have, ok := info.Sys().(*syscall.Stat_t); ok && have.Uid == cred.Uid && have.Gid == cred.Gid {
				continue // touching it for nothing would cost a commit when it is made durable
			}
		}
		if err := os.Lchown(path, int(cred.Uid), int(cred.Gid)); err != nil {
			return fmt.Errorf("give PostgreSQL's user what it runs in: %w", err)
		}
	}
	return nil
}

// command prepares a program with a bare environment, which the kernel signals
// when the calling thread ends.
func (p Programs) command(ctx context.Context, program string, args []string, onDeath syscall.Signal, w wall) (*exec.Cmd, error) {
	cred, err := p.credential()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.Bin, program), args...)
	cmd.Env = []string{"PATH=" + p.Bin + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=/nonexistent", "PGPASSFILE=/dev/null"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: onDeath, Setpgid: true}
	w.apply(cmd.SysProcAttr)
	return cmd, nil
}

// Shell runs a command line as PostgreSQL runs a restore_command: by sh, as its user, in
// a directory of its own, and with the network. The environment is bare.
func (p Programs) Shell(ctx context.Context, dir, line string) error {
	cred, err := p.credential()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", line)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "HOME=/nonexistent"}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out := newBoundedLog(nil, 0)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(out.Tail()))
	}
	return nil
}

type runOptions struct {
	stdout  io.Writer
	network bool
	env     []string
}

// Run runs one of the programs that need no server (pg_checksums,
// pg_controldata, initdb) without a network, until it ends or ctx does.
func (p Programs) Run(ctx context.Context, stdout io.Writer, program string, args ...string) error {
	return p.run(ctx, runOptions{stdout: stdout}, program, args)
}

func (p Programs) run(ctx context.Context, opt runOptions, program string, args []string) error {
	runtime.LockOSThread() // see Server.run
	defer runtime.UnlockOSThread()
	cmd, err := p.command(ctx, program, args, syscall.SIGKILL, wallFor(opt.network))
	if err != nil {
		return err
	}
	stderr := newBoundedLog(nil, 0)
	cmd.Env = append(cmd.Env, opt.env...)
	cmd.Stdout, cmd.Stderr = opt.stdout, stderr
	cmd.WaitDelay = 10 * time.Second
	// The whole group: pg_dump -j and psql have children.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", ctx.Err(), err)
		}
		if said := strings.TrimSpace(stderr.Tail()); said != "" {
			return fmt.Errorf("%s: %w: %s", program, err, said)
		}
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

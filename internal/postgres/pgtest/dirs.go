package pgtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// base holds the templates and the clusters of all test processes of this user.
// It lies in /tmp whatever TMPDIR says, for a Unix socket's path is at most 107
// bytes and the server's user must reach it.
func base() string { return fmt.Sprintf("/tmp/holdfast-pgtest-%d", os.Getuid()) }

// locked runs fn while this process alone may make or sweep things in base.
func locked(fn func() error) error {
	if err := os.MkdirAll(base(), 0o711); err != nil {
		return err
	}
	st, err := os.Lstat(base())
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || int(sys.Uid) != os.Getuid() {
		return fmt.Errorf("%s is not a directory of ours: remove it", base())
	}
	f, err := flock(filepath.Join(base(), "lock"), 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return fn()
}

func flock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|how); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return f, nil
}

// freshDir makes a directory of the server's user that the test's end removes.
// A lock is held in it, so that the next test process can tell, and removes,
// what a killed one left behind.
func freshDir(t testing.TB) (dir string, err error) {
	err = locked(func() error {
		sweep()
		if dir, err = os.MkdirTemp(base(), "c"); err != nil {
			return err
		}
		held, err := flock(filepath.Join(dir, "lock"), syscall.LOCK_NB)
		if err != nil {
			return err
		}
		t.Cleanup(func() { os.RemoveAll(dir); held.Close() })
		return Own(dir)
	})
	return dir, err
}

func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(base(), "c*"))
	for _, dir := range dirs {
		if held, err := flock(filepath.Join(dir, "lock"), syscall.LOCK_NB); err == nil {
			os.RemoveAll(dir)
			held.Close()
		}
	}
}

// Own gives a path, and all below it, to the user that servers run as.
func Own(path string) error {
	cred, err := credential()
	if err != nil || cred == nil {
		return err
	}
	return filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, int(cred.Uid), int(cred.Gid))
	})
}

// initialise copies the template of the cluster's kind, making it the first time.
func initialise(c *Cluster) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*Patience)
	defer cancel()
	args := []string{"-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"}
	switch {
	case !c.opt.noChecksums:
		args = append(args, "-k")
	case c.Major >= 18:
		args = append(args, "--no-data-checksums")
	}
	args = append(args, c.opt.initdb...)
	st, err := os.Stat(filepath.Join(c.bin, "postgres"))
	if err != nil {
		return err
	}
	key := sha256.Sum256(fmt.Append(nil, c.bin, args, st.ModTime().UnixNano(), st.Size()))
	template := filepath.Join(base(), fmt.Sprintf("t%d-%x", c.Major, key[:6]))
	err = locked(func() error {
		if _, err := os.Stat(template); err == nil {
			return nil
		}
		// A name that is there only when it is whole.
		tmp := template + ".new"
		if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700), Own(tmp)); err != nil {
			return err
		}
		if err := initdb(ctx, c.bin, filepath.Join(tmp, "data"), args); err != nil {
			return err
		}
		return os.Rename(tmp, template)
	})
	if err != nil {
		return err
	}
	_, err = output(ctx, c.Dir, "cp", "-a", "--reflink=auto", filepath.Join(template, "data"), c.DataDir)
	return err
}

func initdb(ctx context.Context, bin, dir string, args []string) error {
	_, err := output(ctx, filepath.Dir(dir), filepath.Join(bin, "initdb"), append([]string{"-D", dir}, args...)...)
	return err
}

// freePort finds a port outside the range from which the kernel gives ports to
// outgoing connections, so that nothing takes it while a server restarts.
func freePort() (int, error) {
	for range 200 {
		port := 12000 + rand.IntN(20000)
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port on 127.0.0.1 in 200 tries")
}

func (c *Cluster) logTail(n int) string {
	data, err := os.ReadFile(filepath.Join(c.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return strings.ToValidUTF8(string(data[max(0, len(data)-n):]), "?")
}

// Log is all that the server has written to its log.
func (c *Cluster) Log() string { return c.logTail(1 << 26) }

// until polls cond, which changes outside this process, for as long as [Patience].
func until(cond func() (bool, error)) error {
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := cond(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("not so after %v", Patience)
		}
	}
}

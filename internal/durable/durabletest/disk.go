package durabletest

import (
	"context"
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallDisk is a directory that is a file system of its own, of so many bytes: one that
// a test can fill. Mounting takes root, or sudo that asks for no password.
func SmallDisk(t testing.TB, size int64) string {
	t.Helper()
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(context.Background(), args[0], args[1:]...) //nolint:gosec // mount and umount
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s: a test of a full disk mounts a tmpfs, as root or by sudo", args, err, out)
		}
	}
	run(asRoot("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d,mode=0700,uid=%d", size, unix.Geteuid()), "holdfast-test", dir)...)
	t.Cleanup(func() { run(asRoot("umount", dir)...) })
	return dir
}

func asRoot(args ...string) []string {
	if unix.Geteuid() == 0 {
		return args
	}
	return append([]string{"sudo", "-n"}, args...)
}

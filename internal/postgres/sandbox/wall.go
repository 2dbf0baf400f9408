package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// wall is how a process is kept off the network: a network namespace of its own,
// for which a user that is not root needs a user namespace as well.
type wall struct {
	flags uintptr
	why   string // why there is none
}

var probeWall = sync.OnceValue(func() wall {
	w := wall{flags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		w.flags |= syscall.CLONE_NEWUSER
	}
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	w.apply(cmd.SysProcAttr)
	if err := cmd.Run(); err != nil {
		return wall{why: fmt.Sprintf("the kernel gives this process no network namespace: %v", err)}
	}
	return w
})

func wallFor(network bool) wall {
	if network {
		return wall{why: "the host's network was asked for"}
	}
	return probeWall()
}

func (w wall) apply(attr *syscall.SysProcAttr) {
	attr.Cloneflags |= w.flags
	if w.flags&syscall.CLONE_NEWUSER != 0 {
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
}

// proveNoEgress looks at a running process instead of trusting the flags that it
// was started with.
func proveNoEgress(pid int, w wall) (bool, string) {
	if w.flags == 0 {
		return false, w.why
	}
	ours, err1 := os.Readlink("/proc/self/ns/net")
	theirs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	dev, err3 := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err := errors.Join(err1, err2, err3); err != nil {
		return false, fmt.Sprintf("the server's network namespace could not be seen: %v", err)
	}
	if ours == theirs {
		return false, "the server is in our own network namespace"
	}
	for _, line := range strings.Split(string(dev), "\n") {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
			return false, "the server's network namespace has the interface " + strings.TrimSpace(name)
		}
	}
	return true, ""
}

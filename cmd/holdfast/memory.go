package main

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// boundMemory makes Go's collector hold the process to limits.memory, or to nine
// tenths of its control group's limit where that is less. Buffers are large and
// short-lived here: collecting them at half the growth costs about a hundredth of
// the time. GOMEMLIMIT and GOGC, where they are set, have the last word.
func boundMemory(limit int64) {
	if group := groupMemory("/proc/self/cgroup", "/sys/fs/cgroup"); group > 0 {
		limit = min(limit, group/10*9)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// groupMemory is memory.max of this process's control group (cgroup v2) or of the
// nearest one above it that has a limit; 0: none, or it cannot be told.
func groupMemory(self, root string) int64 {
	data, err := os.ReadFile(self)
	if err != nil {
		return 0
	}
	_, dir, ok := strings.Cut(strings.TrimSpace(string(data)), "0::/")
	if !ok {
		return 0
	}
	for dir = filepath.Clean("/" + dir); ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(root, dir, "memory.max"))
		if n, bad := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && bad == nil {
			return n
		}
		if dir == "/" {
			return 0
		}
	}
}

package restore

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// running is the process that holds a data directory, 0 for none: the one named
// in postmaster.pid if it lives, or if a backend of its lives on in its shared
// memory (CreateLockFile in src/backend/utils/init/miscinit.c).
func running(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	lines := strings.Split(string(data), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if pid < 0 { // a single-user server
		pid = -pid
	}
	if err != nil || pid == 0 || pid == os.Getpid() || pid == os.Getppid() {
		return 0
	}
	if !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return pid
	}
	if len(lines) > 6 && attached(lines[6], pid) {
		return pid
	}
	return 0
}

// shmMagic and the creator's pid after it begin a server's shared memory
// (PGShmemHeader in src/include/storage/pg_shmem.h).
const shmMagic = 679834894

// attached says whether processes use the segment of a "key id" line that server
// pid made. Other segments may have got the id since.
func attached(line string, pid int) bool {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return false
	}
	id, err := strconv.Atoi(fields[1])
	if err != nil {
		return false
	}
	var desc unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &desc); err != nil || desc.Nattch == 0 {
		return false
	}
	mem, err := unix.SysvShmAttach(id, 0, unix.SHM_RDONLY)
	if err != nil || len(mem) < 8 {
		return errors.Is(err, unix.EACCES) // someone's, and not ours to look into
	}
	defer func() { _ = unix.SysvShmDetach(mem) }()
	return binary.NativeEndian.Uint32(mem) == shmMagic && int(binary.NativeEndian.Uint32(mem[4:])) == pid
}

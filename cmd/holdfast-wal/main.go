// Command holdfast-wal is `holdfast wal push` and `holdfast wal fetch` for
// archive_command and restore_command, with the arguments of holdfast, in a program
// that starts as fast as one can: PostgreSQL starts it once for each segment. It
// finishes what goes well where somebody answers (see package thin) or a segment was
// fetched ahead. It never judges: whatever else is asked or happens, holdfast beside it
// takes its place, with its checks, messages and exit codes.
package main

import (
	"fmt"
	"os"
	"syscall"

	_ "github.com/holdfast-dr/holdfast/cmd/holdfast/early" // ends here where all goes well
	"github.com/holdfast-dr/holdfast/internal/thin"
)

func main() {
	args := os.Args[1:]
	program, err := thin.Whole()
	if self, _ := os.Executable(); err == nil && program == self {
		err = os.ErrNotExist
	}
	if err == nil {
		err = syscall.Exec(program, append([]string{program}, args...), os.Environ())
	}
	fmt.Fprintf(os.Stderr, "holdfast-wal: running holdfast, which must lie beside it: %v\n", err)
	os.Exit(thin.Doubt(args))
}

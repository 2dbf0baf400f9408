package restore

import (
	"fmt"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/thin"
)

// What `wal fetch` ends with, as [thin.Fetch] does.
const (
	ExitFetched = thin.ExitFetched
	ExitAbsent  = thin.ExitAbsent
	ExitDoubt   = thin.ExitDoubt
)

// RestoreCommand is the setting that asks socket by program: only 0 and 1 pass;
// everything else, a panic's 2 and a signal's 128 and more included, becomes 254.
func RestoreCommand(program, socket string) string {
	return fmt.Sprintf(`%s wal fetch --room %s "%%f" "%%p"; case $? in 0) exit 0;; 1) exit 1;; *) exit %d;; esac`, shellQuote(program), shellQuote(socket), ExitDoubt)
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, "%", "%%"), "'", `'\''`) + "'"
}

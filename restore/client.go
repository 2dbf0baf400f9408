package restore

import (
	"fmt"
	"regexp"
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
	return FetchCommand(program, "wal", "fetch", "--room", socket)
}

// FetchCommand is the same by any arguments.
func FetchCommand(program string, args ...string) string {
	line := shellQuote(program)
	for _, a := range args {
		line += " " + shellQuote(a)
	}
	return line + fmt.Sprintf(` "%%f" "%%p"; case $? in 0) exit 0;; 1) exit 1;; *) exit %d;; esac`, ExitDoubt)
}

var plainWord = regexp.MustCompile(`^[a-z-]+$`)

func shellQuote(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, "%", "%%"), "'", `'\''`) + "'"
}

package thin

import (
	"os"
	"slices"
	"strings"
)

// small is the name of the program that does what this package does and nothing else;
// whole that of the one beside it which does everything.
const (
	small = "holdfast-wal"
	whole = "holdfast"
)

// Whole is the program that does everything: the one of its name beside this one, which
// may be the small one under any name, or else this one.
func Whole() (string, error) { return beside(whole) }

// Small is the program for archive_command and restore_command: the small one where it
// lies beside this one, else this one.
func Small() (string, error) { return beside(small) }

// beside is the program of a name in this one's directory, or this one.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := self[:strings.LastIndexByte(self, '/')+1] + name
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
		return path, nil
	}
	return self, nil
}

// Doubt is what a command line ends with that cannot be carried out: a fetch must not
// pass for absence (C-62), a push fails.
func Doubt(args []string) int {
	if slices.Contains(args, "push") {
		return exitFailed
	}
	return ExitDoubt
}

package thin

import (
	"os"
	"strings"
)

// small is the name of the program that does what this package does and nothing else;
// whole that of the one beside it which does everything.
const (
	small = "holdfast-wal"
	whole = "holdfast"
)

// Whole is the program that does everything: this one, but for the small one, beside
// which it lies.
func Whole() (string, error) {
	self, err := os.Executable()
	if dir, ok := strings.CutSuffix(self, "/"+small); ok {
		return dir + "/" + whole, err
	}
	return self, err
}

// Small is the program for archive_command and restore_command: the small one where it
// lies beside this one, else this one.
func Small() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := self[:strings.LastIndexByte(self, '/')+1] + small
	if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
		return beside, nil
	}
	return self, nil
}

// Doubt is what a command line ends with that cannot be carried out: a fetch must not
// pass for absence (C-62), a push fails.
func Doubt(args []string) int {
	if len(args) > 1 && args[0] == "wal" && args[1] == "push" {
		return exitFailed
	}
	return ExitDoubt
}

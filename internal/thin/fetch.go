package thin

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"
)

// What `wal fetch` ends with (C-62). Everything but the first two makes
// PostgreSQL stop recovery, never end it.
const (
	ExitFetched = 0
	ExitAbsent  = 1
	ExitDoubt   = 254
)

// patience is how long a restore is waited for.
const patience = 10 * time.Minute

// Fetch asks the restore that listens on socket for name and moves what it is
// given to dest. It returns an exit code, an error with [ExitDoubt], and never
// panics.
func Fetch(socket, name, dest string) (code int, err error) {
	defer func() {
		if p := recover(); p != nil {
			code, err = ExitDoubt, fmt.Errorf("fetching %s: panic: %v", name, p)
		}
	}()
	conn, err := dial(socket, patience)
	if err != nil {
		return ExitDoubt, fmt.Errorf("fetching %s: the restore that gives it does not answer: %w", name, err)
	}
	defer conn.Close()
	fmt.Fprintln(conn, name)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return ExitDoubt, fmt.Errorf("fetching %s: no whole answer: %w", name, err)
	}
	word, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	switch word {
	case "absent":
		return ExitAbsent, nil
	case "file":
		if err := Move(rest, dest); err != nil {
			return ExitDoubt, fmt.Errorf("fetching %s: %w", name, err)
		}
		return ExitFetched, nil
	}
	return ExitDoubt, fmt.Errorf("fetching %s: %s", name, rest)
}

// Move renames from to dest, or copies where they lie on two file systems.
func Move(from, dest string) error {
	if err := os.Rename(from, dest); err == nil {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	tmp := dest + ".holdfast"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, dest)
}

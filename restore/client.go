package restore

import (
	"bufio"
	"context"
	"fmt"
	"net"
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

// FetchMain is restore_command's thin client: it asks the socket for name and
// moves what it is given to dest. It returns an exit code and never panics.
func FetchMain(socket, name, dest string) (code int, err error) {
	defer func() {
		if p := recover(); p != nil {
			code, err = ExitDoubt, fmt.Errorf("fetching %s: panic: %v", name, p)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return ExitDoubt, fmt.Errorf("fetching %s: the restore that gives it does not answer: %w", name, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return ExitDoubt, fmt.Errorf("fetching %s: %w", name, err)
		}
	}
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
		if err := move(rest, dest); err != nil {
			return ExitDoubt, fmt.Errorf("fetching %s: %w", name, err)
		}
		return ExitFetched, nil
	}
	return ExitDoubt, fmt.Errorf("fetching %s: %s", name, rest)
}

// move renames from to dest, or copies where they lie on two file systems.
func move(from, dest string) error {
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

// RestoreCommand is the setting that asks socket by program: only 0 and 1 pass;
// everything else, a panic's 2 and a signal's 128 and more included, becomes 254.
func RestoreCommand(program, socket string) string {
	return fmt.Sprintf(`%s wal fetch --room %s "%%f" "%%p"; case $? in 0) exit 0;; 1) exit 1;; *) exit %d;; esac`, shellQuote(program), shellQuote(socket), ExitDoubt)
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, "%", "%%"), "'", `'\''`) + "'"
}

package thin

import (
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode/utf8"
)

// What a configuration that does not say has.
const (
	DefaultConfig = "/etc/holdfast/holdfast.yaml"
	DefaultSocket = "/run/holdfast/holdfast.sock"
)

// PushPath is where the daemon takes pushes (POST).
const PushPath = "/v1/wal"

// Push is the body of a push.
type Push struct {
	Cluster string `json:"cluster,omitempty" doc:"Needed where the configuration has several."`
	Path    string `json:"path" doc:"What archive_command has as %p."`
	DataDir string `json:"data_dir" doc:"The command's working directory."`
}

// The exit codes of a push (docs/commands.md).
const (
	exitDone   = 0
	exitFailed = 1
)

// exit is os.Exit but in a test.
var exit = os.Exit

// pushed says whether a daemon took the file: the quorum holds it. Ended by a
// signal it fails like any push: PostgreSQL's archiver takes a command that dies
// of one for a reason to die itself, and counts no failure (C-37).
func pushed(c Command, errw io.Writer) bool {
	socket, in, ok := pushTo(c)
	if !ok {
		return false
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	defer close(stop)
	defer signal.Stop(stop)
	go func() {
		if _, ok := <-stop; ok {
			_, _ = io.WriteString(errw, "holdfast: interrupted\n")
			exit(exitFailed)
		}
	}()
	return post(socket, in)
}

// pushTo is what to send, and where.
func pushTo(c Command) (socket string, in Push, ok bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", in, false
	}
	path := c.Flags["config"]
	if path == "" {
		path = DefaultConfig
	}
	config, err := os.ReadFile(path)
	if err != nil {
		return "", in, false
	}
	socket, ok = socketOf(string(config))
	return socket, Push{Cluster: c.Flags["cluster"], Path: c.Args[0], DataDir: dir}, ok
}

// post asks the daemon, in the little of HTTP/1.0 and of JSON that this takes.
func post(socket string, in Push) bool {
	if !plain(in.Path) || !plain(in.DataDir) || !plain(in.Cluster) {
		return false
	}
	body := `{"path":"` + in.Path + `","data_dir":"` + in.DataDir + `","cluster":"` + in.Cluster + `"}`
	conn, err := dial(socket, 0)
	if err != nil {
		return false
	}
	defer conn.Close()
	request := "POST " + PushPath + " HTTP/1.0\r\nHost: holdfast\r\nContent-Type: application/json\r\nContent-Length: " + decimal(len(body)) + "\r\n\r\n" + body
	if _, err := io.WriteString(conn, request); err != nil {
		return false
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	status, rest, _ := strings.Cut(string(answer), "\r\n")
	return err == nil && (strings.HasPrefix(status, "HTTP/1.0 200 ") || strings.HasPrefix(status, "HTTP/1.1 200 ")) && strings.Contains(rest, "\r\n\r\n{")
}

// plain says that a text is the same within quotes in JSON.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return utf8.ValidString(s)
}

func decimal(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return decimal(n/10) + decimal(n%10)
}

// socketOf finds node.socket in a configuration without reading the rest: it is
// the only field of that name, and a daemon that answers there has checked them
// all. false: it is written in a way that only a YAML parser understands.
func socketOf(config string) (string, bool) {
	found := DefaultSocket
	for line := range strings.SplitSeq(config, "\n") {
		line, _, _ = strings.Cut(line, " #")
		before, value, ok := strings.Cut(line, "socket")
		if !ok || strings.HasPrefix(strings.TrimLeft(line, " "), "#") {
			continue
		}
		value, ok = strings.CutPrefix(value, ": ")
		value, _, _ = strings.Cut(strings.TrimRight(value, " \r"), ",")
		value = strings.TrimRight(value, "} ")
		if before = strings.TrimRight(before, " "); !ok || before != "" && !strings.HasSuffix(before, "{") && !strings.HasSuffix(before, ",") {
			return "", false
		}
		if found != DefaultSocket || !isPath(value) {
			return "", false
		}
		found = value
	}
	return found, true
}

// isPath says that a value is an absolute path that YAML takes as it stands.
func isPath(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"
	return strings.HasPrefix(s, "/") && strings.Trim(s, letters) == ""
}

package thin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
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

// pushed says whether a daemon took the file: the quorum holds it. Ended by a
// signal it fails like any push: PostgreSQL's archiver takes a command that dies
// of one for a reason to die itself, and counts no failure (C-37).
func pushed(c command) (code int, done bool) {
	socket, in, ok := pushTo(c)
	if !ok {
		return 0, false
	}
	stop, taken := make(chan os.Signal, 1), make(chan bool, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(stop)
	go func() { taken <- post(socket, in) }()
	select {
	case ok := <-taken:
		return exitDone, ok
	case <-stop:
		return exitFailed, true
	}
}

// The exit codes of a push (docs/commands.md).
const (
	exitDone   = 0
	exitFailed = 1
)

// pushTo is what to send, and where.
func pushTo(c command) (socket string, in Push, ok bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", in, false
	}
	path := c.flags["config"]
	if path == "" {
		path = DefaultConfig
	}
	config, err := os.ReadFile(path)
	if err != nil {
		return "", in, false
	}
	socket, ok = socketOf(config)
	return socket, Push{Cluster: c.flags["cluster"], Path: c.args[0], DataDir: dir}, ok
}

// post asks the daemon, in the little of HTTP/1.0 that this takes.
func post(socket string, in Push) bool {
	body, err := json.Marshal(in)
	if err != nil {
		return false
	}
	conn, err := dial(socket, 0)
	if err != nil {
		return false
	}
	defer conn.Close()
	var req bytes.Buffer
	fmt.Fprintf(&req, "POST %s HTTP/1.0\r\nHost: holdfast\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", PushPath, len(body), body)
	if _, err := conn.Write(req.Bytes()); err != nil {
		return false
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	return err == nil && (bytes.HasPrefix(answer, []byte("HTTP/1.0 200 ")) || bytes.HasPrefix(answer, []byte("HTTP/1.1 200 "))) && bytes.Contains(answer, []byte("\r\n\r\n{"))
}

// socketOf reads node.socket out of a configuration. A daemon that answers there
// has checked the rest.
func socketOf(config []byte) (string, bool) {
	file, err := parser.ParseBytes(config, 0)
	if err != nil || len(file.Docs) == 0 {
		return "", false
	}
	node, ok := field(file.Docs[0].Body, "node")
	if !ok {
		return "", false
	}
	socket, ok := field(node, "socket")
	if !ok {
		return DefaultSocket, true
	}
	text, ok := socket.(*ast.StringNode)
	if !ok {
		return "", false
	}
	return text.Value, true
}

func field(n ast.Node, name string) (ast.Node, bool) {
	m, ok := n.(ast.MapNode)
	if !ok {
		return nil, false
	}
	for it := m.MapRange(); it.Next(); {
		if it.Key().String() == name {
			return it.Value(), true
		}
	}
	return nil, false
}

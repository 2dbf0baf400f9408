package thin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/internal/thin"
)

type in struct{ Body thin.Push }

type out struct {
	Archived string `json:"archived"`
}

// daemon answers pushes on a socket by do, as the real one does.
func daemon(t *testing.T, do func(thin.Push) error) (config string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "thin") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := server.ListenUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New("test")
	server.Serve(s, server.Op[in, out]{ID: "wal-push", Method: http.MethodPost, Path: thin.PushPath}, func(_ context.Context, i in) (out, error) {
		return out{filepath.Base(i.Body.Path)}, do(i.Body)
	})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return write(t, "format: 1\nnode:\n  name: db1\n  socket: "+socket+" # of the API\n")
}

func write(t *testing.T, config string) string {
	path := filepath.Join(t.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAPushThatADaemonTakesIsDone(t *testing.T) {
	var got thin.Push
	config := daemon(t, func(p thin.Push) error { got = p; return nil })
	t.Setenv("HOLDFAST_CONFIG", config)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"wal push pg_wal/x", "--config " + config + " wal push pg_wal/x", "wal push --cluster=cms pg_wal/x", "wal --cluster cms push pg_wal/x",
	} {
		if code, done := thin.Main(strings.Fields(args), io.Discard); code != 0 || !done {
			t.Errorf("%s: %d, %v", args, code, done)
		}
		want := thin.Push{Path: "pg_wal/x", DataDir: wd}
		if strings.Contains(args, "cluster") {
			want.Cluster = "cms"
		}
		if got != want {
			t.Errorf("%s: the daemon was asked for %+v, want %+v", args, got, want)
		}
	}
}

// What is not plainly done is the ordinary command's: it says what was wrong.
func TestWhatDoesNotGoWellIsLeftToTheCommand(t *testing.T) {
	refusing := daemon(t, func(thin.Push) error { return errors.New("the file belongs to another cluster") })
	nobody := write(t, "node: {socket: /tmp/thin-nobody-listens}\n")
	deaf, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	go func() {
		for {
			conn, err := deaf.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, "HTTP/1.0 200 OK\r\nContent-Le") // a daemon that dies while it answers
			conn.Close()
		}
	}()
	torn := write(t, "node: {socket: "+deaf.Addr().String()+"}\n")
	for _, args := range [][]string{
		{"--config", refusing, "wal", "push", "x"},
		{"--config", nobody, "wal", "push", "x"},
		{"--config", torn, "wal", "push", "x"},
		{"--config", write(t, "node: ["), "wal", "push", "x"},
		{"--config", write(t, "- a\n"), "wal", "push", "x"},
		{"--config", write(t, ""), "wal", "push", "x"},
		{"--config", "/nowhere", "wal", "push", "x"},
		{"wal", "push"},
		{"wal", "push", "a", "b"},
		{"wal", "push", "--help"},
		{"wal", "push", "-h", "x"},
		{"wal", "push", "x", "--config"},
		{"wal", "fetch", "a", "b"},
		{"wal", "fetch", "--room", "s", "a"},
		{"wal"},
		{"snapshot", "push", "x"},
		{},
	} {
		var said strings.Builder
		if code, done := thin.Main(args, &said); done || code != 0 || said.Len() > 0 {
			t.Errorf("%q: %d, %v, said %q", args, code, done, said.String())
		}
	}
}

// C-37: a command that dies of a signal would take PostgreSQL's archiver with it.
func TestAPushEndedByASignalFails(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	config := daemon(t, func(thin.Push) error { close(asked); <-answer; return nil })
	go func() {
		<-asked
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}()
	codes := make(chan int, 1)
	defer thin.SetExit(func(code int) {
		codes <- code
		close(answer)
	})()
	var said strings.Builder
	thin.Main([]string{"--config", config, "wal", "push", "x"}, &said)
	if code := <-codes; code != 1 || said.String() != "holdfast: interrupted\n" {
		t.Errorf("%d, %q", code, said.String())
	}
}

// C-62.
func TestAFetchEndsAsRestoreCommandMust(t *testing.T) {
	dir := t.TempDir()
	file, dest := filepath.Join(dir, "spooled"), filepath.Join(dir, "RECOVERYXLOG")
	for answer, want := range map[string]int{"file " + file: 0, "absent": 1, "doubt the zones are away": 254, "": 254, "fil": 254, "file /nowhere": 254} {
		if err := os.WriteFile(file, []byte("wal"), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Remove(dest)
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			fmt.Fscanln(conn)
			if answer != "" && answer != "fil" {
				answer += "\n"
			}
			fmt.Fprint(conn, answer)
		}()
		var said strings.Builder
		code, done := thin.Main([]string{"wal", "fetch", "--room", socket, "000000010000000000000001", dest}, &said)
		if code != want || !done || (said.Len() > 0) != (want == 254) {
			t.Errorf("%q: %d, %v, said %q", answer, code, done, said.String())
		}
		if _, err := os.Stat(dest); (err == nil) != (want == 0) {
			t.Errorf("%q: %v", answer, err)
		}
		l.Close()
	}
	if code, _ := thin.Main([]string{"wal", "fetch", "--room", filepath.Join(dir, "none"), "x", dest}, io.Discard); code != 254 {
		t.Errorf("nobody listens: %d", code)
	}
}

// The socket is found where configs finds it, or is not found.
func TestTheSocketIsTheConfigurations(t *testing.T) {
	for _, doc := range []string{
		string(configs.Example()), string(configs.DrillExample()),
		strings.Replace(string(configs.Example()), "  socket: /run/holdfast/holdfast.sock", "  socket:    \"/other/sock\"", 1),
		strings.Replace(string(configs.Example()), "  socket: /run/holdfast/holdfast.sock", "  socket: /other/h.sock\r", 1),
		strings.Replace(string(configs.Example()), "  socket: /run/holdfast/holdfast.sock", "  # socket: /other/sock", 1),
	} {
		c, err := configs.Parse([]byte(doc), "example")
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := thin.SocketOf(doc); ok && got != c.Node.Socket {
			t.Errorf("%q; configs says %q", got, c.Node.Socket)
		}
	}
	for doc, want := range map[string]string{
		"node: {name: a, socket: /s}\n": "/s", "node: {socket: /s, name: a}": "/s", "node:\n  name: a\n  socket: /a/b.sock # here\n": "/a/b.sock",
		"node: {name: a}\n": thin.DefaultSocket, "# socket: /x\n": thin.DefaultSocket,
		"node: {socket: \"/s\"}": "", "node:\n  socket:\n    /s\n": "", "node: {socket: *s}": "", "node: {'socket': /s}": "", "note: |\n  my socket: /s\n": "",
		"node: {socket: /a}\nnode: {socket: /b}\n": "",
	} {
		if got, ok := thin.SocketOf(doc); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v, want %q", doc, got, ok, want)
		}
	}
	schema, err := configs.Schema()
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(schema, []byte(`"socket":`)); n != 1 {
		t.Errorf("%d fields of the configuration are called socket: thin reads the first that it finds", n)
	}
}

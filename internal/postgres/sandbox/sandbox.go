// Package sandbox runs PostgreSQL over a restored data directory in a closed
// room: reachable through a Unix socket in a private directory and nothing else,
// without archiving, replication, scheduled jobs or, where the kernel allows, any
// network (promise 10). It never reads the restored postgresql.conf for settings,
// never listens on TCP, and leaves no process of a room behind, not even when its own
// process is killed. What could not be closed is reported, not assumed: see [Room].
//
// Who may connect: anybody who can reach the socket, as any role. The socket is
// in a directory of mode 0700, so that is the server's own operating system user
// and root. A password or peer map would keep neither out, and both can fail on a
// restored cluster whose roles and users are not this host's.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// port names the socket's file; no TCP port is ever opened.
const port = 5432

// Config says what to run.
type Config struct {
	Programs Programs
	// DataDir is owned by the programs' user, mode 0700 or 0750.
	DataDir string
	// SocketDir becomes mode 0700 and holds the socket and configuration; it is
	// made when absent. Empty: a new directory under /tmp, removed at the end.
	SocketDir string
	// Settings are PostgreSQL's; those that hold the room closed are refused. Those
	// a standby must match (C-63) only raise what pg_control asks. No
	// restore_command here means none, whatever the data directory's files say.
	Settings map[string]string
	// ConfigFile is the restored server's postgresql.conf when it is not in DataDir
	// (Debian's layout); it is asked for shared_preload_libraries, nothing more.
	ConfigFile string
	// Keep names further shared_preload_libraries that the data cannot be read without.
	Keep []string
	// HBA replaces pg_hba.conf; only lines for local connections are accepted.
	HBA string
	// Role is who [Server.Conn] connects as; empty is postgres.
	Role string
	// Network leaves the server the host's network: for a restore_command that
	// must reach out by itself.
	Network bool
	// Log receives the server's log, up to LogLimit bytes (0: 16 MiB).
	Log      io.Writer
	LogLimit int64
}

// Room says how well the room is closed.
type Room struct {
	// NoEgress: the server was seen in a network namespace that has no interface
	// but its own loopback. Otherwise Why says what prevented it.
	NoEgress bool   `json:"no_egress"`
	Why      string `json:"why,omitempty"`
	// Kept and Dropped divide the shared_preload_libraries of the restored server.
	Kept    []string `json:"kept_libraries,omitempty"`
	Dropped []string `json:"dropped_libraries,omitempty"`
	// Notes are things that a reader of the evidence should know.
	Notes []string `json:"notes,omitempty"`
}

// Server is a running PostgreSQL.
type Server struct {
	cfg     Config
	room    Room
	cmd     *exec.Cmd
	log     *boundedLog
	ownDir  bool
	done    chan struct{} // closed when the process has ended and err is set
	err     error
	outcome chan error
}

// Mode is how a server shuts down.
type Mode syscall.Signal

// The modes of PostgreSQL ("Shutting Down the Server").
const (
	Smart     = Mode(syscall.SIGTERM)
	Fast      = Mode(syscall.SIGINT)
	Immediate = Mode(syscall.SIGQUIT)
)

// Start launches the server and waits until it accepts connections; on a failure,
// or when ctx ends before that, nothing is left running.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s, err := Launch(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := s.Ready(ctx); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		return nil, errors.Join(err, s.Stop(stop, Immediate))
	}
	return s, nil
}

// Launch starts the server and returns while it may still be replaying WAL. ctx
// bounds the start only.
func Launch(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, log: newBoundedLog(cfg.Log, cfg.LogLimit), done: make(chan struct{}), outcome: make(chan error, 1)}
	if err := s.launch(ctx); err != nil {
		if s.ownDir {
			err = errors.Join(err, os.RemoveAll(s.cfg.SocketDir))
		}
		return nil, fmt.Errorf("start PostgreSQL over %s: %w", cfg.DataDir, err)
	}
	return s, nil
}

func (s *Server) launch(ctx context.Context) error {
	if err := s.furnish(); err != nil {
		return err
	}
	args, err := s.arguments(ctx)
	if err != nil {
		return err
	}
	wall := wallFor(s.cfg.Network)
	started := make(chan error)
	go s.run(args, wall, started)
	if err := <-started; err != nil {
		return err
	}
	s.room.NoEgress, s.room.Why = proveNoEgress(s.cmd.Process.Pid, wall)
	return nil
}

// run starts the process and stays with it. The kernel sends the parent-death
// signal when the thread that started the process ends, so that thread is ours.
func (s *Server) run(args []string, w wall, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := s.exec(args, w)
	started <- err
	if err != nil {
		return
	}
	if err := s.cmd.Wait(); err != nil {
		s.err = fmt.Errorf("PostgreSQL over %s ended: %w; its log ends:\n%s", s.cfg.DataDir, err, s.log.Tail())
	}
	if s.ownDir {
		s.err = errors.Join(s.err, os.RemoveAll(s.cfg.SocketDir))
	}
	s.outcome <- s.err
	close(s.done)
}

func (s *Server) exec(args []string, w wall) error {
	// SIGQUIT: PostgreSQL's immediate shutdown takes its children along, which
	// SIGKILL would leave to notice by themselves.
	cmd, err := s.cfg.Programs.command(context.Background(), "postgres", args, syscall.SIGQUIT, w)
	if err != nil {
		return err
	}
	cmd.Dir = s.cfg.SocketDir
	cmd.Stdout, cmd.Stderr = s.log, s.log
	// A child that survives the postmaster holds the log's pipe; it ends in moments.
	cmd.WaitDelay = 10 * time.Second
	s.cmd = cmd
	return cmd.Start()
}

// Ready waits until the server accepts connections: in recovery, once it is
// consistent and hot_standby is on.
func (s *Server) Ready(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !s.accepting() {
		select {
		case <-s.done:
			if s.err != nil {
				return s.err
			}
			return fmt.Errorf("PostgreSQL over %s ended before it accepted connections; its log ends:\n%s", s.cfg.DataDir, s.log.Tail())
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL over %s does not accept connections yet: %w; its log ends:\n%s", s.cfg.DataDir, ctx.Err(), s.log.Tail())
		case <-tick.C:
		}
	}
	return nil
}

// accepting reads the state that the postmaster keeps in the eighth line of
// postmaster.pid (src/include/utils/pidfile.h).
func (s *Server) accepting() bool {
	data, err := os.ReadFile(filepath.Join(s.cfg.DataDir, "postmaster.pid"))
	lines := strings.Split(string(data), "\n")
	return err == nil && len(lines) > 7 && lines[0] == strconv.Itoa(s.cmd.Process.Pid) && strings.TrimSpace(lines[7]) == "ready"
}

// Conn connects to a database over the private socket.
func (s *Server) Conn(ctx context.Context, db string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host='%s' port=%d sslmode=disable connect_timeout=10", escapeConn(s.cfg.SocketDir), port))
	if err != nil {
		return nil, fmt.Errorf("connect to the sandbox: %w", err)
	}
	// The environment's PG* variables have no say.
	cfg.User, cfg.Database, cfg.Password, cfg.Fallbacks = s.cfg.Role, db, "", nil
	cfg.RuntimeParams = map[string]string{"application_name": "holdfast"}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the sandbox over %s: %w", s.cfg.DataDir, err)
	}
	return conn, nil
}

// SocketDir is where the socket is; Port names it.
func (s *Server) SocketDir() string { return s.cfg.SocketDir }

// Port is the number in the socket's name.
func (s *Server) Port() int { return port }

// PID is the postmaster's.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Room says how well the room is closed.
func (s *Server) Room() Room { return s.room }

// LogTail is the end of the server's log, at most 64 KiB.
func (s *Server) LogTail() string { return s.log.Tail() }

// Wait gives the server's end, once: nil after a clean shutdown.
func (s *Server) Wait() <-chan error { return s.outcome }

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Stop shuts the server down and returns when it has ended; a server that has
// ended already is no error. When ctx ends first it is stopped the hard way, and
// the error says so.
func (s *Server) Stop(ctx context.Context, mode Mode) error {
	s.signal(syscall.Signal(mode))
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	err := fmt.Errorf("PostgreSQL over %s did not stop in time and was stopped at once: %w", s.cfg.DataDir, ctx.Err())
	s.signal(syscall.SIGQUIT)
	patience := time.NewTimer(10 * time.Second)
	defer patience.Stop()
	select {
	case <-s.done:
	case <-patience.C:
		s.signal(syscall.SIGKILL)
		<-s.done
	}
	return err
}

// signal goes to our own child and no other process: Go holds it by pidfd, and
// it is not reaped before done.
func (s *Server) signal(sig syscall.Signal) { _ = s.cmd.Process.Signal(sig) }

// Run runs one of PostgreSQL's client programs (pg_amcheck, pg_dump, psql)
// against the server, in the same room and as the same user.
func (s *Server) Run(ctx context.Context, stdout io.Writer, program string, args ...string) error {
	return s.cfg.Programs.run(ctx, runOptions{
		stdout: stdout, network: s.cfg.Network,
		env: []string{"PGHOST=" + s.cfg.SocketDir, "PGPORT=" + strconv.Itoa(port), "PGUSER=" + s.cfg.Role, "PGSSLMODE=disable"},
	}, program, args)
}

func escapeConn(s string) string { return strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) }

package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/jackc/pgx/v5"
)

// copyOf makes a backup of a cluster that holds a table t, as a restore would leave it.
func copyOf(t testing.TB, opts ...pgtest.Option) (Config, *pgtest.Cluster) {
	t.Helper()
	c := pgtest.Start(t, opts...)
	c.Exec("CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
	data := filepath.Join(c.Mkdir("copy"), "data")
	c.Backup(data)
	// To be quick: a test's copy need not survive a power cut.
	appendTo(t, filepath.Join(data, "postgresql.auto.conf"), "fsync = off\n")
	return Config{Programs: Programs{Bin: c.BinDir()}, DataDir: data}, c
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	t.Cleanup(cancel)
	return ctx
}

func begin(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := Start(deadline(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(deadline(t), Immediate); err != nil {
			t.Error(err)
		}
	})
	return s
}

func connect(t testing.TB, s *Server, db string) *pgx.Conn {
	t.Helper()
	conn, err := s.Conn(deadline(t), db)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func value[T any](t testing.TB, conn *pgx.Conn, sql string) (v T) {
	t.Helper()
	if err := conn.QueryRow(deadline(t), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func appendTo(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close(), pgtest.Own(path))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hostile is what a production server's configuration would do from a copy.
const hostile = `
listen_addresses = '*'
port = 6000
unix_socket_directories = '/tmp'
ssl = on
ssl_cert_file = '/nowhere/cert.pem'
archive_mode = on
archive_command = 'touch %s'
archive_cleanup_command = 'touch %s'
recovery_end_command = 'touch %s'
primary_conninfo = 'host=production'
shared_preload_libraries = 'pg_cron,auto_explain,$libdir/pg_net'
session_preload_libraries = 'no_such_library'
shared_buffers = '900GB'
synchronous_standby_names = '*'
max_logical_replication_workers = 4
max_connections = 3
logging_collector = on
data_directory = '/var/lib/postgresql/production'
hba_file = '/nowhere/pg_hba.conf'
`

// C-66, promise 10: neither postgresql.conf nor postgresql.auto.conf opens the room.
func TestRestoredConfigurationCannotOpenTheRoom(t *testing.T) {
	cfg, c := copyOf(t, pgtest.WithSetting("max_connections", "77"), pgtest.WithSetting("max_prepared_transactions", "9"))
	touched := filepath.Join(c.Mkdir("traps"), "touched")
	text := strings.ReplaceAll(hostile, "%s", touched)
	appendTo(t, filepath.Join(cfg.DataDir, "postgresql.conf"), text)
	// auto.conf is not asked where the data lies, nor for files.
	auto := text[:strings.Index(text, "data_directory")]
	appendTo(t, filepath.Join(cfg.DataDir, "postgresql.auto.conf"), auto)
	s := begin(t, cfg)
	conn := connect(t, s, "postgres")
	for name, want := range map[string]string{
		"listen_addresses": "", "archive_mode": "off", "primary_conninfo": "", "ssl": "off", "shared_preload_libraries": "",
		"session_preload_libraries": "", "synchronous_standby_names": "", "max_logical_replication_workers": "0",
		"unix_socket_directories": s.SocketDir(), "data_directory": cfg.DataDir, "archive_cleanup_command": "",
		"recovery_end_command": "", "shared_buffers": "128MB", "logging_collector": "off",
		// C-63: as pg_control says, whatever less the files say.
		"max_connections": "77", "max_prepared_transactions": "9",
	} {
		if got := value[string](t, conn, "SHOW "+name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if _, err := conn.Exec(deadline(t), "INSERT INTO t VALUES (101); SELECT pg_switch_wal()"); err != nil {
		t.Errorf("a commit in the room: %v", err)
	}
	if want := []string{"pg_cron", "auto_explain", "$libdir/pg_net"}; !slices.Equal(s.Room().Dropped, want) {
		t.Errorf("dropped %q, want %q", s.Room().Dropped, want)
	}
	if _, err := os.Stat(touched); err == nil {
		t.Error("a command of the restored configuration ran")
	}
}

func TestRoomHasNoWayOut(t *testing.T) {
	cfg, _ := copyOf(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	came := make(chan net.Conn, 8)
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			came <- conn
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	call := fmt.Sprintf(`COPY t TO PROGRAM 'bash -c "exec 3<>/dev/tcp/127.0.0.1/%s"'`, port)

	open := cfg
	open.Network = true
	s := begin(t, open)
	if _, err := connect(t, s, "postgres").Exec(deadline(t), call); err != nil && len(came) == 0 {
		t.Fatalf("the probe itself does not work: %v", err)
	}
	(<-came).Close()
	if r := s.Room(); r.NoEgress || r.Why == "" {
		t.Errorf("a room with a network says %+v", r)
	}
	if err := s.Stop(deadline(t), Fast); err != nil {
		t.Fatal(err)
	}

	s = begin(t, cfg)
	_, err = connect(t, s, "postgres").Exec(deadline(t), call)
	switch r := s.Room(); {
	case r.NoEgress && (err == nil || len(came) > 0):
		t.Error("the room says that it has no way out, and a call came through")
	case !r.NoEgress && r.Why == "":
		t.Error("the room is open and does not say why")
	case os.Geteuid() == 0 && !r.NoEgress:
		t.Errorf("root got no network namespace: %s", r.Why)
	}
}

func TestOnlyTheServersUserReachesTheSocket(t *testing.T) {
	cfg, c := copyOf(t)
	s := begin(t, cfg)
	for _, path := range []string{s.SocketDir(), filepath.Join(s.SocketDir(), ".s.PGSQL.5432")} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: mode %v, %v: want 0700", path, st.Mode(), err)
		}
	}
	if os.Geteuid() != 0 {
		return // nobody else to be
	}
	cmd := exec.Command(c.Bin("psql"), "-h", s.SocketDir(), "-U", "postgres", "-c", "SELECT 1", "postgres")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
		t.Errorf("nobody's psql: %v, %s", err, out)
	}
}

// C-15: on Debian postgresql.conf is not in the data directory.
func TestDataDirectoryWithoutConfigurationStarts(t *testing.T) {
	cfg, c := copyOf(t)
	outside := filepath.Join(c.Mkdir("etc"), "postgresql.conf")
	if err := os.Rename(filepath.Join(cfg.DataDir, "postgresql.conf"), outside); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(cfg.DataDir, "pg_hba.conf"))
	s := begin(t, cfg)
	if len(s.Room().Notes) != 1 {
		t.Errorf("notes %q: want one on the missing postgresql.conf", s.Room().Notes)
	}
	if err := s.Stop(deadline(t), Fast); err != nil {
		t.Fatal(err)
	}
	appendTo(t, outside, "shared_preload_libraries = 'pg_stat_statements, auto_explain'\n")
	cfg.ConfigFile, cfg.Keep = outside, []string{"auto_explain"}
	r := begin(t, cfg).Room()
	if !slices.Equal(r.Kept, []string{"auto_explain"}) || !slices.Equal(r.Dropped, []string{"pg_stat_statements"}) || len(r.Notes) != 0 {
		t.Errorf("room %+v", r)
	}
}

func TestUnreadableConfigurationIsANoteAndNoFailure(t *testing.T) {
	cfg, _ := copyOf(t)
	appendTo(t, filepath.Join(cfg.DataDir, "postgresql.conf"), "include = '/nowhere/site.conf'\n")
	if r := begin(t, cfg).Room(); len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "site.conf") {
		t.Errorf("notes %q", r.Notes)
	}
}

func TestStandbyWaitsInTheRoomUntilPromoted(t *testing.T) {
	cfg, _ := copyOf(t)
	appendTo(t, filepath.Join(cfg.DataDir, "standby.signal"), "")
	cfg.Settings = map[string]string{"restore_command": "false"}
	s := begin(t, cfg)
	conn := connect(t, s, "postgres")
	if !value[bool](t, conn, "SELECT pg_is_in_recovery()") {
		t.Fatal("not in recovery")
	}
	if n := value[int64](t, conn, "SELECT count(*) FROM t"); n != 100 {
		t.Errorf("%d rows", n)
	}
	if !value[bool](t, conn, "SELECT pg_promote(true, 60)") {
		t.Fatal("not promoted")
	}
	if _, err := conn.Exec(deadline(t), "DELETE FROM t"); err != nil {
		t.Error(err)
	}
}

func TestSettingsThatOpenTheRoomAreRefused(t *testing.T) {
	cfg, _ := copyOf(t)
	for _, name := range []string{"listen_addresses", "Archive_Mode", "hba_file", "include", "primary_conninfo", "a=b"} {
		cfg.Settings = map[string]string{name: "x"}
		if s, err := Launch(deadline(t), cfg); err == nil {
			t.Errorf("%s was accepted", name)
			_ = s.Stop(deadline(t), Immediate)
		}
	}
	cfg.Settings, cfg.HBA = nil, "local all all trust\nhost all all 0.0.0.0/0 trust\n"
	if _, err := Launch(deadline(t), cfg); err == nil {
		t.Error("an hba line for the network was accepted")
	}
}

func TestFailedStartSaysWhyAndLeavesNothing(t *testing.T) {
	cfg, c := copyOf(t)
	cfg.SocketDir = filepath.Join(c.Dir, "room")
	cfg.Settings = map[string]string{"wal_buffers": "nonsense"}
	_, err := Start(deadline(t), cfg)
	if err == nil || !strings.Contains(err.Error(), "wal_buffers") {
		t.Errorf("error %v: want PostgreSQL's own reason", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "postmaster.pid")); err == nil {
		t.Error("postmaster.pid was left")
	}
	// And a start that takes too long: recovery that never becomes consistent.
	cfg.Settings = map[string]string{"hot_standby": "off", "restore_command": "false"}
	appendTo(t, filepath.Join(cfg.DataDir, "standby.signal"), "")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := Start(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that never accepts: %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "postmaster.pid")); err == nil {
		t.Error("the server was left running")
	}
}

func TestStopEndsAServerThatWillNot(t *testing.T) {
	cfg, _ := copyOf(t)
	s := begin(t, cfg)
	connect(t, s, "postgres") // for which a smart shutdown waits
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx, Smart); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v: want to hear that it was forced", err)
	}
	<-s.Done()
	if err := syscall.Kill(s.PID(), 0); err != syscall.ESRCH {
		t.Errorf("the process: %v", err)
	}
	if _, err := os.Stat(s.SocketDir()); !os.IsNotExist(err) {
		t.Errorf("the socket's directory: %v, want gone", err)
	}
	if err := s.Stop(deadline(t), Fast); err != nil {
		t.Errorf("stopping what is stopped: %v", err)
	}
}

func TestCrashIsSeenWithItsLog(t *testing.T) {
	cfg, _ := copyOf(t)
	var log bytes.Buffer
	cfg.Log, cfg.LogLimit, cfg.Settings = &log, 300, map[string]string{"log_min_messages": "log"}
	s := begin(t, cfg)
	pid := value[int32](t, connect(t, s, "postgres"), "SELECT pg_backend_pid()")
	if err := syscall.Kill(int(pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := <-s.Wait()
	if err == nil || !strings.Contains(err.Error(), "was terminated by signal 9") {
		t.Errorf("error %v: want the crash", err)
	}
	if n := log.Len(); n < 300 || n > 400 {
		t.Errorf("%d bytes of log were passed on, the limit is 300", n)
	}
}

func TestProgramsRunInTheRoom(t *testing.T) {
	cfg, _ := copyOf(t, pgtest.WithOwn("pg_dump"))
	s := begin(t, cfg)
	var out strings.Builder
	if err := s.Run(deadline(t), &out, "pg_dump", "-t", "t", "postgres"); err != nil || !strings.Contains(out.String(), "COPY public.t") {
		t.Errorf("pg_dump: %v, %d bytes", err, out.Len())
	}
	if _, err := connect(t, s, "postgres").Exec(deadline(t), "CREATE EXTENSION amcheck"); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(deadline(t), nil, "pg_amcheck", "-d", "postgres"); err != nil {
		t.Error(err)
	}
	if err := s.Run(deadline(t), nil, "pg_dump", "-t", "missing", "postgres"); err == nil || !strings.Contains(err.Error(), "no matching tables") {
		t.Errorf("pg_dump of what is not there: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := s.Run(ctx, nil, "psql", "-c", "SELECT pg_sleep(1000)", "postgres"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that takes too long: %v", err)
	}
	if err := s.Stop(deadline(t), Fast); err != nil {
		t.Fatal(err)
	}
	if err := <-s.Wait(); err != nil {
		t.Errorf("a clean shutdown gave %v", err)
	}
	if err := cfg.Programs.Run(deadline(t), nil, "pg_checksums", "--check", "-D", cfg.DataDir); err != nil { // C-71
		t.Error(err)
	}
}

// The child of TestNothingOutlivesOurProcess: starts a sandbox and waits to be killed.
func TestMain(m *testing.M) {
	var cfg Config
	if text := os.Getenv("SANDBOX_TEST_CONFIG"); text != "" {
		if err := json.Unmarshal([]byte(text), &cfg); err != nil {
			panic(err)
		}
		s, err := Start(context.Background(), cfg)
		if err != nil {
			panic(err)
		}
		fmt.Println(s.PID())
		<-s.Done()
		return
	}
	os.Exit(m.Run())
}

func TestNothingOutlivesOurProcess(t *testing.T) {
	cfg, c := copyOf(t)
	cfg.SocketDir = filepath.Join(c.Dir, "room")
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SANDBOX_TEST_CONFIG="+string(text))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(bufio.NewReader(stdout), &pid); err != nil {
		t.Fatal(err)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil || len(strings.Fields(string(children))) < 3 {
		t.Fatalf("the server's processes: %q, %v", children, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for _, p := range append(strings.Fields(string(children)), fmt.Sprint(pid)) {
		awaitGone(t, p)
	}
}

func awaitGone(t *testing.T, pid string) {
	t.Helper()
	ctx, tick := deadline(t), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		// A zombie has ended: whoever adopted it reaps it in its own time.
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("process %s outlived the one that started it: %s", pid, stat)
		}
	}
}

func TestProgramsAreFoundByTheirMajor(t *testing.T) {
	if p, err := FindPrograms(15, ""); err != nil || p.Bin != "/usr/lib/postgresql/15/bin" {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := FindPrograms(14, "/usr/lib/postgresql/15/bin"); err == nil {
		t.Error("15's programs were taken for 14's")
	}
	if _, err := FindPrograms(99, ""); err == nil || !strings.Contains(err.Error(), "install") {
		t.Errorf("error %v: want the remedy", err)
	}
	if (Programs{User: "root"}).check() == nil && os.Geteuid() == 0 {
		t.Error("root was accepted as the user")
	}
}

func (p Programs) check() error { _, err := p.credential(); return err }

// The command line that closes the room differs by major, and an unknown setting stops a server.
func TestRoomClosesOnEveryMajor(t *testing.T) {
	for _, major := range pgtest.Installed() {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			cfg, _ := copyOf(t, pgtest.WithMajor(major))
			appendTo(t, filepath.Join(cfg.DataDir, "postgresql.conf"), "shared_preload_libraries = 'pg_cron'\n")
			s := begin(t, cfg)
			conn := connect(t, s, "postgres")
			if got := value[string](t, conn, "SHOW listen_addresses"); got != "" {
				t.Errorf("listen_addresses = %s", got)
			}
			if n := value[int64](t, conn, "SELECT count(*) FROM t"); n != 100 {
				t.Errorf("%d rows", n)
			}
			if got := s.Room().Dropped; !slices.Equal(got, []string{"pg_cron"}) {
				t.Errorf("dropped %q", got)
			}
			if major < 17 {
				return
			}
			// A login trigger of the restored server would run on our connections.
			if got := value[string](t, conn, "SHOW event_triggers"); got != "off" {
				t.Errorf("event_triggers = %s", got)
			}
		})
	}
}

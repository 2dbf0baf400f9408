package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func connect(t *testing.T, c *pgtest.Cluster) *postgres.Conn {
	return open(t, c, postgres.ConnectOptions{})
}

func replication(t *testing.T, c *pgtest.Cluster) *postgres.Conn {
	return open(t, c, postgres.ConnectOptions{Replication: true})
}

func open(t *testing.T, c *pgtest.Cluster, opt postgres.ConnectOptions) *postgres.Conn {
	t.Helper()
	conn, err := postgres.Connect(t.Context(), c.DSN("postgres"), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// C-2
func TestConnectLiftsEveryLimitOnTime(t *testing.T) {
	c := pgtest.Start(t)
	for _, s := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"} {
		c.Exec("ALTER SYSTEM SET " + s + " = '1h'")
	}
	c.Exec("SELECT pg_reload_conf()")
	conn := connect(t, c)
	for _, s := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"} {
		var value, app string
		err := conn.Pgx().QueryRow(t.Context(), "SELECT current_setting($1), current_setting('application_name')", s).Scan(&value, &app)
		if err != nil || value != "0" || app != "holdfast" {
			t.Errorf("%s = %s as %s, %v", s, value, app, err)
		}
	}
	if conn.ServerNum()/10000 != c.Major || conn.Major() != c.Major {
		t.Errorf("version %d", conn.ServerNum())
	}
}

func TestAPasswordIsInNoError(t *testing.T) {
	const secret = "hunter2hunter2"
	for _, dsn := range []string{
		"postgres://u:" + secret + "@127.0.0.1:1/db?connect_timeout=2",
		"host=127.0.0.1 port=1 user=u password=" + secret,
		"postgres://u:" + secret + "@127.0.0.1:port/db",
		"host=127.0.0.1 port=99999 user=u password=" + secret,
		"password=" + secret + " nonsense",
	} {
		_, err := postgres.Connect(t.Context(), dsn, postgres.ConnectOptions{})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%v", err)
		}
	}
}

func TestAnUnreachableServerIsNamedInTheError(t *testing.T) {
	_, err := postgres.Connect(t.Context(), "host=127.0.0.1 port=1 user=me", postgres.ConnectOptions{})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1 port 1") || !strings.Contains(err.Error(), `"me"`) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := postgres.Connect(ctx, "host=127.0.0.1 port=1", postgres.ConnectOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// C-2: what hands out sessions as it likes is refused before the backup starts.
// The proxy relays to the real server and, as poolers do, makes up the key of the
// session itself.
func TestABackupThroughAPoolerIsRefused(t *testing.T) {
	c := pgtest.Start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if client, err := l.Accept(); err == nil {
			pool(client, fmt.Sprintf("%s/.s.PGSQL.%d", c.SocketDir, c.Port))
		}
	}()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	conn, err := postgres.Connect(t.Context(), "host="+host+" port="+port+" user=postgres dbname=postgres sslmode=disable", postgres.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := postgres.StartBackup(t.Context(), conn, "x", true); !errors.Is(err, postgres.ErrPooler) {
		t.Errorf("%v, want ErrPooler", err)
	}
}

func pool(client net.Conn, socket string) {
	defer client.Close()
	server, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer server.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			server.Write(buf[:n])
		}
	}()
	front := pgproto3.NewFrontend(server, server)
	for {
		m, err := front.Receive()
		if err != nil {
			return
		}
		if k, ok := m.(*pgproto3.BackendKeyData); ok {
			k.ProcessID++
		}
		out, err := m.Encode(nil)
		if err != nil {
			return
		}
		client.Write(out)
	}
}

// C-9
func TestFactsOfAPrimary(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithTablespace(), pgtest.WithSetting("max_connections", "37"))
	c.Exec("CREATE DATABASE extra")
	c.Exec("CREATE ROLE keeper")
	include := c.DataDir + "/more.conf"
	c.Configure("include_if_exists = 'more.conf'")
	c.Exec("COPY (SELECT 'work_mem = 5MB') TO '" + include + "'")
	f, err := postgres.GetFacts(t.Context(), connect(t, c))
	if err != nil {
		t.Fatal(err)
	}
	if f.SystemID != pgtest.Value[string](c, "SELECT system_identifier::text FROM pg_control_system()") || f.Major != c.Major ||
		f.Timeline != 1 || f.InRecovery || f.CurrentLSN == 0 || f.CheckpointLSN == 0 || f.DataDirectory != c.DataDir ||
		f.BlockSize != 8192 || f.SegmentBlocks != 131072 || f.SegSize != 16<<20 || !f.DataChecksums || f.WALLevel != "replica" ||
		!f.FullPageWrites || f.Encoding != "UTF8" || f.Collation != "C" || len(f.Hidden) != 0 || time.Since(f.Now).Abs() > time.Minute {
		t.Errorf("%+v", f)
	}
	if f.HotStandby["max_connections"] != "37" || len(f.HotStandby) != 5 {
		t.Errorf("%v", f.HotStandby)
	}
	if !slices.Contains(f.ConfigFiles, include) || !slices.Contains(f.ConfigFiles, c.DataDir+"/pg_hba.conf") {
		t.Errorf("%v", f.ConfigFiles)
	}
	if !slices.ContainsFunc(f.Databases, func(d postgres.Database) bool { return d.Name == "extra" && d.OID > 0 }) ||
		!slices.Contains(f.Roles, "keeper") || slices.Contains(f.Roles, "pg_monitor") ||
		len(f.Extensions) != 1 || f.Extensions[0].Name != "plpgsql" ||
		len(f.Tablespaces) != 1 || f.Tablespaces[0].Location != c.Tablespace {
		t.Errorf("%+v", f)
	}
}

func TestFactsSayWhatARoleMayNotSee(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("CREATE ROLE humble LOGIN")
	conn, err := postgres.Connect(t.Context(), c.DSN("postgres")+" user=humble", postgres.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := postgres.GetFacts(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if f.DataDirectory != "" || !slices.Contains(f.Hidden, "data_directory") || !slices.Contains(f.Hidden, "pg_show_all_file_settings()") {
		t.Errorf("%+v", f)
	}
}

// C-9: a standby, and the same server once promoted.
func TestFactsFollowAPromotion(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithSetting("wal_keep_size", "256MB"))
	s := c.Standby(t, "wal_retrieve_retry_interval = '100ms'")
	conn := connect(t, s)
	f, err := postgres.GetFacts(t.Context(), conn)
	if err != nil || !f.InRecovery || f.Timeline != 1 || f.CurrentLSN == 0 {
		t.Errorf("%+v, %v", f, err)
	}
	s.Promote()
	if f, err = postgres.GetFacts(t.Context(), conn); err != nil || f.InRecovery || f.Timeline != 2 {
		t.Errorf("timeline %d, in recovery %v, %v", f.Timeline, f.InRecovery, err)
	}
}

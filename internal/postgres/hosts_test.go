package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func TestEachHostIsNamedOnceAndInOrder(t *testing.T) {
	got, err := postgres.Hosts("postgres://u@a:1,b:2,a:3/db?sslmode=prefer")
	if err != nil || fmt.Sprint(got) != "[a port 1 b port 2 a port 3]" {
		t.Errorf("%v, %v", got, err)
	}
}

// target_session_attrs holds for replication connections as for others, and Only
// for one host whatever it is.
func TestOfSeveralHostsTheOneThatFitsIsTaken(t *testing.T) {
	pg := pgtest.Start(t)
	standby := pg.Standby(t)
	dsn := func(attrs string, list ...*pgtest.Cluster) string {
		var hosts, ports []string
		for _, c := range list {
			hosts, ports = append(hosts, c.SocketDir), append(ports, fmt.Sprint(c.Port))
		}
		return fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres target_session_attrs=%s", strings.Join(hosts, ","), strings.Join(ports, ","), attrs)
	}
	recovering := func(dsn string, opt postgres.ConnectOptions) (string, error) {
		c, err := postgres.Connect(t.Context(), dsn, opt)
		if err != nil {
			return "", err
		}
		defer c.Close()
		return c.Pgx().PgConn().ParameterStatus("in_hot_standby"), nil
	}
	for _, replication := range []bool{false, true} {
		opt := postgres.ConnectOptions{Replication: replication}
		for attrs, want := range map[string]string{"primary": "off", "read-write": "off", "standby": "on", "read-only": "on", "prefer-standby": "on"} {
			for _, list := range [][]*pgtest.Cluster{{pg, standby}, {standby, pg}} {
				if got, err := recovering(dsn(attrs, list...), opt); err != nil || got != want {
					t.Errorf("%s, replication %v: in_hot_standby %q, %v", attrs, replication, got, err)
				}
			}
		}
		if got, err := recovering(dsn("prefer-standby", pg), opt); err != nil || got != "off" {
			t.Errorf("without a standby: in_hot_standby %q, %v", got, err)
		}
		if _, err := recovering(dsn("primary", standby), opt); err == nil || !strings.Contains(err.Error(), "target_session_attrs") {
			t.Errorf("a standby was taken for a primary: %v", err)
		}
		opt.Only = &postgres.Host{Name: standby.SocketDir, Port: uint16(standby.Port)}
		if _, err := recovering(dsn("primary", pg, standby), opt); err == nil || !strings.Contains(err.Error(), "target_session_attrs") {
			t.Errorf("the standby alone, and a primary asked for: %v", err)
		}
		opt.Any = true
		if got, err := recovering(dsn("primary", pg, standby), opt); err != nil || got != "on" {
			t.Errorf("only the standby: in_hot_standby %q, %v", got, err)
		}
	}
}

// C-51: slots do not follow a promotion, so each standby has its own, moved forward
// in recovery, never back and never beyond what was replayed.
func TestASlotOfAStandbyIsMovedForwardOnly(t *testing.T) {
	pg := pgtest.Start(t)
	standby := pg.Standby(t)
	repl, sql := replication(t, standby), connect(t, standby)
	if created, err := postgres.EnsureSlot(t.Context(), repl, "hold"); err != nil || !created {
		t.Fatal(created, err)
	}
	before, err := postgres.GetSlotState(t.Context(), sql, "hold")
	if err != nil || before.Restart == 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	pg.Exec("CREATE TABLE x AS SELECT generate_series(1, 1000)")
	at := flushed(t, pg)
	standby.AwaitReplay(at.String())
	for _, to := range []lsn.LSN{at, before.Restart, 1} {
		if err := postgres.AdvanceSlot(t.Context(), sql, "hold", to); err != nil {
			t.Fatal(err)
		}
		if now, err := postgres.GetSlotState(t.Context(), sql, "hold"); err != nil || now.Restart != at {
			t.Errorf("moved to %s: at %s, want %s, %v", to, now.Restart, at, err)
		}
	}
	if err := postgres.AdvanceSlot(t.Context(), sql, "hold", at+1<<30); err != nil {
		t.Fatal(err)
	}
	replayed, err := lsn.Parse(pgtest.Value[string](standby, "SELECT pg_last_wal_replay_lsn()::text"))
	if now, serr := postgres.GetSlotState(t.Context(), sql, "hold"); err != nil || serr != nil || now.Restart > replayed {
		t.Errorf("the slot is at %s, the server at %s, %v, %v", now.Restart, replayed, err, serr)
	}
}

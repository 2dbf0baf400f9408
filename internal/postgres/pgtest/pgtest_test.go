package pgtest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestClusterRunsWithChecksumsOnBothSockets(t *testing.T) {
	c := Start(t, WithTablespace())
	if got := Value[string](c, "SHOW data_checksums"); got != "on" {
		t.Errorf("data_checksums = %s", got)
	}
	conn, err := pgx.Connect(context.Background(), c.TCP("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	c.Exec("CREATE TABLE t TABLESPACE side AS SELECT 1 AS n")
	if entries, err := os.ReadDir(c.Tablespace); err != nil || len(entries) == 0 {
		t.Errorf("the tablespace holds %v, %v", entries, err)
	}
}

func TestSettingsWinOverDefaults(t *testing.T) {
	c := Start(t, WithSetting("wal_level", "logical"), WithoutChecksums())
	if got := Value[string](c, "SHOW wal_level"); got != "logical" {
		t.Errorf("wal_level = %s", got)
	}
	if got := Value[string](c, "SHOW data_checksums"); got != "off" {
		t.Errorf("data_checksums = %s", got)
	}
}

func TestNothingRunsAfterTheTest(t *testing.T) {
	var pid int
	var dir string
	t.Run("inner", func(t *testing.T) {
		c := Start(t)
		pid, dir = c.PID(), c.Dir
	})
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the server's process: %v, want none", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want gone", dir, err)
	}
}

func TestLeftoversOfAKilledTestAreSwept(t *testing.T) {
	Create(t) // makes base
	dir := filepath.Join(base(), "cLEFT")
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	held := Create(t)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want swept", dir, err)
	}
	sweep()
	if _, err := os.Stat(held.DataDir); err != nil {
		t.Errorf("a living cluster was swept: %v", err)
	}
}

func TestOracleSurvivesKillAndSeesLoss(t *testing.T) {
	c := Start(t, WithSetting("track_commit_timestamp", "on"))
	o := c.StartOracle(0)
	mark := o.AwaitMore(50)
	if mark.Time.IsZero() || mark.LSN == "" || time.Since(mark.Time).Abs() > time.Hour {
		t.Errorf("commit without a sane time and LSN: %+v", mark)
	}
	c.Kill()
	<-o.Done()
	acked := o.Stop()
	if o.Err() == nil {
		t.Error("the writer did not notice that the server was killed")
	}
	c.Start()
	ctx := context.Background()
	if err := CheckOracle(ctx, c.Conn("postgres"), acked, Everything); err != nil {
		t.Error(err)
	}
	c.Exec("DELETE FROM oracle WHERE id = 7")
	if err := CheckOracle(ctx, c.Conn("postgres"), acked, Everything); err == nil {
		t.Error("a lost commit was not noticed")
	}
	if err := CheckOracle(ctx, c.Conn("postgres"), acked, func(c Commit) bool { return c.ID != 7 }); err != nil {
		t.Error(err)
	}
}

func TestStandbyFollowsAndPromotes(t *testing.T) {
	c := Start(t)
	s := c.Standby(t)
	c.Exec("CREATE TABLE t AS SELECT 42 AS n")
	s.AwaitReplay(c.LSN())
	if got := Value[int32](s, "SELECT n FROM t"); got != 42 {
		t.Errorf("n = %d", got)
	}
	s.Promote()
	s.Exec("INSERT INTO t VALUES (1)")
}

func TestEveryInstalledMajorRunsAndStandsBy(t *testing.T) {
	for _, major := range Installed() {
		c := Start(t, WithMajor(major))
		if got := Value[string](c, "SHOW server_version_num"); got[:2] != strconv.Itoa(major) {
			t.Errorf("asked for %d, got %s", major, got)
		}
		s := c.Standby(t)
		s.AwaitReplay(c.LSN())
		if !Value[bool](s, "SELECT pg_is_in_recovery()") {
			t.Errorf("%d: the standby is none", major)
		}
		s.Stop()
		c.Stop()
	}
}

// In CI a major that is missing is a fault, not less to test.
func TestEverySupportedMajorIsInstalledWhereAllAreAskedFor(t *testing.T) {
	got := Installed()
	t.Logf("installed: PostgreSQL %v", got)
	if all := []int{14, 15, 16, 17, 18}; os.Getenv("HOLDFAST_ALL_MAJORS") != "" && !slices.Equal(got, all) {
		t.Errorf("PostgreSQL %v are installed of %v: run `make majors`", got, all)
	}
}

func TestTheEnvironmentChoosesTheMajor(t *testing.T) {
	t.Setenv("HOLDFAST_PG_MAJOR", "")
	_, usual, err := find(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, major := range Installed() {
		t.Setenv("HOLDFAST_PG_MAJOR", strconv.Itoa(major))
		if _, got, err := find(0); err != nil || got != major {
			t.Errorf("%d was chosen, found %d, %v", major, got, err)
		}
		if _, got, err := find(usual); err != nil || got != usual {
			t.Errorf("a test that names %d got %d, %v", usual, got, err)
		}
	}
	for _, odd := range []string{"9", "fifteen"} {
		t.Setenv("HOLDFAST_PG_MAJOR", odd)
		if _, _, err := find(0); err == nil {
			t.Errorf("HOLDFAST_PG_MAJOR=%s was taken", odd)
		}
	}
}

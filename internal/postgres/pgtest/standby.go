package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Backup copies the running cluster into dir, an absent directory, by
// PostgreSQL's low-level backup API and cp: independent of the code under test,
// and able to serve every major. The WAL that consistency needs is in the copy.
func (c *Cluster) Backup(dir string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	start, stop := "pg_backup_start('pgtest', true)", "pg_backup_stop(false)"
	if c.Major < 15 {
		start, stop = "pg_start_backup('pgtest', true, false)", "pg_stop_backup(false, false)"
	}
	conn := c.Conn("postgres")
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "SELECT "+start); err != nil {
		c.t.Fatal(err)
	}
	// cp complains of files that vanish meanwhile; what matters replay will miss.
	_, copyErr := output(ctx, c.Dir, "cp", "-a", "--reflink=auto", c.DataDir, dir)
	var label, spcmap string
	if err := conn.QueryRow(ctx, "SELECT labelfile, spcmapfile FROM "+stop).Scan(&label, &spcmap); err != nil {
		c.t.Fatal(err)
	}
	c.Exec("SELECT pg_switch_wal()")
	wal := filepath.Join(dir, "pg_wal")
	if _, err := os.Stat(wal); err != nil {
		c.t.Fatal(errors.Join(copyErr, err))
	}
	err := c.copyWAL(ctx, wal)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "backup_label"), []byte(label), 0o600)
	}
	for _, name := range []string{"postmaster.pid", "postmaster.opts"} {
		os.Remove(filepath.Join(dir, name))
	}
	if err := errors.Join(err, Own(dir)); err != nil {
		c.t.Fatalf("copying the cluster: %v", err)
	}
}

// copyWAL copies the segments and histories there are, over those in dir. The server
// makes, renames and removes files beside them at any time.
func (c *Cluster) copyWAL(ctx context.Context, dir string) (err error) {
	for range 5 {
		files, ferr := filepath.Glob(filepath.Join(c.DataDir, "pg_wal", "0*"))
		if ferr != nil {
			return ferr
		}
		args := append([]string{"-a", "--remove-destination", "-t", dir}, files...)
		if _, err = output(ctx, c.Dir, "cp", args...); err == nil {
			return nil
		}
	}
	return err
}

// Standby makes a streaming hot standby of the cluster and waits until it
// accepts queries. The cluster must have no tablespaces outside its directory.
func (c *Cluster) Standby(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	s := newCluster(t, c.bin, c.Major, options{})
	c.Backup(s.DataDir)
	if err := os.WriteFile(filepath.Join(s.DataDir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Own(s.DataDir); err != nil {
		t.Fatal(err)
	}
	s.Configure(fmt.Sprintf("primary_conninfo = 'host=%s port=%d user=postgres'", c.SocketDir, c.Port))
	s.Configure(settings...)
	s.Start()
	return s
}

// Promote ends a standby's recovery and waits until it has ended.
func (c *Cluster) Promote() {
	c.t.Helper()
	if !Value[bool](c, "SELECT pg_promote(true, 60)") {
		c.t.Fatal("the standby did not promote within 60 seconds")
	}
}

// AwaitReplay waits until a standby has replayed up to an LSN (text).
func (c *Cluster) AwaitReplay(lsn string) {
	c.t.Helper()
	err := until(func() (bool, error) {
		return Value[bool](c, "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)", lsn), nil
	})
	if err != nil {
		c.t.Fatalf("replay of %s: %v", lsn, err)
	}
}

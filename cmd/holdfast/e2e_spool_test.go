package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/durable/durabletest"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// P1, P2, P11, promises 1 and 11: zones that are away fill the spool to its quota and no
// further, and a full disk takes the reserve. Both are told early, both end by themselves,
// and a restore finds every commit.
func TestAFullSpoolAndAFullDiskAreToldAndEndByThemselves(t *testing.T) {
	disk := durabletest.SmallDisk(t, 192<<20)
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	pg.Run("pgbench", "-i", "-q", "-s", "1", "-h", pg.SocketDir, "-p", strconv.Itoa(pg.Port), "-U", "postgres", "postgres")
	r := newRig(t, pg, false)
	if err := os.Symlink(disk, r.path("db/state")); err != nil {
		t.Fatal(err)
	}
	r.configure()
	conf, err := os.ReadFile(r.path("db/holdfast.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(conf), "max_lag: 500ms", "max_lag: 500ms, spool: 32MiB", 1)
	r.write("db/holdfast.yaml", strings.Replace(text, "node: {", "node: {limits: {reserve: 32MiB}, ", 1))
	r.daemon("db")
	r.load()
	oracle := pg.StartOracle(50 * time.Millisecond)
	r.hold("db", 0, "snapshot", "take", "cms")
	moment := r.fillSpool(disk, oracle)
	r.fillDisk(disk)
	r.exactly("after", moment, oracle, "--time", moment.Format(time.RFC3339Nano))
	if c := ask[walDoc](r, "db", "wal", "status", "cms").Clusters[0]; len(c.Gaps) > 0 {
		t.Errorf("gaps %+v", c.Gaps)
	}
}

// noise has the server write about 16 MiB of WAL that cannot be compressed.
func (r *rig) noise() {
	r.pg.Exec("CREATE TABLE IF NOT EXISTS noise (b bytea)")
	r.pg.Exec("INSERT INTO noise SELECT (SELECT string_agg(decode(md5(random()::text), 'hex'), '') FROM generate_series(1, 62) WHERE i > 0) FROM generate_series(1, 15000) i")
}

// open are the keys of the open incidents.
func (r *rig) opened() (keys string) {
	r.t.Helper()
	for _, i := range ask[incidentsDoc](r, "db", "incident", "list").Incidents {
		if i.Open() {
			keys += i.Key + "\n"
		}
	}
	return keys
}

func (r *rig) fillSpool(disk string, o *pgtest.Oracle) time.Time {
	r.t.Helper()
	const quota = 32 << 20
	for _, z := range []string{"b", "c"} {
		if err := os.Rename(r.path("zones/"+z), r.path("zones/"+z+".away")); err != nil {
			r.t.Fatal(err)
		}
	}
	spool, peak := filepath.Join(disk, "spool", "cms"), int64(0)
	see := func() {
		n, err := onDisk(spool)
		if err != nil {
			r.t.Fatal(err)
		}
		peak = max(peak, n)
	}
	for range 4 {
		r.noise()
		see()
	}
	keys := ""
	await(r.t, "the incidents of a full spool", func() bool {
		see()
		keys = r.opened()
		return strings.Contains(keys, "spool/cms\n") && strings.Contains(keys, "spool-full/cms\n")
	})
	a := ask[walDoc](r, "db", "wal", "status", "cms").Clusters[0].Archiving
	if a == nil || a.Spool == nil || a.Spool.Quota != quota || a.Spool.Bytes > quota || a.Spool.Bytes < quota/4 || a.Spool.Full == "" {
		r.t.Errorf("wal status tells %+v of a full spool", a)
	}
	if out := r.hold("db", 0, "wal", "status", "cms"); !strings.Contains(out, "of 32.0 MiB") || !strings.Contains(out, "nothing more is taken") {
		r.t.Errorf("wal status says\n%s", out)
	}
	for _, z := range []string{"b", "c"} {
		if err := os.Rename(r.path("zones/"+z+".away"), r.path("zones/"+z)); err != nil {
			r.t.Fatal(err)
		}
	}
	moment := r.moment(o, zoneLetters...)
	if see(); peak > quota {
		r.t.Errorf("the spool took %d bytes of disk, its quota is %d", peak, quota)
	}
	await(r.t, "the incidents' end", func() bool { return !strings.Contains(r.opened(), "spool") })
	return moment
}

func (r *rig) fillDisk(disk string) {
	r.t.Helper()
	reserve := filepath.Join(disk, "reserve")
	if info, err := os.Stat(reserve); err != nil || info.Size() != 32<<20 {
		r.t.Fatalf("the reserve: %v, %v", info, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		r.t.Fatal(err)
	}
	junk := filepath.Join(disk, "junk")
	if err := os.WriteFile(junk, bytes.Repeat([]byte{1}, int(st.Bavail)*int(st.Bsize)-256<<10), 0o600); err != nil {
		r.t.Fatal(err)
	}
	await(r.t, "the reserve is given up, and that is told", func() bool {
		_, err := os.Stat(reserve)
		return os.IsNotExist(err) && strings.Contains(r.opened(), "state-disk\n")
	})
	r.noise()
	r.archived(zoneLetters...) // through what was the reserve
	if err := os.Remove(junk); err != nil {
		r.t.Fatal(err)
	}
	await(r.t, "the reserve is made again, and the incident's end", func() bool {
		info, err := os.Stat(reserve)
		return err == nil && info.Size() == 32<<20 && !strings.Contains(r.opened(), "state-disk")
	})
	r.noise()
	r.archived(zoneLetters...)
}

// onDisk is what the files of a directory take.
func onDisk(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) || err == nil && d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		return n, fmt.Errorf("measuring %s: %w", dir, err)
	}
	return n, nil
}

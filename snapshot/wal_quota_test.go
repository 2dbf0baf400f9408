package snapshot

import (
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/durable/durabletest"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

const mib = 1 << 20

// writeNoise makes the server write some n MiB of WAL that hardly compress.
func writeNoise(pg *pgtest.Cluster, n int) {
	pg.Exec("CREATE TABLE IF NOT EXISTS noise (b bytea)")
	pg.Exec(fmt.Sprintf("INSERT INTO noise SELECT (SELECT string_agg(decode(md5(random()::text), 'hex'), '') FROM generate_series(1, 62) WHERE i > 0) FROM generate_series(1, %d) i", n*950))
}

// onDisk is what the files of a directory take on disk.
func onDisk(t testing.TB, dir string) (n int64) {
	t.Helper()
	okay(t, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
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
	}))
	return n
}

// C-51, P2, P8: while the zones are away WAL waits sealed in the spool, up to its quota;
// behind that the server keeps it. All of it goes out when they return.
func TestTheSpoolTakesWhatItsQuotaHoldsAndNoMore(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	keepWAL(pg)
	const most = 8 * mib
	spool := filepath.Join(r.state, "s")
	d := r.archive(pg, "s", func(_ *ArchiveConfig, w *WALWriter) { w.spool.quota.most = most })
	waitFor(t, d, currentLSN(t, pg))
	for _, z := range r.zones[1:] {
		z.set(errZoneDown, nil)
	}
	before := d.Position().Durable
	peak := int64(0)
	see := func() int64 {
		peak = max(peak, onDisk(t, spool))
		return peak
	}
	for range 8 {
		writeNoise(pg, 3)
		see()
	}
	to := currentLSN(t, pg)
	await(t, "the spool is full", func() bool { return see() > 0 && d.Position().Spool.Full != nil })
	p := d.Position()
	wantErr(t, p.Spool.Full, ErrSpoolFull)
	if p.Spool.Parts <= 2*d.w.c.Parallel || p.Spool.Bytes < most*7/10 || p.Spool.Bytes > most || p.Err == nil {
		t.Errorf("%+v: want the spool nearly full of parts, within %d bytes", p.Spool, most)
	}
	if p.Durable != before || flushedOnServer(t, pg) > before {
		t.Errorf("without a quorum %s became durable, %s was told to the server", p.Durable, flushedOnServer(t, pg))
	}
	d.stop()
	for _, z := range r.zones[1:] {
		z.set(nil, nil)
	}
	d = r.archive(pg, "s", func(_ *ArchiveConfig, w *WALWriter) { w.spool.quota.most = most })
	if see(); d.w.spool.quota.state().Bytes == 0 {
		t.Error("a new process does not know what waits in the spool")
	}
	waitFor(t, d, to)
	if see(); peak > most {
		t.Errorf("the spool took %d bytes of disk, its quota is %d", peak, most)
	}
	sameAsServer(t, r, d.v, pg, filepath.Join(pg.DataDir, "pg_wal"), 1, to)
	r.checkChainOf(d.v, 1)
	await(t, "the spool is empty", func() bool { return d.Position().Spool.Parts == 0 && d.Position().Spool.Full == nil })
}

// P1: a push without room is refused, in words, and is taken later.
func TestAPushIsToldThatTheSpoolIsFull(t *testing.T) {
	g := newPushRig(t)
	g.p.w.spool.quota.most = mib + 300<<10
	writeNoise(g.pg, 1)
	first, second := g.finish(), g.finish()
	okay(t, g.push(t, first))
	r, err := g.p.w.spool.quota.admit(mib) // as a part does that waits for zones
	okay(t, err)
	err = g.push(t, second)
	wantErr(t, err, ErrSpoolFull, "write quorum", second)
	r.release()
	okay(t, g.push(t, second))
}

// diskRig archives with a spool on a disk that a test fills.
func diskRig(t *testing.T) (*repo, *pgtest.Cluster, *daemon, string, *durable.Reserve) {
	t.Helper()
	r := newWALRepo(t)
	pg := walServer(t)
	keepWAL(pg)
	disk := durabletest.SmallDisk(t, 24*mib)
	reserve := durable.NewReserve(filepath.Join(disk, "reserve"), 6*mib)
	_, err := reserve.Tend()
	okay(t, err)
	r.state = disk
	d := r.archive(pg, "s", func(_ *ArchiveConfig, w *WALWriter) { w.spool.quota.disk = reserve })
	waitFor(t, d, currentLSN(t, pg))
	return r, pg, d, disk, reserve
}

func fillDisk(t *testing.T, dir string, but int64) (path string) {
	t.Helper()
	var st unix.Statfs_t
	okay(t, unix.Statfs(dir, &st))
	path = filepath.Join(dir, "junk")
	okay(t, os.WriteFile(path, make([]byte, int64(st.Bavail)*st.Bsize-but), 0o600))
	return path
}

// P11: the disk fills with what is not ours. The reserve is given up, parts leave one at
// a time through what it was, and it is made again when there is room.
func TestWALGoesOutThroughTheReserveOfAFullDisk(t *testing.T) {
	r, pg, d, disk, reserve := diskRig(t)
	junk := fillDisk(t, disk, 256<<10)
	writeNoise(pg, 4)
	to := currentLSN(t, pg)
	waitFor(t, d, to)
	if s, err := reserve.State(); err != nil || s.Held {
		t.Errorf("on a full disk: %+v, %v", s, err)
	}
	okay(t, os.Remove(junk))
	s, err := reserve.Tend()
	okay(t, err)
	if !s.Held {
		t.Errorf("with room again: %+v", s)
	}
	writeNoise(pg, 2)
	to = currentLSN(t, pg)
	waitFor(t, d, to)
	sameAsServer(t, r, d.v, pg, filepath.Join(pg.DataDir, "pg_wal"), 1, to)
	r.checkChainOf(d.v, 1)
}

// P11: the zones are away and the disk fills with WAL. The server keeps what has no room;
// when the zones return everything leaves, and nobody had to do anything.
func TestADiskFullOfWALEmptiesByItself(t *testing.T) {
	r, pg, d, disk, reserve := diskRig(t)
	for _, z := range r.zones[1:] {
		z.set(errZoneDown, nil)
	}
	for range 8 {
		writeNoise(pg, 4)
	}
	to := currentLSN(t, pg)
	await(t, "the spool has no room", func() bool { return d.Position().Spool.Full != nil })
	wantErr(t, d.Position().Spool.Full, durable.ErrNoRoom, disk)
	okay(t, durable.WriteFile(filepath.Join(disk, "note"), make([]byte, 512<<10), 0o600)) // small things are still written
	for _, z := range r.zones[1:] {
		z.set(nil, nil)
	}
	waitFor(t, d, to)
	await(t, "the reserve is made again", func() bool {
		s, err := reserve.Tend()
		return err == nil && s.Held && !s.Low()
	})
	sameAsServer(t, r, d.v, pg, filepath.Join(pg.DataDir, "pg_wal"), 1, to)
	r.checkChainOf(d.v, 1)
}

// P8: what a writer that was killed left half written is not there for ever.
func TestATornPartLeavesTheSpool(t *testing.T) {
	dir := t.TempDir()
	torn := filepath.Join(dir, durable.TempPrefix+"123")
	okay(t, os.WriteFile(torn, make([]byte, mib), 0o600))
	_, err := openSpool(dir, 1, newQuota(0, nil))
	okay(t, err)
	if _, err := os.Stat(torn); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// What a part was promised is never less than it takes.
func TestAPartTakesNoMoreThanItWasPromised(t *testing.T) {
	g := newPushRig(t)
	for _, n := range []int{0, 1, 4000, mib} {
		noise := make([]byte, n)
		_, _ = rand.Read(noise)
		p := part{file: fmt.Sprintf("%024X", n+1), timeline: 1, from: 1, to: 1, data: noise, marks: marks{index: noise}}
		room, err := g.p.w.spool.quota.admit(p.most())
		okay(t, err)
		promised := room.bytes
		e, err := g.p.w.sealed(t.Context(), &p, p.names(g.p.w.c.Lineage, g.p.w.c.Keys), room, &turn{})
		okay(t, err)
		if took := g.p.w.spool.quota.sizes[e.WAL.Object.Name]; took > promised {
			t.Errorf("%d bytes took %d, promised were %d", n, took, promised)
		}
	}
}

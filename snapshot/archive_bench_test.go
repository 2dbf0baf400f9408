package snapshot

import (
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// BenchmarkStream archives a load's WAL, in segments of 16 MiB, that waits in the
// slot: MB/s of WAL, MB/s for each second of CPU, and the process's peak memory in
// MB. With three zones and a quorum of two, and with one of the three hanging.
func BenchmarkStream(b *testing.B) {
	pg, _ := backlog(b)
	for _, hanging := range []bool{false, true} {
		b.Run("hanging="+strconv.FormatBool(hanging), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				streamBacklog(b, pg, hanging)
			}
		})
	}
}

func streamBacklog(b *testing.B, pg *pgtest.Cluster, hanging bool) {
	r := newWALRepo(b)
	hang := make(chan struct{})
	defer close(hang)
	if hanging {
		r.zones[2].set(nil, hang)
	}
	slot, from := copySlot(b, pg)
	to := currentLSN(b, pg)
	v := r.vault()
	l := r.claim(v, "s", serverOf(b, pg))
	used := cpuOf(b)
	b.StartTimer()
	d := r.archiveAs(v, l, pg, "s", func(c *ArchiveConfig, _ *WALWriter) {
		c.Slot, c.SegSize, c.MaxLag = slot, 16<<20, 5*time.Second
	})
	waitFor(b, d, to)
	b.StopTimer()
	b.SetBytes(int64(to - from))
	b.ReportMetric(float64(to-from)/1e6/(cpuOf(b)-used), "MB/cpu-s")
	b.ReportMetric(peakOf(b), "peak-MB")
	okay(b, d.stop())
	pg.Exec("SELECT pg_drop_replication_slot($1)", slot)
	b.StartTimer()
}

// slotFromHere makes a slot that holds all WAL from now on.
func slotFromHere(pg *pgtest.Cluster) {
	pg.Exec("SELECT pg_create_physical_replication_slot('base', true)")
}

// copySlot makes a slot that holds what that of slotFromHere does, and says from where.
func copySlot(t testing.TB, pg *pgtest.Cluster) (slot string, from lsn.LSN) {
	slot = "copy" + strconv.FormatInt(time.Now().UnixNano(), 36)
	pg.Exec("SELECT pg_copy_physical_replication_slot('base', $1::text::name)", slot)
	from, err := lsn.Parse(pgtest.Value[string](pg, "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'base'"))
	okay(t, err)
	return slot, from
}

// Promise 11: a zone that hangs holds back its own copies, and takes no memory.
func TestTheMemoryOfTheStreamIsBoundedWhileAZoneHangs(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	slotFromHere(pg)
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	r.zones[2].set(nil, hang)
	pg.Exec("CREATE TABLE junk (b text)")
	pg.Exec("INSERT INTO junk SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 60) i, generate_series(1, 43000) j GROUP BY j")
	slot, from := copySlot(t, pg)
	to := currentLSN(t, pg)
	if to-from < 72*walSeg {
		t.Fatalf("the load wrote %d bytes of WAL", to-from)
	}
	const outstanding = 4 * walSeg // bytes that writes to the hanging zone may hold
	v, err := vault.Open(vault.Config{Zones: r.drv, Quorum: 2, State: t.TempDir(), SlowAfter: 200 * time.Millisecond, Outstanding: outstanding})
	okay(t, err)
	t.Cleanup(func() { v.Close() })
	l := r.claim(v, "s", serverOf(t, pg))
	before, peak := liveHeap(), uint64(0)
	d := r.archiveAs(v, l, pg, "s", func(c *ArchiveConfig, _ *WALWriter) { c.Slot, c.MaxLag = slot, time.Second })
	await(t, "all WAL is in the quorum", func() bool {
		peak = max(peak, liveHeap())
		return d.Position().Durable >= to
	})
	// And the parts on their way, and two compressors of 9 MiB: half of what there is to archive.
	if grown := int64(peak) - int64(before); grown > outstanding+40*walSeg {
		t.Errorf("%d MB of WAL took %d MB of memory", (to-from)>>20, grown>>20)
	} else {
		t.Logf("%d MB of WAL took %d MB of memory", (to-from)>>20, grown>>20)
	}
}

// liveHeap is the least of three readings: what is let go of while a collection runs,
// which on a busy machine takes long, is counted as live by that one.
func liveHeap() uint64 {
	least := uint64(math.MaxUint64)
	for range 3 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		least = min(least, m.HeapAlloc)
	}
	return least
}

// cpuOf is the CPU time of this process, in seconds; the server is another.
func cpuOf(t testing.TB) float64 {
	data, err := os.ReadFile("/proc/self/stat")
	okay(t, err)
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')'):]))
	var ticks float64
	for _, s := range f[12:14] { // utime, stime
		n, err := strconv.ParseFloat(s, 64)
		okay(t, err)
		ticks += n
	}
	return ticks / 100
}

// peakOf is the most memory that this process ever had, in MB.
func peakOf(t testing.TB) float64 {
	data, err := os.ReadFile("/proc/self/status")
	okay(t, err)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[0] == "VmHWM:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			okay(t, err)
			return kb * 1024 / 1e6
		}
	}
	t.Fatal("/proc/self/status has no VmHWM")
	return 0
}

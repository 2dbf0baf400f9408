package snapshot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Promise 1, C-8: what objects.list names is enough to be consistent, with the
// real archiver beside a server under load that keeps no WAL.
func TestSnapshotWithTheWALThatItNamesIsEnough(t *testing.T) {
	pg := walServer(t)
	fill(pg, "steady", 1000)
	repo := newWALRepo(t)
	d := repo.archive(pg, "one")
	oracle := pg.StartOracle(0)
	eachSource(t, func(t *testing.T, source string) {
		r := &rig{t: t, vault: d.v, trust: repo.trust, data: []age.Identity{repo.id}, index: []age.Identity{repo.id}, signer: repo.sign, dataTo: repo.to, indexTo: repo.to}
		before := oracle.AwaitMore(5)
		cfg := r.config(pg, source)
		cfg.Cluster, cfg.WAL, cfg.WALRefs = "cms", d, ArchivedWAL(d.v.Reader(), repo.trust, "cms", 1)
		s := r.take(cfg)
		m := r.manifest(s)
		dir := pg.Mkdir("enough-" + source)
		r.unpack(m, dir)
		writeNamedWAL(t, r, s, dir)
		noErr(t, pgtest.Own(dir))
		copied := pg.Adopt(dir, "archive_mode = off")
		copied.Start()
		if n := pgtest.Value[int64](copied, "SELECT count(*) FROM oracle WHERE id <= $1", before.ID); n != before.ID {
			t.Errorf("%d of %d rows that were committed before the snapshot", n, before.ID)
		}
		copied.Stop()
	})
}

// writeNamedWAL writes the WAL that a snapshot names into pg_wal.
func writeNamedWAL(t *testing.T, r *rig, s catalog.Snapshot, dir string) {
	t.Helper()
	for _, ref := range s.WAL {
		if !strings.HasSuffix(ref.Name, ".note") {
			continue
		}
		var w catalog.WAL
		data, err := r.vault.Reader().Get(t.Context(), ref.Name, ref.Size, ref.SHA256)
		noErr(t, err)
		_, err = r.trust.Open(data, catalog.KindWAL, string(catalog.DutyWAL), s.Cluster, &w)
		noErr(t, err)
		body, err := r.vault.Reader().Get(t.Context(), w.Object.Name, w.Object.Size, w.Object.SHA256)
		noErr(t, err)
		plain, err := seal.OpenFile(body, r.data, 64<<20)
		noErr(t, err)
		name := lsn.SegmentName(w.Timeline, w.From.Segment(s.SegSize), s.SegSize)
		f, err := os.OpenFile(filepath.Join(dir, "pg_wal", name), os.O_CREATE|os.O_WRONLY, 0o600)
		noErr(t, err)
		_, err = f.WriteAt(plain, w.From.Offset(s.SegSize))
		noErr(t, err)
		noErr(t, f.Truncate(s.SegSize))
		noErr(t, f.Close())
	}
}

// C-8: an archive that begins after the snapshot's start does not hold its WAL,
// however far it reaches.
func TestHoleInTheWALEndsTheSnapshot(t *testing.T) {
	pg := startPG(t)
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	cfg.WALRefs = ArchivedWAL(r.vault.Reader(), r.trust, "main", 1)
	_, err := Take(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "is not archived") || len(r.notes()) > 0 {
		t.Errorf("got %v, notes in %v", err, r.notes())
	}
}

func TestCoverTakesTheFarthestAndFindsHoles(t *testing.T) {
	entry := func(from, to lsn.LSN) catalog.WALEntry { return catalog.WALEntry{From: from, To: to} }
	entries := []catalog.WALEntry{entry(0, 16), entry(0, 4), entry(4, 8), entry(16, 20), entry(20, 20), entry(20, 24), entry(32, 48)}
	for _, c := range []struct{ from, to, pieces lsn.LSN }{{0, 16, 1}, {2, 3, 1}, {0, 24, 3}, {17, 22, 2}, {33, 40, 1}, {0, 0, 0}, {0, 25, 99}, {25, 40, 99}, {40, 49, 99}} {
		got, err := cover(entries, c.from, c.to)
		if c.pieces == 99 != (err != nil) || err == nil && len(got) != int(c.pieces) {
			t.Errorf("%s to %s: %v, %v; want %d", c.from, c.to, got, err, c.pieces)
		}
	}
}

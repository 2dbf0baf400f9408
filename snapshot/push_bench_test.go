package snapshot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// BenchmarkPush is what a segment of 16 MiB costs from pg_wal to one zone that is
// a directory: MB/s of one push after the other (-cpu 1: of one core).
func BenchmarkPush(b *testing.B) {
	pg, names := backlog(b)
	for b.Loop() { // each into a repository of its own
		b.StopTimer()
		p := benchPusher(b, pg)
		b.SetBytes(int64(len(names)) * p.c.SegSize)
		b.StartTimer()
		for _, name := range names {
			okay(b, p.Push(b.Context(), PushRequest{Path: "pg_wal/" + name, DataDir: pg.DataDir}))
		}
	}
}

// backlog is a server with a load's segments of 16 MiB that are ready to be pushed.
func backlog(b *testing.B) (*pgtest.Cluster, []string) {
	pg := pgtest.Start(b, pgtest.WithSetting("archive_mode", "on"), pgtest.WithSetting("archive_command", "false"))
	slotFromHere(pg)
	args := []string{"-h", pg.SocketDir, "-p", port(pg), "-U", "postgres", "postgres"}
	pg.Run("pgbench", append([]string{"-i", "-q", "-s", "10"}, args...)...)
	pg.Exec("CHECKPOINT")
	pg.Run("pgbench", append([]string{"-n", "-t", "4000", "-c", "4"}, args...)...)
	pg.SwitchWAL()
	marks, err := filepath.Glob(filepath.Join(pg.DataDir, "pg_wal/archive_status/*.ready"))
	okay(b, err)
	var names []string
	for _, m := range marks {
		names = append(names, strings.TrimSuffix(filepath.Base(m), ".ready"))
	}
	if len(names) < 8 {
		b.Fatalf("the load made %d segments", len(names))
	}
	return pg, names
}

func benchPusher(b *testing.B, pg *pgtest.Cluster) *Pusher {
	r := newWALRepo(b)
	v, err := vault.Open(vault.Config{Zones: r.drv[:1], Quorum: 1, State: b.TempDir()})
	okay(b, err)
	b.Cleanup(func() { v.Close() })
	s := serverOf(b, pg)
	l := r.lineageConfig("s", s)
	l.Quorum = 1
	lineage, err := Claim(b.Context(), l, v.Writer())
	okay(b, err)
	spool := b.TempDir()
	okay(b, os.MkdirAll(spool, 0o700))
	p, err := NewPusher(PushConfig{Major: s.Major, SegSize: 16 << 20, DataDir: pg.DataDir}, r.writer(v, lineage, spool))
	okay(b, err)
	return p
}

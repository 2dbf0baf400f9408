package restore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// A standby is left in recovery, where the archive ended, and goes on behind live.
func TestAStandbyIsLeftInRecovery(t *testing.T) {
	pg := pgtest.Start(t)
	w := newWorld(t, pg)
	pg.Exec("CREATE TABLE n AS SELECT 1 AS i")
	w.take(snapshot.SourceFiles)
	pg.Exec("INSERT INTO n VALUES (2)")
	w.flush()
	p := w.plan(restore.Target{Kind: restore.Latest, Standby: &restore.Standby{Primary: pg.DSN("postgres"), StreamOnly: true}})
	to := w.target()
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, w.options(to)))
	if err := room.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := room.Result.Standby
	if f == nil || !f.Readers || f.Replayed < p.ExpectedEnd.LSN || f.RestoreCommand != "" {
		t.Fatalf("left as %+v, expected end %s", f, p.ExpectedEnd.LSN)
	}
	m := must[restore.Marker](t)(restore.ReadMarker(to))
	if started, err := restore.Started(to, m); m.State != "standby" || started || err != nil {
		t.Errorf("the marker says %s; started %v, %v", m.State, started, err)
	}
	if _, err := restore.Open(t.Context(), to, restore.OpenOptions{Binaries: pg.BinDir()}); err == nil || !strings.Contains(err.Error(), "standby") {
		t.Errorf("opened as a copy: %v", err)
	}
	conf := filepath.Join(to, "postgresql.conf")
	text := must[[]byte](t)(os.ReadFile(conf))
	if err := os.WriteFile(conf, fmt.Appendf(text, "\nlisten_addresses = ''\nunix_socket_directories = '%s'\n", to), 0o600); err != nil {
		t.Fatal(err)
	}
	programs := sandbox.Programs{Bin: pg.BinDir()}
	if err := programs.StartDaemon(t.Context(), to, filepath.Join(to, "log.txt")); err != nil {
		t.Fatal(err)
	}
	pg.Exec("INSERT INTO n VALUES (3)")
	pg.Await("SELECT coalesce(bool_or(replay_lsn >= $1::text::pg_lsn), false) FROM pg_stat_replication WHERE application_name <> 'holdfast'", pg.LSN())
	if err := programs.StopDaemon(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if started, err := restore.Started(to, m); !started || err != nil {
		t.Errorf("started %v, %v", started, err)
	}
	if err := restore.Discard(to); err != nil {
		t.Error(err)
	}
}

// C-65: a standby would read the paths again that a restore takes out of the WAL.
func TestAStandbyIsNotLeftBehindATablespacesCreation(t *testing.T) {
	pg := pgtest.Start(t)
	w := newWorld(t, pg)
	w.take(snapshot.SourceFiles)
	pg.Exec("CREATE TABLESPACE late LOCATION '" + pg.Mkdir("late") + "'")
	w.flush()
	p := w.plan(restore.Target{Kind: restore.Latest, Standby: &restore.Standby{Primary: pg.DSN("postgres"), StreamOnly: true}})
	to := w.target()
	if _, err := restore.Prepare(t.Context(), w.repo(), p, w.options(to)); !errors.Is(err, restore.ErrSpaces) || errors.Is(err, restore.ErrIncomplete) {
		t.Fatalf("%v, want ErrSpaces", err)
	}
	w.cannotStart(to)
	if err := restore.Discard(to); err != nil {
		t.Error(err)
	}
	w.take(snapshot.SourceFiles)
	w.flush()
	p = w.plan(restore.Target{Kind: restore.Latest, Standby: &restore.Standby{Primary: pg.DSN("postgres"), StreamOnly: true}})
	to = w.target()
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, w.options(to)))
	if err := room.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := restore.Discard(to); err != nil {
		t.Error(err)
	}
}

package restore_test

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// Two readers that share nothing but docs/format.md: the script and this package.
func TestBreakGlassAndARestoreGiveTheSameFiles(t *testing.T) { // promise 9
	t.Setenv("TMPDIR", "/tmp")
	pg := pgtest.Start(t, pgtest.WithTablespace())
	furnish(pg)
	w := newWorld(t, pg)
	w.takeNext()
	pg.Exec("UPDATE aside SET g = -g WHERE g < 100")
	pg.Exec("CREATE TABLE large AS SELECT g, repeat(g::text, 100) AS t FROM generate_series(1, 10000) g")
	pg.Exec("CREATE INDEX ON large (g)")
	pg.Exec("VACUUM large")
	if s := w.takeNext(); s.NewBytes >= s.StoredSize {
		t.Errorf("the second snapshot needs nothing of the first: %+v", s)
	}
	w.flush()
	w.settle()

	ours, theirs := w.target(), w.target()
	if _, err := restore.Fetch(t.Context(), w.repo(), w.plan(restore.Target{Kind: restore.Latest}), w.options(ours)); err != nil {
		t.Fatal(err)
	}
	w.breakGlass(theirs)
	want, got := tree(t, ours), tree(t, theirs)
	if len(want) < 900 || want["base/1/1259"] == "" {
		t.Errorf("%d files were compared", len(want))
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: a restore gives %s, the script %s", name, want[name], got[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if want[name] == "" {
			t.Errorf("%s: the script alone gives it", name)
		}
	}
}

// C-61: a snapshot of timeline 1, rolled along 2 and along 1, and to a moment
// before the two parted.
func TestBreakGlassCrossesAPromotion(t *testing.T) {
	t.Setenv("TMPDIR", "/tmp")
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	w := newWorld(t, pg)
	first := pg.StartOracle(5 * time.Millisecond)
	first.AwaitMore(5)
	w.takeNext()
	mid := first.AwaitMore(10)
	first.AwaitMore(10)
	acked := first.Stop()
	w.flush()
	standby := pg.Standby(t, "wal_keep_size = '1GB'")
	standby.AwaitReplay(pg.LSN())
	w.stop()
	pg.Stop()
	standby.Promote()
	w.pg = standby
	w.archive()
	second := standby.StartOracle(5 * time.Millisecond)
	second.AwaitMore(10)
	acked = append(acked, second.Stop()...)
	w.flush()
	w.settle()

	until := func(c pgtest.Commit) bool { return !c.Time.After(mid.Time) }
	at := mid.Time.Format(time.RFC3339Nano)
	for name, c := range map[string]struct {
		args []string
		want func(pgtest.Commit) bool
	}{
		"latest":                 {nil, pgtest.Everything},
		"timeline 1":             {[]string{"--timeline", "1"}, func(c pgtest.Commit) bool { return isFirst(first, c) }},
		"a moment":               {[]string{"--time", at}, until},
		"a moment of timeline 1": {[]string{"--time", at, "--timeline", "1"}, until},
	} {
		to := filepath.Join(standby.Mkdir(strings.ReplaceAll(name, " ", "-")), "data")
		said := w.breakGlass(to, c.args...)
		if err := pgtest.Own(to); err != nil {
			t.Fatal(err)
		}
		restored := standby.Adopt(to)
		restored.Start()
		if end := regexp.MustCompile(`says (\S+) or more`).FindStringSubmatch(said); end != nil {
			restored.AwaitReplay(end[1])
		} else {
			restored.Await("SELECT pg_get_wal_replay_pause_state() = 'paused'")
		}
		restored.Promote()
		if err := pgtest.CheckOracle(t.Context(), restored.Conn("postgres"), acked, c.want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		restored.Stop()
	}
}

// takeNext takes what changed since the snapshot before.
func (w *world) takeNext() catalog.Snapshot {
	w.t.Helper()
	return must[catalog.Snapshot](w.t)(snapshot.Take(w.t.Context(), snapshot.TakeConfig{
		Cluster: "cms", Node: "db1", Epoch: w.lineage.Epoch, Source: snapshot.SourceFiles, DSN: w.pg.DSN("postgres"), Fast: true,
		Store: w.vault.Writer(), Signer: w.signer, Trust: w.trust, Data: w.to, Index: w.indexTo, Fingerprints: []string{"0123456789abcdef"},
		WAL: w.archiver, Keys: w.keys, Identities: []age.Identity{w.index}, State: w.t.TempDir(),
	}))
}

// settle waits until every zone has all that was written.
func (w *world) settle() {
	w.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; <-tick.C {
		behind := 0
		for _, n := range w.vault.Behind() {
			behind += n
		}
		if behind == 0 {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("zones are behind: %v", w.vault.Behind())
		}
	}
}

// breakGlass restores from zone a with docs/break-glass.py.
func (w *world) breakGlass(to string, more ...string) string {
	w.t.Helper()
	key := filepath.Join(w.t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(w.data.(*age.X25519Identity).String()+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	script := "../docs/break-glass.py"
	if _, err := os.ReadFile(script); err != nil { // so that go test knows what its result depends on
		w.t.Fatal(err)
	}
	args := append([]string{script, "--repository", w.dirs[0], "--cluster", "cms", "--identity", key, "--to", to, "--trust", w.vkey}, more...)
	cmd := exec.CommandContext(w.t.Context(), "python3", args...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("break-glass.py: %v\n%s", err, out)
	}
	return string(out)
}

// tree is mode and SHA-256 of each file and the mode of each directory, but for
// what each of the two readers makes itself.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, dir := range []string{root, root + ".tablespaces"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
			info, err := d.Info()
			switch {
			case err != nil || own(name):
				return err
			case d.Type() == fs.ModeSymlink:
				target, err := os.Readlink(path)
				found[name] = strings.TrimPrefix(target, root)
				return err
			case d.IsDir():
				found[name] = info.Mode().String()
				return nil
			}
			data, err := os.ReadFile(path)
			found[name] = fmt.Sprintf("%s %x", info.Mode(), sha256.Sum256(data))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// own are the files that differ by design: settings, the configuration that a
// restore hides until it ends, WAL, places of tablespaces, and pg_control, which
// a restore spoils until backup_label was used.
func own(name string) bool {
	return slices.Contains([]string{
		"postgresql.auto.conf", "postgresql.conf", "postgresql.conf.closed", "tablespace_map", "global/pg_control", "backup_manifest", "holdfast-restore.json",
	}, name) || strings.HasPrefix(name, "pg_wal/0")
}

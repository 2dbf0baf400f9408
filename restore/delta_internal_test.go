package restore

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Promise 10: a copy of a data directory brings along the link to the WAL of the
// server that lives.
func TestADeltaNeverFollowsTheLinkOfPgWal(t *testing.T) {
	live, dir := t.TempDir(), t.TempDir()
	segment := filepath.Join(live, "000000010000000000000001")
	if err := os.WriteFile(segment, []byte("live"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(live, filepath.Join(dir, "pg_wal")); err != nil {
		t.Fatal(err)
	}
	if at, err := saveWAL(dir, time.Now()); err != nil || at != live {
		t.Errorf("the old WAL is said to lie in %q, %v; want %s", at, err, live)
	}
	tree := &tree{root: dir}
	if err := tree.sweepBelow(dir, "", map[string]bool{"pg_wal": true}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(segment); err != nil || string(got) != "live" {
		t.Errorf("the WAL of the server that lives: %q, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "pg_wal")); !os.IsNotExist(err) {
		t.Errorf("the link is still there: %v", err)
	}
}

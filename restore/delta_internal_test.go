package restore

import (
	"os"
	"path/filepath"
	"testing"
)

// C-55: a data directory may be a mount point, and its WAL is put aside beside it.
// Most machines hold /dev/shm and the temporary directory on two file systems.
func TestAFileMovesAcrossFileSystems(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "holdfast-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(shm)
	for _, dirs := range [][2]string{{shm, t.TempDir()}, {t.TempDir(), shm}, {shm, shm}} {
		from, to := filepath.Join(dirs[0], "from"), filepath.Join(dirs[1], "to")
		if err := os.WriteFile(from, []byte("never archived"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := putAside(from, to); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(to); err != nil || string(got) != "never archived" {
			t.Errorf("%s holds %q: %v", to, got, err)
		}
		if _, err := os.Lstat(from); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", from, err)
		}
	}
}

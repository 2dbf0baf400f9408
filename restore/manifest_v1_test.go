package restore_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres"
)

// readable gives pg_verifybackup the manifest in dir as it can read it: a program
// that is older than the server (the builds of other majors than Debian's have
// none) knows version 1 only, which lacks the system identifier.
func readable(t *testing.T, w *world, dir string) (args []string) {
	t.Helper()
	if w.pg.Major < 17 || filepath.Dir(w.pg.Bin("pg_verifybackup")) == w.pg.BinDir() {
		return nil
	}
	data := must[[]byte](t)(os.ReadFile(filepath.Join(dir, "backup_manifest")))
	if _, err := postgres.ParseManifest(data); err != nil {
		t.Error(err)
	}
	version := regexp.MustCompile(`"PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": \d+,`)
	if !version.Match(data) {
		t.Errorf("the manifest is not of version 2:\n%.200s", data)
	}
	text := version.ReplaceAllString(string(data), `"PostgreSQL-Backup-Manifest-Version": 1,`)
	body, _, _ := strings.Cut(text, `"Manifest-Checksum"`)
	file := filepath.Join(t.TempDir(), "manifest")
	text = fmt.Sprintf("%s\"Manifest-Checksum\": \"%x\"}\n", body, sha256.Sum256([]byte(body)))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-m", file}
}

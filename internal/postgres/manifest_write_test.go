package postgres_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// describe writes a backup_manifest for a directory as a restore leaves it.
func describe(t *testing.T, dir string, major int, id uint64, r postgres.WALRange, sum func(*postgres.ManifestFile, []byte)) []byte {
	t.Helper()
	var out bytes.Buffer
	m := postgres.NewManifestWriter(&out, major, id)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if err != nil || !d.Type().IsRegular() || rel == "backup_manifest" || strings.HasPrefix(rel, "pg_wal/") {
			return err
		}
		data, err := os.ReadFile(path)
		f := postgres.ManifestFile{Path: rel, Size: int64(len(data)), Modified: time.Now()}
		sum(&f, data)
		return errors.Join(err, m.File(f))
	})
	if err := errors.Join(err, m.Close([]postgres.WALRange{r})); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var sums = map[string]func(*postgres.ManifestFile, []byte){
	"CRC32C": func(f *postgres.ManifestFile, b []byte) {
		f.CRC32C(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	},
	"SHA256": func(f *postgres.ManifestFile, b []byte) { f.SHA256(sha256.Sum256(b)) },
	"none":   func(*postgres.ManifestFile, []byte) {},
}

// C-26, C-70: PostgreSQL's own verifier accepts what we say of a copy, in each form
// of checksum, with a tablespace and a name that is not UTF-8; and refuses the copy once it is spoilt.
func TestPgVerifybackupTakesOurManifest(t *testing.T) {
	for _, major := range pgtest.InstalledWith("pg_verifybackup") {
		t.Run(fmt.Sprint(major), func(t *testing.T) { verifiedByPostgres(t, major) })
	}
}

func verifiedByPostgres(t *testing.T, major int) {
	c := pgtest.Start(t, pgtest.WithMajor(major), pgtest.WithTablespace())
	c.Exec("CREATE TABLE away TABLESPACE side AS SELECT 1")
	c.Exec("CREATE TABLE kept AS SELECT g FROM generate_series(1, 5000) g")
	spoilt := pgtest.Value[string](c, "SELECT pg_relation_filepath('kept')")
	id := pgtest.Value[int64](c, "SELECT system_identifier FROM pg_control_system()")
	dir := filepath.Join(c.Mkdir("copy"), "data")
	f := newFolder(dir)
	r, err := postgres.BaseBackup(t.Context(), replication(t, c), postgres.BaseBackupOptions{Fast: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	keep(t, c, dir, r)
	odd := filepath.Join(dir, "a \xff\"<name>\n")
	if err := errors.Join(os.WriteFile(odd, []byte("x"), 0o600), pgtest.Own(dir)); err != nil {
		t.Fatal(err)
	}
	for name, sum := range sums {
		manifest := describe(t, dir, major, uint64(id), postgres.WALRange{Timeline: 1, Start: r.Start, End: r.End}, sum)
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "backup_manifest"), manifest, 0o600), pgtest.Own(dir)); err != nil {
			t.Fatal(err)
		}
		if said := c.Run("pg_verifybackup", "-e", dir); !strings.Contains(said, "backup successfully verified") {
			t.Errorf("%s: %s", name, said)
		}
	}
	manifest := describe(t, dir, major, uint64(id), postgres.WALRange{Timeline: 1, Start: r.Start, End: r.End}, sums["CRC32C"])
	data, err := os.ReadFile(filepath.Join(dir, spoilt))
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	if err := errors.Join(os.WriteFile(filepath.Join(dir, spoilt), data, 0o600), os.WriteFile(filepath.Join(dir, "backup_manifest"), manifest, 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := c.TryRun("pg_verifybackup", dir); err == nil || !strings.Contains(err.Error(), spoilt) {
		t.Errorf("a spoilt copy passed: %s %v", out, err)
	}
}

// C-26: what is written is read as it was meant, byte by byte or at once.
func TestAManifestIsReadAsItWasWritten(t *testing.T) {
	files := []postgres.ManifestFile{
		{Path: "base/1/2", Size: 8192, Modified: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		{Path: "pg_tblspc/5/bad\xfe", Size: 0, Modified: time.Unix(0, 0).UTC()},
		{Path: "<&>\"\\\n\u2028é", Size: 1 << 50, Modified: time.Unix(1<<33, 0).UTC()},
	}
	files[0].CRC32C(0x01020304)
	ranges := []postgres.WALRange{{Timeline: 1, Start: 40, End: 50}, {Timeline: 2, Start: 50, End: 1 << 40}}
	for major, version := range map[int]int{16: 1, 17: 2} {
		var out bytes.Buffer
		m := postgres.NewManifestWriter(&out, major, 1<<63)
		for _, f := range files {
			if err := m.File(f); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Close(ranges); err != nil {
			t.Fatal(err)
		}
		for _, in := range []io.Reader{bytes.NewReader(out.Bytes()), iotest.OneByteReader(bytes.NewReader(out.Bytes()))} {
			var got []postgres.ManifestFile
			m, err := postgres.ReadManifest(in, func(f postgres.ManifestFile) error { got = append(got, f); return nil })
			if err != nil || !slices.Equal(got, files) || !slices.Equal(m.WALRanges, ranges) || m.Version != version || (m.SystemID == 1<<63) != (version == 2) {
				t.Errorf("%d: %+v %+v %v", major, got, m, err)
			}
		}
		for at := range out.Len() {
			bad := bytes.Clone(out.Bytes())
			bad[at] ^= 1
			if _, err := postgres.ParseManifest(bad); err == nil && !strings.EqualFold(string(bad), out.String()) && strings.TrimSpace(string(bad)) != strings.TrimSpace(out.String()) {
				t.Errorf("%d: byte %d of %q changed and nobody minded", major, at, bad[max(0, at-20):at+1])
			}
			if _, err := postgres.ParseManifest(out.Bytes()[:at]); err == nil && at < out.Len()-1 {
				t.Errorf("%d: cut to %d bytes and taken", major, at)
			}
		}
	}
	if err := postgres.NewManifestWriter(io.Discard, 16, 0).Close(nil); err == nil {
		t.Error("a manifest without WAL was written")
	}
}

// A disk that is full while the manifest is written fails it.
func TestAManifestThatCannotBeWrittenFails(t *testing.T) {
	for room := range 5 {
		m := postgres.NewManifestWriter(&smallDisk{room * 4096}, 17, 1)
		var err error
		for n := range 100 {
			err = errors.Join(err, m.File(postgres.ManifestFile{Path: fmt.Sprint("base/", n, strings.Repeat("x", 200))}))
		}
		if err = errors.Join(err, m.Close([]postgres.WALRange{{Timeline: 1}})); !errors.Is(err, errFull) {
			t.Errorf("with room for %d bytes: %v", room*4096, err)
		}
	}
}

var errFull = errors.New("no space left on device")

type smallDisk struct{ room int }

func (d *smallDisk) Write(p []byte) (int, error) {
	if d.room -= len(p); d.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

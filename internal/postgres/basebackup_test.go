package postgres_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// folder writes a base backup into a directory and sums what it writes.
type folder struct {
	dir      string // "" only sums
	sums     map[string]string
	size     map[string]int64
	manifest bytes.Buffer
}

func (f *folder) File(_ context.Context, h postgres.FileHeader, r io.Reader) error {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	out := io.Writer(sum)
	if f.dir != "" {
		path := filepath.Join(f.dir, h.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, h.Mode)
		if err != nil {
			return err
		}
		defer file.Close()
		out = io.MultiWriter(sum, file)
	}
	n, err := io.Copy(out, r)
	f.sums[h.Path], f.size[h.Path] = hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, sum.Sum32())), n
	return err
}

func newFolder(dir string) *folder {
	return &folder{dir: dir, sums: map[string]string{}, size: map[string]int64{}}
}

// checkManifest compares every file that came with what the server summed (C-26).
func (f *folder) checkManifest(t *testing.T) {
	t.Helper()
	parsed, err := postgres.ParseManifest(f.manifest.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{"backup_label": true, "tablespace_map": true}
	for _, m := range parsed.Files {
		if named[m.Path] {
			continue
		}
		named[m.Path] = true
		if m.Algorithm != "CRC32C" || f.sums[m.Path] != m.Checksum || f.size[m.Path] != m.Size {
			t.Errorf("%s: %s of %d bytes, the manifest says %s %s of %d", m.Path, f.sums[m.Path], f.size[m.Path], m.Algorithm, m.Checksum, m.Size)
		}
	}
	for path := range f.sums {
		if !named[path] {
			t.Errorf("%s is not in the manifest", path)
		}
	}
}

// C-23, C-24, C-26: every installed major sends a whole backup, each file as its manifest says.
func TestBaseBackupIsWhatTheManifestSays(t *testing.T) {
	for _, major := range pgtest.Installed() {
		c := pgtest.Start(t, pgtest.WithTablespace(), pgtest.WithMajor(major))
		c.Exec("CREATE TABLE away TABLESPACE side AS SELECT g FROM generate_series(1, 9999) g")
		away := pgtest.Value[string](c, "SELECT pg_relation_filepath('away')")
		conn := replication(t, c)
		var done, estimate int64
		f := newFolder("")
		r, err := postgres.BaseBackup(t.Context(), conn, postgres.BaseBackupOptions{
			Label: "it's", Fast: true, Manifest: &f.manifest, Progress: func(d, e int64) { done, estimate = d, e },
		}, f)
		if err != nil {
			t.Fatalf("%d: %v", major, err)
		}
		f.checkManifest(t)
		l, err := postgres.ParseLabel(r.Label)
		if err != nil || l.Start != r.Start || l.Name != "it's" || r.End <= r.Start || r.StartTimeline != 1 || r.EndTimeline != 1 {
			t.Errorf("%d: from %s to %s, label %+v, %v", major, r.Start, r.End, l, err)
		}
		if w := r.ParsedManifest.WALRanges; len(w) != 1 || w[0].Start != r.Start || w[0].End != r.End {
			t.Errorf("%d: WAL ranges %+v", major, w)
		}
		if f.size[away] == 0 || len(r.Tablespaces) != 1 || r.Tablespaces[0].Location != c.Tablespace || r.Tablespaces[0].InPlace ||
			!strings.HasSuffix(string(r.TablespaceMap), " "+c.Tablespace+"\n") {
			t.Errorf("%d: %s has %d bytes, tablespaces %+v, map %q", major, away, f.size[away], r.Tablespaces, r.TablespaceMap)
		}
		if !slices.ContainsFunc(r.Dirs, func(d postgres.BackupDir) bool { return d.Path == "pg_wal/archive_status" && d.Mode == 0o700 }) {
			t.Errorf("%d: pg_wal/archive_status is not among %d directories", major, len(r.Dirs))
		}
		if done < r.Bytes/2 || estimate < r.Bytes/2 || r.Files != int64(len(f.sums)) {
			t.Errorf("%d: progress %d of %d, %d bytes in %d files", major, done, estimate, r.Bytes, r.Files)
		}
		if _, err := postgres.IdentifySystem(t.Context(), conn); err != nil {
			t.Errorf("%d: the connection is not usable afterwards: %v", major, err)
		}
	}
}

// keep adds to a directory what a base backup says beside its files, and the WAL
// of the server that it came from.
func keep(t *testing.T, c *pgtest.Cluster, dir string, r postgres.BaseBackupResult) {
	t.Helper()
	for _, d := range r.Dirs {
		if err := os.MkdirAll(filepath.Join(dir, d.Path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("backup_label", r.Label)
	segments, err := filepath.Glob(filepath.Join(c.DataDir, "pg_wal", "0000*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range segments {
		data, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		put(filepath.Join("pg_wal", filepath.Base(s)), data)
	}
	if err := errors.Join(os.Chmod(dir, 0o700), pgtest.Own(filepath.Dir(dir))); err != nil {
		t.Fatal(err)
	}
}

// The last line: what was streamed starts, and holds the rows, in a tablespace in
// place too. C-14, C-24
func TestAServerStartsFromWhatBaseBackupSent(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithSetting("allow_in_place_tablespaces", "on"))
	c.Exec("CREATE TABLESPACE near LOCATION ''")
	c.Exec("CREATE TABLE kept TABLESPACE near AS SELECT g FROM generate_series(1, 5000) g")
	dir := filepath.Join(c.Mkdir("restored"), "data")
	f := newFolder(dir)
	r, err := postgres.BaseBackup(t.Context(), replication(t, c), postgres.BaseBackupOptions{Label: "x", Fast: true, Manifest: &f.manifest}, f)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.TablespaceMap) != 0 {
		t.Errorf("map %q, want none for a tablespace in place", r.TablespaceMap)
	}
	f.checkManifest(t)
	keep(t, c, dir, r)
	restored := c.Adopt(dir)
	restored.Start()
	if n := pgtest.Value[int64](restored, "SELECT count(*) FROM kept"); n != 5000 {
		t.Errorf("%d rows, want 5000", n)
	}
}

// spoil flips a bit in block 2 of a table whose pages are all on disk.
func spoil(t *testing.T, c *pgtest.Cluster) string {
	c.Exec("CREATE TABLE hurt AS SELECT g FROM generate_series(1, 9999) g")
	path := pgtest.Value[string](c, "SELECT pg_relation_filepath('hurt')")
	c.Stop()
	file, err := os.OpenFile(filepath.Join(c.DataDir, path), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b := []byte{0}
	file.ReadAt(b, 2*page.Size+4000)
	b[0] ^= 1
	file.WriteAt(b, 2*page.Size+4000)
	c.Start()
	return path
}

// C-24: the server's verdict comes after all data, which are whole and usable.
func TestWrongChecksumsAreReportedAfterAllData(t *testing.T) {
	c := pgtest.Start(t)
	path := spoil(t, c)
	f, conn := newFolder(""), replication(t, c)
	r, err := postgres.BaseBackup(t.Context(), conn, postgres.BaseBackupOptions{Label: "x", Fast: true, Manifest: &f.manifest}, f)
	var bad *postgres.ChecksumError
	if !errors.As(err, &bad) || bad.Failures != 1 || !strings.Contains(strings.Join(bad.Details, " "), path) {
		t.Fatalf("%v, want one failure in %s", err, path)
	}
	f.checkManifest(t)
	if r.End <= r.Start || f.size["global/pg_control"] != 8192 {
		t.Errorf("the result is not whole: %s to %s", r.Start, r.End)
	}
	r, err = postgres.BaseBackup(t.Context(), conn, postgres.BaseBackupOptions{Label: "y", Fast: true, NoVerify: true}, newFolder(""))
	if err != nil || len(r.ParsedManifest.WALRanges) == 0 {
		t.Errorf("without verification, on the same connection: %v", err)
	}
}

func TestASinkThatFailsEndsTheBackupAndTheConnection(t *testing.T) {
	c := pgtest.Start(t)
	full := errors.New("no space left")
	for name, sink := range map[string]sinkFunc{
		"an error":     func(postgres.FileHeader, io.Reader) error { return full },
		"not all read": func(h postgres.FileHeader, r io.Reader) error { return nil },
	} {
		conn := replication(t, c)
		r, err := postgres.BaseBackup(t.Context(), conn, postgres.BaseBackupOptions{Fast: true}, sink)
		if err == nil || name == "an error" && !errors.Is(err, full) || r.End != 0 || !conn.Closed() {
			t.Errorf("%s: %v, closed %v", name, err, conn.Closed())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := postgres.BaseBackup(ctx, replication(t, c), postgres.BaseBackupOptions{Fast: true}, sinkFunc(func(h postgres.FileHeader, r io.Reader) error {
		cancel()
		_, err := io.Copy(io.Discard, r)
		return err
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled in the midst: %v", err)
	}
	if _, err := postgres.BaseBackup(t.Context(), connect(t, c), postgres.BaseBackupOptions{}, newFolder("")); err == nil {
		t.Error("an ordinary connection was taken for one for replication")
	}
}

type sinkFunc func(postgres.FileHeader, io.Reader) error

func (f sinkFunc) File(_ context.Context, h postgres.FileHeader, r io.Reader) error { return f(h, r) }

// C-3: the map is byte for byte what pg_backup_stop would have given.
func TestTheTablespaceMapIsTheServers(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithTablespace(), pgtest.WithSetting("allow_in_place_tablespaces", "on"))
	c.Exec("CREATE TABLESPACE odd LOCATION '" + c.Mkdir("sp ace\\and\nline") + "'")
	c.Exec("CREATE TABLESPACE near LOCATION ''")
	b, err := postgres.StartBackup(t.Context(), connect(t, c), "x", true)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := b.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := postgres.BaseBackup(t.Context(), replication(t, c), postgres.BaseBackupOptions{Fast: true}, newFolder(""))
	if err != nil || string(ours.TablespaceMap) != string(theirs.TablespaceMap) || len(ours.TablespaceMap) == 0 {
		t.Errorf("%v\n%q\n%q", err, ours.TablespaceMap, theirs.TablespaceMap)
	}
}

// C-23: the syntax of each version.
func TestBaseBackupSQL(t *testing.T) {
	all := postgres.BaseBackupOptions{Label: "it's", Fast: true, MaxRate: 50 << 20, NoVerify: true}
	for _, c := range []struct {
		num  int
		opt  postgres.BaseBackupOptions
		want string
	}{
		{130023, all, "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 51200 NOVERIFY_CHECKSUMS MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"},
		{149999, postgres.BaseBackupOptions{Label: "x"}, "BASE_BACKUP LABEL 'x' PROGRESS NOWAIT MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"},
		{150000, all, "BASE_BACKUP (LABEL 'it''s', PROGRESS true, CHECKPOINT 'fast', WAIT false, VERIFY_CHECKSUMS false, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', MAX_RATE 51200)"},
		{180004, postgres.BaseBackupOptions{Label: "x", MaxRate: 1}, "BASE_BACKUP (LABEL 'x', PROGRESS true, CHECKPOINT 'spread', WAIT false, VERIFY_CHECKSUMS true, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', MAX_RATE 32)"},
	} {
		if got := postgres.BaseBackupSQL(c.num, c.opt); got != c.want {
			t.Errorf("%d:\n%s\n%s", c.num, got, c.want)
		}
	}
}

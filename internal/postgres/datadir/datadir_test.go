package datadir_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func scan(t *testing.T, dir string, opt datadir.ScanOptions) datadir.Layout {
	t.Helper()
	l, err := datadir.Scan(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func paths(l datadir.Layout) (files, dirs []string) {
	for f := range l.Files.All() {
		files = append(files, f.Path)
	}
	for _, d := range l.Dirs {
		dirs = append(dirs, d.Path)
	}
	return files, dirs
}

func put(t *testing.T, path, body string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
}

func none(t *testing.T, files []string, what string, bad func(string) bool) {
	t.Helper()
	if n := slices.IndexFunc(files, bad); n >= 0 {
		t.Errorf("%s: %s is in the layout", what, files[n])
	}
}

// C-11
func TestTheServersOwnDirectoriesAreKeptEmpty(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("SELECT pg_create_physical_replication_slot('s', true)")
	put(t, filepath.Join(c.DataDir, "pg_stat_tmp", "x"), "x")
	put(t, filepath.Join(c.DataDir, "stats", "x"), "x")
	files, dirs := paths(scan(t, c.DataDir, datadir.ScanOptions{StatsTemp: "stats"}))
	within := []string{"pg_wal/archive_status"}
	if c.Major >= 17 {
		within = append(within, "pg_wal/summaries")
	}
	for _, dir := range []string{
		"pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial",
		"pg_snapshots", "pg_stat_tmp", "pg_subtrans", "stats",
	} {
		if !slices.Contains(dirs, dir) {
			t.Errorf("%s is not kept", dir)
		}
		none(t, append(files, dirs...), dir, func(p string) bool {
			return strings.HasPrefix(p, dir+"/") && !slices.Contains(within, p)
		})
	}
	for _, dir := range within {
		if !slices.Contains(dirs, dir) {
			t.Errorf("%s is not kept", dir)
		}
	}
}

// C-12
func TestFilesOfTheMomentAreLeftOut(t *testing.T) {
	c := pgtest.Start(t)
	conn := c.Conn("postgres")
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "CREATE TEMP TABLE passing AS SELECT 1 AS a"); err != nil {
		t.Fatal(err)
	}
	var temp string
	if err := conn.QueryRow(t.Context(), "SELECT pg_relation_filepath('passing')").Scan(&temp); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(c.DataDir, temp)); err != nil {
		t.Fatal("the server did not make the file that the test is about:", err)
	}
	left := []string{
		"postgresql.auto.conf.tmp", "current_logfiles.tmp", "global/pg_internal.init", "global/pg_internal.init.12",
		"backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old", "backup_manifest", "postmaster.opts", ".DS_Store",
		"base/pgsql_tmp/pgsql_tmp12.0", "base/5/.DS_Store",
	}
	for _, p := range left {
		put(t, filepath.Join(c.DataDir, p), "x")
	}
	files, dirs := paths(scan(t, c.DataDir, datadir.ScanOptions{}))
	for _, p := range append(left, temp, "postmaster.pid", "base/pgsql_tmp") {
		none(t, append(files, dirs...), "excluded", func(f string) bool { return f == p })
	}
	for _, p := range []string{"PG_VERSION", "postgresql.auto.conf", "global/pg_filenode.map", "global/1262"} {
		if !slices.Contains(files, p) {
			t.Errorf("%s is missing", p)
		}
	}
}

// C-13
func TestUnloggedRelationsKeepTheirInitForkOnly(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("CREATE UNLOGGED TABLE loose AS SELECT g FROM generate_series(1, 50000) g")
	c.Exec("VACUUM loose")
	c.Exec("CHECKPOINT")
	rel := pgtest.Value[string](c, "SELECT pg_relation_filepath('loose')")
	for _, suffix := range []string{"", "_fsm", "_vm", "_init"} {
		if _, err := os.Stat(filepath.Join(c.DataDir, rel+suffix)); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(c.DataDir, rel+".1"), "x")
	var got []string
	for f := range scan(t, c.DataDir, datadir.ScanOptions{}).Files.All() {
		if strings.HasPrefix(f.Path, rel) {
			got = append(got, f.Path)
		}
	}
	if !slices.Equal(got, []string{rel + "_init"}) {
		t.Errorf("%v, want the init fork alone", got)
	}
}

// C-14: a tablespace elsewhere, one in place, and one whose link points into the
// data directory, each exactly once; other clusters' directories beside ours not at all.
func TestTablespacesAreFollowedOnce(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithTablespace(), pgtest.WithSetting("allow_in_place_tablespaces", "on"))
	c.Exec("CREATE TABLE away (a int) TABLESPACE side")
	c.Exec("CREATE TABLESPACE inplace LOCATION ''")
	c.Exec("CREATE TABLE near (a int) TABLESPACE inplace")
	inside := filepath.Join(c.DataDir, "inner")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := pgtest.Own(inside); err != nil {
		t.Fatal(err)
	}
	c.Exec("CREATE TABLESPACE inner_one LOCATION '" + inside + "'")
	c.Exec("CREATE TABLE within (a int) TABLESPACE inner_one")
	put(t, filepath.Join(c.Tablespace, "PG_13_202007201", "5", "777"), "another cluster's")
	put(t, filepath.Join(c.DataDir, "pg_tblspc", "stray"), "x")
	l := scan(t, c.DataDir, datadir.ScanOptions{})
	files, _ := paths(l)
	for _, table := range []string{"away", "near", "within"} {
		p := pgtest.Value[string](c, "SELECT pg_relation_filepath($1::text::regclass)", table)
		var n int
		for f := range l.Files.All() {
			if filepath.Base(f.Path) == filepath.Base(p) {
				n++
				if f.Path != p || f.Kind != datadir.Relation {
					t.Errorf("%s: %+v, want path %s", table, f, p)
				}
			}
		}
		if n != 1 {
			t.Errorf("%s is listed %d times", table, n)
		}
	}
	none(t, files, "another cluster's file", func(p string) bool { return strings.HasSuffix(p, "/777") })
	if len(l.Links) != 3 || !slices.ContainsFunc(l.Links, func(k datadir.Link) bool { return k.Target == c.Tablespace && !k.InPlace }) ||
		!slices.ContainsFunc(l.Links, func(k datadir.Link) bool { return k.InPlace }) {
		t.Errorf("links %+v", l.Links)
	}
	if len(l.Refused) != 1 || l.Refused[0].Path != "pg_tblspc/stray" {
		t.Errorf("refused %+v", l.Refused)
	}
}

// C-14
func TestStrangeFilesAreRefusedByName(t *testing.T) {
	c := pgtest.Create(t)
	secret := filepath.Join(t.TempDir(), "secret")
	put(t, secret, "x")
	if err := errors.Join(os.Symlink(secret, filepath.Join(c.DataDir, "base", "link")),
		unix.Mkfifo(filepath.Join(c.DataDir, "pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	wal := filepath.Join(t.TempDir(), "wal")
	if err := errors.Join(os.Rename(filepath.Join(c.DataDir, "pg_wal"), wal), os.Symlink(wal, filepath.Join(c.DataDir, "pg_wal"))); err != nil {
		t.Fatal(err)
	}
	l := scan(t, c.DataDir, datadir.ScanOptions{})
	files, dirs := paths(l)
	none(t, files, "strange", func(p string) bool { return p == "base/link" || p == "pipe" })
	if len(l.Refused) != 2 || l.Refused[0].Path != "base/link" || l.Refused[1].Path != "pipe" {
		t.Errorf("refused %+v", l.Refused)
	}
	if !slices.Contains(dirs, "pg_wal") {
		t.Error("pg_wal may be a link and is kept as a directory")
	}
}

// C-15
func TestConfigurationOutsideJoinsTheLayout(t *testing.T) {
	c := pgtest.Create(t)
	etc := t.TempDir()
	hba := filepath.Join(etc, "pg_hba.conf")
	put(t, hba, "local all all trust\n")
	l := scan(t, c.DataDir, datadir.ScanOptions{ConfigFiles: []string{
		hba, hba, filepath.Join(c.DataDir, "postgresql.conf"), filepath.Join(etc, "gone.conf"),
	}})
	last := l.Files.At(l.Files.Len() - 1)
	if last.Path != hba || !last.Outside || l.Files.At(l.Files.Len()-2).Outside {
		t.Errorf("%+v", last)
	}
	if len(l.Refused) != 1 || l.Refused[0].Path != filepath.Join(etc, "gone.conf") {
		t.Errorf("refused %+v", l.Refused)
	}
}

// C-7, C-18: pg_control comes after every other file of the data directory.
func TestPgControlIsLast(t *testing.T) {
	c := pgtest.Create(t)
	l := scan(t, c.DataDir, datadir.ScanOptions{})
	if last := l.Files.At(l.Files.Len() - 1); last.Path != "global/pg_control" || last.Kind != datadir.Control || last.Size != 8192 {
		t.Errorf("%+v", last)
	}
	if l.Bytes() < 20<<20 {
		t.Errorf("%d bytes", l.Bytes())
	}
}

// The layout is what the server's own base backup has, file by file.
func TestScanListsWhatTheServersBaseBackupHolds(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithOwn("pg_basebackup"))
	c.Exec("CREATE TABLE a AS SELECT g FROM generate_series(1, 1000) g")
	c.Exec("CREATE UNLOGGED TABLE b AS SELECT 1 AS x")
	c.Exec("CHECKPOINT")
	dir := filepath.Join(c.Mkdir("out"), "base")
	c.Run("pg_basebackup", "-D", dir, "-d", c.DSN("postgres"), "-X", "none", "-c", "fast")
	theirs := map[string]bool{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if err == nil && rel != "." && rel != "backup_label" && rel != "backup_manifest" {
			theirs[rel] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	l := scan(t, c.DataDir, datadir.ScanOptions{})
	files, dirs := paths(l)
	for _, p := range append(files, dirs...) {
		if !theirs[p] {
			t.Errorf("%s is ours only", p)
		}
		delete(theirs, p)
	}
	for p := range theirs {
		t.Errorf("%s is theirs only", p)
	}
}

func TestADirectoryThatIsNoClusterIsAnError(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if _, err := datadir.Scan(dir, datadir.ScanOptions{}); err == nil {
			t.Errorf("%s was scanned", dir)
		}
	}
}

func source(t *testing.T, size int) (datadir.File, []byte) {
	t.Helper()
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(i%251 + 1)
	}
	path := filepath.Join(t.TempDir(), "f")
	put(t, path, string(body))
	return datadir.File{Path: "base/5/1", Source: path, Size: int64(size)}, body
}

// C-16: exactly the size first seen.
func TestAFileThatGrowsIsReadToTheSizeFirstSeen(t *testing.T) {
	f, body := source(t, 100_000)
	r, err := datadir.OpenFile(f)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	put(t, f.Source, string(body)+"more")
	if got, err := io.ReadAll(r); err != nil || string(got) != string(body) || r.Padded() != 0 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// C-16: a file cut short is filled with zeros, as the server's sendFile does.
func TestAFileThatShrinksIsFilledWithZeros(t *testing.T) {
	f, body := source(t, 100_000)
	r, err := datadir.OpenFile(f)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Truncate(f.Source, 40_000); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || len(got) != 100_000 || r.Padded() != 60_000 || string(got[:40_000]) != string(body[:40_000]) {
		t.Fatalf("%d bytes, %d padded, %v", len(got), r.Padded(), err)
	}
	if slices.ContainsFunc(got[40_000:], func(b byte) bool { return b != 0 }) {
		t.Error("the rest is not zeros")
	}
	again := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	if err := r.Reread(again, 5000); err != nil || slices.ContainsFunc(again, func(b byte) bool { return b != 0 }) {
		t.Errorf("read again where it was cut: %v %v", again, err)
	}
}

// C-16
func TestAFileThatVanishedIsSaidToHaveVanished(t *testing.T) {
	f, _ := source(t, 10)
	os.Remove(f.Source)
	if _, err := datadir.OpenFile(f); !errors.Is(err, datadir.ErrVanished) {
		t.Error(err)
	}
	if err := os.Symlink("/etc/passwd", f.Source); err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.OpenFile(f); err == nil || errors.Is(err, datadir.ErrVanished) {
		t.Errorf("a link put in its place: %v", err)
	}
}

// resident counts the pages of a file that are in the page cache.
func resident(t *testing.T, path string, size int) (n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	vec := make([]byte, (size+4095)/4096)
	if err := mincore(m, vec); err != nil {
		t.Fatal(err)
	}
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}

// C-22: what was not in the page cache is not there afterwards, what was stays.
func TestReadingLeavesThePageCacheAsItWas(t *testing.T) {
	const size = 4 << 20
	f, body := source(t, size)
	file, err := os.OpenFile(f.Source, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := errors.Join(file.Sync(), unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
	read := func() {
		r, err := datadir.OpenFile(f)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make([]byte, size)
		if _, err := io.ReadFull(io.MultiReader(r), got); err != nil || string(got) != string(body) {
			t.Fatal("read wrongly:", err)
		}
	}
	cold := resident(t, f.Source, size)
	read()
	if after := resident(t, f.Source, size); after > cold {
		t.Errorf("%d pages in the cache before, %d after", cold, after)
	}
	if _, err := os.ReadFile(f.Source); err != nil {
		t.Fatal(err)
	}
	warm := resident(t, f.Source, size)
	read()
	if after := resident(t, f.Source, size); warm == 0 || after < warm {
		t.Errorf("%d pages that the server had in the cache, %d after", warm, after)
	}
}

package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/changemap"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// sameFiles wants two snapshots of an idle server to restore to the same bytes, but
// for what a checkpoint between them changes and for the forks that are left out: the
// summaries of minors below the gate lack cleared bits of visibility maps (C-33).
func (r *rig) sameFiles(a, b catalog.Snapshot, without ...string) {
	r.t.Helper()
	r.sameAs(r.unpacked(b), a, without...)
}

// unpacked is a directory with the files of a snapshot.
func (r *rig) unpacked(s catalog.Snapshot) string {
	r.t.Helper()
	dir := r.t.TempDir()
	r.unpack(r.manifest(s), dir)
	return dir
}

// sameAs is sameFiles with what was unpacked already.
func (r *rig) sameAs(want string, s catalog.Snapshot, without ...string) {
	r.t.Helper()
	got := r.unpacked(s)
	defer os.RemoveAll(got)
	noErr(r.t, filepath.WalkDir(want, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(want, path)
		if err != nil || d.IsDir() || rel == "backup_label" || rel == "global/pg_control" || slices.ContainsFunc(without, func(fork string) bool { return strings.HasSuffix(rel, fork) }) {
			return err
		}
		compare := sameBytes
		if r.mask != nil && relationFile.MatchString(rel) {
			compare = func(got, want string) error { return samePages(got, want, r.mask) }
		}
		if err := compare(filepath.Join(got, rel), path); err != nil {
			r.t.Errorf("%s: %v", rel, err)
		}
		return nil
	}))
}

// relationFile is the main fork of a relation.
var relationFile = regexp.MustCompile(`(^|/)[0-9]+(\.[0-9]+)?$`)

// samePages compares two files page by page, each as mask leaves it.
func samePages(got, want string, mask func([]byte)) error {
	a, err := os.ReadFile(got)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(want)
	if err != nil || len(a) != len(b) || len(a)%page.Size != 0 {
		return errors.Join(err, fmt.Errorf("%d bytes, want %d", len(a), len(b)))
	}
	for at := 0; at < len(a); at += page.Size {
		one, other := a[at:at+page.Size], b[at:at+page.Size]
		mask(one)
		mask(other)
		if !bytes.Equal(one, other) {
			first := 0
			for one[first] == other[first] {
				first++
			}
			return fmt.Errorf("block %d differs from its byte %d on", at/page.Size, first)
		}
	}
	return nil
}

// sameBytes compares two files, which may be large; holes of both are not read.
func sameBytes(got, want string) error {
	a, err := os.Open(got)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(want)
	if err != nil {
		return err
	}
	defer b.Close()
	one, other := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		n, aerr := a.ReadAt(one, at)
		m, berr := b.ReadAt(other, at)
		if n != m || !bytes.Equal(one[:n], other[:m]) {
			return fmt.Errorf("of the %d and %d bytes from %d on, some differ", n, m, at)
		}
		if aerr != nil || berr != nil {
			return errors.Join(ended(aerr), ended(berr))
		}
		at = max(at+int64(n), min(dataFrom(a, at+int64(n)), dataFrom(b, at+int64(m))))
	}
}

// dataFrom is where a file has data from at on, or its last byte.
func dataFrom(f *os.File, at int64) int64 {
	next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if err != nil {
		if next, err = f.Seek(-1, io.SeekEnd); err != nil {
			return at
		}
	}
	return next
}

// ended takes the end of a file for no error.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// readBy takes a snapshot and says how many bytes of files were read for it.
func (r *rig) readBy(cfg TakeConfig) (s catalog.Snapshot, read int64) {
	r.t.Helper()
	cfg.Progress = func(p Progress) { read = p.Read }
	return r.take(cfg), read
}

// C-28, C-30, C-33: the server says what changed, only that is read, and what is
// committed is complete: it equals a snapshot of everything and a server starts
// from it. What ages is copied afresh all the same.
func TestASnapshotByTheServersSummariesEqualsAFullOne(t *testing.T) {
	for _, major := range slices.DeleteFunc(pgtest.Installed(), func(m int) bool { return m < 17 }) {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			pg := startPG(t, pgtest.WithMajor(major), pgtest.WithTablespace(), pgtest.WithSetting("summarize_wal", "on"), pgtest.WithSetting("autovacuum", "off"))
			fill(pg, "steady", 20000)
			fill(pg, "goes", 3000)
			fill(pg, "shrinks", 6000)
			pg.Exec("CREATE TABLE away TABLESPACE side AS SELECT * FROM steady WHERE id < 3000")
			pg.Exec("VACUUM")
			r := newRig(t)
			cfg := r.config(pg, SourceStream)
			cfg.Summaries, cfg.RenewAfter = true, 30*24*time.Hour
			without := belowTheGate(pg, &cfg)
			r.take(cfg)
			for _, sql := range []string{
				"UPDATE steady SET pad = 'new' WHERE id % 4000 = 7", "DROP TABLE goes", "DELETE FROM shrinks WHERE id > 2000", "VACUUM shrinks",
				"CREATE TABLE fresh AS SELECT generate_series(1, 20000) i", "UPDATE away SET pad = 'new' WHERE id = 9",
				"CREATE DATABASE copied STRATEGY file_copy", "CREATE DATABASE logged STRATEGY wal_log",
			} {
				pg.Exec(sql)
			}
			second, read := r.readBy(cfg)
			m := r.manifest(second)
			r.check(m)
			if m.Header.Base == "" || second.Pages.Bad > 0 {
				t.Errorf("base %q, pages %+v", m.Header.Base, second.Pages)
			}
			full := cfg
			full.Full = true
			whole, all := r.readBy(full)
			r.sameFiles(second, whole, without...)
			if read > all*3/5 {
				t.Errorf("%d of %d bytes were read", read, all)
			}
			r.aged(cfg, whole, without...)
			copied := r.revive(second, pg)
			if got, want := pgtest.Value[int64](copied, "SELECT count(*) FROM steady WHERE pad = 'new'"), int64(5); got != want {
				t.Errorf("%d rows, want %d", got, want)
			}
		})
	}
}

// belowTheGate lets the summaries of a server below the gate of C-33 be believed all the
// same, and names the forks whose changes they leave out.
func belowTheGate(pg *pgtest.Cluster, cfg *TakeConfig) (without []string) {
	if cfg.AnyMinor = changemap.TrustSummaries(pg.ServerNum()) != nil; cfg.AnyMinor {
		return []string{"_vm"}
	}
	return nil
}

// aged takes another snapshot when all packs of the one before are too old.
func (r *rig) aged(cfg TakeConfig, before catalog.Snapshot, without ...string) {
	r.t.Helper()
	cfg.Now = func() time.Time { return time.Now().Add(31 * 24 * time.Hour) }
	s := r.take(cfg)
	m := r.manifest(s)
	r.check(m)
	for _, p := range m.Packs {
		if strings.Contains(p.Ref.Name, before.ID) {
			r.t.Errorf("%s is referred to, and older than renew_after", p.Ref.Name)
		}
	}
	if m.Header.Base != before.ID {
		r.t.Errorf("base %q, want %s", m.Header.Base, before.ID)
	}
	r.sameFiles(s, before, without...)
}

// C-33: where the server cannot be believed, or has nothing to say, everything is
// read, and the snapshot is none the worse.
func TestAServerWithoutSummariesSendsEverything(t *testing.T) {
	pg := startPG(t, pgtest.WithMajor(17), pgtest.WithSetting("autovacuum", "off"))
	fill(pg, "steady", 2000)
	r := newRig(t)
	cfg := r.config(pg, SourceStream)
	cfg.Summaries = true
	first, all := r.readBy(cfg)
	for name, anyMinor := range map[string]bool{"summarize_wal is off": true, "an old minor": false} {
		cfg.AnyMinor = anyMinor
		s, read := r.readBy(cfg)
		if read < all*9/10 || s.Suspect {
			t.Errorf("%s: %d bytes were read, %d by the first", name, read, all)
		}
		r.sameFiles(s, first, "_vm")
	}
}

// C-29: what a file's changed blocks leave open is as the base has it, or zeros.
func TestASparseFileGivesWhatCameAndZerosAndNothingElse(t *testing.T) {
	pages := bytes.Repeat([]byte{7}, 2*page.Size)
	f := &sparseFile{pages: bytes.NewReader(pages), came: []uint32{2, 9}, kept: 8}
	read := func(block int64) (byte, error) {
		f.seek(block * page.Size)
		p := make([]byte, page.Size)
		_, err := io.ReadFull(f, p)
		if err == nil && !bytes.Equal(p, bytes.Repeat(p[:1], page.Size)) {
			t.Errorf("block %d is mixed", block)
		}
		return p[0], err
	}
	for _, c := range []struct {
		block int64
		want  byte
		err   bool
	}{{2, 7, false}, {5, 0, true}, {8, 0, false}, {9, 7, false}, {10, 0, false}} {
		if got, err := read(c.block); got != c.want || (err != nil) != c.err {
			t.Errorf("block %d: %d, %v", c.block, got, err)
		}
	}
}

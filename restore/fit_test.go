package restore_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// C-69: what cannot start here is refused before anything is written, and what may
// sort otherwise is told.
func TestWhatDiffersFromTheSnapshotsHostIsRefusedOrTold(t *testing.T) {
	pg := pgtest.Start(t)
	if pg.Major >= 15 {
		pg.Exec("CREATE DATABASE words TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'")
	}
	w := newWorld(t, pg)
	s := w.take(snapshot.SourceFiles)
	w.flush()
	f := w.fork(t)
	var facts catalog.ServerFacts
	f.restate(s, func(m *catalog.Manifest) { facts = m.Header.Facts })
	here := postgres.NewPlatform(runtime.GOARCH, 64, "linux-gnu")
	if got := (postgres.Platform{Architecture: facts.Architecture, WordBits: facts.WordBits, ByteOrder: facts.ByteOrder, OS: facts.OS}); got != here {
		t.Errorf("the manifest tells %+v, want %+v", got, here)
	}
	if told := f.warnings(); len(told) != 0 {
		t.Errorf("on the same host: %q", told)
	}

	for name, c := range map[string]struct {
		twist func(*catalog.ServerFacts)
		want  string
	}{
		"architecture": {func(f *catalog.ServerFacts) { f.Architecture = "sparc64" }, "a server for sparc64, and the one in " + pg.BinDir() + " is for " + here.Architecture},
		"word size":    {func(f *catalog.ServerFacts) { f.WordBits = 32 }, "a server of 32 bits"},
		"byte order":   {func(f *catalog.ServerFacts) { f.ByteOrder = "big" }, "big-endian"},
		"page size":    {func(f *catalog.ServerFacts) { f.BlockSize = 16384 }, "pages have 16384 bytes"},
	} {
		f := w.fork(t)
		f.restate(s, func(m *catalog.Manifest) { c.twist(&m.Header.Facts) })
		to := f.target()
		_, err := restore.Prepare(t.Context(), f.repo(), f.plan(restore.Target{Kind: restore.Latest}), f.options(to))
		if !errors.Is(err, restore.ErrUnfit) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), ": restore ") {
			t.Errorf("%s: %v, want %q and what to do", name, err, c.want)
		}
		for _, dir := range []string{to, to + ".room"} {
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s is there: %v", name, dir, err)
			}
		}
	}

	f.restate(s, func(m *catalog.Manifest) {
		m.Header.Facts.OS = "linux-musl"
		for i := range m.Header.Inventory.Databases {
			if d := &m.Header.Inventory.Databases[i]; d.CollationVersion != "" {
				d.CollationVersion = "1.0"
			}
		}
	})
	told := strings.Join(f.warnings(), "\n")
	if !strings.Contains(told, "taken on linux-musl and this is linux-gnu") {
		t.Errorf("of another operating system: %q", told)
	}
	if pg.Major >= 15 && (!strings.Contains(told, `: its collation is of version `) || !strings.Contains(told, " here and was of 1.0")) {
		t.Errorf("of another version of a collation: %q", told)
	}
}

// warnings restores and gives what the result warns of.
func (w *world) warnings() []string {
	w.t.Helper()
	room := must[*restore.Room](w.t)(restore.Prepare(w.t.Context(), w.repo(), w.plan(restore.Target{Kind: restore.Latest}), w.options(w.target())))
	if err := room.Discard(w.t.Context()); err != nil {
		w.t.Error(err)
	}
	return room.Result.Warnings
}

// restate lets a snapshot's manifest say something else in all zones.
func (w *world) restate(s catalog.Snapshot, twist func(*catalog.Manifest)) {
	t := w.t
	t.Helper()
	noted := must[catalog.Snapshot](t)(w.repo().Catalog.Snapshot(t.Context(), s.Cluster, s.ID))
	get := func(r catalog.Ref) []byte {
		return must[[]byte](t)(w.vault.Reader().Get(t.Context(), r.Name, r.Size, r.SHA256))
	}
	plain := must[[]byte](t)(seal.OpenBlob(get(noted.Manifest), []age.Identity{w.index}, 1<<30))
	m := must[catalog.Manifest](t)(catalog.DecodeManifest(bytes.NewReader(plain)))
	twist(&m)
	var out bytes.Buffer
	if err := catalog.EncodeManifest(&out, m); err != nil {
		t.Fatal(err)
	}
	put := func(name string, body []byte) catalog.Ref {
		sum := sha256.Sum256(body)
		for _, dir := range w.dirs {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.Remove(path), os.WriteFile(path, body, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		return catalog.Ref{Name: name, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])}
	}
	listed := must[[]catalog.Ref](t)(catalog.DecodeObjects(bytes.NewReader(get(noted.Objects))))
	was := noted.Manifest
	noted.Manifest = put(was.Name, must[[]byte](t)(seal.SealBlob(out.Bytes(), w.indexTo)))
	for i := range listed {
		if listed[i] == was {
			listed[i] = noted.Manifest
		}
	}
	noted.Objects = put(noted.Objects.Name, must[[]byte](t)(catalog.EncodeObjects(listed)))
	put(catalog.SnapshotName(s.Cluster, s.ID), must[[]byte](t)(seal.SignNote(catalog.KindSnapshot, noted, w.signer)))
}

package dirzone_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

func open(t *testing.T) (*dirzone.Driver, string) {
	t.Helper()
	dir := t.TempDir()
	d, err := dirzone.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d, dir
}

func TestContract(t *testing.T) {
	zonetest.Run(t, func(t *testing.T) zone.Driver { d, _ := open(t); return d })
}

func TestContractBehindTheGuard(t *testing.T) {
	zonetest.Run(t, func(t *testing.T) zone.Driver {
		d, _ := open(t)
		return zonetest.Guard(t, d, "here")
	})
}

func TestFilesArePrivateAndUnfinishedOnesUnseen(t *testing.T) {
	d, dir := open(t)
	zonetest.Create(t, d, "a/b", []byte("x"))
	for name, mode := range map[string]fs.FileMode{"a": 0o700, "a/b": 0o600, ".holdfast-tmp": 0o700} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, mode)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, ".holdfast-tmp"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".holdfast-tmp", ".tmp-1"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	names, err := zonetest.Names(t.Context(), d, "")
	if err != nil || len(names) != 1 || names[0] != "a/b" {
		t.Errorf("listed %q, %v", names, err)
	}
	if _, err := d.Stat(t.Context(), ".holdfast-tmp/.tmp-1", ""); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat of an unfinished file: %v, want a refusal", err)
	}
}

// C-73
func TestLinksLeadNowhere(t *testing.T) {
	d, dir := open(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"way": outside, "file": filepath.Join(outside, "secret")} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	body := []byte("x")
	if err := d.Create(t.Context(), "way/out", body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); err == nil {
		t.Error("created a file through a link")
	}
	if _, err := os.Stat(filepath.Join(outside, "out")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file outside: %v", err)
	}
	for _, name := range []string{"way/secret", "file"} {
		if _, err := zonetest.Get(t.Context(), d, name); err == nil {
			t.Errorf("read %s through a link", name)
		}
	}
	if names, err := zonetest.Names(t.Context(), d, ""); err != nil || len(names) != 0 {
		t.Errorf("listed %q, %v", names, err)
	}
}

func TestAPipeIsNoObjectAndHangsNobody(t *testing.T) {
	d, dir := open(t)
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := zonetest.Get(t.Context(), d, "pipe"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestAMissingDirectoryIsUnreachableAndNotMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mount")
	d, err := dirzone.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	body := []byte("x")
	for what, err := range map[string]error{
		"create": d.Create(t.Context(), "a/b", body, zone.CreateOptions{SHA256: sha256.Sum256(body)}),
		"repair": d.Repair(t.Context(), "b", body, zone.CreateOptions{SHA256: sha256.Sum256(body)}),
		"remove": d.RemoveVersion(t.Context(), "a/b", ""),
		"stat":   second(d.Stat(t.Context(), "a/b", "")),
		"read":   second(zonetest.Get(t.Context(), d, "a/b")),
		"list":   second(zonetest.Names(t.Context(), d, "")),
		"below":  second(zonetest.Names(t.Context(), d, "a/")),
		"init":   zone.Initialise(context.Background(), d, zone.Identity{Format: 1, Repository: "r", Zone: "z"}),
	} {
		if !errors.Is(err, zone.ErrUnreachable) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want ErrUnreachable and not fs.ErrNotExist", what, err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory: %v, want it not made", err)
	}
}

func TestRemovalPrunesEmptyDirectoriesOnly(t *testing.T) {
	d, dir := open(t)
	zonetest.Create(t, d, "p/q/one", nil)
	zonetest.Create(t, d, "p/two", nil)
	if err := d.RemoveVersion(t.Context(), "p/q/one", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "p/q")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the empty directory: %v", err)
	}
	if _, err := d.Stat(t.Context(), "p/two", ""); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

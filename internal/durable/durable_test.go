package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

func TestWriteFileReplacesAndLeavesNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, want := range []string{"old", "new, longer", ""} {
		if err := durable.WriteFile(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	wantAlone(t, path)
}

// C-36
func TestCreateHasOneWinnerAndNeverReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var won atomic.Int32
	var winner atomic.Value
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			data := strings.Repeat(fmt.Sprint(i%10), 4096)
			switch err := durable.Create(path, []byte(data), 0o600); {
			case err == nil:
				won.Add(1)
				winner.Store(data)
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(path)
	if err != nil || won.Load() != 1 || string(got) != winner.Load() {
		t.Errorf("%d winners; file holds the winner's bytes: %v, %v", won.Load(), string(got) == winner.Load(), err)
	}
	wantAlone(t, path)
}

func TestCreateFailsWithoutADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "f")
	if err := durable.Create(path, nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestMkdirAllMakesParentsAndRefusesFiles(t *testing.T) {
	root := t.TempDir()
	deep := filepath.Join(root, "a", "b", "c")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := durable.MkdirAll(deep, 0o700); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if info, err := os.Stat(deep); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", info, err)
	}
	file := filepath.Join(deep, "f")
	if err := durable.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.MkdirAll(filepath.Join(file, "x"), 0o700); err == nil {
		t.Error("made a directory below a file")
	}
}

func TestRemoveOfWhatIsGoneIsSuccess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := durable.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := durable.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Remove(filepath.Join(path, "below", "nothing")); err != nil {
		t.Error(err)
	}
}

func TestLockHasOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := durable.Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = durable.Acquire(path)
	if !errors.Is(err, durable.ErrHeld) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second holder: %v, want ErrHeld naming this process", err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := durable.Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Fatal(err)
	}
}

// C-73
func FuzzSafeJoin(f *testing.F) {
	for _, s := range []string{"", ".", "a", "a/b", "../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a/", "a\x00b", `..\x`, "..", "a/..", "...", "a/...b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, rel string) {
		got, err := durable.SafeJoin("/root/of/zone", rel)
		if err != nil {
			return
		}
		below, ok := strings.CutPrefix(got, "/root/of/zone/")
		if !ok || below != rel || strings.ContainsRune(rel, 0) {
			t.Errorf("SafeJoin(%q) = %q", rel, got)
		}
		for _, part := range strings.Split(below, "/") {
			if part == ".." || part == "." || part == "" {
				t.Errorf("SafeJoin(%q) = %q keeps %q", rel, got, part)
			}
		}
	})
}

// C-73
func TestSafeJoinRefusesEscapes(t *testing.T) {
	for _, rel := range []string{"", ".", "..", "../x", "a/../../x", "/etc/passwd", "a/..", "a\x00", `a\..\b`, "a/", "a//b"} {
		if got, err := durable.SafeJoin("/r", rel); err == nil {
			t.Errorf("SafeJoin(%q) = %q", rel, got)
		}
	}
}

func openLog(t *testing.T, path string) (*durable.Log, []string) {
	t.Helper()
	var got []string
	l, err := durable.OpenLog(path, func(r []byte) error { got = append(got, string(r)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, got
}

func appendAll(t *testing.T, l *durable.Log, records ...string) {
	t.Helper()
	for _, r := range records {
		if err := l.Append([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLogReplaysWhatWasAppended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, got := openLog(t, path)
	if len(got) != 0 {
		t.Fatalf("a new log replays %q", got)
	}
	if err := l.Append([]byte("a"), nil, []byte("b")); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(); err != nil {
		t.Fatal(err)
	}
	appendAll(t, l, "c")
	if _, err := durable.OpenLog(path, nil); !errors.Is(err, durable.ErrHeld) {
		t.Errorf("second open: %v, want ErrHeld", err)
	}
	l.Close()
	l, got = openLog(t, path)
	wantRecords(t, got, "a", "", "b", "c")
	if err := l.Rewrite([][]byte{[]byte("x"), []byte("y")}); err != nil {
		t.Fatal(err)
	}
	appendAll(t, l, "z")
	if _, err := durable.OpenLog(path, nil); !errors.Is(err, durable.ErrHeld) {
		t.Errorf("second open after Rewrite: %v, want ErrHeld", err)
	}
	l.Close()
	_, got = openLog(t, path)
	wantRecords(t, got, "x", "y", "z")
	wantAlone(t, path)
}

func TestLogCutsATornTailAtEveryByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, _ := openLog(t, path)
	appendAll(t, l, "first")
	kept := fileSize(t, path)
	if err := l.Append([]byte("second"), bytes.Repeat([]byte("x"), 100)); err != nil {
		t.Fatal(err)
	}
	l.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := kept; n < int64(len(whole)); n++ {
		for _, tail := range [][]byte{nil, make([]byte, int64(len(whole))-n)} { // cut short; or extended with zeros
			torn := append(bytes.Clone(whole[:n]), tail...)
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			l, got := openLog(t, path)
			wantRecords(t, got, "first")
			appendAll(t, l, "third")
			l.Close()
			l, got = openLog(t, path)
			wantRecords(t, got, "first", "third")
			l.Close()
		}
	}
}

func TestLogRefusesDamageBeforeItsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, _ := openLog(t, path)
	appendAll(t, l, "first", "second", "third")
	l.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := len(whole) - (12 + 1 + len("third"))
	for i := range last {
		bad := bytes.Clone(whole)
		bad[i] ^= 0x10
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := durable.OpenLog(path, func([]byte) error { return nil }); !errors.Is(err, durable.ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v, want ErrCorrupt", i, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, bad) {
			t.Fatalf("byte %d flipped: the file was changed, %v", i, err)
		}
	}
}

func TestLogPassesOnTheErrorOfItsReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, _ := openLog(t, path)
	appendAll(t, l, "a")
	l.Close()
	stop := errors.New("stop")
	if _, err := durable.OpenLog(path, func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func FuzzOpenLog(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed")
	l, err := durable.OpenLog(path, nil)
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(l.Append([]byte("a"), []byte("bb")), l.Append([]byte("c")), l.Close()); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		l, err := durable.OpenLog(path, func([]byte) error { n++; return nil })
		if err != nil {
			return
		}
		if err := errors.Join(l.Append([]byte("more")), l.Close()); err != nil {
			t.Fatal(err)
		}
		_, got := openLog(t, path)
		if len(got) != n+1 || got[n] != "more" {
			t.Errorf("replayed %d records, then appended one, then replayed %d", n, len(got))
		}
	})
}

func wantRecords(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "|") != strings.Join(want, "|") || len(got) != len(want) {
		t.Fatalf("replayed %q, want %q", got, want)
	}
}

func wantAlone(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside %s: %v, %v", path, entries, err)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// What is bulk goes another way to the disk than the rest: every byte must come
// through on both, on file systems that know O_DIRECT and on one that may not.
func TestFilesOfEverySizeAreWhole(t *testing.T) {
	data := make([]byte, 3<<20+123)
	for i := range data {
		data[i] = byte(i * 2654435761 >> 16)
	}
	for _, dir := range []string{t.TempDir(), memoryDir(t)} {
		for _, n := range []int{0, 1, 4096, 1<<20 - 1, 1 << 20, 1<<20 + 1, 2<<20 + 4096, 3<<20 + 123} {
			for _, from := range []int{0, 7} { // and from memory that O_DIRECT does not take
				want := data[min(from, len(data)-n):][:n]
				path := filepath.Join(dir, "file")
				if err := durable.WriteFile(path, want, 0o600); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes from %d on in %s: %d bytes came, %v", n, from, dir, len(got), err)
				}
			}
		}
	}
}

// memoryDir is on a file system in memory.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "holdfast-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

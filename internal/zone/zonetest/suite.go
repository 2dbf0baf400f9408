// Package zonetest is what every zone.Driver must pass, and the real things to
// pass it with: S3 servers over TLS and a proxy that breaks connections.
//
// It is for tests only. A missing server program fails the test with the remedy;
// nothing is skipped.
package zonetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Run checks the contract of package zone on drivers that open makes, each over
// an empty zone.
func Run(t *testing.T, open func(t *testing.T) zone.Driver) {
	for _, c := range []struct {
		name  string
		check func(*testing.T, zone.Driver)
	}{
		{"ReturnsWhatWasCreated", returnsWhatWasCreated},
		{"NeverOverwrites", neverOverwrites},
		{"OneOfSixteenRacingCreationsWins", oneCreationWins},
		{"RefusesABodyThatIsNotWhatWasMeant", refusesOtherBody},
		{"ReadsRanges", readsRanges},
		{"SaysWhatIsNotThere", saysWhatIsNotThere},
		{"ListsInByteOrderUnderAPrefix", listsInByteOrder},
		{"ListsManyAndStopsWhenTold", listsMany},
		{"RemovesForGood", removesForGood},
		{"RepairsACopy", repairsACopy},
		{"RefusesNamesThatLeaveTheZone", refusesEscapes},
		{"EndsWithItsContext", endsWithItsContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := open(t)
			c.check(t, d)
			if err := d.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// Create stores body under name or fails the test.
func Create(t testing.TB, d zone.Creator, name string, body []byte) {
	t.Helper()
	if err := d.Create(t.Context(), name, body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
}

// Get is the whole of an object's latest version.
func Get(ctx context.Context, d zone.Reader, name string) ([]byte, error) {
	return getRange(ctx, d, name, 0, -1)
}

func getRange(ctx context.Context, d zone.Reader, name string, off, n int64) ([]byte, error) {
	rc, err := d.Read(ctx, name, "", off, n)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(rc)
	return data, errors.Join(err, rc.Close())
}

// Names lists the names under prefix.
func Names(ctx context.Context, d zone.Lister, prefix string) ([]string, error) {
	var names []string
	err := d.List(ctx, prefix, func(o zone.Object) error {
		names = append(names, o.Name)
		return nil
	})
	return names, err
}

func want(t *testing.T, d zone.Reader, name string, body []byte) {
	t.Helper()
	got, err := Get(t.Context(), d, name)
	if err != nil || !bytes.Equal(got, body) {
		t.Fatalf("read %s: %d bytes, %v; want %d bytes", name, len(got), err, len(body))
	}
}

func returnsWhatWasCreated(t *testing.T, d zone.Driver) {
	begin := time.Now().Add(-time.Minute)
	for name, body := range map[string][]byte{
		"empty": {}, "a/small": []byte("x"), "a/b/c/large": bytes.Repeat([]byte("0123456789abcdef"), 1<<18),
		"odd/with-+=@ und ünï.note": []byte("odd"),
	} {
		Create(t, d, name, body)
		want(t, d, name, body)
		o, err := d.Stat(t.Context(), name, "")
		if err != nil || o.Name != name || o.Size != int64(len(body)) || !o.Latest || o.Marker {
			t.Errorf("stat %s: %+v, %v", name, o, err)
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(body)); o.SHA256 != "" && o.SHA256 != sum {
			t.Errorf("stat %s tells SHA-256 %s, want %s or nothing", name, o.SHA256, sum)
		}
		if o.Modified.Before(begin) || o.Modified.After(time.Now().Add(time.Minute)) {
			t.Errorf("stat %s: modified %s", name, o.Modified)
		}
		if o.Version == "" {
			continue
		}
		if again, err := d.Stat(t.Context(), name, o.Version); err != nil || again.Size != o.Size {
			t.Errorf("stat of version %s: %+v, %v", o.Version, again, err)
		}
	}
}

// C-36; promise 4
func neverOverwrites(t *testing.T, d zone.Driver) {
	first, second := []byte("first"), []byte("second")
	Create(t, d, "n/o", first)
	for _, body := range [][]byte{second, first} {
		err := d.Create(t.Context(), "n/o", body, zone.CreateOptions{SHA256: sha256.Sum256(body)})
		if !errors.Is(err, fs.ErrExist) {
			t.Fatalf("create again with %q: %v, want fs.ErrExist", body, err)
		}
	}
	want(t, d, "n/o", first)
	versions := 0
	if err := d.ListVersions(t.Context(), "n/", func(zone.Object) error { versions++; return nil }); err != nil || versions != 1 {
		t.Errorf("%d versions, %v", versions, err)
	}
}

func oneCreationWins(t *testing.T, d zone.Driver) {
	var won atomic.Int32
	var winner atomic.Pointer[[]byte]
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			body := bytes.Repeat([]byte{byte(i)}, 10_000+i)
			switch err := d.Create(t.Context(), "race/one", body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); {
			case err == nil:
				won.Add(1)
				winner.Store(&body)
			case !errors.Is(err, fs.ErrExist):
				t.Errorf("loser %d: %v, want fs.ErrExist", i, err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d winners", won.Load())
	}
	want(t, d, "race/one", *winner.Load())
}

func refusesOtherBody(t *testing.T, d zone.Driver) {
	opt := zone.CreateOptions{SHA256: sha256.Sum256([]byte("meant"))}
	if err := d.Create(t.Context(), "x", []byte("sent"), opt); !errors.Is(err, zone.ErrDigest) {
		t.Errorf("create: %v, want ErrDigest", err)
	}
	if err := d.Repair(t.Context(), "x", []byte("sent"), opt); !errors.Is(err, zone.ErrDigest) {
		t.Errorf("repair: %v, want ErrDigest", err)
	}
	if _, err := d.Stat(t.Context(), "x", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat after: %v, want fs.ErrNotExist", err)
	}
}

func readsRanges(t *testing.T, d zone.Driver) {
	body := []byte("0123456789")
	Create(t, d, "r", body)
	Create(t, d, "zero", nil)
	for _, c := range []struct {
		off, n int64
		want   string
	}{{0, -1, "0123456789"}, {0, 10, "0123456789"}, {0, 1, "0"}, {3, 4, "3456"}, {3, -1, "3456789"}, {8, 10, "89"}, {9, 1, "9"}, {10, 1, ""}, {10, -1, ""}, {99, 5, ""}, {4, 0, ""}} {
		got, err := getRange(t.Context(), d, "r", c.off, c.n)
		if err != nil || string(got) != c.want {
			t.Errorf("read [%d, +%d): %q, %v; want %q", c.off, c.n, got, err, c.want)
		}
	}
	if got, err := getRange(t.Context(), d, "zero", 0, 5); err != nil || len(got) != 0 {
		t.Errorf("range of an empty object: %q, %v", got, err)
	}
}

func saysWhatIsNotThere(t *testing.T, d zone.Driver) {
	Create(t, d, "dir/sub/file", []byte("x"))
	for _, name := range []string{"none", "dir", "dir/sub", "dir/none", "no/such/dir/at-all"} {
		if _, err := d.Stat(t.Context(), name, ""); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat %s: %v, want fs.ErrNotExist", name, err)
		}
		if _, err := Get(t.Context(), d, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read %s: %v, want fs.ErrNotExist", name, err)
		}
		if _, err := getRange(t.Context(), d, name, 5, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read nothing of %s: %v, want fs.ErrNotExist", name, err)
		}
	}
	if names, err := Names(t.Context(), d, "nothing/here/"); err != nil || len(names) != 0 {
		t.Errorf("list of nothing: %q, %v", names, err)
	}
}

func listsInByteOrder(t *testing.T, d zone.Driver) {
	all := []string{"a-b/2", "a/1", "a/b/3", "a.x", "a0", "b", "wal/0001/x.note", "wal/00010", "wal/0001.age"}
	for _, n := range all {
		Create(t, d, n, []byte(n))
	}
	slices.Sort(all)
	for _, prefix := range []string{"", "a", "a/", "a/b", "wal/0001", "wal/0001/", "b", "c", "wal/0001/x.note"} {
		var expect []string
		for _, n := range all {
			if strings.HasPrefix(n, prefix) {
				expect = append(expect, n)
			}
		}
		got, err := Names(t.Context(), d, prefix)
		if err != nil || !slices.Equal(got, expect) {
			t.Errorf("list %q: %q, %v; want %q", prefix, got, err, expect)
		}
		var versions []string
		err = d.ListVersions(t.Context(), prefix, func(o zone.Object) error {
			versions = append(versions, o.Name)
			if !o.Latest || o.Size != int64(len(o.Name)) {
				t.Errorf("list versions %q: %+v", prefix, o)
			}
			return nil
		})
		if err != nil || !slices.Equal(versions, expect) {
			t.Errorf("list versions %q: %q, %v; want %q", prefix, versions, err, expect)
		}
	}
}

func listsMany(t *testing.T, d zone.Driver) {
	const n = 1100 // more than a page of S3
	todo := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range todo {
				body := []byte("x")
				if err := d.Create(t.Context(), fmt.Sprintf("many/%05d", i), body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		todo <- i
	}
	close(todo)
	wg.Wait()
	if names, err := Names(t.Context(), d, "many/"); err != nil || len(names) != n || !slices.IsSorted(names) {
		t.Errorf("listed %d of %d, sorted %v, %v", len(names), n, slices.IsSorted(names), err)
	}
	stop, seen := errors.New("stop"), 0
	for _, list := range []func(context.Context, string, func(zone.Object) error) error{d.List, d.ListVersions} {
		seen = 0
		err := list(t.Context(), "many/", func(zone.Object) error {
			if seen++; seen == 3 {
				return stop
			}
			return nil
		})
		if err != stop || seen != 3 { //nolint:errorlint // as it is
			t.Errorf("yield's error: %v after %d objects, want it as it is after 3", err, seen)
		}
	}
}

// C-36
func removesForGood(t *testing.T, d zone.Driver) {
	Create(t, d, "rm/one", []byte("1"))
	Create(t, d, "rm/two", []byte("2"))
	o, err := d.Stat(t.Context(), "rm/one", "")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.RemoveVersion(t.Context(), "rm/one", o.Version); err != nil {
			t.Fatalf("remove: %v", err)
		}
	}
	if _, err := d.Stat(t.Context(), "rm/one", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat: %v, want fs.ErrNotExist", err)
	}
	left := 0
	err = d.ListVersions(t.Context(), "rm/one", func(zone.Object) error { left++; return nil })
	if err != nil || left != 0 {
		t.Errorf("%d versions left, %v", left, err)
	}
	want(t, d, "rm/two", []byte("2"))
	Create(t, d, "rm/one", []byte("again"))
	want(t, d, "rm/one", []byte("again"))
}

func repairsACopy(t *testing.T, d zone.Driver) {
	Create(t, d, "rep/o", []byte("rotten"))
	for _, name := range []string{"rep/o", "rep/missing"} {
		body := []byte("sound")
		if err := d.Repair(t.Context(), name, body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); err != nil {
			t.Fatalf("repair %s: %v", name, err)
		}
		want(t, d, name, body)
	}
}

// C-73
func refusesEscapes(t *testing.T, d zone.Driver) {
	for _, name := range []string{"", "../out", "a/../../out", "/abs", "a//b", "a/", "a/./b", "nul\x00", ".."} {
		if err := d.Create(t.Context(), name, nil, zone.CreateOptions{SHA256: sha256.Sum256(nil)}); err == nil || errors.Is(err, fs.ErrExist) {
			t.Errorf("create %q: %v, want a refusal", name, err)
		}
		if _, err := d.Stat(t.Context(), name, ""); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat %q: %v, want a refusal", name, err)
		}
	}
}

func endsWithItsContext(t *testing.T, d zone.Driver) {
	Create(t, d, "c/1", []byte("1"))
	Create(t, d, "c/2", []byte("2"))
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	err := d.List(ctx, "c/", func(zone.Object) error { seen++; cancel(); return ctx.Err() })
	if !errors.Is(err, context.Canceled) || seen != 1 {
		t.Errorf("list: %v after %d", err, seen)
	}
	body := []byte("3")
	if err := d.Create(ctx, "c/3", body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); !errors.Is(err, context.Canceled) {
		t.Errorf("create: %v, want context.Canceled", err)
	}
	if _, err := d.Stat(ctx, "c/1", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("stat: %v, want context.Canceled", err)
	}
	if _, err := d.Stat(t.Context(), "c/3", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat of what was never begun: %v", err)
	}
}

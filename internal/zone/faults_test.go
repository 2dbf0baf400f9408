package zone_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/internal/zone/s3zone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

// everything calls each method once, for a name that exists and one that does
// not, and returns the errors.
func everything(ctx context.Context, z *zone.Zone) map[string]error {
	body := []byte("new")
	opt := zone.CreateOptions{SHA256: sha256.Sum256(body)}
	errs := map[string]error{
		"create":        z.Create(ctx, fmt.Sprintf("new-%d", time.Now().UnixNano()), body, opt),
		"create again":  z.Create(ctx, "there", body, opt),
		"repair":        z.Repair(ctx, "mended", body, opt),
		"remove":        z.RemoveVersion(ctx, "none", ""),
		"list":          second(zonetest.Names(ctx, z, "")),
		"list nothing":  second(zonetest.Names(ctx, z, "no/such/")),
		"list versions": z.ListVersions(ctx, "", func(zone.Object) error { return nil }),
		"check":         z.Check(ctx),
	}
	for _, name := range []string{"there", "none", "no/such"} {
		errs["stat "+name] = second(z.Stat(ctx, name, ""))
		errs["read "+name] = second(zonetest.Get(ctx, z, name))
	}
	return errs
}

// wantUnreachable checks promise 2's other half: a zone that is not itself says
// nothing, least of all "not there" or "done".
func wantUnreachable(t *testing.T, errs map[string]error) {
	t.Helper()
	for what, err := range errs {
		if !errors.Is(err, zone.ErrUnreachable) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v, want ErrUnreachable only", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func openDir(t *testing.T, name string) (*zone.Zone, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := dirzone.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	z := zonetest.Open(t, d, name)
	zonetest.Create(t, z, "there", []byte("x"))
	return z, dir
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// P20; format R1
func TestADirectoryThatIsNotTheZoneIsUnreachable(t *testing.T) {
	z, dir := openDir(t, "a")
	_, other := openDir(t, "b")
	away := dir + ".away"
	back := func() {
		rename(t, away, dir)
		if err := z.Check(t.Context()); err != nil {
			t.Errorf("after it came back: %v", err)
		}
		if got, err := zonetest.Get(t.Context(), z, "there"); err != nil || string(got) != "x" {
			t.Errorf("after it came back: %q, %v", got, err)
		}
	}

	rename(t, dir, away)
	wantUnreachable(t, everything(t.Context(), z))
	back()

	rename(t, dir, away) // unmounted: the mount point is an empty directory
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	wantUnreachable(t, everything(t.Context(), z))
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("written beneath the mount point: %v, %v", left, err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	back()

	rename(t, dir, away) // another zone of the same repository is there
	rename(t, other, dir)
	errs := everything(t.Context(), z)
	delete(errs, "read there") // bytes speak for themselves: callers check their digest
	wantUnreachable(t, errs)
	rename(t, dir, other)
	back()
}

// P20; format R1
func TestABucketThatIsNotTheZoneIsUnreachable(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	d := server.Driver(t)
	if err := zone.Initialise(t.Context(), d, zonetest.Identity("a")); err != nil {
		t.Fatal(err)
	}
	z := zone.Open("a", d, zonetest.Identity("a"), zone.Options{IdentityTTL: -1})
	zonetest.Create(t, z, "there", []byte("x"))
	bucket := filepath.Join(server.DataDir, server.Bucket)
	empty := filepath.Join(server.DataDir, server.NewBucket(t, true))

	rename(t, bucket, bucket+".away")
	wantUnreachable(t, everything(t.Context(), z)) // no such bucket

	rename(t, empty, bucket)
	wantUnreachable(t, everything(t.Context(), z)) // emptied

	c := server.Config()
	other := zonetest.Dial(t, c)
	if err := zone.Initialise(t.Context(), other, zonetest.Identity("b")); err != nil {
		t.Fatal(err)
	}
	zonetest.Create(t, other, "there", []byte("theirs"))
	errs := everything(t.Context(), z)
	delete(errs, "read there")
	wantUnreachable(t, errs) // swapped

	rename(t, bucket, empty)
	rename(t, bucket+".away", bucket)
	if err := z.Check(t.Context()); err != nil {
		t.Errorf("after it came back: %v", err)
	}
	c.Credentials = s3zone.Keys{AccessKey: c.Credentials.(s3zone.Keys).AccessKey, SecretKey: "wrong"}
	wantUnreachable(t, everything(t.Context(), zone.Open("a", zonetest.Dial(t, c), zonetest.Identity("a"), zone.Options{})))
}

func TestAnIdentityVouchesForItsTTLOnly(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	if err := zone.Initialise(t.Context(), server.Driver(t), zonetest.Identity("a")); err != nil {
		t.Fatal(err)
	}
	z := zone.Open("a", server.Driver(t), zonetest.Identity("a"), zone.Options{IdentityTTL: time.Hour})
	zonetest.Create(t, z, "there", []byte("x"))
	if err := os.Remove(server.Path(zone.IdentityName)); err != nil {
		t.Fatal(err)
	}
	zonetest.Create(t, z, "more", []byte("x")) // within the TTL
	if _, err := z.Stat(t.Context(), "none", ""); !errors.Is(err, zone.ErrUnreachable) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absence within the TTL: %v, want ErrUnreachable", err)
	}
	body := []byte("x") // that doubt ended the TTL
	if err := z.Create(t.Context(), "yet more", body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); !errors.Is(err, zone.ErrUnreachable) {
		t.Errorf("create after the doubt: %v, want ErrUnreachable", err)
	}
}

// promise 2
func TestAHungServerEndsByTheDeadlineAndALostOneAtOnce(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	c := server.Config()
	c.Retries = 1
	d := zonetest.Dial(t, c)
	if err := zone.Initialise(t.Context(), d, zonetest.Identity("a")); err != nil {
		t.Fatal(err)
	}
	const limit = 300 * time.Millisecond
	quick := zone.Open("a", d, zonetest.Identity("a"), zone.Options{Timeout: limit, IdentityTTL: time.Hour})
	z := zone.Open("a", d, zonetest.Identity("a"), zone.Options{})
	zonetest.Create(t, z, "there", bytes.Repeat([]byte("x"), 16<<20))
	if err := quick.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	rc, err := quick.Read(t.Context(), "there", "", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	server.Pause()
	begin := time.Now()
	wantUnreachable(t, everything(t.Context(), quick))
	if _, err := io.Copy(io.Discard, rc); !errors.Is(err, zone.ErrUnreachable) {
		t.Errorf("the rest of a body: %v, want ErrUnreachable", err)
	}
	if took := time.Since(begin); took > 120*limit {
		t.Errorf("a hung server held us for %s", took)
	}
	server.Resume()
	if err := z.Check(t.Context()); err != nil {
		t.Errorf("after it came back: %v", err)
	}
	server.Kill()
	wantUnreachable(t, everything(t.Context(), z))
	server.Start()
	if got, err := zonetest.Get(t.Context(), z, "there"); err != nil || len(got) != 16<<20 {
		t.Errorf("after kill -9 and a start: %d bytes, %v", len(got), err)
	}
}

// P20; promise 1: what was acknowledged survives, what was not is whole or absent.
func TestAcknowledgedObjectsSurviveKill(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	c := server.Config()
	c.Retries = 1
	z := zonetest.Open(t, zonetest.Dial(t, c), "a")
	body := bytes.Repeat([]byte("y"), 64<<10)
	var acked sync.Map
	var n atomic.Int32
	enough := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("k/%d-%d", w, i)
				if err := z.Create(t.Context(), name, body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); err != nil {
					return
				}
				acked.Store(name, true)
				if n.Add(1) == 40 {
					close(enough)
				}
			}
		})
	}
	<-enough
	server.Kill()
	wg.Wait()
	server.Start()
	acked.Range(func(name, _ any) bool {
		if got, err := zonetest.Get(t.Context(), z, name.(string)); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		return true
	})
	names, err := zonetest.Names(t.Context(), z, "k/")
	if err != nil || len(names) < 40 {
		t.Errorf("%d names, %v", len(names), err)
	}
	for _, name := range names {
		if o, err := z.Stat(t.Context(), name, ""); err != nil || o.Size != int64(len(body)) {
			t.Errorf("%s is torn: %+v, %v", name, o, err)
		}
	}
}

func TestACallThatHangsInTheDriverIsLeftBehindAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, dir := openDir(t, "a")
		d, err := dirzone.New(dir)
		if err != nil {
			t.Fatal(err)
		}
		stuck := &stuckDriver{Driver: d, free: make(chan struct{})}
		z := zone.Open("a", stuck, zonetest.Identity("a"), zone.Options{Timeout: time.Minute, MaxCalls: 3})
		begin := time.Now()
		for range 5 {
			if _, err := z.Stat(t.Context(), "there", ""); !errors.Is(err, zone.ErrUnreachable) {
				t.Errorf("stat: %v, want ErrUnreachable", err)
			}
		}
		if got := stuck.calls.Load(); got != 3 {
			t.Errorf("%d calls are in the driver, want no more than 3", got)
		}
		if took := time.Since(begin); took != 5*time.Minute {
			t.Errorf("took %s, want a minute each", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := z.Check(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("check: %v, want the caller's own deadline", err)
		}
		close(stuck.free)
		synctest.Wait()
		if _, err := z.Stat(t.Context(), "there", ""); err != nil {
			t.Errorf("after the disk answered again: %v", err)
		}
	})
}

// What we keep a call waiting for is none of the zone's silence; the rest is.
func TestAPacedWriteIsNotTakenForAHungZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, dir := openDir(t, "a")
		d, err := dirzone.New(dir)
		if err != nil {
			t.Fatal(err)
		}
		z := zone.Open("a", &slowDriver{Driver: d, takes: 50 * time.Second}, zonetest.Identity("a"), zone.Options{Timeout: time.Minute})
		body := []byte("paced")
		opt := zone.CreateOptions{SHA256: sha256.Sum256(body), Pace: func(context.Context, int) error {
			<-time.After(10 * time.Minute)
			return nil
		}}
		begun := time.Now()
		if err := z.Create(t.Context(), "one", body, opt); err != nil || time.Since(begun) != 10*time.Minute+50*time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		z = zone.Open("a", &slowDriver{Driver: d, takes: time.Hour}, zonetest.Identity("a"), zone.Options{Timeout: time.Minute})
		begun = time.Now()
		if err := z.Create(t.Context(), "two", body, opt); !errors.Is(err, zone.ErrUnreachable) {
			t.Errorf("a zone that hangs after the pace let it go: %v", err)
		}
		if took := time.Since(begun); took > 12*time.Minute {
			t.Errorf("it was given up after %s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := z.Create(ctx, "three", body, opt); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("its caller gave up: %v", err)
		}
		<-time.After(2 * time.Hour) // what was left behind ends
	})
}

// slowDriver writes, and takes its time.
type slowDriver struct {
	zone.Driver
	takes time.Duration
}

func (s *slowDriver) Create(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	<-time.After(s.takes)
	return s.Driver.Create(ctx, name, body, opt)
}

// stuckDriver is a disk whose server is away: stat(2) does not return.
type stuckDriver struct {
	zone.Driver
	free  chan struct{}
	calls atomic.Int32
}

func (s *stuckDriver) Stat(ctx context.Context, name, version string) (zone.Object, error) {
	s.calls.Add(1)
	<-s.free
	return s.Driver.Stat(context.WithoutCancel(ctx), name, version)
}

package s3zone_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/s3zone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

func TestBitRotIsSeen(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	d := server.Driver(t)
	body := bytes.Repeat([]byte("sound"), 1000)
	zonetest.Create(t, d, "a/pack.age", body)
	rotten := bytes.Clone(body)
	rotten[777] ^= 1
	if err := os.WriteFile(server.Path("a/pack.age"), rotten, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := zonetest.Get(t.Context(), d, "a/pack.age"); !errors.Is(err, zone.ErrDigest) {
		t.Errorf("read: %v, want ErrDigest", err)
	}
	if err := d.Repair(t.Context(), "a/pack.age", body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); err != nil {
		t.Fatal(err)
	}
	if got, err := zonetest.Get(t.Context(), d, "a/pack.age"); err != nil || !bytes.Equal(got, body) {
		t.Errorf("after the repair: %v", err)
	}
	versions := 0
	if err := d.ListVersions(t.Context(), "a/pack.age", func(zone.Object) error { versions++; return nil }); err != nil || versions != 2 {
		t.Errorf("%d versions, %v; want the wrong one beneath", versions, err)
	}
}

// slow gives each call of a test an end.
func slow(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func throughProxy(t *testing.T) (*zonetest.S3Server, *zonetest.Proxy, *s3zone.Driver) {
	t.Helper()
	server := zonetest.StartS3(t, 1)[0]
	proxy := zonetest.NewProxy(t, server.Endpoint)
	c := server.Config()
	c.Endpoint, c.Timeout, c.Retries = proxy.Endpoint(), time.Second, 2
	return server, proxy, zonetest.Dial(t, c)
}

// A write whose reply is lost meets itself at the next try.
func TestAnOwnWriteWhoseReplyWasLostIsNoConflict(t *testing.T) {
	_, proxy, d := throughProxy(t)
	zonetest.Create(t, d, "warm", nil) // so that a connection is open
	body := bytes.Repeat([]byte("z"), 64<<10)
	opt := zone.CreateOptions{SHA256: sha256.Sum256(body)}
	proxy.Set(zonetest.Fault{CutNext: true})
	if err := d.Create(slow(t), "lost", body, opt); err != nil {
		t.Errorf("create: %v, want success at the second try", err)
	}
	if err := d.Create(slow(t), "lost", body, opt); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create again, the same bytes: %v, want fs.ErrExist", err)
	}
}

func TestBrokenConnectionsAreUnreachableAndThenForgotten(t *testing.T) {
	_, proxy, d := throughProxy(t)
	body := bytes.Repeat([]byte("z"), 4<<20)
	opt := zone.CreateOptions{SHA256: sha256.Sum256(body)}
	zonetest.Create(t, d, "there", body)
	for name, fault := range map[string]zonetest.Fault{
		"reset": {Reset: true}, "black hole": {BlackHole: true}, "cut": {Cut: true, CutAfter: 100 << 10},
	} {
		proxy.Set(fault)
		if _, err := zonetest.Get(slow(t), d, "there"); !errors.Is(err, zone.ErrUnreachable) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: read: %v, want ErrUnreachable", name, err)
		}
		if name != "cut" {
			if err := d.Create(slow(t), "new "+name, body, opt); !errors.Is(err, zone.ErrUnreachable) {
				t.Errorf("%s: create: %v, want ErrUnreachable", name, err)
			}
			if _, err := zonetest.Names(slow(t), d, ""); !errors.Is(err, zone.ErrUnreachable) {
				t.Errorf("%s: list: %v, want ErrUnreachable", name, err)
			}
		}
		proxy.Set(zonetest.Fault{})
		if got, err := zonetest.Get(slow(t), d, "there"); err != nil || !bytes.Equal(got, body) {
			t.Errorf("after %s: %v", name, err)
		}
	}
	proxy.Set(zonetest.Fault{Latency: 5 * time.Millisecond, Rate: 16 << 20})
	begin := time.Now()
	if got, err := zonetest.Get(slow(t), d, "there"); err != nil || !bytes.Equal(got, body) || time.Since(begin) < 200*time.Millisecond {
		t.Errorf("slow: %v in %s", err, time.Since(begin))
	}
}

// promise 2: a zone that drips must not hold a reader.
func TestADrippingBodyEnds(t *testing.T) {
	_, proxy, d := throughProxy(t)
	zonetest.Open(t, d, "a")
	z := zone.Open("a", d, zonetest.Identity("a"), zone.Options{Timeout: 500 * time.Millisecond, MinRate: 10 << 20, IdentityTTL: time.Hour})
	zonetest.Create(t, z, "there", bytes.Repeat([]byte("z"), 8<<20))
	rc, err := z.Read(t.Context(), "there", "", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	proxy.Set(zonetest.Fault{Rate: 1 << 20})
	begin := time.Now()
	n, err := io.Copy(io.Discard, rc)
	if !errors.Is(err, zone.ErrUnreachable) || time.Since(begin) > 4*time.Second {
		t.Errorf("read %d bytes in %s: %v, want ErrUnreachable soon", n, time.Since(begin), err)
	}
}

// A delete marker hides an object from who asks for the latest version, and from the
// listing of a zone that does not lock; the version beneath stays readable by its name.
func TestMarkersHideAndVersionsStay(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	d := server.Driver(t)
	zonetest.Create(t, d, "x/o", []byte("first"))
	o, err := d.Stat(t.Context(), "x/o", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Client(t).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &server.Bucket, Key: aws.String("x/o")}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Stat(t.Context(), "x/o", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat: %v, want fs.ErrNotExist", err)
	}
	if names, err := zonetest.Names(t.Context(), d, "x/"); err != nil || len(names) != 1 {
		t.Errorf("list where locks are: %q, %v", names, err)
	}
	plain := server.Config()
	plain.LockMode = ""
	if names, err := zonetest.Names(t.Context(), zonetest.Dial(t, plain), "x/"); err != nil || len(names) != 0 {
		t.Errorf("list without locks: %q, %v", names, err)
	}
	rc, err := d.Read(t.Context(), "x/o", o.Version, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if got, err := io.ReadAll(rc); err != nil || string(got) != "first" {
		t.Errorf("read of the version: %q, %v", got, err)
	}
	var all []zone.Object
	if err := d.ListVersions(t.Context(), "x/", func(o zone.Object) error { all = append(all, o); return nil }); err != nil || len(all) != 2 {
		t.Fatalf("versions: %+v, %v", all, err)
	}
	if !all[0].Marker || !all[0].Latest || all[1].Marker || all[1].Latest || all[1].Version != o.Version {
		t.Errorf("versions: %+v, want the marker and then the object", all)
	}
	for _, v := range all {
		if err := d.RemoveVersion(t.Context(), v.Name, v.Version); err != nil {
			t.Error(err)
		}
	}
}

// C-36; DESIGN 4: set on PUT, extended, never shortened.
func TestLocksHoldAndOnlyGrow(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	d := zonetest.Dial(t, server.Config())
	body, soon := []byte("x"), time.Now().Add(time.Hour)
	if err := d.Create(t.Context(), "l", body, zone.CreateOptions{SHA256: sha256.Sum256(body), LockUntil: soon}); err != nil {
		t.Fatal(err)
	}
	o := lockedUntil(t, d, soon)
	if err := d.RemoveVersion(t.Context(), "l", o.Version); !errors.Is(err, zone.ErrLocked) {
		t.Errorf("remove: %v, want ErrLocked", err)
	}
	if err := d.ExtendLock(t.Context(), "l", o.Version, soon.Add(-time.Minute)); err != nil {
		t.Errorf("shorten: %v, want success that changes nothing", err)
	}
	lockedUntil(t, d, soon)
	if err := d.ExtendLock(t.Context(), "l", "", soon.Add(time.Hour)); err != nil {
		t.Errorf("extend: %v", err)
	}
	lockedUntil(t, d, soon.Add(time.Hour))
	if err := d.ExtendLock(t.Context(), "none", "", soon); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("extend the lock of nothing: %v, want fs.ErrNotExist", err)
	}
	if err := d.TryBypass(t.Context(), "l", o.Version); err != nil {
		t.Error(err) // so that the directory can be cleaned
	}
	c := server.Config()
	c.LockMode = ""
	zonetest.Create(t, d, "free", body)
	if err := zonetest.Dial(t, c).ExtendLock(t.Context(), "free", "", soon); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without locks: %v, want ErrUnsupported", err)
	}
}

func lockedUntil(t *testing.T, d zone.Driver, until time.Time) zone.Object {
	t.Helper()
	o, err := d.Stat(t.Context(), "l", "")
	if err != nil || o.LockedUntil.Before(until) || o.LockedUntil.After(until.Add(time.Second)) {
		t.Fatalf("locked until %s, %v; want %s or up to a second more", o.LockedUntil, err, until)
	}
	return o
}

func TestTheLedgerHasItsOwnKeys(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	c := server.Config()
	c.Credentials, c.LedgerCredentials = s3zone.Keys{AccessKey: "nobody", SecretKey: "wrong"}, c.Credentials
	d := zonetest.Dial(t, c)
	zonetest.Create(t, d, "ledger/o/checkpoint/1", []byte("x"))
	body := []byte("x")
	err := d.Create(t.Context(), "clusters/x", body, zone.CreateOptions{SHA256: sha256.Sum256(body)})
	if !errors.Is(err, zone.ErrUnreachable) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with the other keys: %v, want ErrUnreachable without the secret", err)
	}
}

func TestConfigurationFaultsAreNamed(t *testing.T) {
	sound := s3zone.Config{Endpoint: "https://h", Region: "r", Bucket: "b", Credentials: s3zone.Keys{AccessKey: "a", SecretKey: "s3cret"}}
	for want, change := range map[string]func(*s3zone.Config){
		"bucket": func(c *s3zone.Config) { c.Bucket = "" }, "region": func(c *s3zone.Config) { c.Region = "" },
		"credentials": func(c *s3zone.Config) { c.Credentials = nil }, "lock mode": func(c *s3zone.Config) { c.LockMode = "hard" },
		"prefix": func(c *s3zone.Config) { c.Prefix = "../x" }, "endpoint": func(c *s3zone.Config) { c.Endpoint = "ftp://x" },
		"PEM": func(c *s3zone.Config) { c.CA = []byte("x") }, "without a user": func(c *s3zone.Config) { c.Endpoint = "https://u:p4ss@h" },
	} {
		c := sound
		change(&c)
		_, err := s3zone.New(c)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "p4ss") {
			t.Errorf("want an error that says %q and no secret, got %v", want, err)
		}
	}
}

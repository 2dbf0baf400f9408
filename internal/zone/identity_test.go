package zone_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

func TestInitialiseTakesOnlyAnEmptyZoneOrItsOwn(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	dir, err := dirzone.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]zone.Driver{"dir": dir, "bucket": server.Driver(t)} {
		t.Run(name, func(t *testing.T) {
			id := zonetest.Identity("a")
			zonetest.Create(t, d, "stray", []byte("x"))
			if err := zone.Initialise(t.Context(), d, id); !errors.Is(err, zone.ErrOccupied) {
				t.Errorf("with a stray object: %v, want ErrOccupied", err)
			}
			o, err := d.Stat(t.Context(), "stray", "")
			if err != nil {
				t.Fatal(err)
			}
			if err := d.RemoveVersion(t.Context(), "stray", o.Version); err != nil {
				t.Fatal(err)
			}
			zonetest.Create(t, d, zone.ProbePrefix+"left", []byte("x"))
			for range 2 {
				if err := zone.Initialise(t.Context(), d, id); err != nil {
					t.Fatalf("initialise: %v", err)
				}
			}
			zonetest.Create(t, d, "clusters/x", []byte("x"))
			if err := zone.Initialise(t.Context(), d, id); err != nil {
				t.Errorf("its own, in use: %v", err)
			}
			other := id
			other.Repository = "another"
			for _, id := range []zone.Identity{zonetest.Identity("b"), other} {
				if err := zone.Initialise(t.Context(), d, id); !errors.Is(err, zone.ErrOccupied) {
					t.Errorf("as %+v: %v, want ErrOccupied", id, err)
				}
			}
			if got, err := zone.ReadIdentity(t.Context(), d); err != nil || got != id {
				t.Errorf("identity %+v, %v", got, err)
			}
		})
	}
}

func TestAnIdentityThatIsNoneOrNewerIsRefused(t *testing.T) {
	for name, data := range map[string]string{
		"empty": "", "not JSON": "hello", "other JSON": `{"a":1}`, "no zone": `{"format":1,"repository":"r"}`,
		"torn": `{"format":1,"reposi`, "newer": `{"format":2,"repository":"00000000-0000-4000-8000-000000000001","zone":"a"}`,
	} {
		t.Run(name, func(t *testing.T) {
			z, dir := openDir(t, "a")
			if err := os.WriteFile(filepath.Join(dir, zone.IdentityName), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
			errs := everything(t.Context(), z)
			delete(errs, "read there")
			wantUnreachable(t, errs)
			d, err := dirzone.New(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := zone.Initialise(t.Context(), d, zonetest.Identity("a")); err == nil {
				t.Error("initialised over it")
			}
		})
	}
}

// Whoever may write to a bucket can lay anything over a zone's identity, or hide it; the
// zone stays the one that Initialise made it.
func TestWhatLiesOverAnIdentityChangesNothing(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	d := server.Driver(t)
	z := zonetest.Open(t, d, "a")
	client, key := server.Client(t), zone.IdentityName
	for _, text := range []string{`{"format":1,"repository":"another","zone":"a"}`, "nothing"} {
		if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &server.Bucket, Key: &key, Body: strings.NewReader(text)}); err != nil {
			t.Fatal(err)
		}
		if err := z.Check(t.Context()); err != nil {
			t.Errorf("beneath %s: %v", text, err)
		}
	}
	if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &server.Bucket, Key: &key}); err != nil {
		t.Fatal(err)
	}
	if err := z.Check(t.Context()); err != nil {
		t.Errorf("beneath a delete marker: %v", err)
	}
	if id, err := zone.ReadIdentity(t.Context(), d); err != nil || id != zonetest.Identity("a") {
		t.Errorf("read %+v, %v", id, err)
	}
}

package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/zap/zaptest"

	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

// cloud is a vault over three real S3 servers with Object Lock, over TLS.
type cloud struct {
	t       *testing.T
	servers []*zonetest.S3Server
	zones   []*zone.Zone
	*vault.Vault

	mu  sync.Mutex
	bad []string
}

func launch(t *testing.T, options ...func(*vault.Config)) *cloud {
	t.Helper()
	c := &cloud{t: t, servers: zonetest.StartS3(t, 3)}
	conf := vault.Config{
		Quorum: 2, State: filepath.Join(t.TempDir(), "vault"), Log: zaptest.NewLogger(t),
		SlowAfter: 300 * time.Millisecond, RetryAfter: 50 * time.Millisecond,
		OnBad: func(zone, name string, _ error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.bad = append(c.bad, zone+" "+name)
		},
	}
	for i, s := range c.servers {
		d, id := s.Driver(t), zonetest.Identity(names[i])
		if err := zone.Initialise(t.Context(), d, id); err != nil {
			t.Fatal(err)
		}
		c.zones = append(c.zones, zone.Open(names[i], d, id, zone.Options{Timeout: 3 * time.Second}))
	}
	conf.Zones = c.zones
	for _, option := range options {
		option(&conf)
	}
	v, err := vault.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	c.Vault = v
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, v.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// complete says whether the zone alone gives every object, verified.
func (c *cloud) complete(zone string, want map[string][]byte) bool {
	for name, b := range want {
		if _, err := c.Reader().Only(zone).Get(c.t.Context(), name, int64(len(b)), digest(b)); err != nil {
			return false
		}
	}
	return true
}

// Promise 2 on real servers: each zone in turn is killed, then hung, while
// writes go on; it catches up by itself and then serves everything alone.
func TestAnS3ZoneMayDieDuringWritesAndComesBackWhole(t *testing.T) {
	c := launch(t)
	want := map[string][]byte{}
	write := func(round string, n int) {
		t.Helper()
		for i := range n {
			name := fmt.Sprintf("clusters/x/wal/1/1/%s-%d.age", round, i)
			b := bytes.Repeat([]byte(name), 2000)
			begun := time.Now()
			if _, err := c.Writer().Put(t.Context(), name, b, vault.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took > 2*time.Second {
				t.Errorf("%s: the write took %s", round, took)
			}
			want[name] = b
		}
	}
	for i, s := range c.servers {
		write("first-"+names[i], 2)
		s.Kill()
		write("killed-"+names[i], 4)
		s.Start()
		write("back-"+names[i], 2)
		s.Pause()
		write("hung-"+names[i], 4)
		if got, err := c.Reader().Get(t.Context(), "clusters/x/wal/1/1/killed-"+names[i]+"-0.age",
			int64(len(want["clusters/x/wal/1/1/killed-"+names[i]+"-0.age"])), digest(want["clusters/x/wal/1/1/killed-"+names[i]+"-0.age"])); err != nil || len(got) == 0 {
			t.Errorf("reading while zone %s hangs: %v", names[i], err)
		}
		l, err := c.Reader().List(t.Context(), "clusters/x/")
		if err != nil || !l.Complete || len(l.Objects) != len(want) {
			t.Errorf("listing while zone %s hangs: %d of %d, complete %t, %v", names[i], len(l.Objects), len(want), l.Complete, err)
		}
		s.Resume()
		eventually(t, "zone "+names[i]+" has caught up", func() bool { return c.Behind()[names[i]] == 0 })
	}
	for _, name := range names[:3] {
		if !c.complete(name, want) {
			t.Errorf("zone %s alone does not give all that was acknowledged", name)
		}
	}
}

// Whoever can write to a bucket can put versions and delete markers on top; the
// oldest version that matches is read all the same.
func TestLaterVersionsAndMarkersHideNothing(t *testing.T) {
	c := launch(t)
	const name, note = "clusters/x/one.age", "tombstones/1/tombstone.note"
	want := map[string][]byte{name: body(1), note: body(2)}
	for n, b := range want {
		if _, err := c.Writer().Put(t.Context(), n, b, vault.PutOptions{LockUntil: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all hold both", func() bool { return c.complete("a", want) && c.complete("b", want) && c.complete("c", want) })
	for _, s := range c.servers {
		cl := s.Client(t)
		for n := range want {
			key := n
			if _, err := cl.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.Bucket, Key: &key}); err != nil {
				t.Fatal(err)
			}
		}
		key := note
		if _, err := cl.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.Bucket, Key: &key, Body: bytes.NewReader([]byte("forged"))}); err != nil {
			t.Fatal(err)
		}
	}
	if gone, err := c.Reader().Absent(t.Context(), name); gone || err != nil {
		t.Errorf("Absent = %t, %v", gone, err)
	}
	if got, err := c.Reader().Get(t.Context(), name, int64(len(body(1))), digest(body(1))); err != nil || !bytes.Equal(got, body(1)) {
		t.Errorf("Get: %v", err)
	}
	var first []byte
	got, err := c.Reader().Fetch(t.Context(), note, func(_ string, b []byte) error {
		if first == nil {
			first = b
		}
		return nil
	})
	if err != nil || !bytes.Equal(got, body(2)) || !bytes.Equal(first, body(2)) {
		t.Errorf("Fetch: %q, %v", got, err)
	}
}

func TestALockedVersionIsReportedAndNothingComesBack(t *testing.T) {
	c := launch(t)
	const name = "clusters/x/one.age"
	if _, err := c.Writer().Put(t.Context(), name, body(1), vault.PutOptions{LockUntil: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all hold it", func() bool { return c.Behind()["a"]+c.Behind()["b"]+c.Behind()["c"] == 0 })
	for zoneName, err := range c.Remover().RemoveAll(t.Context(), name) {
		if !errors.Is(err, zone.ErrLocked) {
			t.Errorf("zone %s: %v", zoneName, err)
		}
	}
	versions, faults := c.Remover().Versions(t.Context(), "clusters/")
	if len(faults) != 0 || len(versions["a"]) == 0 || len(versions["c"]) == 0 {
		t.Errorf("versions %v, faults %v", versions, faults)
	}
	if l, err := c.Reader().List(t.Context(), "clusters/"); err != nil || len(l.Objects) != 0 {
		t.Errorf("listed %v, %v", l.Objects, err)
	}
	const free = "clusters/x/two.age"
	if _, err := c.Writer().Put(t.Context(), free, body(2), vault.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	c.servers[1].Kill()
	faults2 := c.Remover().RemoveAll(t.Context(), free)
	if faults2["a"] != nil || faults2["c"] != nil || faults2["b"] == nil {
		t.Errorf("faults are %v", faults2)
	}
	c.servers[1].Start()
	eventually(t, "b removed it as well", func() bool {
		all, faults := c.Remover().Versions(t.Context(), free)
		return len(faults) == 0 && len(all["a"])+len(all["b"])+len(all["c"]) == 0
	})
}

func TestS3BitRotIsFoundAndHealed(t *testing.T) {
	c := launch(t)
	const name = "clusters/x/one.age"
	want := map[string][]byte{name: body(1)}
	if _, err := c.Writer().Put(t.Context(), name, body(1), vault.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all hold it", func() bool { return c.complete("a", want) && c.complete("b", want) && c.complete("c", want) })
	rot(t, c.servers[0].Path(name))
	rot(t, c.servers[2].Path(name))
	healed, err := c.Writer().Heal(t.Context(), name, int64(len(body(1))), digest(body(1)))
	if err != nil || !slices.Equal(healed, []string{"a", "c"}) {
		t.Errorf("healed %q: %v", healed, err)
	}
	if !c.complete("a", want) || !c.complete("c", want) {
		t.Error("it is still rotten")
	}
}

// A snapshot's packs may be an older one's: their locks must not end before its own.
func TestWhatANoteRefersToIsLockedForAsLongAsTheNote(t *testing.T) {
	c := launch(t)
	until := time.Now().Add(time.Minute).Truncate(time.Second)
	older, own := body(1), body(2)
	put := func(name string, b []byte, at time.Time) {
		t.Helper()
		if _, err := c.Writer().Put(t.Context(), name, b, vault.PutOptions{LockUntil: at}); err != nil {
			t.Fatal(err)
		}
	}
	put("clusters/main/snapshots/1/packs/0-a.age", older, until)
	put("clusters/main/snapshots/2/packs/0-b.age", own, until.Add(time.Minute))
	needs := []vault.Need{
		{Name: "clusters/main/snapshots/1/packs/0-a.age", Size: int64(len(older)), SHA256: digest(older)},
		{Name: "clusters/main/snapshots/2/packs/0-b.age", Size: int64(len(own)), SHA256: digest(own)},
	}
	stored, err := c.Writer().PutNote(t.Context(), "clusters/main/snapshots/2/snapshot.note", body(3), needs, vault.PutOptions{LockUntil: until.Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	for _, z := range c.zones {
		if !slices.Contains(stored.Zones, z.Name()) {
			continue
		}
		err := z.ListVersions(t.Context(), needs[0].Name, func(o zone.Object) error {
			s, err := z.Stat(t.Context(), o.Name, o.Version)
			if err != nil || s.LockedUntil.Before(until.Add(time.Minute)) {
				t.Errorf("zone %s: version %s of the older pack is locked until %s, want %s (%v)", z.Name(), o.Version, s.LockedUntil, until.Add(time.Minute), err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// limits.upload: what is sent to all zones together, by the bytes that go out, and WAL
// does not wait for it. The zones' deadline of 3 s does not count the waiting.
func TestUploadsToS3KeepToTheLimitAndWALDoesNotWait(t *testing.T) {
	const rate, pack, packs = 1 << 20, 1 << 20, 3
	c := launch(t, func(conf *vault.Config) { conf.Upload = rate })
	begun := time.Now()
	stored := make(chan error, packs)
	for i := range packs {
		body := bytes.Repeat([]byte{byte(i)}, pack)
		go func() {
			_, err := c.Writer().Put(t.Context(), fmt.Sprintf("clusters/x/snapshots/s/packs/%d-%s.age", i, digest(body)), body, vault.PutOptions{})
			stored <- err
		}()
	}
	for i := range 5 { // one after the other: each is there before the packs are
		body := bytes.Repeat([]byte{'w', byte(i)}, 8<<10)
		if _, err := c.Writer().Put(t.Context(), fmt.Sprintf("clusters/x/wal/1/1/%d.age", i), body, vault.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begun); len(stored) > 0 || took > 2*time.Second {
		t.Errorf("WAL was stored after %s and %d packs", took, len(stored))
	}
	for range packs {
		if err := <-stored; err != nil {
			t.Error(err)
		}
	}
	// The quorum has two of three copies of each pack, and they share alike.
	sent := packs * 2 * pack
	if took, least := time.Since(begun), time.Duration(sent-rate/2)*time.Second/rate; took < least {
		t.Errorf("%d bytes were acknowledged after %s, want %s at least at %d bytes/s", sent, took, least, rate)
	}
}

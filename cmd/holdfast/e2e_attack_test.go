package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

// attackFor is how long an attacker has: HOLDFAST_ATTACK=1m for the whole minute.
func attackFor(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("HOLDFAST_ATTACK")
	if text == "" {
		return 6 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// An attacker with every right but the one to bypass locks overwrites, hides and
// deletes by version whatever there is, in all zones at once, while the daemon runs.
func TestWhoMayDoEverythingButBypassChangesNothingThatARestoreReads(t *testing.T) { // promises 4, 9
	pg := pgtest.Start(t)
	r := newRig(t, pg, true)
	r.zones += "  object_lock: {mode: governance}\n"
	r.scrub = "{every: 20s, rate: 0}"
	r.configure()
	daemon := r.daemon("db")
	oracle := pg.StartOracle(20 * time.Millisecond)
	r.hold("db", 0, "snapshot", "take", "cms")
	oracle.AwaitMore(20)
	pgtest.Value[string](pg, "SELECT pg_switch_wal()::text")
	r.hold("db", 0, "snapshot", "take", "cms")
	oracle.AwaitMore(20)
	acked := oracle.Stop()
	r.archived(zoneLetters...)

	var hits atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), attackFor(t))
	defer cancel()
	var attackers sync.WaitGroup
	for _, s := range r.s3 {
		client := s.Client(t)
		attackers.Go(func() { attack(ctx, s, client, &hits) })
	}
	attackers.Wait()
	ended := time.Now()
	t.Logf("the attacker's %d acts were obeyed", hits.Load())
	if hits.Load() < 100 {
		t.Errorf("the attacker came to %d acts: that is no attack", hits.Load())
	}

	r.restore("after")
	if err := pgtest.CheckOracle(t.Context(), r.connect(r.open("after"), "postgres"), acked, pgtest.Everything); err != nil {
		t.Errorf("restored after the attack: %v", err)
	}
	r.discard(r.path("after"))
	await(t, "the incident that tells of it", func() bool {
		return strings.Contains(r.hold("db", 0, "incident", "list"), "writes over objects in zone")
	})
	pgtest.Value[string](pg, "SELECT pg_switch_wal()::text")
	r.hold("db", 0, "snapshot", "take", "cms") // the daemon goes on
	r.archived(zoneLetters...)
	await(t, "every copy to be read and right again", func() bool {
		for _, z := range ask[statusDoc](r, "db", "status").Zones {
			if v := z.Verified; v == nil || v.Verified < v.Objects || v.Oldest.Before(ended) || v.Bad+v.Hidden+v.Short > 0 {
				return false
			}
		}
		return true
	})
	daemon.stop()
	r.hold("db", 0, "zone", "scrub")
	for _, z := range zoneLetters {
		r.restore("from-"+z, "--zone", z, "--quarantine")
		r.discard(r.path("from-" + z))
	}
}

// attack does to every key of a bucket all that credentials without
// s3:BypassGovernanceRetention can do, until ctx ends.
func attack(ctx context.Context, s *zonetest.S3Server, cl *s3.Client, hits *atomic.Int64) {
	did := func(err error) {
		if err == nil {
			hits.Add(1)
		}
	}
	for ctx.Err() == nil {
		pages := s3.NewListObjectVersionsPaginator(cl, &s3.ListObjectVersionsInput{Bucket: &s.Bucket})
		keys := map[string][]*string{}
		for pages.HasMorePages() && ctx.Err() == nil {
			page, err := pages.NextPage(ctx)
			if err != nil {
				break
			}
			for _, v := range page.Versions {
				keys[*v.Key] = append(keys[*v.Key], v.VersionId)
			}
		}
		for key, versions := range keys {
			if strings.HasSuffix(key, "/") {
				continue
			}
			for _, v := range versions {
				_, err := cl.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.Bucket, Key: &key, VersionId: v})
				did(err)
			}
			_, err := cl.PutObject(ctx, &s3.PutObjectInput{Bucket: &s.Bucket, Key: &key, Body: bytes.NewReader([]byte("not what it was"))})
			did(err)
			if hits.Load()%2 == 0 {
				_, err = cl.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.Bucket, Key: &key})
				did(err)
			}
		}
	}
}

// versions are a bucket's own listing: every version and delete marker of a key with a part.
func versionsIn(t *testing.T, s *zonetest.S3Server, part string) (names []string) {
	t.Helper()
	pages := s3.NewListObjectVersionsPaginator(s.Client(t), &s3.ListObjectVersionsInput{Bucket: aws.String(s.Bucket)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range page.Versions {
			names = append(names, *v.Key)
		}
		for _, m := range page.DeleteMarkers {
			names = append(names, *m.Key+" (marker)")
		}
	}
	kept := names[:0]
	for _, n := range names {
		if strings.Contains(n, part) {
			kept = append(kept, n)
		}
	}
	return kept
}

package zone_test

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

func TestProbeClaimsOnlyWhatItSaw(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	dir, err := dirzone.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	locked, mode := server.NewBucket(t, true), ""
	plain := server.NewBucket(t, false)
	bucket := func(name string) zone.Driver {
		c := server.Config()
		c.Bucket, c.LockMode, c.Prefix = name, mode, "p"+mode
		return zonetest.Dial(t, c)
	}
	base := zone.ProbeResult{Lock: "none", ConditionalCreate: true, ListAfterWrite: true, RangeRead: true, ChecksumRefused: true}
	cases := map[string]zone.Driver{"dir": dir, "plain": bucket(plain), "unlocked": bucket(locked)}
	mode = "governance"
	cases["governance"], cases["lockless"] = bucket(locked), bucket(plain)
	mode = "compliance"
	cases["compliance"] = bucket(locked)
	for name, d := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := base
			want.Versions = name != "dir" && name != "plain" && name != "lockless"
			if name == "governance" || name == "compliance" {
				want.Lock, want.ShorteningRefused, want.BypassPossible = name, true, name == "governance"
			}
			z := zonetest.Open(t, d, name)
			now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			got, err := zone.Probe(t.Context(), z, now)
			if err != nil {
				t.Fatal(err)
			}
			if got.Zone != name || !got.At.Equal(now) || len(got.Left) != 0 || (got.Lock == "none") != (len(got.NotAssessed) > 0 || name == "lockless") {
				t.Errorf("probe: %+v", got)
			}
			got.Zone, got.At, got.NotAssessed, got.Left = "", time.Time{}, nil, nil
			if !equal(got, want) {
				t.Errorf("probe:\n got %+v\nwant %+v", got, want)
			}
			left := 0
			err = z.ListVersions(t.Context(), zone.ProbePrefix, func(zone.Object) error { left++; return nil })
			if err != nil || left != 0 {
				t.Errorf("%d objects left, %v", left, err)
			}
		})
	}
}

func equal(a, b zone.ProbeResult) bool {
	return a.ConditionalCreate == b.ConditionalCreate && a.Versions == b.Versions && a.Lock == b.Lock &&
		a.ShorteningRefused == b.ShorteningRefused && a.BypassPossible == b.BypassPossible && a.DefaultRetention == b.DefaultRetention &&
		a.ListAfterWrite == b.ListAfterWrite && a.RangeRead == b.RangeRead && a.ChecksumRefused == b.ChecksumRefused && a.ClockSkewSeconds == b.ClockSkewSeconds
}

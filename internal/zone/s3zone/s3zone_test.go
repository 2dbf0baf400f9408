package s3zone_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

func TestContract(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	var n atomic.Int32
	for _, lock := range []bool{false, true} {
		bucket := server.NewBucket(t, lock)
		t.Run(fmt.Sprintf("lock=%v", lock), func(t *testing.T) {
			zonetest.Run(t, func(t *testing.T) zone.Driver {
				c := server.Config()
				c.Bucket, c.Prefix = bucket, fmt.Sprintf("deep/prefix-%d", n.Add(1))
				if !lock {
					c.LockMode = ""
				}
				return zonetest.Guard(t, zonetest.Dial(t, c), "bucket")
			})
		})
	}
}

package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func TestASnapshotBeginsWithTheCheckpointThatIsConfigured(t *testing.T) { // C-5
	// With this target a spread checkpoint has no time that it may take.
	pg := pgtest.Start(t, pgtest.WithSetting("log_checkpoints", "on"), pgtest.WithSetting("checkpoint_completion_target", "0"))
	r := newRig(t, pg, false)
	r.start = "spread"
	r.configure()
	r.hold("db", 0, "snapshot", "take", "cms")
	if log := pg.Log(); strings.Count(log, "checkpoint starting: force wait") != 1 {
		t.Errorf("no spread checkpoint:\n%s", log)
	}
	made := regexp.MustCompile("checkpoint starting: (immediate|fast) force wait") // fast since 19
	r.start = ""
	r.host("db", pg.DSN("postgres"))
	r.hold("db", 0, "snapshot", "take", "cms")
	if log := pg.Log(); strings.Count(log, "checkpoint starting: force wait") != 1 || !made.MatchString(log) {
		t.Errorf("by default the checkpoint is not made at once:\n%s", log)
	}
}

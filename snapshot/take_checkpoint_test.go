package snapshot

import (
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// starting is the server's line about a checkpoint that somebody waits for;
// PostgreSQL 19 says fast where others say immediate.
var starting = regexp.MustCompile(`checkpoint starting: ((?:immediate |fast )?)force wait`)

func TestEachSourceAsksForTheCheckpointThatItWasTold(t *testing.T) {
	// With this target a spread checkpoint has no time that it may take.
	pg := startPG(t, pgtest.WithSetting("log_checkpoints", "on"), pgtest.WithSetting("checkpoint_completion_target", "0"))
	for _, source := range []string{SourceFiles, SourceStream} {
		for _, fast := range []bool{true, false} {
			cfg := newRig(t).config(pg, source)
			cfg.Fast = fast
			before := len(pg.Log())
			if _, err := Take(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			found := starting.FindAllStringSubmatch(pg.Log()[before:], -1)
			if len(found) != 1 || strings.TrimSpace(found[0][1]) != "" != fast {
				t.Errorf("%s, fast %v: the server's checkpoints: %q", source, fast, found)
			}
		}
	}
}

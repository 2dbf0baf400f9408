package restore_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// A right page of another time passes the checksums of pages and of frames: only its
// digest tells. Keys that fit no digest stand for maps that fit no block.
func TestBlocksThatAreNotThoseOfTheirDigestsEndARestore(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.take(snapshot.SourceFiles)
	w.flush()
	p := w.plan(restore.Target{Kind: restore.Immediate})
	opt := w.options(w.target())
	opt.Digests = func(context.Context, int) (seal.DigestKeys, error) { return seal.NewDigestKeys(1) }
	if _, err := restore.Fetch(t.Context(), w.repo(), p, opt); err == nil || !strings.Contains(err.Error(), "are not those whose digests the page map tells") {
		t.Errorf("with other digests: %v", err)
	}
	gone := errors.New("no zone has the keys")
	opt = w.options(w.target())
	opt.Digests = func(context.Context, int) (seal.DigestKeys, error) { return seal.DigestKeys{}, gone }
	if r, err := restore.Fetch(t.Context(), w.repo(), p, opt); err != nil || r.Unchecked != gone.Error() {
		t.Errorf("without the keys: %v, unchecked %q", err, r.Unchecked)
	}
	opt = w.options(w.target())
	if r, err := restore.Fetch(t.Context(), w.repo(), p, opt); err != nil || r.Unchecked != "" {
		t.Errorf("with the keys: %v, unchecked %q", err, r.Unchecked)
	}
}

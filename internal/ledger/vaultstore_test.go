package ledger

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

// TestALedgerLivesInAVault runs over real zones: one dies, and a copy of an old
// state is still found out by the others.
func TestALedgerLivesInAVault(t *testing.T) {
	b := newBench(t)
	var roots []string
	conf := vault.Config{Quorum: 2, State: filepath.Join(t.TempDir(), "vault"), Log: zaptest.NewLogger(t), SlowAfter: 100 * time.Millisecond}
	for _, name := range []string{"a", "b", "c"} {
		root := t.TempDir()
		d, err := dirzone.New(root)
		if err != nil {
			t.Fatal(err)
		}
		id := zone.Identity{Format: 1, Repository: "repo1", Zone: name}
		if err := zone.Initialise(t.Context(), d, id); err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
		conf.Zones = append(conf.Zones, zone.Open(name, d, id, zone.Options{Timeout: 5 * time.Second}))
	}
	v, err := vault.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	b.conf.Store = FromWriter(v.Writer(), nil)
	l := b.open()
	b.append(l, 3)
	b.anchor(l)
	l.Close()
	old := copyTree(t, b.conf.Dir)
	if err := os.Rename(roots[0], roots[0]+".gone"); err != nil {
		t.Fatal(err)
	}
	l = b.open()
	b.append(l, 3)
	c := b.anchor(l)
	l.Close()
	if r := b.sound(FromReader(v.Reader())); r.Origins[0].Size != 7 {
		t.Errorf("size %d", r.Origins[0].Size)
	}
	if got, err := Read(t.Context(), FromReader(v.Reader()), c, 0, -1); err != nil || len(got) != 7 {
		t.Errorf("read %d: %v", len(got), err)
	}
	b.conf.Dir = old
	l = b.open()
	b.append(l, 1)
	if _, err := l.Anchor(t.Context()); !errors.Is(err, ErrRolledBack) {
		t.Errorf("old copy: %v", err)
	}
	if err := os.Rename(roots[1], roots[1]+".gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Anchor(t.Context()); !errors.Is(err, vault.ErrDoubt) {
		t.Errorf("one zone of three cannot prove that nothing is ahead: %v", err)
	}
	l.Close()
	b.conf.Dir = t.TempDir()
	l = b.open()
	if _, err := l.AppendAnchored(t.Context(), Entry{Type: TypeRemovalIntent, Body: struct{}{}}); err == nil {
		t.Error("anchored without a quorum")
	}
}

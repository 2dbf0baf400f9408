package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestACopyOfAnOlderStateRefusesToSign(t *testing.T) {
	for _, ahead := range []int{1, 3, 300} {
		t.Run(fmt.Sprint(ahead, " ahead"), func(t *testing.T) {
			b := newBench(t)
			l := b.open()
			b.append(l, 5)
			b.anchor(l)
			l.Close()
			old := copyTree(t, b.conf.Dir)
			l = b.open()
			b.append(l, ahead)
			b.anchor(l)
			l.Close()

			b.conf.Dir = old
			l = b.open()
			sent := len(b.zones.puts)
			_, err := l.AppendAnchored(t.Context(), Entry{Type: TypeConfig, Body: map[string]int{"n": -1}})
			if !errors.Is(err, ErrRolledBack) && !errors.Is(err, ErrForked) {
				t.Fatalf("older copy: %v", err)
			}
			for _, name := range b.zones.puts[sent:] {
				if strings.Contains(name, "/checkpoint/") {
					t.Errorf("it sent %s", name)
				}
			}
			b.sound(b.zones)
		})
	}
}

func TestANarrowerBundleOfACloneIsSeenBeforeAnythingIsSigned(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 5)
	b.anchor(l)
	l.Close()
	other := *b
	other.conf.Dir = copyTree(t, b.conf.Dir)
	l, clone := b.open(), other.open()
	b.append(l, 3)
	other.append(clone, 1)
	other.anchor(clone)
	sent := len(b.zones.puts)
	if _, err := l.Anchor(t.Context()); !errors.Is(err, ErrForked) {
		t.Errorf("beside a clone that sent fewer entries: %v", err)
	}
	if more := b.zones.puts[sent:]; len(more) > 0 {
		t.Errorf("it sent %v", more)
	}
	b.sound(b.zones)
}

func TestACloneThatRunsBesideRefusesToSign(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 5)
	b.anchor(l)
	l.Close()
	other := *b
	other.conf.Dir = copyTree(t, b.conf.Dir)
	l, clone := b.open(), other.open()
	b.anchor(l)
	other.anchor(clone)
	b.append(l, 2)
	other.append(clone, 1)
	b.anchor(l)
	if _, err := clone.Anchor(t.Context()); !errors.Is(err, ErrRolledBack) {
		t.Errorf("clone behind: %v", err)
	}
	other.append(clone, 1)
	if _, err := clone.Anchor(t.Context()); !errors.Is(err, ErrForked) {
		t.Errorf("clone beside: %v", err)
	}
	b.sound(b.zones)
}

func TestALostStateBeginsANewOriginThatNamesTheOld(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 5)
	last := b.anchor(l)
	l.Close()
	b.conf.Dir = t.TempDir()
	b.zones.set(true, 0, 1)
	fresh := b.open() // no zone is needed to begin
	b.append(fresh, 1)
	if _, err := fresh.Anchor(t.Context()); err == nil {
		t.Fatal("anchored without zones")
	}
	b.zones.set(false, 0, 1)
	b.anchor(fresh)
	r, err := fresh.Entries(t.Context(), 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	var o Origin
	if err := json.Unmarshal(r[0].Body, &o); err != nil || r[0].Type != TypeOrigin || len(o.After) != 1 {
		t.Fatalf("entry %s: %v", r[0].Leaf, err)
	}
	if want := (Predecessor{l.Origin(), last.Size, last.Root}); o.After[0] != want || fresh.Origin() == l.Origin() {
		t.Errorf("it names %+v, want %+v", o.After[0], want)
	}
	if r := b.sound(b.zones); len(r.Origins) != 2 {
		t.Errorf("%d origins", len(r.Origins))
	}
	// whoever cuts the old log is found out by the new one
	for _, d := range b.zones.dirs {
		if err := os.RemoveAll(filepath.Join(d, OriginDir(l.Origin()))); err != nil {
			t.Fatal(err)
		}
	}
	if r := b.verify(b.zones); len(r.Faults) != 1 || r.Faults[0].Origin != l.Origin() || r.Faults[0].Index != last.Size {
		t.Errorf("a removed origin: %v", r.Faults)
	}
}

package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

func TestWhatIsAppendedIsAnchoredInEveryZoneAndVerifies(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 3)
	index, err := l.AppendAnchored(t.Context(), Entry{
		Type: TypeRemovalIntent, Subject: map[string]string{"cluster": "cms"}, Actor: Actor{Kind: "human", KeyID: "k"},
		Body: map[string]any{"objects": []string{"a", "b"}}, NotAssessed: []NotAssessed{{"zone c", "down"}},
	})
	if err != nil || index != 3 {
		t.Fatalf("index %d: %v", index, err)
	}
	for _, d := range b.zones.dirs {
		r := b.sound(Dir(d))
		if len(r.Origins) != 1 || r.Origins[0].Size != 5 || r.Origins[0].Origin != l.Origin() || r.Origins[0].Signers[0] != "db1" {
			t.Errorf("report %+v", r)
		}
	}
	c, err := Latest(t.Context(), b.zones, b.trust, "repo1", l.Origin())
	if err != nil || c.Size != 5 {
		t.Fatalf("latest %+v: %v", c, err)
	}
	got, err := Read(t.Context(), b.zones, c, 3, -1)
	if err != nil || len(got) != 2 || got[0].Type != TypeRemovalIntent || got[0].Subject["cluster"] != "cms" || got[1].Type != TypeOrigin {
		t.Fatalf("read %+v: %v", got, err)
	}
	mine, err := l.Entries(t.Context(), 3, 4)
	if err != nil || len(mine) != 1 || !bytes.Equal(mine[0].Leaf, got[0].Leaf) {
		t.Errorf("entries %+v: %v", mine, err)
	}
}

// TestTheCheckpointIsSentAfterAllThatItCovers cites DESIGN section 4, "Ledger".
func TestTheCheckpointIsSentAfterAllThatItCovers(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 300)
	b.anchor(l)
	last := b.zones.puts[len(b.zones.puts)-1]
	if !strings.HasSuffix(last, "/checkpoint/301") {
		t.Errorf("the last object sent is %s", last)
	}
	seenTile := false
	for _, name := range b.zones.puts {
		isEntries := strings.Contains(name, "/tile/entries/")
		seenTile = seenTile || strings.Contains(name, "/tile/0/")
		if isEntries && seenTile {
			t.Errorf("%s was sent after a tile that stands for it", name)
		}
	}
}

func TestALeafIsBoundedAndCanonical(t *testing.T) {
	b := newBench(t)
	l := b.open()
	for what, e := range map[string]Entry{
		"too long":    {Type: TypeConfig, Body: map[string]string{"x": strings.Repeat("x", MaxLeaf)}},
		"no type":     {Body: struct{}{}},
		"no body":     {Type: TypeConfig},
		"list":        {Type: TypeConfig, Body: []int{1}},
		"would round": {Type: TypeConfig, Body: map[string]int64{"x": 1 << 60}},
		"not sayable": {Type: TypeConfig, Body: map[string]any{"x": func() {}}},
	} {
		if _, err := l.Append(t.Context(), e); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if n := l.Status().Size; n != 0 {
		t.Errorf("%d entries from refused appends", n)
	}
	b.append(l, 1)
	r, err := l.Entries(t.Context(), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	again, err := seal.CanonicalJSON(json.RawMessage(r[0].Leaf))
	if err != nil || !bytes.Equal(again, r[0].Leaf) || len(r[0].RecordID) != 26 || r[0].Host.Node != "db1" {
		t.Errorf("leaf %s", r[0].Leaf)
	}
	if a, z := newULID(start), newULID(start.Add(time.Millisecond)); a[:10] >= z[:10] || a[:10] == "0000000000" {
		t.Errorf("ULIDs %s and %s do not sort by time", a, z)
	}
	if got := newULID(time.UnixMilli(1469918176385))[:10]; got != "01ARYZ6S41" { // the example of the ULID specification
		t.Errorf("ULID of 1469918176385 begins %s, want 01ARYZ6S41", got)
	}
}

func TestTwoOpeningsOfOneDirectoryAreRefused(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 300) // the lock must survive the rewriting of the tail
	if _, err := Open(b.conf); !errors.Is(err, durable.ErrHeld) {
		t.Errorf("second opening: %v", err)
	}
	l.Close()
	b.open()
}

func TestWithoutAQuorumAppendWorksAndAnchorSaysWhatWaits(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 2)
	b.anchor(l)
	b.zones.set(true, 0, 1)
	b.append(l, 4)
	var waiting *WaitingError
	_, err := l.Anchor(t.Context())
	if !errors.As(err, &waiting) || waiting.From != 3 || waiting.To != 7 || !errors.Is(err, errDown) || !strings.Contains(err.Error(), "anchored_late") {
		t.Fatalf("anchor: %v", err)
	}
	index, err := l.AppendAnchored(t.Context(), Entry{Type: TypeRemovalIntent, Body: struct{}{}})
	if index != 7 || !errors.As(err, &waiting) || !strings.Contains(err.Error(), "entry 7 is not in the quorum") {
		t.Fatalf("append anchored: %d %v", index, err)
	}
	if st := l.Status(); st.Failing.IsZero() || st.Size != 8 || st.Anchored.Size != 3 {
		t.Errorf("status %+v", st)
	}
	b.zones.set(false, 0, 1)
	b.anchor(l)
	if c := b.anchor(l); c.Size != 9 {
		t.Errorf("checkpoint of size %d, want 9", c.Size)
	}
	r, err := l.Entries(t.Context(), 8, 9)
	if err != nil || r[0].Type != TypeAnchoredLate {
		t.Fatalf("what was late is not recorded: %+v %v", r, err)
	}
	var late Late
	if err := json.Unmarshal(r[0].Body, &late); err != nil || late.From != 3 || late.To != 8 || !late.Until.After(late.Since) {
		t.Errorf("late %+v: %v", late, err)
	}
	if st := l.Status(); !st.Failing.IsZero() {
		t.Errorf("status %+v", st)
	}
	b.sound(b.zones)
}

func TestOneZoneDownDoesNotStopTheLedger(t *testing.T) {
	for which := range 3 {
		b := newBench(t)
		l := b.open()
		b.zones.set(true, which)
		if _, err := l.AppendAnchored(t.Context(), Entry{Type: TypeConfig, Body: struct{}{}}); err != nil {
			t.Errorf("zone %d down: %v", which, err)
		}
	}
}

// TestACrashAtAnyStepContinuesWithoutAFork ends the process before the n-th act
// on the zones, for every n, and opens the state again.
func TestACrashAtAnyStepContinuesWithoutAFork(t *testing.T) {
	crash := errors.New("crash")
	b := newBench(t)
	l := b.open()
	b.append(l, 254)
	b.anchor(l)
	b.append(l, 4)
	l.Close()
	state, dirs := b.conf.Dir, b.zones.dirs
	for n, ended := 0, false; !ended; n++ {
		b.conf.Dir, b.zones.dirs = copyTree(t, state), nil
		for _, d := range dirs {
			b.zones.dirs = append(b.zones.dirs, copyTree(t, d))
		}
		l := b.open()
		acts := 0
		b.zones.before = func(string, string) error {
			if acts++; acts > n {
				return crash
			}
			return nil
		}
		_, err := l.Anchor(t.Context())
		l.Close()
		b.zones.before = nil
		l = b.open()
		if l.Status().Size != 259 {
			t.Fatalf("after a crash at act %d: %+v", n, l.Status())
		}
		b.append(l, 3)
		if c := b.anchor(l); c.Size != 262 {
			t.Fatalf("after a crash at act %d: checkpoint of size %d", n, c.Size)
		}
		b.sound(b.zones)
		if ended = err == nil; ended && n < 5 {
			t.Errorf("Anchor took only %d acts", n)
		}
	}
}

// TestACrashWhileTheTailIsFoldedContinues leaves what each step of fold leaves.
func TestACrashWhileTheTailIsFoldedContinues(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 256)
	l.Close()
	tail, err := os.ReadFile(filepath.Join(b.conf.Dir, "tail.log"))
	if err != nil {
		t.Fatal(err)
	}
	l = b.open()
	b.append(l, 1) // folds
	l.Close()
	// the tail is the old one, bundle and tile are there
	if err := os.WriteFile(filepath.Join(b.conf.Dir, "tail.log"), tail, 0o600); err != nil {
		t.Fatal(err)
	}
	l = b.open()
	b.append(l, 10)
	b.anchor(l)
	if r := b.sound(b.zones); r.Origins[0].Size != 267 {
		t.Errorf("size %d", r.Origins[0].Size)
	}
}

func TestADamagedStateIsNotSigned(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 300)
	b.anchor(l)
	l.Close()
	path := filepath.Join(b.conf.Dir, "tile/0/000")
	flip(t, path, 40)
	if _, err := Open(b.conf); !errors.Is(err, ErrState) {
		t.Errorf("changed tile: %v", err)
	}
	flip(t, path, 40)
	if err := os.Remove(filepath.Join(b.conf.Dir, "tail.log")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(b.conf); !errors.Is(err, ErrState) {
		t.Errorf("tail.log lost: %v", err)
	}
}

func TestAStateOfAnotherRepositoryOrKeyIsRefused(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.anchor(l)
	l.Close()
	conf := b.conf
	conf.Repository = "repo2"
	if _, err := Open(conf); err == nil || !strings.Contains(err.Error(), "repo2") {
		t.Errorf("other repository: %v", err)
	}
	conf = b.conf
	conf.Trust = seal.Trust{}
	if _, err := Open(conf); !errors.Is(err, seal.ErrUntrusted) {
		t.Errorf("own key is not trusted: %v", err)
	}
}

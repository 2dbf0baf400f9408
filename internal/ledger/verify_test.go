package ledger

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// indexAt is the entry, or the size of the checkpoint, that a byte belongs to.
func indexAt(t *testing.T, root, name string, at int64) int64 {
	t.Helper()
	_, path, _ := strings.Cut(strings.TrimPrefix(name, dir), "/")
	if size, ok := parseCheckpointPath(path); ok {
		return size
	}
	tile, ok := parseTilePath(path)
	if !ok {
		t.Fatalf("%s is no object of a ledger", name)
	}
	if tile.L != entriesLevel {
		return (tile.N*width + at/tlog.HashSize) << (height * tile.L)
	}
	body, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	leaves, err := decodeBundle(body, tile.W)
	if err != nil {
		t.Fatal(err)
	}
	index := tile.N * width
	for at -= int64(2 + len(leaves[0])); at >= 0; at -= int64(2 + len(leaves[index-tile.N*width])) {
		index++
	}
	return index
}

// changed flips a byte, and wants a fault at its place in that very object.
func (b *bench) changed(t *testing.T, root, name string, at int64) {
	t.Helper()
	want := indexAt(t, root, name, at)
	flip(t, filepath.Join(root, name), at)
	r := b.verify(Dir(root))
	flip(t, filepath.Join(root, name), at)
	if !slices.ContainsFunc(r.Faults, func(f Fault) bool { return f.Name == name && f.Index == want }) {
		t.Fatalf("byte %d of %s changed (entry %d): faults %v", at, name, want, r.Faults)
	}
}

func TestOneByteChangedAnywhereIsReportedWithItsIndex(t *testing.T) {
	b := newBench(t)
	l := b.open()
	for range 3 {
		b.append(l, 2)
		b.anchor(l)
	}
	root := b.zones.dirs[0]
	names, err := Dir(root).List(t.Context(), dir)
	if err != nil || len(names) != 9 {
		t.Fatalf("%d objects: %v", len(names), err)
	}
	for i, name := range names {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		step := int64(3) // the three checkpoints begin at 0, 1 and 2
		if strings.Contains(name, "/tile/") {
			step = 29
		}
		for at := int64(i % 3); at < info.Size(); at += step {
			b.changed(t, root, name, at)
		}
	}
	b.sound(Dir(root))
}

func TestOneByteChangedInABundleOrTileOfALongLogIsReportedWithItsIndex(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 200)
	b.anchor(l)
	b.append(l, 100)
	b.anchor(l)
	root := b.zones.dirs[0]
	names, err := Dir(root).List(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(3) {
			b.changed(t, root, name, (info.Size()-1)*i/2)
		}
		if strings.Contains(name, ".p/201") {
			continue // only an older checkpoint's: nothing needs it now
		}
		if err := os.Rename(filepath.Join(root, name), filepath.Join(root, "away")); err != nil {
			t.Fatal(err)
		}
		r := b.verify(Dir(root))
		if lost := len(r.Faults) > 0; !lost && !strings.Contains(name, "checkpoint/") {
			t.Errorf("%s is missing and nothing was noticed", name)
		}
		if err := os.Rename(filepath.Join(root, "away"), filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAWrongCopyInOneZoneIsReportedAndTheLogIsReadFromAnother(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 3)
	c := b.anchor(l)
	name := OriginDir(l.Origin()) + tilePath(bundleOf(0, 4))
	flip(t, filepath.Join(b.zones.dirs[0], name), 100)
	got, err := Read(t.Context(), b.zones, c, 0, -1)
	if err != nil || len(got) != 4 {
		t.Errorf("read %d: %v", len(got), err)
	}
	r := b.verify(b.zones)
	if len(r.Faults) != 1 || r.Faults[0].Name != name || !strings.Contains(r.Faults[0].What, b.zones.dirs[0]) || r.Origins[0].Size != 4 {
		t.Errorf("report %+v", r)
	}
	if _, err := Read(t.Context(), Dir(b.zones.dirs[0]), c, 0, -1); err == nil {
		t.Error("the wrong copy alone was read")
	}
}

func TestALogCutShortIsFoundByAKnownCheckpoint(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 3)
	b.anchor(l)
	b.append(l, 3)
	known := b.anchor(l)
	root := b.zones.dirs[0]
	if err := os.Remove(filepath.Join(root, OriginDir(l.Origin()), checkpointPath(known.Size))); err != nil {
		t.Fatal(err)
	}
	b.sound(Dir(root)) // by itself, the shorter log is sound
	r, err := Verify(t.Context(), Dir(root), b.trust, VerifyOptions{Repository: "repo1", Known: []Checkpoint{known}})
	if err != nil || len(r.Faults) != 1 || r.Faults[0].Index != known.Size {
		t.Errorf("%v %v", r.Faults, err)
	}
}

// TestAForkWithTheRightKeyIsFound is what who stole the key can do.
func TestAForkWithTheRightKeyIsFound(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 3)
	b.anchor(l)
	b.append(l, 3)
	forged, err := signCheckpoint("repo1", Checkpoint{Origin: l.Origin(), Size: 6, Root: tlog.RecordHash([]byte("x"))}, b.conf.Signer)
	if err != nil {
		t.Fatal(err)
	}
	b.anchor(l)
	root := b.zones.dirs[0]
	if err := os.WriteFile(filepath.Join(root, OriginDir(l.Origin()), checkpointPath(6)), forged.Signed, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := b.verify(Dir(root)); len(r.Faults) != 1 || r.Faults[0].Index != 6 {
		t.Errorf("%v", r.Faults)
	}
}

func TestOnlyTrustedKeysProveALog(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.anchor(l)
	_, stranger, err := seal.NewSigningKey("db1")
	if err != nil {
		t.Fatal(err)
	}
	_, own, err := seal.NewSigningKey("db2")
	if err != nil {
		t.Fatal(err)
	}
	trust, err := seal.NewTrust([]seal.TrustedSigner{{VKey: stranger, May: []string{"ledger"}}, {VKey: own, May: []string{"wal"}}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Verify(t.Context(), b.zones, trust, VerifyOptions{Repository: "repo1"})
	if err != nil || len(r.Faults) != 2 || len(r.Origins) != 0 {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := Latest(t.Context(), b.zones, trust, "repo1", l.Origin()); err == nil {
		t.Error("a stranger's checkpoint is the latest")
	}
	r, err = Verify(t.Context(), b.zones, b.trust, VerifyOptions{Repository: "repo2"})
	if err != nil || len(r.Faults) == 0 {
		t.Errorf("a log of another repository: %+v %v", r, err)
	}
}

// TestEveryDueSlotHasExactlyOneOutcomeOverAllLogs cites promise 8.
func TestEveryDueSlotHasExactlyOneOutcomeOverAllLogs(t *testing.T) {
	b := newBench(t)
	first := b.open()
	other := *b
	other.conf.Dir, other.conf.Origin = t.TempDir(), "drill1"
	second := other.open()
	past, future := start.Add(time.Minute), start.Add(48*time.Hour)
	say := func(l *Ledger, typ string, body any) int64 {
		t.Helper()
		i, err := l.Append(t.Context(), Entry{Type: typ, Body: body})
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	due := func(l *Ledger, slot string, deadline time.Time) int64 {
		return say(l, TypeDrillDue, Due{slot, start, deadline})
	}
	due(first, "done", past)
	due(second, "done", past) // told by both nodes, alike
	due(first, "early", future)
	due(first, "pending", future)
	say(second, TypeDrillOutcome, Outcome{"done", "pass"})
	say(second, TypeDrillOutcome, Outcome{"early", "missed"})
	say(second, TypeDrillOutcome, Outcome{"", "fail"})
	b.anchor(first)
	other.anchor(second)
	r := b.sound(b.zones)
	if s := r.Slots; s.Due != 3 || s.Pending != 1 || s.Unasked != 1 || s.Outcomes["pass"] != 1 || s.Outcomes["missed"] != 1 {
		t.Errorf("slots %+v", s)
	}
	want := map[string]int64{
		"has no outcome":         due(first, "vanished", past),
		"has a second outcome":   say(second, TypeDrillOutcome, Outcome{"done", "fail"}),
		"which was never due":    say(second, TypeDrillOutcome, Outcome{"invented", "pass"}),
		"is none of":             say(second, TypeDrillOutcome, Outcome{"pending", "great"}),
		"due again at another":   due(second, "pending", past),
		"want slot, due_at":      say(second, TypeDrillDue, struct{}{}),
		"body of a drill.outcom": say(second, TypeDrillOutcome, map[string]int{"slot": 1}),
	}
	b.anchor(first)
	other.anchor(second)
	r = b.verify(b.zones)
	if len(r.Faults) != len(want) {
		t.Errorf("%d faults, want %d: %v", len(r.Faults), len(want), r.Faults)
	}
	for what, index := range want {
		if !slices.ContainsFunc(r.Faults, func(f Fault) bool { return f.Index == index && strings.Contains(f.What, what) }) {
			t.Errorf("no fault %q at entry %d: %v", what, index, r.Faults)
		}
	}
	if !slices.Equal(r.Slots.Missing, []string{"vanished"}) {
		t.Errorf("missing %v", r.Slots.Missing)
	}
}

func TestASourceThatCannotBeReadIsAnErrorAndNotAnEmptyLedger(t *testing.T) {
	b := newBench(t)
	if _, err := Verify(t.Context(), Dir(filepath.Join(t.TempDir(), "missing")), b.trust, VerifyOptions{}); err == nil {
		t.Error("a missing directory verified")
	}
	b.zones.set(true, 0, 1)
	if _, err := Verify(t.Context(), b.zones, b.trust, VerifyOptions{}); err == nil {
		t.Error("one zone of three proved completeness")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.zones.set(false, 0, 1)
	b.anchor(b.open())
	if _, err := Verify(ctx, b.zones, b.trust, VerifyOptions{Repository: "repo1"}); err == nil {
		t.Error("a cancelled verification is no error")
	}
	for _, name := range []string{"../x", "/etc/passwd", ""} {
		if _, err := Dir(t.TempDir()).Fetch(t.Context(), name, func(string, []byte) error { return nil }); err == nil {
			t.Errorf("read %q", name)
		}
	}
}

func FuzzDecodeBundle(f *testing.F) {
	f.Add(encodeBundle([][]byte{[]byte("ab"), nil, make([]byte, 300)}), 3)
	f.Add([]byte{0xff, 0xff, 1}, 1)
	f.Add([]byte{0}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		n = min(max(n, 0), width)
		leaves, err := decodeBundle(b, n)
		if err == nil && (len(leaves) != n || string(encodeBundle(leaves)) != string(b)) {
			t.Fatalf("%x is read as %d entries", b, len(leaves))
		}
	})
}

func FuzzOpenCheckpoint(f *testing.F) {
	b := newBench(f)
	c, err := signCheckpoint("repo1", Checkpoint{Origin: "db1-00000000", Size: 7, Root: tlog.RecordHash(nil)}, b.conf.Signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Signed)
	f.Add([]byte("holdfast/repo1/db1-00000000\n7\nAAAA\n\n— db1 AAAAAAAA\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := openCheckpoint(data, "repo1", "db1-00000000", b.trust)
		if err == nil && (got.Size != 7 || got.Root != c.Root) {
			t.Fatalf("forged %+v", got)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	b := newBench(f)
	leaf, err := Entry{Type: TypeConfig, Body: map[string]int{"a": 1}}.encode(&b.conf, start)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(leaf)
	f.Add([]byte(`{"schema":"holdfast-entry/2"}`))
	f.Add([]byte(fmt.Sprintf(`{"a":1,%s`, leaf[1:])))
	f.Fuzz(func(t *testing.T, leaf []byte) {
		if r, err := decodeRecord("o", 0, leaf); err == nil && r.Schema != Schema {
			t.Fatalf("accepted schema %q", r.Schema)
		}
	})
}

// The key that follows another is announced under the other's signature before it signs.
func TestAKeyThatSignsBeforeItIsAnnouncedIsAFault(t *testing.T) {
	for name, late := range map[string]bool{"announced": false, "announced by itself": true} {
		b := newBench(t)
		skey, vkey, err := seal.NewSigningKey("db1-2")
		if err != nil {
			t.Fatal(err)
		}
		old := b.conf.Signer
		next, _, err := seal.LoadSigner(skey)
		if err != nil {
			t.Fatal(err)
		}
		if b.trust, err = seal.NewTrust([]seal.TrustedSigner{{VKey: b.vkey, May: []string{"ledger"}}, {VKey: vkey, May: []string{"ledger"}}}); err != nil {
			t.Fatal(err)
		}
		b.conf.Trust = b.trust
		for _, signer := range []note.Signer{old, next} {
			b.conf.Signer = signer
			l := b.open()
			b.append(l, 1)
			if (signer == next) == late {
				if _, err := l.Append(t.Context(), Entry{Type: TypeKeyRotated, Body: KeyRotated{"signing", "db1+x", vkey}}); err != nil {
					t.Fatal(err)
				}
			}
			b.anchor(l)
			l.Close()
		}
		r := b.verify(Dir(b.zones.dirs[0]))
		if len(r.Origins) != 1 || len(r.Origins[0].Keys) != 1 || !slices.Equal(r.Origins[0].Signers, []string{"db1", "db1-2"}) {
			t.Errorf("%s: %+v", name, r.Origins)
		}
		if found := slices.ContainsFunc(r.Faults, func(f Fault) bool { return strings.Contains(f.What, "before another key signed") }); found != late || len(r.Faults) > 1 {
			t.Errorf("%s: faults %v", name, r.Faults)
		}
	}
}

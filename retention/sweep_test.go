package retention

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

var keepTwo = Policy{Daily: 2, RemovalGrace: day}

func TestTwoActsRemoveFromEveryZoneAndOnlyAfterTheGrace(t *testing.T) { // D1 to D4, promise 6
	r := newRig(t, keepTwo)
	old := ago(9 * day)
	shared := r.take(old)
	r.take(ago(8 * day))
	r.take(ago(day), shared) // builds on the oldest one's pack
	r.take(ago(0))
	r.segment(place(5 * day)) // nobody's WAL
	r.note(catalog.IntentName("main", "dead"), catalog.KindIntent, catalog.Intent{Cluster: "main", ID: "dead", StartedAt: noon.Add(-9 * day)})
	r.put("clusters/main/snapshots/dead/packs/0.age", []byte("half"))
	r.settle()

	m := r.apply()
	if want := []string{old.ID, ago(8 * day).ID, "dead"}; !slices.Equal(m.Snapshots, want) || !m.NotBefore.Equal(noon.Add(day)) {
		t.Fatalf("marked %v until %s", m.Snapshots, m.NotBefore)
	}
	before := len(r.names(0, ""))
	if swept := r.sweep(); len(swept) != 0 || len(r.names(0, "")) != before {
		t.Fatalf("swept within the grace: %+v", swept)
	}
	if again := r.apply(); again.ID != "" {
		t.Errorf("marked again: %+v", again)
	}
	r.now = noon.Add(day)
	swept := r.sweep()
	if len(swept) != 1 || !swept[0].Done || swept[0].Removed == 0 || swept[0].Kept != 2 {
		t.Fatalf("%+v", swept)
	}
	for i := range r.dirs {
		for _, id := range []string{"snapshots/" + old.ID, ago(8 * day).ID, "dead"} {
			left := r.names(i, id)
			if id == "snapshots/"+old.ID {
				if !slices.Equal(left, []string{catalog.IntentName("main", old.ID), shared.Name}) {
					t.Errorf("zone %d: of %s there is %v", i, id, left)
				}
			} else if len(left) > 0 {
				t.Errorf("zone %d still has %v", i, left)
			}
		}
		if wal := r.names(i, "/wal/"); len(wal) != 6 {
			t.Errorf("zone %d has %d WAL objects, want those of two snapshots: %v", i, len(wal), wal)
		}
	}
	if want := []string{"removal.intent main", "removal.result main"}; !slices.Equal(r.book.entries, want) {
		t.Errorf("ledger %v, want %v", r.book.entries, want)
	}
	if swept := r.sweep(); len(swept) != 0 {
		t.Errorf("swept again: %+v", swept)
	}
	inv, err := r.keeper.Inventory(t.Context())
	noErr(t, err)
	versions := int64(0)
	for _, h := range inv.Holdings {
		if versions += h.Versions; h.TooOld > 0 || h.Oldest.IsZero() || h.Newest.Before(h.Oldest) || len(h.Sample) == 0 {
			t.Errorf("%+v", h)
		}
	}
	if want := 3 * int64(len(r.names(0, "/snapshots/"))+6); versions != want || len(inv.Faults) > 0 || len(inv.Holdings) != 9 {
		t.Errorf("%d versions of %d: %+v", versions, want, inv)
	}
}

func TestALedgerThatFailsStopsTheMark(t *testing.T) { // D1
	r := newRig(t, keepTwo)
	r.takeAll(9, 8, 1, 0)
	p, err := r.keeper.Plan(t.Context(), false)
	noErr(t, err)
	for _, set := range []*error{&r.book.before, &r.book.after} {
		*set = errors.New("no quorum")
		if _, err := r.keeper.Apply(t.Context(), p); err == nil {
			t.Fatal("applied without the ledger")
		}
		marks, err := r.keeper.Catalog.Forgotten(t.Context(), "main")
		if noErr(t, err); len(marks.List) > 0 {
			t.Fatal("marked without the ledger")
		}
		*set = nil
	}
	if r.apply().ID == "" { // whatever the crash left behind, it goes on
		t.Fatal("nothing was marked")
	}
	tampered := p
	tampered.Snapshots = slices.Clone(p.Snapshots)
	tampered.Snapshots[3].Keep = false
	if _, err := r.keeper.Apply(t.Context(), tampered); err == nil {
		t.Error("a plan that is not what its hash says was applied")
	}
	if _, err := r.keeper.Apply(t.Context(), p); !errors.Is(err, ErrChanged) {
		t.Errorf("a plan that was carried out already: %v", err)
	}
}

// dying removes until it has removed n names, then fails as a killed process does.
type dying struct {
	Remover
	mu     sync.Mutex
	n      int
	cancel context.CancelFunc
	names  []string
}

func (d *dying) RemoveAll(ctx context.Context, name string) map[string]error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n--; d.n < 0 {
		d.cancel()
		return nil
	}
	d.names = append(d.names, name)
	return d.Remover.RemoveAll(ctx, name)
}

func TestASweepThatDiesAnywhereNeverShowsHalfASnapshotAndGoesOn(t *testing.T) { // D6
	r := newRig(t, keepTwo)
	r.takeAll(9, 8, 1, 0)
	r.apply()
	r.now = noon.Add(day)
	whole := r.keeper.Remover
	for steps := 1; ; steps++ {
		ctx, cancel := context.WithCancel(t.Context())
		d := &dying{Remover: whole, n: 1, cancel: cancel}
		r.keeper.Remover = d
		swept, err := r.keeper.Sweep(ctx)
		cancel()
		for i := range r.dirs {
			for _, gone := range []string{ago(9 * day).ID, ago(8 * day).ID} {
				left := r.names(i, "snapshots/"+gone)
				has := func(s string) bool {
					return slices.ContainsFunc(left, func(n string) bool { return strings.HasSuffix(n, s) })
				}
				if has("snapshot.note") && len(left) < 5 {
					t.Fatalf("after %d steps the note stands without its objects: %v", steps, left)
				}
				if len(left) > 0 && !has("intent.note") {
					t.Fatalf("after %d steps nothing tells what these are: %v", steps, left)
				}
			}
		}
		if err == nil && len(swept) == 1 && swept[0].Done {
			if steps < 10 {
				t.Fatalf("done after %d steps", steps)
			}
			break
		}
		if steps > 100 {
			t.Fatal("the sweep never ends")
		}
	}
	if got := r.book.entries; got[len(got)-1] != "removal.result main" || len(got) != 2 {
		t.Errorf("ledger %v", got)
	}
}

func TestAZoneThatIsAwayIsOwedTheRemoval(t *testing.T) { // D3
	r := newRig(t, keepTwo)
	r.takeAll(9, 8, 1, 0)
	r.apply()
	r.settle()
	r.now = noon.Add(day)
	noErr(t, os.Rename(r.dirs[2], r.dirs[2]+".away"))
	swept := r.sweep()
	if len(swept) != 1 || swept[0].Done || len(swept[0].Owed) != 1 || swept[0].Owed["z2"] == "" {
		t.Fatalf("%+v", swept)
	}
	if len(r.names(0, ago(9*day).ID)) > 0 {
		t.Error("a zone that is there kept what was removed")
	}
	noErr(t, os.Rename(r.dirs[2]+".away", r.dirs[2]))
	r.run()
	r.settle()
	if left := r.names(2, ago(9*day).ID); len(left) > 0 {
		t.Errorf("the zone came back and kept %v", left)
	}
	if swept := r.sweep(); len(swept) != 1 || !swept[0].Done {
		t.Errorf("%+v", swept)
	}
}

func TestSweepKeepsWhatIsHeldAndWhatIsBuiltOn(t *testing.T) {
	r := newRig(t, keepTwo)
	r.takeAll(9, 8, 1, 0)
	r.apply()
	held, base := ago(9*day).ID, ago(8*day).ID
	r.now = noon.Add(time.Hour)
	r.hold(catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: held})
	r.now = noon.Add(day)
	r.note(catalog.IntentName("main", "young"), catalog.KindIntent, catalog.Intent{Cluster: "main", ID: "young", StartedAt: noon, Base: base})
	r.sweep()
	for i := range r.dirs {
		if n := len(r.names(i, "snapshots/"+held)); n != 5 {
			t.Errorf("zone %d has %d objects of the snapshot on hold", i, n)
		}
		if n := len(r.names(i, "snapshots/"+base+"/packs")); n != 1 {
			t.Errorf("zone %d has %d packs of the base of a running snapshot", i, n)
		}
	}
	r.now = noon.Add(-2 * day)
	if _, err := r.keeper.Sweep(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("with a clock that went back: %v", err)
	}
}

func TestWALObjectNamesAreReadBack(t *testing.T) {
	slice := catalog.SliceName("main", 3, 2, "000000020000000A000000FF", 0x100, 0x2000, strings.Repeat("ab", 16))
	for name, want := range map[string]string{
		slice:                       "3/2 A/FF000100 A/FF002000",
		catalog.WALIndexName(slice): "3/2 A/FF000100 A/FF002000",
		catalog.WALName("main", 1, 1, "000000010000000000000001", strings.Repeat("0", 32)): "1/1 0/1000000 0/2000000",
		catalog.WALName("main", 1, 2, "00000002.history", strings.Repeat("0", 32)):         "",
		"clusters/main/wal/x/y.age": "",
	} {
		f, ok := parseWALObject(name, int64(seg))
		got := ""
		if ok {
			got = strings.Join([]string{string(rune('0'+f.Epoch)) + "/" + string(rune('0'+f.Timeline)), f.From.String(), f.To.String()}, " ")
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// A sweep that dies between a history's note and its object leaves an object that no
// note names; the next one finishes it, and touches nothing of another place.
func TestASmallFileWhoseNoteWentGoesToo(t *testing.T) {
	const mac = "0123456789abcdef0123456789abcdef"
	point := func(tl uint32, at lsn.LSN) catalog.WALSpan {
		return catalog.WALSpan{Epoch: 1, Timeline: tl, From: at, To: at}
	}
	due := []catalog.Forgotten{
		{WAL: []catalog.WALSpan{{Epoch: 1, Timeline: 1, From: 0, To: 9 * seg}}},
		{WAL: []catalog.WALSpan{point(1, 5*seg+100), point(2, 5*seg+100)}},
	}
	for name, want := range map[string]int{
		catalog.WALName("main", 1, 2, "00000002.history", mac):                           1,
		catalog.WALName("main", 1, 1, "000000010000000000000005.partial", mac):           1,
		catalog.WALName("main", 1, 1, "000000010000000000000005.00000100.backup", mac):   1,
		catalog.WALName("main", 1, 1, "000000010000000000000007.partial", mac):           -1,
		catalog.WALName("main", 1, 3, "00000003.history", mac):                           -1,
		catalog.WALName("main", 2, 2, "00000002.history", mac):                           -1,
		catalog.WALNoteName("main", 1, 2, uint64(5*seg+100), uint64(5*seg+100), mac[:8]): -1,
	} {
		s := &sweep{Keeper: &Keeper{}, due: due, judge: &walJudge{planner: &planner{}}}
		if got := s.owner(zone.Object{Name: name}); got != want {
			t.Errorf("%s: mark %d, want %d", name, got, want)
		}
		s.unread = true
		if got := s.owner(zone.Object{Name: name}); got != -1 {
			t.Errorf("%s goes while a note cannot be read, which may be its own", name)
		}
	}
}

func TestEveryVersionAndMarkerGoesFromAStoreThatKeepsThem(t *testing.T) { // D3, D4
	server := zonetest.StartS3(t, 1)[0]
	conf := server.Config()
	conf.Bucket = server.NewBucket(t, true)
	s3 := zonetest.Dial(t, conf)
	r := newRigWith(t, keepTwo, s3)
	r.takeAll(9, 8, 1, 0)
	gone := catalog.ManifestName("main", ago(9*day).ID)
	body := []byte("another version")
	noErr(t, s3.Repair(t.Context(), gone, body, zone.CreateOptions{SHA256: sha256.Sum256(body)}))
	versions := func() (n int) {
		noErr(t, s3.ListVersions(t.Context(), catalog.SnapshotDir("main", ago(9*day).ID), func(zone.Object) error { n++; return nil }))
		return n
	}
	if n := versions(); n != 6 {
		t.Fatalf("%d versions to begin with", n)
	}
	r.apply()
	r.settle()
	r.now = noon.Add(day)
	if swept := r.sweep(); len(swept) != 1 || !swept[0].Done {
		t.Errorf("%+v", swept)
	}
	if n := versions(); n != 0 {
		t.Errorf("%d versions remain", n)
	}
}

func FuzzWALObjectNames(f *testing.F) {
	f.Add(catalog.SliceName("main", 3, 2, "000000020000000A000000FF", 0x100, 0x2000, strings.Repeat("ab", 16)), int64(seg))
	f.Add(catalog.WALName("main", 1, 1, "FFFFFFFFFFFFFFFF000000FF", strings.Repeat("0", 32)), int64(1<<20))
	f.Fuzz(func(t *testing.T, name string, size int64) {
		if size < 1<<20 || size > 1<<30 || size&(size-1) != 0 {
			return
		}
		if got, ok := parseWALObject(name, size); ok && (got.From >= got.To || got.Name != name || got.Epoch < 0) {
			t.Errorf("%s: %+v", name, got)
		}
	})
}

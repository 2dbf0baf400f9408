package restore

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

const mib = lsn.LSN(1 << 20)

func ref(name string) catalog.Ref {
	return catalog.Ref{Name: name, Size: 100, SHA256: strings.Repeat("0", 64)}
}

// archived is the note of a stretch, as the archiver writes it.
func archived(name string, timeline uint32, from, to lsn.LSN) catalog.Noted[catalog.WAL] {
	w := catalog.WAL{
		Timeline: timeline, Epoch: 1, File: name, From: from, To: to, Object: ref(name), Index: ref(name + ".idx"),
		Raw: strings.Repeat("1", 64), RawSize: int64(to - from), LastRecordEnd: to - 8,
	}
	return catalog.Noted[catalog.WAL]{Body: w, Name: name, Zones: []string{"a"}}
}

func inputs() Inputs {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	return Inputs{
		Cluster: "cms", Now: at, Target: Target{Kind: AtTime, Time: at.Add(-time.Hour)},
		Snapshot: catalog.Snapshot{
			ID: "s1", Cluster: "cms", SystemID: "7", Major: 15, Epoch: 1, Timeline: 1, SegSize: int64(mib),
			StartLSN: 2*mib + 40, StopLSN: 2*mib + 4096, FinishedAt: at.Add(-2 * time.Hour), RawBytes: 1 << 30,
		},
		Why: []string{"it is the newest"}, Moment: Moment{End: End{4*mib + 512, at.Add(-61 * time.Minute)}, Why: "there it ends"},
		Timeline: 2, Legs: []leg{{1, 0, 3*mib + 256}, {2, 3*mib + 256, endless}},
		Notes: []catalog.Noted[catalog.WAL]{
			archived("one", 1, 2*mib, 3*mib), archived("slice", 1, 3*mib, 3*mib+300),
			archived("two", 2, 3*mib, 4*mib), archived("three", 2, 4*mib, 5*mib),
		},
		Histories: []File{{Name: "00000002.history", Size: 10, Parts: []Part{{Object: ref("history"), Len: 10, RawSize: 10}}}},
		Objects:   []catalog.Ref{ref("pack")}, TombstoneOK: true,
		Tombstones: []catalog.Tombstone{{ID: "before"}, {ID: "after"}, {ID: "never"}},
		Absences: map[string]catalog.Absent{
			"before": {SystemID: "7", Timeline: 2, LSN: 4 * mib}, // the end lies behind it
			"after":  {SystemID: "7", Timeline: 2, LSN: 5 * mib},
		},
		Zones: []ZoneRange{{Name: "a", Snapshot: true, WALTo: 5 * mib}}, RTO: time.Hour,
	}
}

// A plan is a pure function: the same inputs, the same bytes, and the inputs are
// as they were. The golden file is what people approve and tools read.
func TestThePlanIsTheGoldenOne(t *testing.T) {
	in := inputs()
	p, err := MakePlan(in)
	if err != nil {
		t.Fatal(err)
	}
	again, err := MakePlan(in)
	if err != nil || again.Hash != p.Hash || !reflect.DeepEqual(in, inputs()) {
		t.Errorf("made again: %v; %s and %s", err, p.Hash, again.Hash)
	}
	got, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "plan-across-a-promotion.json")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, append(got, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != string(got)+"\n" {
		t.Errorf("%v; the plan is now\n%s", err, got)
	}
	in.Moment.End.LSN++
	if other, err := MakePlan(in); err != nil || other.Hash == p.Hash {
		t.Errorf("another end has the same hash (%v)", err)
	}
}

// A plan of before lists each segment under the newest timeline's name, with the
// parent's bytes up to the switch and the child's from there.
func TestASegmentWithASwitchIsMadeOfBothTimelines(t *testing.T) {
	in := inputs()
	list, err := files(in.Legs, pieces(in.Legs, in.Notes), int64(mib), in.Snapshot.StartLSN, 4*mib+512)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range list {
		n := int64(0)
		for _, p := range f.Parts {
			n += p.Len
		}
		names = append(names, f.Name)
		if want := min(int64(mib), int64(4*mib+512-f.From)); n != want {
			t.Errorf("%s has %d bytes, want %d", f.Name, n, want)
		}
	}
	if want := []string{"000000010000000000000002", "000000020000000000000003", "000000020000000000000004"}; !reflect.DeepEqual(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	// The parent's slice lost: the child's own copy of those bytes serves.
	lost := append(append([]catalog.Noted[catalog.WAL]{}, in.Notes[:1]...), in.Notes[2:]...)
	if _, err := files(in.Legs, pieces(in.Legs, lost), int64(mib), in.Snapshot.StartLSN, 4*mib+512); err != nil {
		t.Errorf("without the parent's last slice: %v", err)
	}
	if _, err := files(in.Legs, pieces(in.Legs, lost[:1]), int64(mib), in.Snapshot.StartLSN, 4*mib+512); err == nil {
		t.Error("a hole was planned over")
	}
}

// A moment before a switch is on the parent, whatever timeline was asked for.
func TestAMomentBeforeASwitchIsPlannedOnTheParent(t *testing.T) {
	in := inputs()
	in.Moment = Moment{Stop: 3*mib + 100, Upto: 4 * mib, End: End{LSN: 3*mib + 100}}
	p, err := MakePlan(in)
	if err != nil || p.Timeline != 1 || p.Stop.Upto != 3*mib+256 {
		t.Errorf("%v; timeline %d, WAL up to %s", err, p.Timeline, p.Stop.Upto)
	}
}

// What the old primary wrote behind the place where it was left is on no way.
func TestWhatWasWrittenBehindASwitchIsNotReached(t *testing.T) {
	legs := []leg{{1, 0, 3*mib + 256}, {2, 3*mib + 256, endless}}
	notes := []catalog.Noted[catalog.WAL]{archived("one", 1, 2*mib, 3*mib), archived("stray", 1, 3*mib, 4*mib)}
	snap := catalog.Snapshot{StartLSN: 2 * mib, StopLSN: 2*mib + 4096}
	used, end, on := walk(legs, pieces(legs, notes), 1, 2*mib)
	if end != 3*mib+256 || on != 1 {
		t.Fatalf("the way ends at %s on leg %d", end, on)
	}
	if e := newestRecord(used, snap, legs); e.LSN != 3*mib+256 {
		t.Errorf("the newest record ends at %s, want the switch", e.LSN)
	}
	idx := walrec.Index{Commits: []walrec.Commit{{Start: 3*mib + 100, End: 3*mib + 140, Xid: 7}, {Start: 3*mib + 300, End: 3*mib + 340, Xid: 8}}}
	if got := marksOf(idx, used[1].Lo, used[1].Hi); len(got) != 1 || got[0].XID != 7 {
		t.Errorf("marks %+v, want transaction 7 alone", got)
	}
}

// Unreachable is never the end: what is listed behind a hole is told of.
func TestAHoleIsNotTheEnd(t *testing.T) {
	legs := path(1, nil)
	notes := []catalog.Noted[catalog.WAL]{archived("one", 1, 2*mib, 3*mib)}
	_, end, on := walk(legs, pieces(legs, notes), 1, 2*mib)
	entries := []catalog.WALEntry{{Timeline: 1, From: 2 * mib, To: 3 * mib}}
	if e, ok := more(legs, entries, end, on); ok {
		t.Errorf("nothing lies behind the end, %+v was found", e)
	}
	entries = append(entries, catalog.WALEntry{Timeline: 1, From: 4 * mib, To: 5 * mib})
	if _, ok := more(legs, entries, end, on); !ok {
		t.Error("WAL behind a hole was not seen")
	}
	left := []leg{{1, 0, 3 * mib}, {2, 3 * mib, endless}}
	if e, ok := more(left, entries, 3*mib, 0); ok {
		t.Errorf("the old timeline goes on behind the switch: %+v is not missing", e)
	}
}

// recovery_target_lsn needs a record behind it to stop at.
func TestTheWALOfAnLSNTargetGoesOnToARecordBehindIt(t *testing.T) {
	used := []stretch{}
	for i, n := range []catalog.Noted[catalog.WAL]{archived("a", 1, 2*mib, 3*mib), archived("b", 1, 3*mib, 4*mib), archived("c", 1, 4*mib, 5*mib)} {
		n.Body.LastRecordEnd = []lsn.LSN{3*mib - 8, 3*mib - 8, 5*mib - 8}[i] // one record fills b and more
		used = append(used, stretch{piece{n.Body}, n.Body.From, n.Body.To})
	}
	if got := beyond(used, 2*mib+100, 5*mib-8); got != 5*mib-8 {
		t.Errorf("%s, want the end of a record that begins behind the target", got)
	}
	if got := beyond(used[:1], 2*mib+100, 3*mib-8); got != 3*mib-8 {
		t.Errorf("%s, want the archive's end", got)
	}
}

func TestAPositionAtAPageIsThatBehindItsHeader(t *testing.T) {
	for _, c := range []struct {
		reached, expected lsn.LSN
		want              bool
	}{
		{3 * mib, 3*mib + 40, true},
		{3*mib + 8192, 3*mib + 8192 + 24, true},
		{3*mib + 8192, 3*mib + 8192 + 32, false},
		{3*mib + 100, 3*mib + 100, true},
		{3*mib + 99, 3*mib + 100, false},
	} {
		if got := Arrived(c.reached, c.expected, int64(mib)); got != c.want {
			t.Errorf("Arrived(%s, %s) = %v", c.reached, c.expected, got)
		}
	}
}

// Promise 7: in doubt a tombstone is replayed.
func TestATombstoneAppliesUnlessTheRestoredHistoryHoldsTheAbsence(t *testing.T) {
	legs := []leg{{1, 0, 3 * mib}, {2, 3 * mib, endless}}
	for name, c := range map[string]struct {
		seen catalog.Absent
		want bool
	}{
		"live was empty before the end":      {catalog.Absent{Tombstone: "t", SystemID: "7", Timeline: 2, LSN: 4 * mib}, false},
		"after it":                           {catalog.Absent{Tombstone: "t", SystemID: "7", Timeline: 2, LSN: 6 * mib}, true},
		"on a branch that was left":          {catalog.Absent{Tombstone: "t", SystemID: "7", Timeline: 1, LSN: 4 * mib}, true},
		"on the parent, before the switch":   {catalog.Absent{Tombstone: "t", SystemID: "7", Timeline: 1, LSN: 2 * mib}, false},
		"in another cluster of the name":     {catalog.Absent{Tombstone: "t", SystemID: "8", Timeline: 2, LSN: 4 * mib}, true},
		"never seen":                         {catalog.Absent{}, true},
		"on a timeline that nobody heard of": {catalog.Absent{Tombstone: "t", SystemID: "7", Timeline: 9, LSN: mib}, true},
	} {
		absences := map[string]catalog.Absent{c.seen.Tombstone: c.seen}
		if got := applies(catalog.Tombstone{ID: "t"}, absences, "7", legs, 5*mib); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// C-15, C-56, C-66: nothing of the old host's life goes on in the copy.
func TestOldSettingsAreNeutralised(t *testing.T) {
	auto := "# Do not edit\nwork_mem = '8MB'\nrecovery_target_time='2020-01-01'\n  Primary_Conninfo = 'host=production'\narchive_command = 'cp'\ndata_directory = '/production'\nport = 5432"
	once := harmless([]byte(auto), map[string]string{"cluster_name": "it's"})
	for _, want := range []string{"\nwork_mem = '8MB'\n", "\n#holdfast# recovery_target_time=", "\n#holdfast#   Primary_Conninfo", "\n#holdfast# archive_command", "\n#holdfast# data_directory", "\nport = 5432\n", "\narchive_mode = 'off'\n", "\ncluster_name = 'it''s'\n"} {
		if !strings.Contains(string(once), want) {
			t.Errorf("%q is not in\n%s", want, once)
		}
	}
	if twice := harmless(once, map[string]string{"cluster_name": "it's"}); strings.Count(string(twice), "archive_mode") != 1 {
		t.Errorf("written twice:\n%s", twice)
	}
}

func TestDebiansConfigurationComesIntoTheDataDirectory(t *testing.T) {
	root := t.TempDir()
	etc := "/etc/postgresql/15/main/"
	tr := &tree{root: root, own: func(...string) error { return nil }, layout: &layout{}}
	if err := tr.configuration(map[string][]byte{
		etc + "postgresql.conf":     []byte("data_directory = '/var/lib/x'\nhba_file = '/etc/x'\nwork_mem = '1MB'\ninclude_dir = 'conf.d'\n"),
		etc + "pg_hba.conf":         []byte("local all all peer\n"),
		etc + "conf.d/extra.conf":   []byte("shared_buffers = '1GB'\n"),
		etc + "pg_ctl.conf":         []byte("x"),
		"/elsewhere/unrelated.conf": []byte("x"),
	}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		closedConf:          "#holdfast# data_directory = '/var/lib/x'\n#holdfast# hba_file = '/etc/x'\nwork_mem = '1MB'\ninclude_dir = 'conf.d'\n",
		"pg_hba.conf":       "local all all peer\n",
		"conf.d/extra.conf": "shared_buffers = '1GB'\n",
	} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(root, "*")); err != nil || len(left) != 3 {
		t.Errorf("%v, %v", left, err)
	}
}

// The archive of a server that died right after a snapshot ends with the record
// that switches segments: the rest of its segment says nothing, and is not there.
func TestAnArchiveThatEndsWithASwitchOfSegmentsIsEnough(t *testing.T) {
	in := inputs()
	last := archived("slice", 1, 2*mib, 2*mib+8192)
	last.Body.LastRecordEnd = 3 * mib
	in.Legs, in.Timeline, in.Notes, in.Moment.End.LSN = []leg{{1, 0, endless}}, 1, []catalog.Noted[catalog.WAL]{last}, 3*mib
	p, err := MakePlan(in)
	if err != nil {
		t.Fatal(err)
	}
	if f := p.Files[0]; f.Size != int64(mib) || len(f.Parts) != 1 || f.Parts[0].Len != 8192 || p.ExpectedEnd.LSN != 3*mib {
		t.Errorf("%+v, to %s", p.Files, p.ExpectedEnd.LSN)
	}
	last.Body.LastRecordEnd = 2*mib + 8000
	in.Notes[0] = last
	if _, err := MakePlan(in); err == nil {
		t.Error("WAL that is missing is not noticed")
	}
}

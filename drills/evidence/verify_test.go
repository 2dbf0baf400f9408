package evidence_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/drills/evidence"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// file is one of a bundle's.
type file struct {
	name string
	body []byte
}

func unpack(t testing.TB, bundle []byte) (out []file) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(bundle))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, file{h.Name, must[[]byte](t)(io.ReadAll(r))})
	}
}

func pack(t testing.TB, files []file) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body)), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = w.Write(f.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// change edits the one file whose name contains part; nil takes it away.
func change(t testing.TB, bundle []byte, part string, edit func([]byte) []byte) []byte {
	t.Helper()
	files, found := unpack(t, bundle), 0
	files = slices.DeleteFunc(files, func(f file) bool {
		return edit == nil && strings.Contains(f.name, part) && found < 1 && func() bool { found++; return true }()
	})
	for i, f := range files {
		if edit != nil && strings.Contains(f.name, part) && found == 0 {
			files[i].body, found = edit(bytes.Clone(f.body)), 1
		}
	}
	if found != 1 {
		t.Fatalf("no file of the bundle is named like %q", part)
	}
	return pack(t, files)
}

func verify(t testing.TB, n *node, bundle []byte, known []ledger.Checkpoint, p evidence.Period) evidence.Report {
	t.Helper()
	return must[evidence.Report](t)(evidence.Verify(t.Context(), bytes.NewReader(bundle), evidence.Options{Trust: n.trust, Schedule: schedule, Known: known, Period: p}))
}

// script runs verify.py as a stranger would.
func script(t testing.TB, n *node, bundle []byte, more ...string) evidence.Report {
	t.Helper()
	dir := t.TempDir()
	program, data := filepath.Join(dir, "verify.py"), filepath.Join(dir, "evidence.tar")
	if err := errors.Join(os.WriteFile(program, evidence.Script(), 0o600), os.WriteFile(data, bundle, 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", append([]string{"-I", program, data, "--key", n.vkey, "--output", "json"}, more...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var rep evidence.Report
	if jerr := json.Unmarshal(bytes.ReplaceAll(out, []byte(`"not_assessed"`), []byte(`"not"`)), &rep); jerr != nil {
		t.Fatalf("verify.py: %v (%v)\n%s%s", err, jerr, out, errs.String())
	}
	var exit *exec.ExitError
	if code := errors.As(err, &exit); rep.OK == code || code && exit.ExitCode() != 4 {
		t.Fatalf("verify.py says ok=%v and ended with %v\n%s", rep.OK, err, errs.String())
	}
	return rep
}

func TestTheHistoryOfANodeHolds(t *testing.T) {
	n := newNode(t, "standby", zone{ledger.Dir(t.TempDir())})
	n.history()
	bundle := n.export()
	rep := verify(t, n, bundle, nil, evidence.Period{})
	if !rep.OK || len(rep.Drills) != 14 || rep.Logs[0].From == 0 {
		t.Fatalf("want 14 drills, none of the first entries and no fault: %s", pretty(rep))
	}
	counts := map[string]int{}
	for _, d := range rep.Drills {
		counts[d.Outcome]++
		if d.Outcome == drills.Fail && (d.Followed == nil || !strings.HasPrefix(d.Why, "L5")) {
			t.Errorf("the failed drill is not followed up: %s", pretty(d))
		}
	}
	if counts[drills.Pass] != 11 || counts[drills.Fail] != 1 || counts[drills.MissedSlot] != 1 || counts[drills.PassWithGaps] != 1 {
		t.Errorf("counts: %v", counts)
	}
	other := script(t, n, bundle)
	if !other.OK || len(other.Drills) != len(rep.Drills) {
		t.Fatalf("verify.py: %s", pretty(other))
	}
	for i, d := range other.Drills {
		if d.Slot != rep.Drills[i].Slot || d.Outcome != rep.Drills[i].Outcome {
			t.Errorf("drill %d: verify.py says %s %s, Verify %s %s", i, d.Slot, d.Outcome, rep.Drills[i].Slot, rep.Drills[i].Outcome)
		}
	}
	if again := n.export(); !bytes.Equal(again, bundle) {
		t.Error("the same evidence gives another file")
	}
}

// agree wants both verifiers to find the same, in the same places, and at least
// one finding of each code.
func agree(t *testing.T, n *node, bundle []byte, want ...string) {
	t.Helper()
	got, other := verify(t, n, bundle, nil, evidence.Period{}), script(t, n, bundle)
	if a, b := codes(got.Faults), codes(other.Faults); !slices.Equal(a, b) {
		t.Errorf("the verifiers differ:\nVerify    %q\nverify.py %q\n%s", a, b, pretty(other.Faults))
	}
	for _, code := range want {
		if !slices.ContainsFunc(got.Faults, func(f ledger.Fault) bool { return f.Code == code }) {
			t.Errorf("want a finding %q, got %s", code, pretty(got.Faults))
		}
	}
	if len(want) == 0 && !got.OK {
		t.Errorf("want no finding, got %s", pretty(got.Faults))
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[(at+len(b))%len(b)] ^= 1; return b }
}

func replace(from, to string) func([]byte) []byte {
	return func(b []byte) []byte {
		if !bytes.Contains(b, []byte(from)) {
			panic("nothing to replace: " + from)
		}
		return bytes.Replace(b, []byte(from), []byte(to), 1)
	}
}

// Whoever has the bundle but not the key.
func TestForgedBundlesAreFound(t *testing.T) {
	n := newNode(t, "standby", zone{ledger.Dir(t.TempDir())})
	n.history()
	whole := n.export()
	last := "entries/" + lastTile(t, whole)
	tests := []struct {
		name   string
		bundle []byte
		want   []string
	}{
		{"untouched", whole, nil},
		{"an outcome is rewritten", change(t, whole, "tile/entries/002", replace(`"outcome":"fail"`, `"outcome":"pass"`)), []string{"entry"}},
		{"a byte of the last entry", change(t, whole, last, flip(-1)), []string{"entry"}},
		{"two entries are exchanged", change(t, whole, "tile/entries/002", exchange), []string{"entry"}},
		{"a bundle of entries is left out", change(t, whole, "tile/entries/002", nil), []string{"gap"}},
		{"the first bundles are left out", change(t, change(t, whole, "tile/entries/001", nil), "tile/entries/002", nil), []string{"gap"}},
		{"the last bundle is left out", change(t, whole, last, nil), []string{"gap"}},
		{"a bundle is cut", change(t, whole, "tile/entries/002", func(b []byte) []byte { return b[:len(b)-7] }), []string{"entry"}},
		{"a bundle has an entry more", change(t, whole, "tile/entries/002", func(b []byte) []byte { return append(b, 0, 2, '{', '}') }), []string{"entry"}},
		{"a hash is changed", change(t, whole, "tile/0/001", flip(40)), []string{"root", "entry"}},
		{"the hashes are left out", change(t, whole, "tile/0/001", nil), []string{"gap"}},
		{"the checkpoint is of another size", change(t, whole, "/checkpoint/", replace("\n1", "\n2")), []string{"signature"}},
		{"the checkpoint has another signature", change(t, whole, "/checkpoint/", flip(-3)), []string{"signature"}},
		{"no checkpoint", change(t, whole, "/checkpoint/", nil), []string{"signature"}},
		{"another repository's", change(t, whole, "bundle.json", replace(repository, "fedcba9876543210")), []string{"signature"}},
		{"another period", change(t, whole, "bundle.json", replace("2026-10-15T00", "2026-11-15T00")), []string{"gap"}},
		{"an earlier period", change(t, whole, "bundle.json", replace("2026-10-01T00", "2026-09-01T00")), []string{"gap"}},
		{"a format to come", change(t, whole, "bundle.json", replace(evidence.Format, "holdfast-evidence/2")), []string{"bundle"}},
		{"a proof of another entry", change(t, whole, ".tlog-proof", replace("index ", "index 9")), []string{"proof"}},
		{"a proof with another path", change(t, whole, ".tlog-proof", func(b []byte) []byte { b[50] ^= 2; return b }), []string{"proof"}},
		{"a stranger's file", pack(t, append(unpack(t, whole), file{"proofs/standby", nil})), []string{"bundle"}},
		{"a file outside", pack(t, append(unpack(t, whole), file{"../x", nil})), []string{"bundle"}},
		{"a file twice", pack(t, append(unpack(t, whole), unpack(t, whole)[3])), []string{"bundle"}},
		{"an object of none", pack(t, append(unpack(t, whole), file{unpack(t, whole)[3].name + "0/x", nil})), []string{"bundle"}},
		{"cut in the middle", whole[:len(whole)/2+100], []string{"bundle"}},
		{"empty", pack(t, unpack(t, whole)[:3]), []string{"bundle"}},
		{"no bundle at all", []byte("hello"), []string{"bundle"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { agree(t, n, tt.bundle, tt.want...) })
	}
}

func lastTile(t testing.TB, bundle []byte) string {
	t.Helper()
	last := ""
	for _, f := range unpack(t, bundle) {
		if _, tile, ok := strings.Cut(f.name, "tile/entries/"); ok {
			last = tile
		}
	}
	return last
}

// exchange swaps the first two entries of a bundle.
func exchange(b []byte) []byte {
	one := 2 + int(b[0])<<8 + int(b[1])
	two := one + 2 + int(b[one])<<8 + int(b[one+1])
	return slices.Concat(b[one:two], b[:one], b[two:])
}

// Whoever writes the ledger: what it signed is whole, and wrong.
func TestForgedLedgersAreFound(t *testing.T) {
	at := period.From.Add(2*day + 3*time.Hour)
	tests := []struct {
		name string
		do   func(n *node)
		want []string
	}{
		{"an honest night", func(n *node) { n.night(at, drills.Random, nil) }, nil},
		{"an outcome that does not follow", func(n *node) {
			n.night(at, drills.Random, func(r *drills.Record) { r.Checks[4].Verdict = "fail" })
		}, []string{"outcome"}},
		{"a level that was not reached", func(n *node) {
			n.night(at, drills.Random, func(r *drills.Record) { r.Checks = r.Checks[:4] })
		}, []string{"outcome"}},
		{"an easy snapshot instead of the chosen", func(n *node) {
			n.night(at, drills.Oldest, func(r *drills.Record) {
				r.Snapshot = picks(drills.Oldest, at).Candidates[6].Snapshot
				r.Target.Snapshot = r.Snapshot
			})
		}, []string{"choice"}},
		{"an easy moment instead of the chosen", func(n *node) {
			n.night(at, drills.RandomTime, func(r *drills.Record) { r.Target.Time = r.Target.Time.Add(time.Millisecond) })
		}, []string{"choice"}},
		{"another plan than announced", func(n *node) { n.night(at, drills.Random, func(r *drills.Record) { r.PlanHash = "easy" }) }, []string{"slot"}},
		{"a slot that never got an outcome", func(n *node) { n.at(at).announce(at, picks(drills.Random, at)) }, []string{"slot"}},
		{"a slot with two outcomes", func(n *node) {
			index, choice, a := n.at(at).announce(at, picks(drills.Random, at))
			r := record(index, choice, a, at)
			n.append(ledger.TypeDrillOutcome, r)
			n.append(ledger.TypeDrillOutcome, r)
		}, []string{"slot"}},
		{"a slot announced for two times", func(n *node) {
			n.night(at, drills.Random, nil)
			_, _, a := n.announce(at.Add(day), picks(drills.Random, at))
			a.DueAt = a.DueAt.Add(-time.Hour)
			n.append(ledger.TypeDrillDue, a)
			n.missed(at.Add(day))
		}, []string{"slot"}},
		{"an outcome that nobody announced", func(n *node) {
			n.night(at, drills.Random, nil)
			index, choice, a := n.announce(at.Add(2*time.Hour), picks(drills.Random, at))
			r := record(index, choice, a, at)
			r.Slot = "nightly/elsewhere"
			n.append(ledger.TypeDrillOutcome, r)
			r.Slot = a.Slot
			n.append(ledger.TypeDrillOutcome, r)
		}, []string{"slot"}},
		{"a night that nobody wrote down", func(*node) {}, []string{"schedule"}},
		{"a night that was abandoned, and told", func(n *node) {
			n.at(at.Add(8 * time.Hour)).plans(drills.Plans{Abandoned: []drills.Abandoned{{Drill: "nightly", DueAt: at, Why: "its state is lost"}}})
		}, nil},
		{"an outcome before it was announced", func(n *node) {
			n.at(at)
			_, choice, a := n.announce(at.Add(7*day), picks(drills.Random, at.Add(7*day))) // another night, honest
			r := record(2, choice, a, at.Add(7*day))
			n.at(at.Add(7*day + 10*time.Minute))
			n.append(ledger.TypeDrillOutcome, r)
			p := picks(drills.Random, at)
			b := drills.Announcement{Due: ledger.Due{Slot: drills.SlotKey("nightly", at), DueAt: at, Deadline: at.Add(5 * time.Hour)}, ID: "x", Drill: "nightly", Cluster: "cms", PlanHash: "plan", Trigger: "schedule", Pick: &p}
			early := record(4, must[drills.Choice](t)(drills.Choose(b.PlanHash, b.Slot, p)), b, n.now.Add(-10*time.Minute))
			n.append(ledger.TypeDrillOutcome, early)
			n.append(ledger.TypeDrillDue, b)
		}, []string{"slot"}},
		{"told long after it is said to have run", func(n *node) {
			index, choice, a := n.at(at).announce(at, picks(drills.Random, at))
			n.at(at.Add(8*time.Hour)).append(ledger.TypeDrillOutcome, record(index, choice, a, at))
		}, []string{"outcome"}},
		{"a slot announced for a time of another year", func(n *node) {
			_, _, a := n.at(at).announce(at.Add(-400*day), picks(drills.Random, at))
			a.Slot = drills.SlotKey("nightly", at)
			n.append(ledger.TypeDrillDue, a)
		}, []string{"slot", "schedule"}},
		{"a plan that owes nothing for years", func(n *node) {
			lazy := nightly()
			lazy.Owes = 1e9
			n.at(begins.Add(time.Minute)).plans(drills.Plans{Drills: []drills.Plan{lazy}})
		}, []string{"schedule"}},
		{"a slot that has years", func(n *node) {
			_, _, a := n.at(at).announce(at.Add(day), picks(drills.Random, at))
			a.Slot, a.DueAt, a.Deadline = drills.SlotKey("nightly", at), at, at.Add(900*day)
			n.append(ledger.TypeDrillDue, a)
		}, []string{"slot", "schedule"}},
		{"a drill that was not configured", func(n *node) {
			p := picks(drills.Random, at)
			a := drills.Announcement{Due: ledger.Due{Slot: drills.SlotKey("nightly", at), DueAt: at, Deadline: at.Add(5 * time.Hour)}, ID: "x", Drill: "nightly", Cluster: "toy", PlanHash: "easy", Trigger: "schedule", Pick: &p}
			index := n.at(at).append(ledger.TypeDrillDue, a)
			r := record(index, must[drills.Choice](t)(drills.Choose(a.PlanHash, a.Slot, p)), a, at)
			n.at(at.Add(10*time.Minute)).append(ledger.TypeDrillOutcome, r)
		}, []string{"slot"}},
		{"a slot abandoned by an entry of a year later", func(n *node) {
			n.at(at.Add(8 * time.Hour)).plans(drills.Plans{})
			n.at(at.Add(9 * time.Hour)).plans(drills.Plans{Abandoned: []drills.Abandoned{{Drill: "nightly", DueAt: at, Why: "its state is lost"}}})
		}, []string{"schedule"}},
		{"keys that some readers take for others", func(n *node) {
			index, choice, a := n.at(at).announce(at, picks(drills.Random, at))
			r := record(index, choice, a, at)
			r.Checks[4].Verdict = "fail"
			body := map[string]any{}
			if err := json.Unmarshal(must[[]byte](t)(json.Marshal(r)), &body); err != nil {
				t.Fatal(err)
			}
			body["check\u017f"] = record(index, choice, a, at).Checks
			n.at(at.Add(10*time.Minute)).append(ledger.TypeDrillOutcome, body)
		}, []string{"slot"}},
		{"bodies that are none", func(n *node) {
			n.at(at)
			n.append(ledger.TypeDrillPlans, map[string]any{"drills": []any{1, map[string]any{"name": 5, "schedule": "x", "owes": "y"}}})
			n.append(ledger.TypeDrillOutcome, map[string]any{"slot": []int{1}, "outcome": "pass", "due_at": 7, "rto": []int{}})
			n.append(ledger.TypeDrillDue, map[string]any{"slot": 1})
		}, []string{"slot"}},
		{"a drill written later, for the night before", func(n *node) {
			n.at(at.Add(20*time.Hour)).append(ledger.TypeHeartbeat, map[string]string{})
			n.night(at, drills.Random, nil)
		}, []string{"clock"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, "standby", zone{ledger.Dir(t.TempDir())})
			n.at(begins).plans(drills.Plans{Drills: []drills.Plan{{Name: "nightly", Cluster: "cms", PlanHash: "plan", Schedule: "0 3 3 10 *", Owes: 5 * 3600}}})
			tt.do(n)
			n.at(period.To.Add(time.Hour)).append(ledger.TypeHeartbeat, map[string]string{})
			n.anchor()
			agree(t, n, n.export(), tt.want...)
		})
	}
}

// A log that is cut short is whole by itself: what others saw of it shows it.
func TestCutLedgersAreFound(t *testing.T) {
	z := zone{ledger.Dir(t.TempDir())}
	n := newNode(t, "standby", z)
	n.at(begins).plans(drills.Plans{})
	n.at(period.To).append(ledger.TypeHeartbeat, map[string]string{})
	early := n.anchor()
	old := n.export()
	n.at(period.To.Add(time.Minute)).append(ledger.TypeHeartbeat, map[string]string{})
	late := n.anchor()
	bundle := n.export()

	kept := filepath.Join(t.TempDir(), "kept")
	for name, c := range map[string]ledger.Checkpoint{"early": early, "late": late} {
		if err := os.WriteFile(kept, c.Signed, 0o600); err != nil {
			t.Fatal(err)
		}
		known := must[[]ledger.Checkpoint](t)(evidence.Known(c.Signed))
		cut := name == "late"
		if rep := verify(t, n, old, known, evidence.Period{}); rep.OK == cut {
			t.Errorf("the old bundle against the %s checkpoint: %s", name, pretty(rep.Faults))
		}
		if rep := script(t, n, old, "--known", kept); rep.OK == cut {
			t.Errorf("verify.py: the old bundle against the %s checkpoint: %s", name, pretty(rep.Faults))
		}
	}
	for _, tt := range []struct {
		file, against []byte
		ok            bool
	}{{bundle, old, true}, {old, bundle, false}} {
		if err := os.WriteFile(kept, tt.against, 0o600); err != nil {
			t.Fatal(err)
		}
		known := must[[]ledger.Checkpoint](t)(evidence.Known(tt.against))
		if rep := verify(t, n, tt.file, known, evidence.Period{}); rep.OK != tt.ok {
			t.Errorf("against a bundle, want ok=%v: %s", tt.ok, pretty(rep.Faults))
		}
		if rep := script(t, n, tt.file, "--known", kept); rep.OK != tt.ok {
			t.Errorf("verify.py against a bundle, want ok=%v: %s", tt.ok, pretty(rep.Faults))
		}
	}

	// A second origin names the first; the bundle that leaves the first out is found.
	n.open()
	n.at(period.To.Add(2 * time.Minute)).plans(drills.Plans{})
	n.anchor()
	both := n.export()
	agree(t, n, both)
	first := "ledger/" + early.Origin + "/"
	agree(t, n, pack(t, slices.DeleteFunc(unpack(t, both), func(f file) bool { return strings.HasPrefix(f.name, first) })), "cut")

	// The reader asks for a period of their own.
	asked := evidence.Period{From: period.From, To: period.To.Add(30 * day)}
	if rep := verify(t, n, both, nil, asked); rep.OK {
		t.Error("a bundle that ends before the period that was asked for holds")
	}
	if rep := script(t, n, both, "--from", "2026-10-01", "--to", "2026-11-14"); rep.OK {
		t.Error("verify.py: a bundle that ends before the period that was asked for holds")
	}
}

// The reader's witness must have seen the newest checkpoint; one that it did not
// see may be of a second history.
func TestBothVerifiersAskForTheWitness(t *testing.T) {
	z := zone{ledger.Dir(t.TempDir())}
	n := newNode(t, "standby", z)
	skey, _, err := seal.NewSigningKey("auditor")
	if err != nil {
		t.Fatal(err)
	}
	signer, vkey, err := seal.LoadCosigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	w := &ledger.Witness{Dir: t.TempDir(), Repository: repository, Trust: n.trust, Signer: signer, Now: func() time.Time { return n.now }}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			t.Error(err)
		}
		a := w.AddCheckpoint(body)
		rw.WriteHeader(a.Status)
		_, _ = rw.Write(a.Body)
	}))
	defer server.Close()
	n.witnesses = must[*ledger.Cosigners](t)(ledger.NewCosigners(map[string]string{server.URL: vkey}))
	n.open()
	n.at(begins).plans(drills.Plans{})
	n.at(period.To).append(ledger.TypeHeartbeat, map[string]string{})
	n.anchor()
	seen := n.export()
	server.Close()
	n.at(period.To.Add(time.Minute)).append(ledger.TypeHeartbeat, map[string]string{})
	n.anchor()
	unseen := n.export()
	key := must[seal.CosignVerifier](t)(seal.NewCosignVerifier(vkey))
	for _, tt := range []struct {
		bundle []byte
		ok     bool
	}{{seen, true}, {unseen, false}} {
		rep := must[evidence.Report](t)(evidence.Verify(t.Context(), bytes.NewReader(tt.bundle), evidence.Options{Trust: n.trust, Schedule: schedule, Witnesses: []seal.CosignVerifier{key}}))
		other := script(t, n, tt.bundle, "--witness", vkey)
		if a, b := codes(rep.Faults), codes(other.Faults); rep.OK != tt.ok || !slices.Equal(a, b) {
			t.Errorf("want ok=%v: Verify %q, verify.py %q", tt.ok, a, b)
		}
		if at := rep.Logs[0].Cosigned["auditor"]; tt.ok && !at.Equal(period.To) {
			t.Errorf("cosigned at %s, want %s", at, period.To)
		}
	}
}

// What anybody may have put under ledger/ hides nothing and stops nothing.
func TestALogThatNothingProvesIsLeftOutAndNamed(t *testing.T) {
	z := zone{ledger.Dir(t.TempDir())}
	n := newNode(t, "standby", z)
	n.at(begins).plans(drills.Plans{})
	n.at(period.To).append(ledger.TypeHeartbeat, map[string]string{})
	n.anchor()
	if err := z.Put(t.Context(), "ledger/evil-00000000/checkpoint/7", []byte("nothing\n")); err != nil {
		t.Fatal(err)
	}
	bundle := n.export()
	rep, other := verify(t, n, bundle, nil, evidence.Period{}), script(t, n, bundle)
	if !rep.OK || !other.OK || len(rep.Logs) != 1 {
		t.Fatalf("%s\n%s", pretty(rep), pretty(other))
	}
	if !slices.ContainsFunc(rep.NotAssessed, func(x ledger.NotAssessed) bool { return x.What == "the ledger evil-00000000" }) {
		t.Errorf("it is not named: %s", pretty(rep.NotAssessed))
	}
}

// With two nodes, one of whose logs is cut back to an earlier checkpoint of its own,
// the other's entries do not stand for it.
func TestALogThatFallsSilentIsFound(t *testing.T) {
	z := zone{ledger.Dir(t.TempDir())}
	quiet, loud := newNode(t, "drill", z), newNode(t, "db", z)
	trust := must[seal.Trust](t)(seal.NewTrust([]seal.TrustedSigner{{VKey: quiet.vkey, May: []string{"ledger"}}, {VKey: loud.vkey, May: []string{"ledger"}}}))
	quiet.at(period.From.Add(day)).plans(drills.Plans{})
	quiet.anchor()
	loud.at(begins).plans(drills.Plans{})
	loud.at(period.To).append(ledger.TypeHeartbeat, map[string]string{})
	loud.anchor()
	bundle := exportOf(t, z.Dir, trust)
	both := *loud
	both.trust = trust
	for _, gone := range []bool{false, true} {
		opt, more := evidence.Options{Trust: trust, Schedule: schedule}, []string{"--key", quiet.vkey}
		if gone {
			opt.Gone, more = []string{"drill"}, append(more, "--gone", "drill")
		}
		rep := must[evidence.Report](t)(evidence.Verify(t.Context(), bytes.NewReader(bundle), opt))
		other := script(t, &both, bundle, more...)
		if a, b := codes(rep.Faults), codes(other.Faults); rep.OK != gone || !slices.Equal(a, b) {
			t.Errorf("gone=%v: Verify %q, verify.py %q", gone, a, b)
		}
	}
}

// What anybody can write into the one file that nobody signed.
func TestHostileHeadsAreNoBundles(t *testing.T) {
	n := newNode(t, "standby", zone{ledger.Dir(t.TempDir())})
	n.at(begins).plans(drills.Plans{})
	n.at(period.To).append(ledger.TypeHeartbeat, map[string]string{})
	n.anchor()
	whole := n.export()
	for name, head := range map[string]string{
		"deep":      strings.Repeat("[", 200_000),
		"a list":    "[]",
		"left out":  `{"format":"holdfast-evidence/1","repository":"` + repository + `","from":"2026-10-01T00:00:00Z","to":"2026-10-15T00:00:00Z","left_out":5}`,
		"no times":  `{"format":"holdfast-evidence/1","repository":"x","from":1,"to":2}`,
		"no period": `{"format":"holdfast-evidence/1","repository":"x","from":"2026-10-15T00:00:00Z","to":"2026-10-15T00:00:00Z"}`,
		"nothing":   "",
	} {
		t.Run(name, func(t *testing.T) {
			agree(t, n, change(t, whole, "bundle.json", func([]byte) []byte { return []byte(head) }), "bundle")
		})
	}
	// A checkpoint that somebody kept, of a size that no tree has.
	for _, c := range []ledger.Checkpoint{{Origin: "standby-00000000", Size: 1<<63 - 1}, {Origin: n.log.Origin(), Size: 1<<63 - 1}, {Origin: n.log.Origin()}} {
		if rep := verify(t, n, whole, []ledger.Checkpoint{c}, evidence.Period{}); rep.OK {
			t.Errorf("a checkpoint of size %d is contained", c.Size)
		}
	}
}

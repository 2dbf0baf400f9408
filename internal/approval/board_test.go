package approval

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

// world is a repository of three directories, a node that asks, and approvers' keys.
type world struct {
	*Board
	t    *testing.T
	dirs []string
	node note.Signer
	keys []note.Signer
	now  time.Time
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func key(t *testing.T, name string) (note.Signer, string) {
	t.Helper()
	skey, _, err := seal.NewSigningKey(name)
	noErr(t, err)
	s, vkey, err := seal.LoadSigner(skey)
	noErr(t, err)
	return s, vkey
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, now: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)}
	var zones []*zone.Zone
	for i := range 3 {
		dir := filepath.Join(t.TempDir(), "zone")
		noErr(t, os.Mkdir(dir, 0o700))
		d, err := dirzone.New(dir)
		noErr(t, err)
		id := zone.Identity{Format: 1, Repository: "repo", Zone: fmt.Sprint("z", i)}
		noErr(t, zone.Initialise(t.Context(), d, id))
		zones, w.dirs = append(zones, zone.Open(id.Zone, d, id, zone.Options{})), append(w.dirs, dir)
	}
	v, err := vault.Open(vault.Config{Zones: zones, Quorum: 2, State: t.TempDir()})
	noErr(t, err)
	t.Cleanup(func() { noErr(t, v.Close()) })
	signer, vkey := key(t, "node")
	trust, err := seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, Clusters: []string{"main"}, May: []string{planDuty}}})
	noErr(t, err)
	rule := Rule{Needed: 2, Valid: time.Hour}
	for range 3 { // all of one name: keys are told apart by what they are
		s, vkey := key(t, "approver")
		w.keys, rule.Approvers = append(w.keys, s), append(rule.Approvers, vkey)
	}
	w.node, w.Board = signer, &Board{Repository: v.Writer(), Nodes: trust, Rule: rule, Now: func() time.Time { return w.now }}
	return w
}

// ask has a plan wait, and returns its hash.
func (w *world) ask(cluster string, plan map[string]any) (string, error) {
	hash, err := Hash(plan)
	noErr(w.t, err)
	return hash, w.Ask(w.t.Context(), w.node, Waiting{PlanHash: hash, What: "test", Cluster: cluster, Node: "db"}, plan)
}

func (w *world) give(hash string, key note.Signer) {
	w.t.Helper()
	plan, err := w.Waiting(w.t.Context(), hash)
	noErr(w.t, err)
	data, err := w.Sign(plan, key)
	noErr(w.t, err)
	noErr(w.t, w.Give(w.t.Context(), hash, data))
}

func (w *world) count(hash string) int {
	w.t.Helper()
	s, err := w.Standing(w.t.Context(), hash)
	noErr(w.t, err)
	if s.Enough() != (len(s.Given) >= 2) {
		w.t.Errorf("%d approvals, enough: %v", len(s.Given), s.Enough())
	}
	return len(s.Given)
}

func (w *world) notes(dir string) (out []string) {
	found, err := filepath.Glob(filepath.Join(w.dirs[0], dir, "*", "*.note"))
	noErr(w.t, err)
	return found
}

func TestApprovalsCountByKeyAndByTheHashTheySign(t *testing.T) {
	w := newWorld(t)
	hash, err := w.ask("main", map[string]any{"cluster": "main", "goes": []string{"a"}})
	noErr(t, err)
	other, err := w.ask("main", map[string]any{"cluster": "main", "goes": []string{"a", "b"}})
	noErr(t, err)
	stranger, _ := key(t, "approver")
	for _, k := range []note.Signer{w.keys[0], w.keys[0], stranger, w.node} {
		w.give(hash, k)
	}
	w.give(other, w.keys[1])
	if n := w.count(hash); n != 1 {
		t.Errorf("one approver twice, a stranger and the node itself: %d count", n)
	}
	copied := w.notes(ApprovalsDir)
	for _, name := range copied { // approvals of the other plan, put below this one
		data, err := os.ReadFile(name)
		noErr(t, err)
		noErr(t, w.Give(t.Context(), hash, data))
	}
	if n := w.count(hash); n != 1 || len(copied) < 2 {
		t.Errorf("with an approval of another plan below it: %d count", n)
	}
	w.give(hash, w.keys[2])
	if n := w.count(hash); n != 2 {
		t.Errorf("two approvers: %d count", n)
	}
	w.Rule.Approvers = w.Rule.Approvers[:2]
	if n := w.count(hash); n != 1 {
		t.Errorf("one who is no approver any more: %d count", n)
	}
}

func TestAnApprovalEndsAndIsGivenAnew(t *testing.T) {
	w := newWorld(t)
	hash, err := w.ask("main", map[string]any{"cluster": "main"})
	noErr(t, err)
	w.give(hash, w.keys[0])
	w.Rule.Valid = 10 * time.Hour // of who signs: who carries it out has a word too
	w.give(hash, w.keys[1])
	w.Rule.Valid = time.Hour
	for after, want := range map[time.Duration]int{-11 * time.Minute: 0, 59 * time.Minute: 2, time.Hour: 0} {
		w.now = w.now.Add(after)
		if n := w.count(hash); n != want {
			t.Errorf("after %s %d count, want %d", after, n, want)
		}
		w.now = w.now.Add(-after)
	}
	w.now = w.now.Add(2 * time.Hour)
	w.give(hash, w.keys[0])
	if n := w.count(hash); n != 1 {
		t.Errorf("given anew: %d", n)
	}
}

func TestAPlanWaitsOnceAndIsWhatItsHashSays(t *testing.T) {
	w := newWorld(t)
	plan := map[string]any{"cluster": "main", "goes": "a"}
	for range 2 {
		_, err := w.ask("main", plan)
		noErr(t, err)
	}
	if n := w.notes(PlansDir); len(n) != 1 {
		t.Errorf("asked twice, and there are %v", n)
	}
	hash, _ := Hash(plan)
	w.now, w.Rule.Needed = w.now.Add(time.Minute), 1
	_, err := w.ask("main", plan)
	noErr(t, err)
	got, err := w.Waiting(t.Context(), hash)
	noErr(t, err)
	if rule, err := got.Rule(); err != nil || rule.Needed != 1 || len(w.notes(PlansDir)) != 2 || !slices.Equal(rule.Approvers, w.Rule.Approvers) || rule.Valid != time.Hour {
		t.Errorf("by another rule: %+v, %v", got, err)
	}
	none := strings.Repeat("0", 64)
	if _, err := w.Waiting(t.Context(), none); !errors.Is(err, ErrNoPlan) {
		t.Errorf("no plan: %v", err)
	}
	for _, name := range w.notes(PlansDir) { // another plan's notes, below a hash that is not theirs
		data, err := os.ReadFile(name)
		noErr(t, err)
		_, err = w.Repository.Put(t.Context(), PlansDir+none+"/"+filepath.Base(name), data, vault.PutOptions{})
		noErr(t, err)
	}
	if _, err := w.Waiting(t.Context(), none); !errors.Is(err, ErrNoPlan) {
		t.Errorf("a plan of another hash: %v", err)
	}
	strange, err := w.ask("other", map[string]any{"cluster": "other"})
	noErr(t, err)
	if got, err := w.Waiting(t.Context(), strange); !errors.Is(err, ErrNoPlan) {
		t.Errorf("by a key that may not speak of its cluster: %+v, %v", got, err)
	}
	for _, bad := range []string{"", "../" + none, none + "/x", strings.ToUpper(hash)} {
		if _, err := w.Standing(t.Context(), bad); err == nil {
			t.Errorf("the standing of %q", bad)
		}
	}
	if err := w.Ask(t.Context(), w.node, Waiting{PlanHash: none, Cluster: "main"}, plan); err == nil {
		t.Error("asked for under a hash that is not the plan's")
	}
}

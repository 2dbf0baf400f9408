package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// edit replaces text of a node's configuration.
func (r *rig) edit(node, from, to string) {
	r.t.Helper()
	path := node + "/holdfast.yaml"
	text, err := os.ReadFile(r.path(path))
	must(r.t, err)
	if !strings.Contains(string(text), from) {
		r.t.Fatalf("%s does not have %s:\n%s", path, from, text)
	}
	r.write(path, strings.ReplaceAll(string(text), from, to))
}

// The old key names the new one in the ledger before that signs; both count, and
// everything that either of them signed goes on being believed.
func TestASigningKeyIsFollowedByOneThatTheLedgerNames(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	first := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	out := r.path("keys/db-next")
	turn := ask[rotation](r, "db", "keys", "rotate", "signing", "--out", out) // by the daemon
	if !strings.HasPrefix(turn.Public, "db-2+") || turn.Replaces != r.keys["db"] || turn.Announced == nil || !turn.KeepUntil.IsZero() || !strings.Contains(turn.Steps[0], turn.Public) {
		t.Fatalf("%+v", turn)
	}
	before, err := os.ReadFile(out)
	must(t, err)
	r.hold("db", 3, "keys", "rotate", "signing", "--out", out) // it is there
	after, err := os.ReadFile(out)
	if must(t, err); string(after) != string(before) {
		t.Error("the new key was replaced")
	}
	r.hold("db", 2, "keys", "rotate", "signing", "--name", "db", "--out", r.path("keys/x"))
	r.hold("db", 2, "keys", "rotate", "approver", "--out", r.path("keys/x"))
	daemon.stop()

	for _, node := range []string{"db", "drill"} {
		old := "{key: \"" + r.keys["db"] + "\", may: [snapshot, wal, tombstone, ledger]}"
		r.edit(node, old, old+"\n    - {key: \""+turn.Public+"\", may: [snapshot, wal, tombstone, ledger]}")
	}
	r.edit("db", "signing_key: {file: "+r.path("keys/db")+"}", "signing_key: {file: "+out+"}")
	daemon = r.daemon("db")
	second := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	r.archived(zoneLetters...)
	daemon.stop()
	rep := ask[ledger.Report](r, "drill", "ledger", "verify")
	if len(rep.Faults) != 0 || len(rep.Origins) != 1 || !slices.Equal(rep.Origins[0].Signers, []string{"db", "db-2"}) {
		t.Errorf("the ledger: %+v", rep)
	}
	if keys := rep.Origins[0].Keys; len(keys) != 1 || keys[0].Old != r.keys["db"] || keys[0].New != turn.Public || keys[0].Index != turn.Announced.Index {
		t.Errorf("the ledger announces %+v", keys)
	}
	if text := r.hold("drill", 0, "ledger", "verify"); !strings.Contains(text, "announces the signing key db-2+") {
		t.Errorf("in words:\n%s", text)
	}
	for _, id := range []string{first, second} {
		r.restore("of-"+id, "--snapshot", id, "--immediate")
	}
	again := ask[rotation](r, "db", "keys", "rotate", "signing", "--out", r.path("keys/db-third")) // by itself
	if !strings.HasPrefix(again.Public, "db-3+") || again.Replaces != turn.Public {
		t.Errorf("%+v", again)
	}
}

// What is sealed after the change opens by the new identity alone, what was before by
// the old one alone, for as long as the command says.
func TestADataKeyIsFollowedByOneForWhatComesAfter(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	first := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	r.hold("db", 2, "keys", "rotate", "data", "--replaces", "nobody", "--out", r.path("drill/new.key"))
	turn := ask[rotation](r, "db", "keys", "rotate", "data", "--out", r.path("drill/new.key"))
	if until := time.Until(turn.KeepUntil); turn.Replaces != r.data || strings.HasPrefix(turn.Public, "age1pq") || turn.Announced == nil || until < 30*24*time.Hour || until > 32*24*time.Hour {
		t.Fatalf("%+v", turn)
	}
	daemon.stop()
	for _, node := range []string{"db", "drill"} {
		r.edit(node, r.data, turn.Public)
	}
	daemon = r.daemon("db")
	second := ask[snapshotDoc](r, "db", "snapshot", "take", "cms")
	r.archived(zoneLetters...)
	daemon.stop()
	run := func(name, id, key string) int {
		t.Helper()
		to := r.path(name)
		code, _, _ := r.try("drill", "restore", "run", "cms", "--to", to, "--snapshot", id, "--immediate", "--identity", r.path("drill/"+key), "--binaries", pg.BinDir())
		if _, err := os.Stat(to); err == nil {
			r.hold("drill", 0, "restore", "discard", to)
		}
		return code
	}
	for _, c := range []struct {
		id, key string
		opens   bool
	}{{first, "data.key", true}, {second.ID, "new.key", true}, {first, "new.key", false}, {second.ID, "data.key", false}} {
		if code := run("by-"+c.key+"-"+c.id, c.id, c.key); (code == 0) != c.opens {
			t.Errorf("snapshot %s by %s: exit %d", c.id, c.key, code)
		}
	}
}

// The new index identity and the old one lie in one file: the daemon goes on, and reads
// what either opens.
func TestAnIndexIdentityIsFollowedByOneBesideIt(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	r.hold("db", 0, "snapshot", "take", "cms")
	turn := ask[rotation](r, "db", "keys", "rotate", "index", "--out", r.path("keys/index-2"))
	if turn.Announced == nil || len(turn.Steps) != 3 {
		t.Fatalf("%+v", turn)
	}
	var both []byte
	for _, name := range []string{"index-2", "index"} {
		one, err := os.ReadFile(filepath.Join(r.path("keys"), name))
		must(t, err)
		both = append(both, one...)
	}
	r.write("keys/index", string(both))
	second := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	alone, err := os.ReadFile(r.path("keys/index-2"))
	must(t, err)
	r.write("keys/index", string(alone))
	r.hold("drill", 0, "restore", "plan", "cms", "--snapshot", second)
}

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func TestOneByteChangedInAZoneIsNoticedByNameAndHealedAndStopsNoRestore(t *testing.T) { // promises 3, 6
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	oracle := pg.StartOracle(10 * time.Millisecond)
	id := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	oracle.AwaitMore(20)
	acked := oracle.Stop()
	r.archived(zoneLetters...)
	daemon.stop()

	rot := map[string]*rotten{
		"pack":     r.rot("a", "clusters/cms/snapshots/"+id+"/packs/*.age"),
		"manifest": r.rot("b", "clusters/cms/snapshots/"+id+"/manifest*.age"),
		"wal":      r.rot("c", "clusters/cms/wal/*/*/*[^x].age"),
		"entries":  r.rot("a", "ledger/db-*/tile/entries/000.p/*"),
		"hashes":   r.rot("b", "ledger/db-*/tile/0/000.p/*"),
	}
	r.restore("meanwhile")
	if err := pgtest.CheckOracle(t.Context(), r.connect(r.open("meanwhile"), "postgres"), acked, pgtest.Everything); err != nil {
		t.Errorf("restored from zones with wrong copies: %v", err)
	}
	if out := r.hold("drill", 0, "ledger", "show"); !strings.Contains(out, "snapshot.taken") {
		t.Errorf("the ledger is not shown past a wrong copy:\n%s", out)
	}
	stranger := func(want int, zone string) string {
		return r.hold("", want, "ledger", "verify", "--directory", r.path("zones/"+zone), "--key", r.keys["db"], "--key", r.keys["drill"])
	}
	stranger(0, "c")
	told(t, "ledger verify", stranger(4, "a"), rot["entries"])
	told(t, "ledger verify", stranger(4, "b"), rot["hashes"])
	told(t, "snapshot verify", r.hold("db", 4, "snapshot", "verify", id), rot["pack"], rot["manifest"])
	told(t, "zone scrub", r.hold("db", 4, "zone", "scrub"), rot["pack"], rot["manifest"], rot["wal"], rot["entries"], rot["hashes"])

	r.hold("db", 0, "snapshot", "verify", "--heal", id)
	healed(t, rot["pack"], rot["manifest"])
	told(t, "zone scrub --heal", r.hold("db", 0, "zone", "scrub", "--heal"), rot["wal"], rot["entries"], rot["hashes"])
	healed(t, rot["pack"], rot["manifest"], rot["wal"], rot["entries"], rot["hashes"])
	r.hold("db", 0, "zone", "scrub")
	stranger(0, "a")
	stranger(0, "b")
}

// rotten is an object of which one zone's copy has another byte in its middle.
type rotten struct {
	path, name string
	right      []byte
}

// rot changes the last of the objects that a pattern matches.
func (r *rig) rot(zone, pattern string) *rotten {
	r.t.Helper()
	root := r.path("zones/" + zone)
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(found) == 0 {
		r.t.Fatalf("zone %s has no %s (%v)", zone, pattern, err)
	}
	o := &rotten{path: found[len(found)-1]}
	o.name = strings.TrimPrefix(o.path, root+"/")
	if o.right, err = os.ReadFile(o.path); err != nil {
		r.t.Fatal(err)
	}
	wrong := bytes.Clone(o.right)
	wrong[len(wrong)/2] ^= 1
	if err := os.Chmod(o.path, 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(o.path, wrong, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return o
}

func told(t *testing.T, who, out string, rot ...*rotten) {
	t.Helper()
	for _, o := range rot {
		if !strings.Contains(out, o.name) {
			t.Errorf("%s does not tell of %s:\n%s", who, o.name, out)
		}
	}
}

func healed(t *testing.T, rot ...*rotten) {
	t.Helper()
	for _, o := range rot {
		if now, err := os.ReadFile(o.path); err != nil || !bytes.Equal(now, o.right) {
			t.Errorf("%s was not healed (%v)", o.path, err)
		}
	}
}

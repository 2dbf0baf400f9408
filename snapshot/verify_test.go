package snapshot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

func (r *rig) verify(s catalog.Snapshot, cfg VerifyConfig) VerifyReport {
	r.t.Helper()
	cfg.Cluster, cfg.ID, cfg.Reader, cfg.Trust = s.Cluster, s.ID, r.vault.Reader(), r.trust
	report, err := Verify(r.t.Context(), cfg)
	noErr(r.t, err)
	return report
}

func TestVerifyFindsRotAndLossInEachZoneAndHeals(t *testing.T) {
	pg := startPG(t)
	r := newRig(t)
	s := r.take(r.config(pg, SourceFiles))
	m := r.manifest(s)
	if got := r.verify(s, VerifyConfig{}); !got.OK() || got.Zones[1].Good != got.Objects || got.Deep != nil {
		t.Fatalf("a whole snapshot: %+v", got)
	}
	rotten := filepath.Join(r.dirs[0], m.Packs[0].Ref.Name)
	noErr(t, os.Chmod(rotten, 0o600))
	f, err := os.OpenFile(rotten, os.O_RDWR, 0)
	noErr(t, err)
	_, err = f.WriteAt([]byte{0xff}, m.Packs[0].Ref.Size/2)
	noErr(t, err)
	noErr(t, f.Close())
	noErr(t, os.Remove(filepath.Join(r.dirs[1], s.Manifest.Name)))

	got := r.verify(s, VerifyConfig{})
	if got.OK() || got.Zones[0].Wrong != 1 || got.Zones[1].Missing != 1 || len(got.Zones[2].Faults) != 0 {
		t.Fatalf("one copy rotten, one lost: %+v", got)
	}
	got = r.verify(s, VerifyConfig{Heal: r.vault.Writer()})
	if !got.OK() || len(got.Zones[0].Healed) != 1 || len(got.Zones[1].Healed) != 1 {
		t.Errorf("healing: %+v", got)
	}
	if got = r.verify(s, VerifyConfig{}); !got.OK() || got.Zones[0].Wrong+got.Zones[1].Missing > 0 {
		t.Errorf("after healing: %+v", got)
	}
}

func TestVerifySaysWhichZoneCouldNotBeAsked(t *testing.T) {
	pg := startPG(t)
	r := newRig(t)
	s := r.take(r.config(pg, SourceFiles))
	noErr(t, os.Rename(r.dirs[1], r.dirs[1]+"-away"))
	got := r.verify(s, VerifyConfig{})
	if got.OK() || got.Zones[1].Unreachable == "" || got.Zones[1].Missing > 0 || got.Zones[0].Good != got.Objects {
		t.Errorf("%+v", got)
	}
}

// C-19
func TestDeepVerifyChecksEveryPageAndKnowsTheBadOnesOfASuspect(t *testing.T) {
	pg := startPG(t)
	fill(pg, "victim", 200)
	spoil(t, pg, "victim", 3, 5000, []byte("damage"))
	pg.Start()
	r := newRig(t)
	s := r.take(r.config(pg, SourceFiles))
	got := r.verify(s, VerifyConfig{Identities: r.data})
	if !got.OK() || got.Deep.Pages.Bad != 1 || got.Deep.Pages.Checked != s.Pages.Checked || got.Deep.Packs != len(r.manifest(s).Packs) {
		t.Errorf("%+v of %+v: the note tells of the bad page already", got.Deep, s.Pages)
	}
	wrong, _ := identity(t)
	if _, err := Verify(t.Context(), VerifyConfig{Cluster: s.Cluster, ID: s.ID, Reader: r.vault.Reader(), Trust: r.trust, Identities: wrong}); err == nil {
		t.Error("another identity opened the manifest")
	}
}

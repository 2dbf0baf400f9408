package holdfast

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

const goldenDir = "docs/golden"

var remake = flag.String("golden", "", "make a golden repository in this directory")

// golden is the repository in docs/golden, opened as the program opens one.
type golden struct {
	t       *testing.T
	ids     []age.Identity
	vault   *vault.Vault
	catalog *catalog.Reader
}

func openGolden(t *testing.T) *golden {
	t.Helper()
	g := &golden{t: t, ids: must(seal.ParseIdentities(read(t, "data.key")))(t)}
	d := must(dirzone.New(must(filepath.Abs(filepath.Join(goldenDir, "zone")))(t)))(t)
	z := zone.Open("a", d, zone.Identity{Format: 1, Repository: "golden", Zone: "a"}, zone.Options{})
	g.vault = must(vault.Open(vault.Config{Zones: []*zone.Zone{z}, Quorum: 1}))(t)
	t.Cleanup(func() { g.vault.Close() })
	key := strings.TrimSpace(string(read(t, "signing.vkey")))
	trust := must(seal.NewTrust([]seal.TrustedSigner{{VKey: key, Clusters: []string{goldenCluster}, May: []string{"snapshot", "wal", "tombstone"}}}))(t)
	g.catalog = catalog.NewReader(g.vault.Reader(), trust)
	return g
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	return must(os.ReadFile(filepath.Join(goldenDir, name)))(t)
}

func (g *golden) get(r catalog.Ref) []byte {
	g.t.Helper()
	return must(g.vault.Reader().Get(g.t.Context(), r.Name, r.Size, r.SHA256))(g.t)
}

func (g *golden) blob(r catalog.Ref) []byte {
	g.t.Helper()
	return must(seal.OpenBlob(g.get(r), g.ids, 64<<20))(g.t)
}

// snapshots are the two, with their manifests.
func (g *golden) snapshots() (notes []catalog.Snapshot, manifests []catalog.Manifest) {
	g.t.Helper()
	s := must(g.catalog.Snapshots(g.t.Context(), goldenCluster))(g.t)
	if len(s.List) != 2 || len(s.Faults) != 0 || s.Forgotten["20261101T000000Z-gone00"].ID != "m1" {
		g.t.Fatalf("snapshots %+v", s)
	}
	for _, n := range s.List {
		notes = append(notes, n.Body)
		manifests = append(manifests, must(catalog.DecodeManifest(bytes.NewReader(g.blob(n.Body.Manifest))))(g.t))
	}
	return notes, manifests
}

// files gives each file of a manifest, through its page map and frames.
func (g *golden) files(m catalog.Manifest, visit func(f catalog.ManifestFile, data []byte, leaves []catalog.Leaf)) {
	g.t.Helper()
	fetch := func(ctx context.Context, r catalog.Ref) ([]byte, error) {
		return g.vault.Reader().Get(ctx, r.Name, r.Size, r.SHA256)
	}
	maps := catalog.NewMapSet(g.t.TempDir(), m.Maps, m.Packs, fetch, g.ids)
	defer maps.Close()
	for _, f := range m.Files {
		data, leaves := make([]byte, f.Size), []catalog.Leaf(nil)
		err := maps.Leaves(g.t.Context(), f, func(first int64, l catalog.Leaf) error {
			for _, r := range l.Runs {
				if r.Frame != catalog.ZeroFrame {
					raw := g.frame(m.Packs[l.Frames[r.Frame].Pack].Ref, l.Frames[r.Frame])
					copy(data[(first+int64(r.First))*catalog.BlockSize:], raw[r.Off:r.Off+r.Bytes(first, f.Size)])
				}
			}
			leaves = append(leaves, l)
			return nil
		})
		if err != nil {
			g.t.Fatal(err)
		}
		visit(f, data, leaves)
	}
}

func (g *golden) frame(pack catalog.Ref, f catalog.LeafFrame) []byte {
	g.t.Helper()
	body := g.get(pack)
	p := must(seal.OpenPack(bytes.NewReader(body), int64(len(body)), g.ids))(g.t)
	return must(p.Frame(seal.Frame{Off: f.Off, Len: int64(f.Len), Raw: f.Raw, SHA256: hex.EncodeToString(f.SHA256[:])}))(g.t)
}

func TestTheGoldenRepositoryReadsAsOnTheDayItWasMade(t *testing.T) {
	if *remake != "" {
		makeGolden(t, *remake)
	}
	g := openGolden(t)
	notes, manifests := g.snapshots()
	for i, m := range manifests {
		if n := notes[i]; m.Header.Snapshot != n.ID || n.Number != int64(i+1) || n.StopLSN != m.Header.Facts.StopLSN {
			t.Errorf("snapshot %+v has the manifest of %s", n, m.Header.Snapshot)
		}
		want := goldenFiles(i + 1)
		g.files(m, func(f catalog.ManifestFile, data []byte, _ []catalog.Leaf) {
			if len(want) == 0 || f.Path != want[0].path || !bytes.Equal(data, want[0].bytes()) {
				t.Errorf("snapshot %d: %s (%d bytes) is not what it was", i+1, f.Path, f.Size)
			}
			want = want[1:]
		})
		for _, r := range must(catalog.DecodeObjects(bytes.NewReader(g.get(notes[i].Objects))))(t) {
			g.get(r)
		}
	}
	if m := manifests[1]; m.Header.Base != notes[0].ID || len(m.Packs) != 2 || len(m.Maps) != 2 || m.Packs[0].Live >= m.Packs[0].Raw {
		t.Errorf("the second snapshot is not incremental: %+v", m.Packs)
	}
}

func TestTheGoldenWALAndTombstoneReadAsOnTheDayTheyWereMade(t *testing.T) {
	g := openGolden(t)
	entries := must(g.catalog.WALEntries(t.Context(), goldenCluster, ""))(t)
	notes, faults, err := g.catalog.WALNotes(t.Context(), goldenCluster, entries.List)
	if err != nil || len(faults) != 0 || len(notes) != 2 {
		t.Fatalf("%d notes, %v, %v", len(notes), faults, err)
	}
	keys := must(seal.OpenDigestKeys(read(t, "zone/"+catalog.DigestKeyName(1)), g.ids))(t)
	for i, n := range notes {
		w := n.Body
		data := must(seal.OpenFile(g.get(w.Object), g.ids, 1<<20))(t)
		if hexSum(data) != w.Raw || w.LastRecordEnd != w.From+0xFF0 {
			t.Errorf("%+v holds other bytes", w)
		}
		var ix walrec.Index
		if err := json.Unmarshal(g.blob(w.Index), &ix); err != nil || ix.To != w.To || len(ix.Commits) != 2*i || !ix.LastTime.Equal(w.LastTime) {
			t.Errorf("index %+v, %v", ix, err)
		}
		var changed []walrec.ForkChanges
		if err := ix.Changes.Each(func(f walrec.ForkChanges) error { changed = append(changed, f); return nil }); err != nil || !reflect.DeepEqual(changed, goldenChanges) {
			t.Errorf("changed blocks %+v, %v", changed, err)
		}
		called := fmt.Sprintf("%s.%08X-%08X", w.File, i*0x1000, (i+1)*0x1000)
		mac := keys.MAC("wal", []byte(w.SystemID), []byte("1"), []byte("00000001"), []byte(called), data)
		if !strings.Contains(w.Object.Name, called+"-"+mac+".age") {
			t.Errorf("%s: its MAC is %s", w.Object.Name, mac)
		}
	}
	stones := must(g.catalog.Tombstones(t.Context(), goldenCluster))(t)
	if len(stones.List) != 1 || len(stones.Faults) != 0 || goldenKeyMAC(keys) != stones.List[0].Body.KeyMAC {
		t.Errorf("tombstones %+v", stones)
	}
}

// What is not JSON has one form: read and written again, it is the same bytes.
func TestGoldenMapsAndListsAreWrittenByteForByteAsThen(t *testing.T) {
	g := openGolden(t)
	notes, manifests := g.snapshots()
	for i, m := range manifests {
		list := g.get(notes[i].Objects)
		again := must(catalog.EncodeObjects(must(catalog.DecodeObjects(bytes.NewReader(list)))(t)))(t)
		if !bytes.Equal(list, again) {
			t.Errorf("objects.list is now\n%s, was\n%s", again, list)
		}
		plain := g.blob(m.Maps[i].Ref)
		b := catalog.NewMapBuilder()
		g.files(m, func(f catalog.ManifestFile, _ []byte, leaves []catalog.Leaf) {
			for k, l := range leaves {
				if f.Leaves[k].Map != i {
					continue
				}
				if _, _, err := b.Add(l, func(pack uint32) string { return m.Packs[pack].Ref.Name }); err != nil {
					t.Fatal(err)
				}
			}
		})
		if !bytes.Equal(b.Bytes(), plain) {
			t.Errorf("map %d is now\n% x, was\n% x", i, b.Bytes(), plain)
		}
	}
}

// A line is an offset, bytes (a … where some are left out) and what they mean.
func TestTheFormatsWalkThroughIsOfTheGoldenMapObject(t *testing.T) {
	g := openGolden(t)
	_, manifests := g.snapshots()
	plain, seen := g.blob(manifests[1].Maps[1].Ref), 0
	lines := regexp.MustCompile(`(?m)^([0-9a-f]{4})  ([0-9a-f]+)(…?) `).FindAllStringSubmatch(string(must(os.ReadFile("docs/format.md"))(t)), -1)
	for _, l := range lines {
		at := must(strconv.ParseUint(l[1], 16, 32))(t)
		want := must(hex.DecodeString(l[2]))(t)
		if !bytes.HasPrefix(plain[at:], want) || seen > int(at) {
			t.Errorf("docs/format.md shows %s at %s, there is % x", l[2], l[1], plain[at:int(at)+len(want)])
		}
		seen = int(at) + len(want)
	}
	if len(lines) < 20 {
		t.Errorf("docs/format.md shows %d pieces of a map object", len(lines))
	}
}

func TestAPackIndexOfANewerFormatIsRefused(t *testing.T) {
	for footer, want := range map[string]bool{"HOLDFPK1": true, "HOLDFPK2": false} {
		index := must(hex.DecodeString("5d2a4d18" + "0c000000" + "00000000"))(t)
		frames, err := seal.ParseIndex(append(index, footer...), 0)
		if got := err == nil && len(frames) == 0; got != want {
			t.Errorf("%s: %v, %v", footer, frames, err)
		}
	}
}

func TestGoldenBlocksHaveTheirDigests(t *testing.T) {
	g := openGolden(t)
	keys := must(seal.OpenDigestKeys(read(t, "zone/"+catalog.DigestKeyName(1)), g.ids))(t)
	digest := page.NewDigester(keys.Key)
	_, manifests := g.snapshots()
	g.files(manifests[1], func(f catalog.ManifestFile, data []byte, leaves []catalog.Leaf) {
		var have, want []uint64
		for k, l := range leaves {
			have = append(have, l.Digests...)
			for at := k * catalog.LeafBlocks; !l.Zero() && at < k*catalog.LeafBlocks+l.Blocks; at++ {
				want = append(want, digest.Sum(data[at*catalog.BlockSize:min(len(data), (at+1)*catalog.BlockSize)]))
			}
		}
		if !reflect.DeepEqual(have, want) {
			t.Errorf("%s: the digests of its blocks are others now", f.Path)
		}
	})
}

// goldenFile is a file of the cluster by its blocks: a letter each, '0' for zeros;
// tail cuts the last block.
type goldenFile struct {
	path, blocks string
	tail         int
	kind         string
	outside      bool
}

// goldenFiles are the files as snapshot n saw them: between the two, a block of
// one relation changed and another grew.
func goldenFiles(n int) []goldenFile {
	changed, grown := "ab", ""
	if n == 2 {
		changed, grown = "aB", "c"
	}
	return []goldenFile{
		{"/etc/postgresql/15/main/postgresql.conf", "x", 100, catalog.FileOther, true},
		{"PG_VERSION", "v", 3, catalog.FileOther, false},
		{"base/5/1259", changed + strings.Repeat("0", 1022) + "cd", 8192, catalog.FileRelation, false},
		{"base/5/1260", "000", 8192, catalog.FileRelation, false},
		{"base/5/1261", grown, 8192, catalog.FileRelation, false},
		{"base/5/1262", "e" + strings.Repeat("0", 1023) + "f", 8192, catalog.FileRelation, false},
		{"global/pg_control", "p", 8192, catalog.FileControl, false},
		{"pg_tblspc/16400/PG_15_202209061/5/2000", "g", 8192, catalog.FileRelation, false},
	}
}

func (f goldenFile) bytes() []byte {
	var out []byte
	for _, c := range f.blocks {
		b := make([]byte, catalog.BlockSize)
		for i := 0; c != '0' && i < len(b); i += 32 {
			sum := sha256.Sum256(fmt.Appendf(nil, "%s %c %d", f.path, c, i/1024))
			copy(b[i:], sum[:])
		}
		out = append(out, b...)
	}
	if len(out) == 0 {
		return nil
	}
	return out[:len(out)-catalog.BlockSize+f.tail]
}

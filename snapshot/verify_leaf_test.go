package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// goodPage is a page of a relation with its checksum.
func goodPage(block uint32, fill byte) []byte {
	p := bytes.Repeat([]byte{fill}, page.Size)
	clear(p[:24])
	binary.LittleEndian.PutUint16(p[14:], 24) // pd_upper: it is not new
	binary.LittleEndian.PutUint16(p[8:], page.Checksum(p, block))
	return p
}

// mapped commits a snapshot of one relation of five blocks, the third all zeros,
// whose first blocks lie in an older snapshot's pack. twist changes what is said
// before it is written.
func (r *rig) mapped(id string, twist func(l *catalog.Leaf, m *catalog.Manifest, listed *[]catalog.Ref)) catalog.Snapshot {
	r.t.Helper()
	older := r.sealPack("0-older", append(goodPage(0, 1), goodPage(1, 2)...), []byte("no leaf names this any more"))
	newer := r.sealPack(id, append(goodPage(3, 3), goodPage(4, 4)[:page.Size]...))
	l := catalog.Leaf{
		Blocks: 5, Frames: []catalog.LeafFrame{older.frame, newer.frame}, Digests: make([]uint64, 5),
		Runs: []catalog.Run{{First: 0, Count: 2}, {First: 2, Count: 1, Frame: catalog.ZeroFrame}, {First: 3, Count: 2, Frame: 1}},
	}
	l.Frames[1].Pack = 1
	m := catalog.Manifest{Packs: []catalog.ManifestPack{{N: 0, Ref: older.ref, Raw: 20000, Live: 16384}, {N: 1, Ref: newer.ref, Raw: 16384, Live: 16384}}}
	m.Header = catalog.ManifestHeader{Cluster: "main", Snapshot: id, Base: "0-older", Facts: catalog.ServerFacts{ChecksumsStart: 1, ChecksumsStop: 1}}
	m.Files = []catalog.ManifestFile{{Path: "base/5/16384", Size: 5 * page.Size, Mode: 0o600, Kind: catalog.FileRelation}}
	listed := []catalog.Ref{older.ref, newer.ref}
	twist(&l, &m, &listed)
	b := catalog.NewMapBuilder()
	off, n, err := b.Add(l, func(p uint32) string { return m.Packs[p].Ref.Name })
	noErr(r.t, err)
	at := r.store(func(sum [32]byte) string { return catalog.MapName("main", id, 0, sum) }, r.blob(b.Bytes()))
	m.Maps = []catalog.ManifestMap{{Ref: at, Raw: int64(n), Live: int64(n)}}
	m.Files[0].Leaves = []catalog.LeafRef{{Map: 0, Off: int64(off), Len: int64(n), Count: 1}}
	return r.commit(id, m, append(listed, at))
}

// commit writes manifest, list and note.
func (r *rig) commit(id string, m catalog.Manifest, listed []catalog.Ref) catalog.Snapshot {
	r.t.Helper()
	var plain bytes.Buffer
	noErr(r.t, catalog.EncodeManifest(&plain, m))
	s := catalog.Snapshot{Cluster: "main", ID: id, Kind: "physical", StartLSN: 1 << 40, StopLSN: 1<<40 + 100}
	s.Manifest = r.store(func([32]byte) string { return catalog.ManifestName("main", id) }, r.blob(plain.Bytes()))
	list, err := catalog.EncodeObjects(append(listed, s.Manifest))
	noErr(r.t, err)
	s.Objects = r.store(func([32]byte) string { return catalog.ObjectsName("main", id) }, list)
	note, err := seal.SignNote(catalog.KindSnapshot, s, r.signer)
	noErr(r.t, err)
	r.store(func([32]byte) string { return catalog.SnapshotName("main", id) }, note)
	return s
}

type sealedPack struct {
	ref   catalog.Ref
	frame catalog.LeafFrame // of the first frame
}

func (r *rig) sealPack(id string, raws ...[]byte) sealedPack {
	r.t.Helper()
	p, err := seal.NewPackWriter(r.dataTo, seal.PackTarget)
	noErr(r.t, err)
	c := seal.NewCompressor("fastest")
	for _, raw := range raws {
		_, err := p.Add(c.Compress(raw))
		noErr(r.t, err)
	}
	s, err := p.Seal()
	noErr(r.t, err)
	f := s.Frames[0]
	var sum [32]byte
	_, err = hex.Decode(sum[:], []byte(f.SHA256))
	noErr(r.t, err)
	return sealedPack{
		r.store(func(sum [32]byte) string { return catalog.PackName("main", id, 0, sum) }, s.Body),
		catalog.LeafFrame{Off: f.Off, Len: int(f.Len), Raw: f.Raw, SHA256: sum},
	}
}

func (r *rig) blob(plain []byte) []byte {
	r.t.Helper()
	sealed, err := seal.SealBlob(plain, r.dataTo)
	noErr(r.t, err)
	return sealed
}

func (r *rig) store(name func(sum [32]byte) string, body []byte) catalog.Ref {
	r.t.Helper()
	sum := sha256.Sum256(body)
	_, err := r.vault.Writer().Put(r.t.Context(), name(sum), body, vault.PutOptions{})
	noErr(r.t, err)
	return catalog.Ref{Name: name(sum), Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])}
}

// C-19
func TestDeepVerifyHoldsPageMapsAgainstPacks(t *testing.T) {
	for name, test := range map[string]struct {
		twist func(l *catalog.Leaf, m *catalog.Manifest, listed *[]catalog.Ref)
		want  string // in the first fault; none when empty
	}{
		"what is right has no fault": {func(*catalog.Leaf, *catalog.Manifest, *[]catalog.Ref) {}, ""},
		"a frame that is another": {func(l *catalog.Leaf, _ *catalog.Manifest, _ *[]catalog.Ref) {
			l.Frames[0].SHA256[0] ^= 1
		}, "SHA-256"},
		"blocks in the wrong order": {func(l *catalog.Leaf, _ *catalog.Manifest, _ *[]catalog.Ref) {
			l.Runs = []catalog.Run{{First: 0, Count: 1, Off: page.Size}, {First: 1, Count: 1, Off: 0}, l.Runs[1], l.Runs[2]}
		}, "has a wrong checksum"},
		"a pack that the list forgot": {func(_ *catalog.Leaf, _ *catalog.Manifest, listed *[]catalog.Ref) {
			*listed = (*listed)[1:]
		}, "objects.list does not"},
		"a bad page that was told of": {func(l *catalog.Leaf, m *catalog.Manifest, _ *[]catalog.Ref) {
			l.Runs[0], m.Files[0].Bad = catalog.Run{First: 0, Count: 2, Frame: 1}, []int64{0, 1}
		}, ""},
		"two leaves of one frame": {func(l *catalog.Leaf, _ *catalog.Manifest, _ *[]catalog.Ref) {
			other := l.Frames[0]
			other.Len--
			l.Frames = append(l.Frames, other)
			l.Runs = []catalog.Run{{First: 0, Count: 1}, {First: 1, Count: 1, Frame: 2, Off: page.Size}, l.Runs[1], l.Runs[2]}
		}, "two leaves disagree"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			scratch := t.TempDir()
			got := r.verify(r.mapped("1-newer", test.twist), VerifyConfig{Identities: r.data, Scratch: scratch})
			if d := got.Deep; d.Packs != 2 || d.Maps != 1 || d.Pages.Checked != 5 && test.want == "" {
				t.Errorf("%+v", d)
			}
			switch {
			case test.want == "" && !got.OK():
				t.Errorf("faults %v", got.Deep.Faults)
			case test.want != "" && (len(got.Deep.Faults) == 0 || !strings.Contains(got.Deep.Faults[0].Fault, test.want)):
				t.Errorf("faults %v, want %q", got.Deep.Faults, test.want)
			}
			if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
				t.Errorf("%v left behind, %v", left, err)
			}
		})
	}
}

func (r *rig) digests(context.Context, int) (seal.DigestKeys, error) { return r.keys, nil }

// A right page at the wrong time passes every checksum: its digest does not.
func TestDeepVerifyHoldsBlocksAgainstTheirDigests(t *testing.T) {
	for _, other := range []bool{false, true} {
		r := newRig(t)
		digest := page.NewDigester(r.keys.Key).Sum
		s := r.mapped("1-newer", func(l *catalog.Leaf, m *catalog.Manifest, _ *[]catalog.Ref) {
			m.Header.DigestEpoch = 1
			l.Digests = []uint64{digest(goodPage(0, 1)), digest(goodPage(1, 2)), digest(make([]byte, page.Size)), digest(goodPage(3, 3)), digest(goodPage(4, 4))}
			if other {
				l.Digests[1] = digest(goodPage(1, 3))
			}
		})
		cfg := VerifyConfig{Identities: r.data, Digests: r.digests}
		got := r.verify(s, cfg)
		if got.Deep.Blocks != 4 { // and one of zeros
			t.Errorf("%d blocks were held against digests", got.Deep.Blocks)
		}
		if got.OK() == other || other && !strings.HasPrefix(got.Deep.Faults[0].Fault, "blocks 0 to 1: ") {
			t.Errorf("another version of a page: %t; faults %v", other, got.Deep.Faults)
		}
	}
}

func TestDeepVerifyTellsOfAMapThatIsNotOne(t *testing.T) {
	r := newRig(t)
	good := r.mapped("1-newer", func(*catalog.Leaf, *catalog.Manifest, *[]catalog.Ref) {})
	bad := r.store(func(sum [32]byte) string { return catalog.MapName("main", "2-bad", 0, sum) }, r.blob([]byte("HOLDFMP9 and no leaf")))
	m := catalog.Manifest{Header: catalog.ManifestHeader{Cluster: "main", Snapshot: "2-bad"}, Maps: []catalog.ManifestMap{{Ref: bad, Raw: 100, Live: 100}}}
	m.Files = []catalog.ManifestFile{{Path: "PG_VERSION", Size: 3, Mode: 0o600, Kind: catalog.FileOther, Leaves: []catalog.LeafRef{{Len: 100, Count: 1}}}}
	got := r.verify(r.commit("2-bad", m, []catalog.Ref{bad, good.Manifest}), VerifyConfig{Identities: r.data})
	if got.OK() || len(got.Deep.Faults) != 1 || got.Deep.Faults[0].Name != "PG_VERSION" {
		t.Errorf("%+v", got.Deep)
	}
}

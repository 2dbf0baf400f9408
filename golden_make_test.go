package holdfast

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// maker makes the golden repository, as the program itself would write it: two
// snapshots of one small cluster, the second incremental, slices of WAL, a mark,
// a tombstone. It runs when somebody says so (docs/golden/README.md) and never in CI:
// what format 1 is, is what lies in docs/golden.
type maker struct {
	t         *testing.T
	dir       string
	to, index []age.Recipient
	signer    note.Signer
	keys      seal.DigestKeys
	expected  []string
}

const (
	goldenCluster = "cms"
	goldenSystem  = "7300000000000000001"
	goldenSegment = 1 << 20
)

var goldenStart = time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)

func makeGolden(t *testing.T, dir string) {
	m := &maker{t: t, dir: dir}
	m.secrets()
	m.json("zone/holdfast.json", zone.Identity{Format: 1, Repository: "golden", Zone: "a"})
	m.sealed("zone/"+catalog.DigestKeyName(1), must(m.keys.Seal(m.index))(t))
	m.note(catalog.LineageName(goldenCluster, 1), catalog.KindLineage, catalog.Lineage{
		Cluster: goldenCluster, Epoch: 1, SystemID: goldenSystem, Major: 15, Timeline: 1, StartLSN: 0x100000, Node: "db1", State: "s1", Boot: "b1", ClaimedAt: goldenStart,
	})
	wal := m.wal()
	first := m.snapshot("20261122T180000Z-aaaaaa", 1, nil, 0x100028, 0x100400, wal)
	m.snapshot("20261122T190000Z-bbbbbb", 2, first, 0x100428, 0x101000, wal)
	m.note(catalog.ForgottenName(goldenCluster, "m1"), catalog.KindForgotten, catalog.Forgotten{
		Cluster: goldenCluster, ID: "m1", MarkedAt: goldenStart, NotBefore: goldenStart.Add(24 * time.Hour),
		Snapshots: []string{"20261101T000000Z-gone00"}, Reasons: []string{"older than keep_at_most"}, PlanHash: strings.Repeat("0", 64),
	})
	m.note(catalog.TombstoneName("t1"), catalog.KindTombstone, catalog.Tombstone{
		ID: "t1", Cluster: goldenCluster, Layout: "rows", Database: "cms", Root: "cms.project", Key: "id", KeyMAC: goldenKeyMAC(m.keys),
		DigestEpoch: 1, SystemID: goldenSystem, Epoch: 1, Timeline: 1, LSN: 0x101100, RequestedAt: goldenStart, Deadline: goldenStart.Add(410 * 24 * time.Hour),
		Counts: []catalog.Count{{Table: "cms.project", Rows: 1}, {Table: "cms.record", Rows: 20}},
	})
	slices.Sort(m.expected)
	m.file("expected.sha256", []byte(strings.Join(m.expected, "")))
}

// goldenKeyMAC stands for the deleted project 41.
func goldenKeyMAC(k seal.DigestKeys) string {
	var parts [][]byte
	for _, p := range []string{goldenCluster, "rows", "cms", "cms.project", "id", "41"} {
		parts = append(parts, []byte(p))
	}
	return k.MAC("holdfast project key v1", parts...)
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (m *maker) secrets() {
	t := m.t
	data, index := must(age.GenerateX25519Identity())(t), must(age.GenerateX25519Identity())(t)
	m.to = []age.Recipient{data.Recipient()}
	m.index = []age.Recipient{index.Recipient(), data.Recipient()}
	skey, vkey, err := seal.NewSigningKey("db1")
	if err != nil {
		t.Fatal(err)
	}
	m.signer, _, _ = seal.LoadSigner(skey)
	m.keys = must(seal.NewDigestKeys(1))(t)
	for name, text := range map[string]string{"data.key": data.String(), "index.key": index.String(), "signing.key": skey, "signing.vkey": vkey} {
		m.file(name, []byte(text+"\n"))
	}
}

func (m *maker) file(name string, data []byte) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *maker) json(name string, v any) { m.file(name, must(json.Marshal(v))(m.t)) }

func (m *maker) sealed(name string, body []byte) catalog.Ref {
	m.file(name, body)
	sum := sha256.Sum256(body)
	return catalog.Ref{Name: strings.TrimPrefix(name, "zone/"), Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])}
}

func (m *maker) note(name, kind string, body any) catalog.Ref {
	return m.sealed("zone/"+name, must(seal.SignNote(kind, body, m.signer))(m.t))
}

// goldenChanges is what both pieces of WAL say has changed.
var goldenChanges = []walrec.ForkChanges{
	{Relation: walrec.Relation{Tablespace: 1663, Database: 5, Node: 1259}, From: walrec.NoBlock, Blocks: []uint32{1}},
	{Relation: walrec.Relation{Tablespace: 1663, Database: 5, Node: 1261}, From: 0, Blocks: []uint32{}},
}

// wal is two slices of one segment, the second with two commits.
func (m *maker) wal() (refs []catalog.Ref) {
	const segment = "000000010000000000000001"
	for i := range 2 {
		from := lsn.LSN(0x100000 + i*0x1000)
		data := bytes.Repeat([]byte{byte('a' + i)}, 0x1000)
		mac := m.keys.MAC("wal", []byte(goldenSystem), []byte("1"), []byte("00000001"), fmt.Appendf(nil, "%s.%08X-%08X", segment, i*0x1000, (i+1)*0x1000), data)
		name := catalog.SliceName(goldenCluster, 1, 1, segment, uint32(i*0x1000), uint32((i+1)*0x1000), mac)
		s := must(seal.SealFile(data, seal.NewCompressor(""), m.to))(m.t)
		n := catalog.WAL{
			Link: catalog.Link{Number: int64(i + 1)}, Cluster: goldenCluster, Epoch: 1, Timeline: 1, SystemID: goldenSystem, File: segment,
			From: from, To: from + 0x1000, Slice: true, Object: m.sealed("zone/"+name, s.Body), Raw: hexSum(data), RawSize: int64(len(data)),
			LastRecordEnd: from + 0xFF0, ArchivedAt: goldenStart.Add(2 * time.Hour), ServerTime: goldenStart.Add(2 * time.Hour),
		}
		ix := walrec.Index{Format: 1, Timeline: 1, From: from, To: n.To, LastRecordEnd: n.LastRecordEnd, Commits: walrec.Commits{}}
		if i == 1 {
			n.Prev = refs[len(refs)-1].SHA256
			for k := range 2 {
				at := from + lsn.LSN(0x200+k*0x100)
				ix.Commits = append(ix.Commits, walrec.Commit{Start: at, End: at + 0x40, Xid: uint32(700 + k), Time: goldenStart.Add(time.Duration(65+k) * time.Minute)})
			}
			n.FirstTime, n.LastTime = ix.Commits[0].Time, ix.Commits[1].Time
			ix.FirstTime, ix.LastTime = n.FirstTime, n.LastTime
		}
		changes := must(walrec.NewChanges(from, n.To, goldenChanges))(m.t)
		ix.Changes = &changes
		n.Index = m.sealed("zone/"+catalog.WALIndexName(name), must(seal.SealBlob(must(json.Marshal(ix))(m.t), m.index))(m.t))
		refs = append(refs, n.Object, n.Index, m.note(catalog.WALNoteName(goldenCluster, 1, 1, uint64(from), uint64(n.To), mac[:8]), catalog.KindWAL, n))
	}
	return refs
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// taken is what the next snapshot refers to.
type taken struct {
	id     string
	man    catalog.Manifest
	leaves map[string][]catalog.Leaf // by path, with the manifest's packs
}

func (m *maker) snapshot(id string, number int64, base *taken, start, stop lsn.LSN, wal []catalog.Ref) *taken {
	s := &taken{id: id, leaves: map[string][]catalog.Leaf{}}
	at := goldenStart.Add(time.Duration(number-1) * time.Hour)
	intent := catalog.Intent{Cluster: goldenCluster, ID: id, Epoch: 1, Node: "db1", StartedAt: at, SystemID: goldenSystem, Timeline: 1, From: start}
	s.man.Header = goldenHeader(id, start, stop, at)
	if base != nil {
		intent.Base, s.man.Header.Base = base.id, base.id
		s.man.Packs, s.man.Maps = slices.Clone(base.man.Packs), slices.Clone(base.man.Maps)
	}
	m.note(catalog.IntentName(goldenCluster, id), catalog.KindIntent, intent)
	pack, raw := must(seal.NewPackWriter(m.to, seal.PackTarget))(m.t), 0
	for _, f := range goldenFiles(int(number)) {
		data := f.bytes()
		s.leaves[f.path] = m.leavesOf(f, data, base, pack, uint32(len(s.man.Packs)))
		s.man.Files = append(s.man.Files, catalog.ManifestFile{Path: f.path, Size: int64(len(data)), Mode: 0o600, MTime: at, Kind: f.kind, Outside: f.outside})
		if number == 2 {
			m.expected = append(m.expected, fmt.Sprintf("%s %d %s\n", hexSum(data), len(data), f.path))
		}
	}
	sealed := must(pack.Seal())(m.t)
	name := catalog.PackName(goldenCluster, id, 0, sealed.SHA256)
	for _, f := range sealed.Frames {
		raw += f.Raw
	}
	s.man.Packs = append(s.man.Packs, catalog.ManifestPack{N: len(s.man.Packs), Ref: m.sealed("zone/"+name, sealed.Body), Raw: int64(raw), Live: int64(raw)})
	m.place(s, base, sealed.Frames)
	m.commit(s, number, base, start, stop, at, wal)
	return s
}

// leavesOf compares a file with the base's, puts what is new of it into one frame of
// the pack, and says where all of it lies. Frames of the pack in the making have
// their place in it as their offset, until it is known.
func (m *maker) leavesOf(f goldenFile, data []byte, base *taken, pack *seal.PackWriter, own uint32) (out []catalog.Leaf) {
	digest := page.NewDigester(m.keys.Key)
	for first := 0; first*catalog.BlockSize < len(data); first += catalog.LeafBlocks {
		part := data[first*catalog.BlockSize : min(len(data), (first+catalog.LeafBlocks)*catalog.BlockSize)]
		var old catalog.Leaf
		if base != nil && len(base.leaves[f.path]) > len(out) {
			old = base.leaves[f.path][len(out)]
		}
		l, fresh := leafOf(part, old, digest)
		for i, fr := range l.Frames {
			if fr.Raw == 0 {
				c := seal.NewCompressor("").Compress(fresh)
				l.Frames[i] = catalog.LeafFrame{Pack: own, Off: int64(must(pack.Add(c))(m.t)), Len: c.Len(), Raw: c.Raw(), SHA256: c.SHA256()}
			}
		}
		out = append(out, l)
	}
	return out
}

// leafOf describes the blocks of part: as old does where the digest is old's, as
// zeros, or as bytes of one new frame, which has Raw 0 until it is compressed.
func leafOf(part []byte, old catalog.Leaf, digest *page.Digester) (l catalog.Leaf, fresh []byte) {
	frames := map[int]int{}
	frame := func(from int, f catalog.LeafFrame) int {
		if _, ok := frames[from]; !ok {
			frames[from] = len(l.Frames)
			l.Frames = append(l.Frames, f)
		}
		return frames[from]
	}
	for i := 0; i*catalog.BlockSize < len(part); i++ {
		block := part[i*catalog.BlockSize : min(len(part), (i+1)*catalog.BlockSize)]
		d := digest.Sum(block)
		run := catalog.Run{First: i, Count: 1, Frame: catalog.ZeroFrame}
		switch was, ok := blockOf(old, i); {
		case ok && old.Digests[i] == d && was.Frame != catalog.ZeroFrame:
			run.Frame, run.Off = frame(was.Frame, old.Frames[was.Frame]), was.Off
		case len(bytes.Trim(block, "\x00")) > 0:
			run.Frame, run.Off = frame(-1, catalog.LeafFrame{}), len(fresh)
			fresh = append(fresh, block...)
		}
		l.Blocks, l.Digests, l.Runs = i+1, append(l.Digests, d), joined(l.Runs, run)
	}
	if len(l.Frames) == 0 {
		return catalog.Leaf{Blocks: l.Blocks}, nil
	}
	return l, fresh
}

// joined adds a run of one block, as part of the last one where it goes on.
func joined(runs []catalog.Run, r catalog.Run) []catalog.Run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		if last.Frame == r.Frame && (r.Frame == catalog.ZeroFrame || last.Off+last.Count*catalog.BlockSize == r.Off) {
			last.Count++
			return runs
		}
	}
	return append(runs, r)
}

// blockOf is the run of one block of a leaf.
func blockOf(l catalog.Leaf, i int) (catalog.Run, bool) {
	for _, r := range l.Runs {
		if i >= r.First && i < r.First+r.Count {
			return catalog.Run{First: i, Count: 1, Frame: r.Frame, Off: r.Off + (i-r.First)*catalog.BlockSize}, true
		}
	}
	return catalog.Run{}, false
}

// place gives the new frames their offsets and writes a map object with the leaves
// that the base does not have as they are.
func (m *maker) place(s, base *taken, frames []seal.Frame) {
	own, builder := uint32(len(s.man.Packs)-1), catalog.NewMapBuilder()
	n, size := len(s.man.Maps), int64(0)
	for i := range s.man.Files {
		f := &s.man.Files[i]
		for k, l := range s.leaves[f.Path] {
			if at, ok := sameLeaf(base, f.Path, k, l); ok {
				f.Leaves = append(f.Leaves, at)
				continue
			}
			for j, fr := range l.Frames {
				if fr.Pack == own {
					l.Frames[j].Off = frames[fr.Off].Off
				}
			}
			off, length, err := builder.Add(l, func(pack uint32) string { return s.man.Packs[pack].Ref.Name })
			if err != nil {
				m.t.Fatal(err)
			}
			f.Leaves = append(f.Leaves, catalog.LeafRef{Map: n, Off: int64(off), Len: int64(length), Count: 1})
			size += int64(length)
		}
	}
	body := must(seal.SealBlob(builder.Bytes(), m.index))(m.t)
	ref := m.sealed("zone/"+catalog.MapName(goldenCluster, s.id, 0, sha256.Sum256(body)), body)
	s.man.Maps = append(s.man.Maps, catalog.ManifestMap{N: n, Ref: ref, Raw: size, Live: size})
}

// sameLeaf is where the base has the k-th leaf of a file, if it is l.
func sameLeaf(base *taken, path string, k int, l catalog.Leaf) (at catalog.LeafRef, ok bool) {
	if base == nil || k >= len(base.leaves[path]) || !reflect.DeepEqual(base.leaves[path][k], l) {
		return at, false
	}
	i := slices.IndexFunc(base.man.Files, func(f catalog.ManifestFile) bool { return f.Path == path })
	return base.man.Files[i].Leaves[k], true
}

func goldenHeader(id string, start, stop lsn.LSN, at time.Time) catalog.ManifestHeader {
	return catalog.ManifestHeader{
		Cluster: goldenCluster, Snapshot: id, DigestEpoch: 1, Label: fmt.Appendf(nil, "START WAL LOCATION: %s (file 000000010000000000000001)\n", start),
		TablespaceMap: []byte("16400 /srv/fast\n"), Tablespaces: []catalog.Tablespace{{OID: 16400, Name: "fast", Path: "/srv/fast"}},
		Dirs: []catalog.Dir{
			{Path: "base", Mode: 0o700},
			{Path: "base/5", Mode: 0o700},
			{Path: "global", Mode: 0o700},
			{Path: "pg_notify", Mode: 0o750},
			{Path: "pg_tblspc", Mode: 0o700},
			{Path: "pg_wal", Mode: 0o700},
		},
		Facts: catalog.ServerFacts{
			SystemID: goldenSystem, ServerNum: 150014, Major: 15, Timeline: 1, ControlVersion: 1300, CatalogVersion: 202209061, BlockSize: 8192,
			RelSegBlocks: 131072, WALSegSize: goldenSegment, StartLSN: start, StopLSN: stop, CheckpointLSN: start, StartedAt: at, FinishedAt: at.Add(time.Second),
			ChecksumsStart: 1, ChecksumsStop: 1, WALLevel: "replica", FullPageWrites: true, DataDirectory: "/var/lib/postgresql/15/main",
			ConfigFiles: []string{"/etc/postgresql/15/main/postgresql.conf"},
		},
	}
}

// commit writes the manifest, the list of objects and the note.
func (m *maker) commit(s *taken, number int64, base *taken, start, stop lsn.LSN, at time.Time, wal []catalog.Ref) {
	m.count(s)
	var manifest bytes.Buffer
	refs := slices.Clone(wal)
	if err := catalog.EncodeManifest(&manifest, s.man); err != nil {
		m.t.Fatal(err)
	}
	ref := m.sealed("zone/"+catalog.ManifestName(goldenCluster, s.id), must(seal.SealBlob(manifest.Bytes(), m.index))(m.t))
	refs = append(refs, ref)
	for _, p := range s.man.Packs {
		refs = append(refs, p.Ref)
	}
	for _, p := range s.man.Maps {
		refs = append(refs, p.Ref)
	}
	n := catalog.Snapshot{
		Link: catalog.Link{Number: number}, Cluster: goldenCluster, ID: s.id, Kind: "physical", Source: "files", Node: "db1", Epoch: 1, SystemID: goldenSystem,
		Major: 15, ServerNum: 150014, Timeline: 1, StartLSN: start, StopLSN: stop, StartedAt: at, FinishedAt: at.Add(time.Second), SegSize: goldenSegment,
		Files: int64(len(s.man.Files)), Manifest: ref, Objects: m.sealed("zone/"+catalog.ObjectsName(goldenCluster, s.id), must(catalog.EncodeObjects(refs))(m.t)),
		Recipients: []string{"0123456789abcdef"}, Oldest: goldenStart,
	}
	if base != nil {
		n.Prev = hexSum(must(os.ReadFile(filepath.Join(m.dir, "zone", catalog.SnapshotName(goldenCluster, base.id))))(m.t))
	}
	m.note(catalog.SnapshotName(goldenCluster, s.id), catalog.KindSnapshot, n)
}

// count says of each pack and map how much of it this snapshot refers to.
func (m *maker) count(s *taken) {
	for i := range s.man.Packs {
		s.man.Packs[i].Live = 0
	}
	for i := range s.man.Maps {
		s.man.Maps[i].Live = 0
	}
	for _, f := range s.man.Files {
		for k, l := range s.leaves[f.Path] {
			s.man.Maps[f.Leaves[k].Map].Live += f.Leaves[k].Len
			for _, r := range l.Runs {
				if r.Frame != catalog.ZeroFrame {
					s.man.Packs[l.Frames[r.Frame].Pack].Live += int64(r.Bytes(int64(k)*catalog.LeafBlocks, f.Size))
				}
			}
		}
	}
}

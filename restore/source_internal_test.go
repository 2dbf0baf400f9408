package restore

import (
	"bytes"
	"context"
	"encoding/hex"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"golang.org/x/sync/semaphore"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

// stored is a pack in two zones.
type stored struct {
	pack   catalog.ManifestPack
	frames []seal.Frame
	raws   [][]byte
	repo   Repo
	dirs   []string
}

func storePack(t *testing.T, sizes []int) *stored {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	s := &stored{}
	r := rand.NewChaCha8([32]byte{7})
	w, err := seal.NewPackWriter([]age.Recipient{id.Recipient()}, seal.PackTarget)
	noErr(t, err)
	c := seal.NewCompressor("")
	for _, n := range sizes {
		raw := make([]byte, n)
		_, _ = r.Read(raw)
		s.raws = append(s.raws, raw)
		if _, err := w.Add(c.Compress(raw)); err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	s.frames = sealed.Frames
	sum := hex.EncodeToString(sealed.SHA256[:])
	s.pack = catalog.ManifestPack{Ref: catalog.Ref{Name: catalog.PackName("cms", "s1", 0, sealed.SHA256), Size: int64(len(sealed.Body)), SHA256: sum}}
	var zones []*zone.Zone
	for _, name := range []string{"a", "b"} {
		dir := filepath.Join(t.TempDir(), name)
		is := zone.Identity{Format: zone.Format, Repository: "test", Zone: name}
		noErr(t, os.Mkdir(dir, 0o700))
		d, err := dirzone.New(dir)
		noErr(t, err)
		noErr(t, zone.Initialise(t.Context(), d, is))
		s.dirs, zones = append(s.dirs, dir), append(zones, zone.Open(name, d, is, zone.Options{}))
	}
	v, err := vault.Open(vault.Config{Zones: zones, Quorum: 2, State: t.TempDir()})
	noErr(t, err)
	t.Cleanup(func() { v.Close() })
	_, err = v.Writer().Put(t.Context(), s.pack.Ref.Name, sealed.Body, vault.PutOptions{})
	noErr(t, err)
	s.repo = Repo{Reader: v.Reader(), Data: []age.Identity{id}}
	return s
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fetch restores the chosen frames, each into its place in one file, and says how
// many bytes were read.
func (s *stored) fetch(t *testing.T, chosen []int) int64 {
	t.Helper()
	root := t.TempDir()
	l := &layout{packs: []catalog.ManifestPack{s.pack}}
	var at []int64
	var size int64
	for _, raw := range s.raws {
		at, size = append(at, size), size+int64(len(raw))
	}
	noErr(t, l.add(catalog.ManifestFile{Path: "file", Size: size, Mode: 0o600}))
	f, err := os.Create(filepath.Join(root, "file"))
	noErr(t, err)
	noErr(t, f.Truncate(size))
	defer f.Close()
	rs, err := newRecords(filepath.Join(root, "records"), 7)
	noErr(t, err)
	for _, i := range chosen {
		fr := s.frames[i]
		sum, err := hex.DecodeString(fr.SHA256)
		noErr(t, err)
		// Two pieces of each, as of two runs.
		cut := len(s.raws[i]) / 3
		frame := catalog.LeafFrame{Off: fr.Off, Len: int(fr.Len), Raw: fr.Raw, SHA256: [32]byte(sum)}
		noErr(t, rs.add(
			record{frame: frame, from: uint32(cut), n: uint32(len(s.raws[i]) - cut), at: at[i] + int64(cut)},
			record{frame: frame, n: uint32(cut), at: at[i]},
		))
	}
	tr := &tree{root: root, layout: l, held: map[int][]byte{}}
	read, err := tr.fetch(t.Context(), s.repo, 2, rs, nil)
	noErr(t, err)
	want := make([]byte, size)
	for _, i := range chosen {
		copy(want[at[i]:], s.raws[i])
	}
	got, err := os.ReadFile(filepath.Join(root, "file"))
	noErr(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("frames %v: the file is not what it should be", chosen)
	}
	if got, want := finishSum(l.files[0].sum.Load(), size), crc32.Checksum(want, castagnoli); got != want {
		t.Errorf("frames %v: the file's sum is %08x, want %08x", chosen, got, want)
	}
	return read
}

func many(r *rand.Rand) (sizes []int) {
	for range 40 {
		sizes = append(sizes, 1+r.IntN(seal.MaxFrame))
	}
	return append(sizes, 1, seal.MaxFrame, 8192, 5)
}

// Any choice of frames comes, by ranges that hold little else, or with the whole
// pack where more than half of it is wanted.
func TestAnyFramesOfAPackComeByRangesOrWhole(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	s := storePack(t, many(r))
	last := len(s.raws) - 1
	for round := range 24 {
		var chosen []int
		for i := range s.raws {
			if r.IntN(24) < round {
				chosen = append(chosen, i)
			}
		}
		switch round {
		case 0:
			chosen = []int{0}
		case 1:
			chosen = []int{last}
		case 2:
			chosen = []int{0, last / 2, last}
		case 23:
			chosen = chosen[:0]
			for i := range s.raws {
				chosen = append(chosen, i)
			}
		}
		if len(chosen) == 0 {
			continue
		}
		var need int64
		for _, i := range chosen {
			need += s.frames[i].Len
		}
		read := s.fetch(t, chosen)
		most := need + int64(len(chosen))*(2*sealedChunk+headRoom+spanGap) + headRoom + sealedChunk
		if 2*need > s.pack.Ref.Size {
			most = s.pack.Ref.Size + sealedChunk
		}
		if read > most {
			t.Errorf("%d frames of %d bytes: read %d, want at most %d", len(chosen), need, read, most)
		}
	}
}

// A frame that is wrong in the zone that was asked comes from the other, whatever
// was read of the pack before.
func TestABadCopyIsReplacedInTheMidstOfAPack(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	s := storePack(t, many(r))
	file := filepath.Join(s.dirs[0], s.pack.Ref.Name)
	good, err := os.ReadFile(file)
	noErr(t, err)
	noErr(t, os.Chmod(file, 0o600))
	for _, at := range []int{0, 100, len(good) / 4, len(good) / 2, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 4
		noErr(t, os.WriteFile(file, bad, 0o600))
		for _, chosen := range [][]int{{0}, {3, 20, 21}, all(len(s.raws))} {
			s.fetch(t, chosen)
		}
	}
}

func all(n int) (out []int) {
	for i := range n {
		out = append(out, i)
	}
	return out
}

// What waits for a zone ends when the restore does.
func TestFetchingEndsWithItsContext(t *testing.T) {
	s := storePack(t, []int{1000, 2000})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	src := newSource(ctx, s.repo.Reader, s.pack.Ref, &window{Weighted: semaphore.NewWeighted(10)}, []extent{{0, 100}, {0, s.pack.Ref.Size}})
	if err := src.run(); err == nil {
		t.Error("it went on")
	}
	if _, err := src.ReadAt(make([]byte, 10), 0); err == nil {
		t.Error("it read")
	}
	src.close()
}

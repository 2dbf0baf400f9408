package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// logicalConfig takes a logical snapshot that fill fills.
func (r *rig) logicalConfig(fill func(ctx context.Context, to *LogicalFiles) error) LogicalConfig {
	at := time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC)
	return LogicalConfig{
		Take: TakeConfig{
			Cluster: "main", Node: "node", Epoch: 1, Store: r.vault.Writer(), Signer: r.signer, Trust: r.trust,
			Data: r.dataTo, Index: r.indexTo, Fingerprints: []string{"0123456789abcdef"}, Now: time.Now,
		},
		Kind: catalog.Logical, Server: Server{SystemID: "sys", Major: 15, Timeline: 1, LSN: 100}, SegSize: 16 << 20,
		Fill: func(ctx context.Context, to *LogicalFiles) (Filled, error) {
			return Filled{First: at, Last: at.Add(time.Second), To: 200}, fill(ctx, to)
		},
	}
}

// hiss does not compress.
func hiss(seed uint64, n int) []byte {
	b := make([]byte, n)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func TestFilesThatAreWrittenAtOnceLieWholeInTheSharedPacks(t *testing.T) {
	r := newRig(t)
	sizes := []int{0, 1, seal.MaxFrame - 1, seal.MaxFrame, seal.MaxFrame + 1, 40 << 20, 30 << 20}
	snap, err := TakeLogical(t.Context(), r.logicalConfig(func(_ context.Context, to *LogicalFiles) error {
		var g errgroup.Group
		for i, n := range sizes {
			g.Go(func() error {
				_, _, err := to.Add(fmt.Sprintf("data/%d", i), func(w io.Writer) error {
					_, err := io.Copy(w, halfReader{bytes.NewReader(hiss(uint64(i), n))})
					return err
				})
				return err
			})
		}
		return g.Wait()
	}))
	noErr(t, err)
	if snap.Kind != catalog.Logical || snap.StartLSN != 100 || snap.StopLSN != 200 || snap.Files != int64(len(sizes)) || snap.Oldest.After(snap.StartedAt) {
		t.Errorf("taken: %+v", snap)
	}
	m := r.logicalManifest(snap)
	if len(m.Packs) < 3 {
		t.Errorf("%d packs", len(m.Packs))
	}
	for i, n := range sizes {
		if got := r.logicalFile(m, i); !bytes.Equal(got, hiss(uint64(i), n)) {
			t.Errorf("file %d has %d bytes, want %d", i, len(got), n)
		}
	}
	rep, err := Verify(t.Context(), VerifyConfig{Cluster: "main", ID: snap.ID, Reader: r.vault.Reader(), Trust: r.trust, Identities: r.data})
	noErr(t, err)
	if !rep.OK() || rep.Deep.Packs != len(m.Packs) {
		t.Errorf("verified: %+v, %+v", rep, rep.Deep)
	}
	second, err := TakeLogical(t.Context(), r.logicalConfig(func(context.Context, *LogicalFiles) error { return nil }))
	noErr(t, err)
	if second.Number != snap.Number+1 || second.Prev == "" {
		t.Errorf("the next is number %d behind %d", second.Number, snap.Number)
	}
}

// halfReader gives less than it is asked for.
type halfReader struct{ r io.Reader }

func (h halfReader) Read(p []byte) (int, error) { return h.r.Read(p[:(len(p)+1)/2]) }

func (r *rig) logicalManifest(s catalog.Snapshot) catalog.LogicalManifest {
	r.t.Helper()
	sealed, err := r.vault.Reader().Get(r.t.Context(), s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	noErr(r.t, err)
	m, err := catalog.OpenLogical(sealed, r.index)
	noErr(r.t, err)
	return m
}

func (r *rig) logicalFile(m catalog.LogicalManifest, i int) (out []byte) {
	r.t.Helper()
	for _, f := range m.Files[i].Frames {
		ref := m.Packs[f.Pack].Ref
		body, err := r.vault.Reader().Get(r.t.Context(), ref.Name, ref.Size, ref.SHA256)
		noErr(r.t, err)
		p, err := seal.OpenPack(bytes.NewReader(body), ref.Size, r.data)
		noErr(r.t, err)
		raw, err := p.Frame(seal.Frame{Off: f.Off, Len: f.Len, Raw: f.Raw, SHA256: f.SHA256})
		noErr(r.t, err)
		out = append(out, raw...)
	}
	return out
}

func TestALogicalSnapshotThatFailsLeavesAnIntentAndNoSnapshot(t *testing.T) {
	r := newRig(t)
	broken := errors.New("the server went away")
	for name, fill := range map[string]func(context.Context, *LogicalFiles) error{
		"while it writes": func(_ context.Context, to *LogicalFiles) error {
			_, _, err := to.Add("data/1", func(w io.Writer) error {
				if _, err := w.Write(hiss(1, 35<<20)); err != nil {
					return err
				}
				return broken
			})
			return err
		},
		"between files": func(_ context.Context, to *LogicalFiles) error {
			_, _, err := to.Add("data/1", func(w io.Writer) error { _, err := w.Write(hiss(1, 100)); return err })
			return errors.Join(err, broken)
		},
	} {
		if _, err := TakeLogical(t.Context(), r.logicalConfig(fill)); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	snaps, err := catalog.NewReader(r.vault.Reader(), r.trust).Snapshots(t.Context(), "main")
	noErr(t, err)
	if len(snaps.All) != 0 || len(snaps.Intents) != 2 {
		t.Errorf("%d snapshots, %d intents", len(snaps.All), len(snaps.Intents))
	}
}

func TestTheSameFileTwiceIsRefused(t *testing.T) {
	r := newRig(t)
	_, err := TakeLogical(t.Context(), r.logicalConfig(func(_ context.Context, to *LogicalFiles) error {
		for range 2 {
			if _, _, err := to.Add("a", func(io.Writer) error { return nil }); err != nil {
				return err
			}
		}
		return nil
	}))
	if err == nil || !strings.Contains(err.Error(), "written before") {
		t.Errorf("taken: %v", err)
	}
}

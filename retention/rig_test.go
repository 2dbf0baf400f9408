package retention

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

// book is a ledger on a file's terms: it keeps what it is told, in order, and can
// fail before or after it did.
type book struct {
	entries []string
	bodies  []removal // of those that are about removals
	before  error
	after   error
}

func (b *book) Append(_ context.Context, typ string, subject map[string]string, body any) (int64, error) {
	if b.before != nil {
		return 0, b.before
	}
	if r, ok := body.(removal); ok {
		b.bodies = append(b.bodies, r)
	}
	b.entries = append(b.entries, typ+" "+subject["cluster"])
	return int64(len(b.entries) - 1), b.after
}

func (b *book) AppendAnchored(ctx context.Context, typ string, subject map[string]string, body any) (int64, error) {
	return b.Append(ctx, typ, subject, body)
}

// rig is a repository in three directories, with a cluster's keeper and a clock.
type rig struct {
	t      *testing.T
	dirs   []string
	vault  *vault.Vault
	signer note.Signer
	book   *book
	keeper *Keeper
	now    time.Time
	run    func() // starts the vault's back-fill
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRig(t *testing.T, p Policy) *rig { return newRigWith(t, p, nil) }

// newRigWith puts other in the place of the third directory.
func newRigWith(t *testing.T, p Policy, other zone.Driver) *rig {
	t.Helper()
	r := &rig{t: t, book: &book{}, now: noon}
	skey, vkey, err := seal.NewSigningKey("node")
	noErr(t, err)
	r.signer, _, err = seal.LoadSigner(skey)
	noErr(t, err)
	trust, err := seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, Clusters: []string{"*"}, May: []string{"snapshot", "wal", "tombstone", "ledger"}}})
	noErr(t, err)
	var zones []*zone.Zone
	for i := range 3 {
		dir := filepath.Join(t.TempDir(), "zone")
		noErr(t, os.Mkdir(dir, 0o700))
		id := zone.Identity{Format: 1, Repository: "repo", Zone: fmt.Sprintf("z%d", i)}
		var d zone.Driver
		d, err = dirzone.New(dir)
		noErr(t, err)
		if i == 2 && other != nil {
			d = other
		}
		noErr(t, zone.Initialise(t.Context(), d, id))
		r.dirs = append(r.dirs, dir)
		zones = append(zones, zone.Open(id.Zone, d, id, zone.Options{}))
	}
	debts := t.TempDir()
	r.vault, err = vault.Open(vault.Config{Zones: zones, Quorum: 2, State: debts, RetryAfter: 5 * time.Millisecond})
	noErr(t, err)
	r.keeper = &Keeper{
		Cluster: "main", Policy: p, Catalog: catalog.NewReader(r.vault.Reader(), trust), Store: r.vault.Writer(), Remover: r.vault.Remover(),
		Ledger: r.book, Signer: r.signer, State: filepath.Join(t.TempDir(), "retention.json"), Now: func() time.Time { return r.now }, MaxShare: 1,
	}
	terms := p.Terms()
	noErr(t, r.keeper.save(state{Policy: &terms})) // it was applied before
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	started := false
	r.run = func() {
		started = true
		go func() { defer close(done); _ = r.vault.Run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		if started {
			<-done
		}
		noErr(t, r.vault.Close())
	})
	r.note(catalog.LineageName("main", 1), catalog.KindLineage, catalog.Lineage{Cluster: "main", Epoch: 1, SystemID: "sys", Timeline: 1})
	return r
}

func (r *rig) put(name string, body []byte) catalog.Ref {
	r.t.Helper()
	_, err := r.vault.Writer().Put(r.t.Context(), name, body, vault.PutOptions{})
	noErr(r.t, err)
	sum := sha256.Sum256(body)
	return catalog.Ref{Name: name, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])}
}

func (r *rig) note(name, kind string, body any) {
	r.t.Helper()
	text, err := seal.SignNote(kind, body, r.signer)
	noErr(r.t, err)
	r.put(name, text)
}

// segment archives a file of the first lineage.
func (r *rig) segment(at lsn.LSN) catalog.Ref {
	r.t.Helper()
	return r.wal(1, "sys", at)
}

// wal archives a file of timeline 1.
func (r *rig) wal(epoch int, system string, at lsn.LSN) catalog.Ref {
	r.t.Helper()
	mac := strings.Repeat(fmt.Sprintf("%08x", uint32(at>>8)), 4)
	name := catalog.WALName("main", epoch, 1, lsn.SegmentName(1, at.Segment(int64(seg)), int64(seg)), mac)
	ref := r.put(name, []byte("wal at "+at.String()))
	index := r.put(catalog.WALIndexName(name), []byte("index of "+at.String()))
	r.note(catalog.WALNoteName("main", epoch, 1, uint64(at), uint64(at+seg), mac[:8]), catalog.KindWAL, catalog.WAL{
		Cluster: "main", Epoch: epoch, Timeline: 1, SystemID: system, From: at, To: at + seg, Object: ref, Index: index,
	})
	return ref
}

// takeAll takes snapshots that are so many days old, in that order.
func (r *rig) takeAll(days ...int) {
	r.t.Helper()
	for _, d := range days {
		r.take(ago(time.Duration(d) * day))
	}
}

// take commits a snapshot with its WAL, its pack and, for more, packs of others.
func (r *rig) take(s catalog.Snapshot, more ...catalog.Ref) catalog.Ref {
	r.t.Helper()
	r.note(catalog.IntentName("main", s.ID), catalog.KindIntent, catalog.Intent{
		Cluster: "main", ID: s.ID, Epoch: s.Epoch, StartedAt: s.StartedAt, SystemID: s.SystemID, Timeline: s.Timeline, From: s.StartLSN,
	})
	return r.commit(s, more...)
}

// commit writes what follows a snapshot's intent.
func (r *rig) commit(s catalog.Snapshot, more ...catalog.Ref) catalog.Ref {
	r.t.Helper()
	body := []byte("pack of " + s.ID)
	pack := r.put(catalog.PackName("main", s.ID, 0, sha256.Sum256(body)), body)
	s.WAL = []catalog.Ref{r.wal(s.Epoch, s.SystemID, first(s))}
	s.Manifest = r.put(catalog.ManifestName("main", s.ID), []byte("manifest of "+s.ID))
	list, err := catalog.EncodeObjects(slices.Concat([]catalog.Ref{pack, s.Manifest}, s.WAL, more))
	noErr(r.t, err)
	s.Objects = r.put(catalog.ObjectsName("main", s.ID), list)
	r.note(catalog.SnapshotName("main", s.ID), catalog.KindSnapshot, s)
	r.settle()
	return pack
}

// settle waits until all zones have what was written.
func (r *rig) settle() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		behind := 0
		for _, n := range r.vault.Behind() {
			behind += n
		}
		if behind == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("zones stay behind: %v", r.vault.Behind())
		}
	}
}

// names lists the files below clusters/ of a zone that contain part.
func (r *rig) names(i int, part string) (out []string) {
	r.t.Helper()
	root := r.dirs[i]
	err := filepath.WalkDir(filepath.Join(root, "clusters"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		rel, _ := filepath.Rel(root, path)
		if err == nil && !d.IsDir() && strings.Contains(rel, part) {
			out = append(out, rel)
		}
		return err
	})
	noErr(r.t, err)
	return out
}

func (r *rig) apply() catalog.Forgotten {
	r.t.Helper()
	p, err := r.keeper.Plan(r.t.Context(), false)
	noErr(r.t, err)
	m, err := r.keeper.Apply(r.t.Context(), p)
	noErr(r.t, err)
	return m
}

func (r *rig) sweep() []Swept {
	r.t.Helper()
	s, err := r.keeper.Sweep(r.t.Context())
	noErr(r.t, err)
	return s
}

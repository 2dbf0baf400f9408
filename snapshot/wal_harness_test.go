package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

// faulty is a real directory zone that a test can break.
type faulty struct {
	zone.Driver
	mu    sync.Mutex
	down  error         // answer of every call
	hang  chan struct{} // every call waits until it is closed, or its context ends
	moody bool          // calls fail, hang and are cut off in turn
	calls int
}

func (f *faulty) set(down error, hang chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down, f.hang = down, hang
}

// gate lets a call through, or not; cut says that it goes through and that its
// answer is then cut off.
func (f *faulty) gate(ctx context.Context) (cut bool, err error) {
	f.mu.Lock()
	down, hang := f.down, f.hang
	if f.moody {
		f.calls++
		switch f.calls % 4 {
		case 1:
			down = errZoneDown
		case 2:
			cut = true
		case 3:
			hang = make(chan struct{})
		}
	}
	f.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return cut, down
}

var errCut = fmt.Errorf("the connection was cut off: %w", zone.ErrUnreachable)

// Create whose answer is cut off has made the object.
func (f *faulty) Create(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	cut, err := f.gate(ctx)
	if err != nil {
		return err
	}
	if err := f.Driver.Create(ctx, name, body, opt); err != nil || !cut {
		return err
	}
	return errCut
}

func (f *faulty) Read(ctx context.Context, name, version string, off, n int64) (io.ReadCloser, error) {
	cut, err := f.gate(ctx)
	if err != nil {
		return nil, err
	}
	body, err := f.Driver.Read(ctx, name, version, off, n)
	if err != nil || !cut {
		return body, err
	}
	return cutBody{io.LimitReader(body, 100), body}, nil
}

// cutBody gives its first bytes and then an error.
type cutBody struct {
	io.Reader
	io.Closer
}

func (c cutBody) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	return n, err
}

func (f *faulty) List(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	return f.list(ctx, prefix, yield, f.Driver.List)
}

func (f *faulty) ListVersions(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	return f.list(ctx, prefix, yield, f.Driver.ListVersions)
}

// list that is cut off has shown one object.
func (f *faulty) list(ctx context.Context, prefix string, yield func(zone.Object) error, by func(context.Context, string, func(zone.Object) error) error) error {
	cut, err := f.gate(ctx)
	if err != nil {
		return err
	}
	shown := false
	err = by(ctx, prefix, func(o zone.Object) error {
		if cut && shown {
			return errCut
		}
		shown = true
		return yield(o)
	})
	if err == nil && cut {
		err = errCut
	}
	return err
}

var errZoneDown = fmt.Errorf("the test took the zone down: %w", zone.ErrUnreachable)

// repo is a repository of three directory zones with a quorum of two, and the
// keys to read it.
type repo struct {
	t     testing.TB
	zones []*faulty
	dirs  []string
	drv   []*zone.Zone
	keys  seal.DigestKeys
	id    age.Identity
	to    []age.Recipient
	sign  note.Signer
	trust seal.Trust
	state string // where nodes keep their state
}

func newWALRepo(t testing.TB) *repo {
	t.Helper()
	r := &repo{t: t, state: t.TempDir()}
	for i := range 3 {
		dir := t.TempDir()
		d, err := dirzone.New(dir)
		okay(t, err)
		id := zone.Identity{Format: 1, Repository: "0123456789abcdef", Zone: string(rune('a' + i))}
		okay(t, zone.Initialise(t.Context(), d, id))
		f := &faulty{Driver: d}
		r.zones, r.dirs = append(r.zones, f), append(r.dirs, dir)
		r.drv = append(r.drv, zone.Open(id.Zone, f, id, zone.Options{Timeout: 2 * time.Second}))
	}
	var err error
	r.keys, err = seal.NewDigestKeys(1)
	okay(t, err)
	id, err := age.GenerateX25519Identity()
	okay(t, err)
	r.id, r.to = id, []age.Recipient{id.Recipient()}
	skey, vkey, err := seal.NewSigningKey("node")
	okay(t, err)
	r.sign, _, err = seal.LoadSigner(skey)
	okay(t, err)
	r.trust, err = seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, Clusters: []string{"cms"}, May: []string{"wal", "snapshot"}}})
	okay(t, err)
	return r
}

// newMoodyRepo is a repository whose third zone fails, hangs and is cut off in
// turn, call by call: the other two are the quorum.
func newMoodyRepo(t testing.TB) *repo {
	t.Helper()
	r := newWALRepo(t)
	r.zones[2].mu.Lock()
	defer r.zones[2].mu.Unlock()
	r.zones[2].moody = true
	return r
}

func okay(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// vault opens the zones as a process does, with journals of its own.
func (r *repo) vault() *vault.Vault {
	r.t.Helper()
	v, err := vault.Open(vault.Config{Zones: r.drv, Quorum: 2, State: r.t.TempDir(), SlowAfter: 200 * time.Millisecond})
	okay(r.t, err)
	r.t.Cleanup(func() { v.Close() })
	return v
}

func (r *repo) lineageConfig(state string, s Server) LineageConfig {
	return LineageConfig{
		Cluster: "cms", Server: s, Node: "node-" + state, StateID: state, Boot: "boot", Signer: r.sign, Trust: r.trust,
		Quorum: 2, Now: time.Now,
	}
}

func (r *repo) claim(v *vault.Vault, state string, s Server) catalog.Lineage {
	r.t.Helper()
	l, err := Claim(r.t.Context(), r.lineageConfig(state, s), v.Writer())
	okay(r.t, err)
	return l
}

func (r *repo) writerConfig(v *vault.Vault, l catalog.Lineage, spool string) WriterConfig {
	return WriterConfig{
		Lineage: l, Store: v.Writer(), Trust: r.trust, Signer: r.sign, Keys: r.keys, Data: r.to, Index: r.to,
		Spool: spool, Now: time.Now,
	}
}

func (r *repo) writer(v *vault.Vault, l catalog.Lineage, spool string) *WALWriter {
	r.t.Helper()
	w, err := OpenWriter(r.writerConfig(v, l, spool))
	okay(r.t, err)
	return w
}

// notes reads every WAL note of the cluster.
func (r *repo) notes(v *vault.Vault) []catalog.WAL {
	r.t.Helper()
	reader := catalog.NewReader(v.Reader(), r.trust)
	entries, err := reader.WALEntries(r.t.Context(), "cms", "")
	okay(r.t, err)
	notes, faults, err := reader.WALNotes(r.t.Context(), "cms", entries.List)
	okay(r.t, err)
	if len(faults) > 0 {
		r.t.Fatalf("notes that do not open: %v", faults)
	}
	var out []catalog.WAL
	for _, n := range notes {
		if len(n.Zones) < 2 {
			r.t.Errorf("%s is in %v only, the quorum is 2", n.Name, n.Zones)
		}
		out = append(out, n.Body)
	}
	return out
}

// plain fetches and opens what a note vouches for.
func (r *repo) plain(v *vault.Vault, w catalog.WAL) []byte {
	r.t.Helper()
	body, err := v.Reader().Get(r.t.Context(), w.Object.Name, w.Object.Size, w.Object.SHA256)
	okay(r.t, err)
	data, err := seal.OpenFile(body, []age.Identity{r.id}, 1<<26)
	okay(r.t, err)
	return data
}

// archived puts together all WAL of a timeline that notes of any epoch vouch
// for, from the first to the end without a hole, and checks that overlapping
// objects hold the same bytes.
func (r *repo) archived(v *vault.Vault, timeline uint32) (from lsn.LSN, data []byte) {
	r.t.Helper()
	notes := slices.DeleteFunc(r.notes(v), func(w catalog.WAL) bool { return w.From == w.To || w.Timeline != timeline })
	slices.SortFunc(notes, func(a, b catalog.WAL) int { return compareSpans(0, 0, a.From, b.From, b.To, a.To) })
	for i, w := range notes {
		plain := r.plain(v, w)
		if int64(len(plain)) != int64(w.To-w.From) || w.RawSize != int64(len(plain)) {
			r.t.Fatalf("%s holds %d bytes, its note says %s to %s", w.Object.Name, len(plain), w.From, w.To)
		}
		if i == 0 {
			from = w.From
		}
		end := from + lsn.LSN(len(data))
		if w.From > end {
			r.t.Fatalf("timeline %d: WAL from %s to %s is missing", timeline, end, w.From)
		}
		old := data[w.From-from:]
		n := min(len(old), len(plain))
		if string(old[:n]) != string(plain[:n]) {
			r.t.Fatalf("%s differs from what other objects hold of the same stretch", w.Object.Name)
		}
		data = append(data, plain[n:]...)
	}
	return from, data
}

// checkChainOf sees that the notes of an epoch are one chain.
func (r *repo) checkChainOf(v *vault.Vault, epoch int) {
	r.t.Helper()
	seen := map[int64]string{}
	for _, w := range r.notes(v) {
		if w.Epoch != epoch {
			continue
		}
		if other, twice := seen[w.Number]; twice {
			r.t.Errorf("number %d is signed twice: %s and %s", w.Number, other, w.Object.Name)
		}
		seen[w.Number] = w.Object.Name
	}
	for n := int64(1); n <= int64(len(seen)); n++ {
		if seen[n] == "" {
			r.t.Errorf("number %d is missing among %d notes", n, len(seen))
		}
	}
}

// objects lists the files of one zone under a folder.
func (r *repo) objects(i int, prefix string) []string {
	var out []string
	_ = filepath.WalkDir(filepath.Join(r.dirs[i], filepath.FromSlash(prefix)), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(r.dirs[i], p)
			out = append(out, filepath.ToSlash(rel))
		}
		return nil
	})
	return out
}

// wantErr fails unless err is want and says all of the words.
func wantErr(t testing.TB, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// SourceCopy is the source of logical snapshots: rows by COPY, DDL by pg_dump.
const SourceCopy = "copy"

// LogicalConfig says what logical snapshot to take and where to put it. Of Take, what
// names the cluster, the node and the lineage, the store and who can open it is used.
type LogicalConfig struct {
	Take TakeConfig
	Kind string // catalog.Logical | catalog.Project
	// KeyMAC and DigestEpoch say whose a project's snapshot is.
	KeyMAC      string
	DigestEpoch int
	// Server is what is exported; its LSN is a place in the log before all of it.
	Server    Server
	ServerNum int
	SegSize   int64
	// Fill exports: it adds files, by several goroutines if it likes, and says of what
	// moments they are.
	Fill func(ctx context.Context, to *LogicalFiles) (Filled, error)
}

// Filled says of what moments the files are: of one where both are the same.
type Filled struct {
	First, Last time.Time // the server's clock
	To          lsn.LSN   // everything in them was written before
	OID         uint32    // of the schema or database that a project is
}

func (c *LogicalConfig) check() error {
	var f faults
	c.Take.checkWho(&f)
	f.need(catalog.Exported(c.Kind), fmt.Sprintf("kind %q: want %s or %s", c.Kind, catalog.Logical, catalog.Project))
	f.need((c.Kind == catalog.Project) == (c.KeyMAC != ""), "a project's snapshot, and no other, has the MAC of a key")
	f.need(c.Fill != nil, "what fills it must be given")
	return errors.Join(f...)
}

// TakeLogical makes one logical snapshot and returns it when it is committed: the
// quorum of zones holds its note. It is never gone on with: an error or a cancellation
// leaves objects under an intent, which retention removes.
func TakeLogical(ctx context.Context, cfg LogicalConfig) (catalog.Snapshot, error) {
	if err := cfg.check(); err != nil {
		return catalog.Snapshot{}, fmt.Errorf("take a logical snapshot of %s: %w", cfg.Take.Cluster, err)
	}
	cfg.Take.fill()
	l := &logical{cfg: cfg}
	l.take = &take{cfg: cfg.Take, id: NewID(cfg.Take.Now()), making: &making{}}
	l.take.log = cfg.Take.Log.With(zap.String("cluster", cfg.Take.Cluster), zap.String("snapshot", l.take.id))
	snap, err := l.run(ctx)
	if err != nil {
		return catalog.Snapshot{}, fmt.Errorf("take %s snapshot %s of %s: %w", cfg.Kind, l.take.id, cfg.Take.Cluster, err)
	}
	return snap, nil
}

// logical is one logical snapshot in the making.
type logical struct {
	cfg  LogicalConfig
	take *take
}

// run does the steps in the order of docs/format.md: W1 to W4.
func (l *logical) run(ctx context.Context) (catalog.Snapshot, error) {
	t := l.take
	t.step("start")
	t.startedAt = t.cfg.Now().UTC()
	if err := l.putIntent(ctx); err != nil {
		return catalog.Snapshot{}, err
	}
	files, filled, err := l.copy(ctx)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	t.step("commit")
	c, err := l.close(files, filled)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	return t.deliver(ctx, c)
}

func (l *logical) putIntent(ctx context.Context) error {
	t, s := l.take, l.cfg.Server
	body, err := seal.SignNote(catalog.KindIntent, catalog.Intent{
		Cluster: t.cfg.Cluster, ID: t.id, Epoch: t.cfg.Epoch, Node: t.cfg.Node, StartedAt: t.startedAt,
		SystemID: s.SystemID, Timeline: s.Timeline, From: s.LSN,
	}, t.cfg.Signer)
	if err == nil {
		_, err = t.put(ctx, catalog.IntentName(t.cfg.Cluster, t.id), body)
	}
	return err
}

// copy has the files filled, and their packs sent.
func (l *logical) copy(ctx context.Context) (*LogicalFiles, Filled, error) {
	t := l.take
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t.pack = newPacker(ctx, t.cfg.Data, t.flying(), t.putPack)
	to := &LogicalFiles{take: t, ctx: ctx, have: map[string]bool{}}
	filled, err := l.cfg.Fill(ctx, to)
	if err == nil {
		err = t.pack.flush()
	}
	if err != nil {
		cancel(err)
	}
	return to, filled, errors.Join(err, t.pack.wait())
}

// close makes what commits the snapshot.
func (l *logical) close(files *LogicalFiles, filled Filled) (c closing, err error) {
	t := l.take
	slices.SortFunc(files.list, func(a, b catalog.LogicalFile) int { return strings.Compare(a.Path, b.Path) })
	m := catalog.LogicalManifest{Header: catalog.LogicalHeader{Kind: l.cfg.Kind, Cluster: t.cfg.Cluster, Snapshot: t.id}, Files: files.list}
	for n, p := range t.pack.packs {
		m.Packs = append(m.Packs, catalog.ManifestPack{N: n, Ref: p.Ref, Raw: p.Raw, Live: p.Raw})
	}
	if c.Manifest, err = l.sealManifest(m); err != nil {
		return c, fmt.Errorf("make the manifest: %w", err)
	}
	s := &c.Snapshot
	*s = l.summary(files, filled)
	s.Manifest = refOf(catalog.ManifestName(t.cfg.Cluster, t.id), c.Manifest)
	refs := []catalog.Ref{s.Manifest}
	for _, p := range m.Packs {
		refs = append(refs, p.Ref)
	}
	if c.Objects, err = catalog.EncodeObjects(refs); err != nil {
		return c, err
	}
	s.Objects = refOf(catalog.ObjectsName(t.cfg.Cluster, t.id), c.Objects)
	s.StoredSize = s.Objects.Size
	for _, r := range refs {
		s.StoredSize += r.Size
	}
	s.NewBytes = s.StoredSize
	return c, nil
}

func (l *logical) sealManifest(m catalog.LogicalManifest) ([]byte, error) {
	var body bytes.Buffer
	w, err := seal.NewBlobWriter(&body, l.take.cfg.readers())
	if err == nil {
		err = errors.Join(catalog.EncodeLogical(w, m), w.Close()) // before its bytes are whole
	}
	return body.Bytes(), err
}

// summary is the note's body without what it binds.
func (l *logical) summary(files *LogicalFiles, filled Filled) catalog.Snapshot {
	t, s := l.take, l.cfg.Server
	out := catalog.Snapshot{
		Cluster: t.cfg.Cluster, ID: t.id, Kind: l.cfg.Kind, Source: SourceCopy, Node: t.cfg.Node, Epoch: t.cfg.Epoch,
		SystemID: s.SystemID, Major: s.Major, ServerNum: l.cfg.ServerNum, Timeline: s.Timeline, SegSize: l.cfg.SegSize,
		StartLSN: s.LSN, StopLSN: max(filled.To, s.LSN), StartedAt: filled.First.UTC(), FinishedAt: filled.Last.UTC(),
		Files: int64(len(files.list)), Recipients: t.cfg.Fingerprints, LockUntil: t.cfg.LockUntil, KeyMAC: l.cfg.KeyMAC, DigestEpoch: l.cfg.DigestEpoch, OID: filled.OID,
	}
	// The age of the bytes counts from the first of the two clocks.
	out.Oldest = t.startedAt
	if out.StartedAt.Before(out.Oldest) {
		out.Oldest = out.StartedAt
	}
	for _, f := range files.list {
		out.RawBytes += f.Size
	}
	return out
}

// LogicalFiles takes the files of a logical snapshot into packs, as they are written:
// none is ever on a disk. Several goroutines may add one each.
type LogicalFiles struct {
	take *take
	ctx  context.Context //nolint:containedctx // of the snapshot: io.Writer has none

	mu   sync.Mutex
	list []catalog.LogicalFile
	have map[string]bool // names of the list
	idle []*framer
}

// Add adds a file, whose bytes write streams, and says how many they are and their
// SHA-256. The name is relative, with slashes, and tells nothing.
func (to *LogicalFiles) Add(name string, write func(io.Writer) error) (size int64, sum string, err error) {
	f := to.framer()
	defer to.rest(f)
	f.file, f.sum, f.raw = catalog.LogicalFile{Path: name}, sha256.New(), f.raw[:0]
	if err = write(f); err == nil {
		err = f.flush()
	}
	if err != nil {
		return 0, "", fmt.Errorf("writing %s: %w", name, err)
	}
	f.file.SHA256 = hex.EncodeToString(f.sum.Sum(nil))
	to.mu.Lock()
	defer to.mu.Unlock()
	if to.have[name] {
		return 0, "", fmt.Errorf("writing %s: it was written before", name)
	}
	to.have[name] = true
	to.list = append(to.list, f.file)
	return f.file.Size, f.file.SHA256, nil
}

// framer takes one that rests, or makes one: each keeps megabytes.
func (to *LogicalFiles) framer() *framer {
	to.mu.Lock()
	defer to.mu.Unlock()
	if n := len(to.idle); n > 0 {
		f := to.idle[n-1]
		to.idle = to.idle[:n-1]
		return f
	}
	return &framer{to: to, zstd: seal.NewCompressor(to.take.cfg.Level), raw: make([]byte, 0, seal.MaxFrame)}
}

func (to *LogicalFiles) rest(f *framer) {
	to.mu.Lock()
	defer to.mu.Unlock()
	to.idle = append(to.idle, f)
}

// framer makes frames of the bytes of a file.
type framer struct {
	to   *LogicalFiles
	file catalog.LogicalFile
	zstd *seal.Compressor
	sum  hash.Hash
	raw  []byte // of the frame in the making
}

// Write implements io.Writer.
func (f *framer) Write(p []byte) (n int, err error) {
	for n < len(p) {
		some := p[n:min(len(p), n+seal.MaxFrame-len(f.raw))]
		f.raw = append(f.raw, some...)
		n += len(some)
		if len(f.raw) == seal.MaxFrame {
			if err := f.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// flush makes a frame of what was written.
func (f *framer) flush() error {
	if len(f.raw) == 0 {
		return context.Cause(f.to.ctx)
	}
	f.sum.Write(f.raw)
	at, err := f.to.take.pack.add(f.zstd.Compress(f.raw))
	if err != nil {
		return err
	}
	f.file.Frames = append(f.file.Frames, catalog.FrameOf(at))
	f.file.Size += int64(len(f.raw))
	err = f.to.take.took(f.to.ctx, len(f.raw))
	f.raw = f.raw[:0]
	return err
}

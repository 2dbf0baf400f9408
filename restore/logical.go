package restore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
)

// Logical is a logical snapshot, or one of a project, that is read. It is for one
// goroutine at a time.
type Logical struct {
	Snapshot catalog.Snapshot
	repo     Repo
	all      Repo // what deleted projects are looked up in: every zone
	manifest catalog.LogicalManifest
	places   map[string]int // of files
	packs    []*heldPack    // asked for last, the newest last
}

// heldPack is a pack in memory, or on its way there.
type heldPack struct {
	n      int
	ready  chan struct{}
	reader *seal.PackReader
	err    error
}

// packsHeld bounds the packs in memory: files that were written at once lie in the same
// ones.
const packsHeld = 3

// Bounds of what is read of a logical snapshot into memory.
const (
	maxStoredJSON = 64 << 20
	maxStoredDDL  = 64 << 20
)

// ErrPhysical means that a snapshot is one of files: it has no rows to load.
var ErrPhysical = errors.New("the snapshot is a physical one")

// OpenLogical reads the manifest of a logical snapshot; from one zone alone, where one is
// named.
func OpenLogical(ctx context.Context, all Repo, zone string, s catalog.Snapshot) (*Logical, error) {
	if !catalog.Exported(s.Kind) {
		return nil, fmt.Errorf("opening snapshot %s: %w", s.ID, ErrPhysical)
	}
	if known := all.Reader.Zones(); zone != "" && !slices.Contains(known, zone) {
		return nil, fmt.Errorf("opening snapshot %s: there is no zone %q; want one of %s", s.ID, zone, strings.Join(known, ", "))
	}
	r := all.only(zone)
	l := &Logical{Snapshot: s, repo: r, all: all, places: map[string]int{}}
	sealed, err := r.Reader.Get(ctx, s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	if err == nil {
		l.manifest, err = catalog.OpenLogical(sealed, r.identities())
	}
	if h := l.manifest.Header; err == nil && (h.Cluster != s.Cluster || h.Snapshot != s.ID || h.Kind != s.Kind) {
		err = fmt.Errorf("its manifest is of %s snapshot %q of %q", h.Kind, h.Snapshot, h.Cluster)
	}
	if err != nil {
		return nil, fmt.Errorf("opening snapshot %s of %s: %w", s.ID, s.Cluster, err)
	}
	for i, f := range l.manifest.Files {
		l.places[f.Path] = i
	}
	return l, nil
}

// Files are the names of its files, in order.
func (l *Logical) Files() (names []string) {
	for _, f := range l.manifest.Files {
		names = append(names, f.Path)
	}
	return names
}

// Copy writes a file's bytes, and fails where they are not those that were taken: what
// was written by then is of no use.
func (l *Logical) Copy(ctx context.Context, name string, to io.Writer) error {
	if err := l.copy(ctx, name, to); err != nil {
		return fmt.Errorf("reading %s of snapshot %s: %w", name, l.Snapshot.ID, err)
	}
	return nil
}

func (l *Logical) copy(ctx context.Context, name string, to io.Writer) error {
	i, ok := l.places[name]
	if !ok {
		return errors.New("it has no such file")
	}
	f := l.manifest.Files[i]
	sum := sha256.New()
	var d seal.FrameDecoder
	var raw []byte
	var p *seal.PackReader
	for i, x := range f.Frames {
		if i == 0 || f.Frames[i-1].Pack != x.Pack {
			var err error
			if p, err = l.pack(ctx, f.Frames[i:]); err != nil {
				return err
			}
		}
		var err error
		if raw, err = d.Frame(p, seal.Frame{Off: x.Off, Len: x.Len, Raw: x.Raw, SHA256: x.SHA256}, raw); err != nil {
			return fmt.Errorf("%s: %w", l.manifest.Packs[x.Pack].Ref.Name, err)
		}
		sum.Write(raw)
		if _, err := to.Write(raw); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
		return fmt.Errorf("its SHA-256 is %s, and %s was taken", got, f.SHA256)
	}
	return nil
}

// pack gives the pack that the first of a file's frames lies in, and has the next one
// fetched meanwhile.
func (l *Logical) pack(ctx context.Context, frames []catalog.PackFrame) (*seal.PackReader, error) {
	n := frames[0].Pack
	h := l.want(ctx, n)
	if next := slices.IndexFunc(frames, func(x catalog.PackFrame) bool { return x.Pack != n }); next >= 0 {
		l.want(ctx, frames[next].Pack)
	}
	select {
	case <-h.ready:
		return h.reader, h.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// want is a pack in memory, or on its way there from now on; the newest of them.
func (l *Logical) want(ctx context.Context, n int) *heldPack {
	h := &heldPack{n: n, ready: make(chan struct{})}
	if i := slices.IndexFunc(l.packs, func(h *heldPack) bool { return h.n == n }); i >= 0 {
		h = l.packs[i]
		l.packs = slices.Delete(l.packs, i, i+1)
	} else {
		go l.fetch(ctx, h)
	}
	if len(l.packs) == packsHeld {
		l.packs = slices.Delete(l.packs, 0, 1)
	}
	l.packs = append(l.packs, h)
	return h
}

// fetch opens a pack, whose bytes a zone gave as the manifest names them.
func (l *Logical) fetch(ctx context.Context, h *heldPack) {
	defer close(h.ready)
	ref := l.manifest.Packs[h.n].Ref
	body, err := l.repo.Reader.Get(ctx, ref.Name, ref.Size, ref.SHA256)
	if err == nil {
		h.reader, err = seal.OpenPack(bytes.NewReader(body), int64(len(body)), l.repo.Data)
	}
	if err != nil {
		h.err = fmt.Errorf("fetching %s: %w", ref.Name, err)
	}
}

// read gives the whole of a small file.
func (l *Logical) read(ctx context.Context, name string, most int64) ([]byte, error) {
	if i, ok := l.places[name]; ok && l.manifest.Files[i].Size > most {
		return nil, fmt.Errorf("reading %s of snapshot %s: it has %d bytes, more than %d", name, l.Snapshot.ID, l.manifest.Files[i].Size, most)
	}
	var b bytes.Buffer
	err := l.Copy(ctx, name, &b)
	return b.Bytes(), err
}

func (l *Logical) json(ctx context.Context, name string, into any) error {
	text, err := l.read(ctx, name, maxStoredJSON)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	return err
}

// StoredDatabase is a database of a logical snapshot, or the one that a project lay in.
type StoredDatabase struct {
	Name    string // of the database
	Dir     string // before its files' names
	Moment  tenancy.Moment
	OID     uint32
	Schemas map[string]uint32
	Project *portable.Project // nil: all of the database
	Layout  tenancy.Layout    // of the project
	// Rows that were taken, and their bytes.
	Rows, Bytes int64
	NotCovered  []string
}

// storedManifest is a portable manifest that is read again.
type storedManifest struct {
	portable.Manifest
	Moment    tenancy.Moment     `json:"moment"`
	Sequences []tenancy.Sequence `json:"sequences"`
}

// storedIndex is the index of a cluster's databases.
type storedIndex struct {
	portable.Databases
	List []struct {
		portable.DatabaseEntry
		Moment tenancy.Moment `json:"moment"`
	} `json:"databases"`
}

// Databases lists what the snapshot holds; a project's has one.
func (l *Logical) Databases(ctx context.Context) (list []StoredDatabase, notCovered []string, err error) {
	if l.Snapshot.Kind == catalog.Project {
		var m storedManifest
		if err := l.json(ctx, portable.ManifestName, &m); err != nil {
			return nil, nil, err
		}
		layout := tenancy.Layout{Kind: m.Layout.Kind, Database: m.Layout.Database, Root: m.Layout.Root, Key: m.Layout.Key}
		d := StoredDatabase{Name: layout.In(m.Project.ID), Moment: m.Moment, Project: &m.Project, Layout: layout, NotCovered: m.NotCovered}
		d.Rows, d.Bytes = m.Rows()
		return []StoredDatabase{d}, m.NotCovered, nil
	}
	var index storedIndex
	if err := l.json(ctx, portable.ManifestName, &index); err != nil {
		return nil, nil, err
	}
	if index.Format != portable.FormatDatabases {
		return nil, nil, fmt.Errorf("reading what snapshot %s holds: its index is of form %q, this program reads %s", l.Snapshot.ID, index.Format, portable.FormatDatabases)
	}
	for _, e := range index.List {
		list = append(list, StoredDatabase{
			Name: e.Name, Dir: strings.TrimSuffix(e.File.Name, portable.ManifestName), Moment: e.Moment, OID: e.OID, Schemas: e.Schemas, Rows: e.Rows, Bytes: e.Bytes,
		})
	}
	return list, index.NotCovered, nil
}

// Due are the tombstones whose projects may be in the snapshot, as they are known now.
// An incomplete set is an error: a deleted project could come back.
func (l *Logical) Due(ctx context.Context) ([]catalog.Tombstone, error) {
	s := l.Snapshot
	tombs, err := tombstones(ctx, l.all, s.Cluster)
	if err != nil || len(tombs) == 0 {
		return nil, err
	}
	absences, err := l.all.Catalog.Absences(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading tombstones: %w", err)
	}
	legs := l.legs(ctx)
	return slices.DeleteFunc(tombs, func(t catalog.Tombstone) bool {
		return !applies(t, absences, s.SystemID, legs, s.StartLSN)
	}), nil
}

// legs is the way to the snapshot's timeline; its own timeline alone where the archive
// does not tell: then a tombstone counts that need not.
func (l *Logical) legs(ctx context.Context) []leg {
	t := l.Snapshot.Timeline
	if t > 1 {
		g := &gatherer{Repo: l.repo, cluster: l.Snapshot.Cluster}
		g.in.Timeline = t
		if wal, err := l.repo.Catalog.WALEntries(ctx, g.cluster, ""); err == nil {
			if history, err := g.histories(ctx, wal.Backed()); err == nil {
				return path(t, history)
			}
		}
	}
	return path(t, nil)
}

// Keys opens the keys of digest epochs.
type Keys func(ctx context.Context, epoch int) (seal.DigestKeys, error)

// Refuse is ErrDeleted where the snapshot is that of a project which is deleted.
func (l *Logical) Refuse(ctx context.Context, d StoredDatabase, due []catalog.Tombstone, keys Keys) error {
	if d.Project == nil {
		return nil
	}
	for _, t := range due {
		is := l.Snapshot.Of(t)
		if !is {
			var err error
			if is, err = isOf(ctx, t, d.Layout, d.Project.ID, keys); err != nil {
				return err
			}
		}
		if is {
			return fmt.Errorf("%w %s, requested %s", ErrDeleted, t.ID, stamp(t.RequestedAt))
		}
	}
	return nil
}

// Gone says whether a whole database is a deleted project, and by which tombstone.
func (l *Logical) Gone(ctx context.Context, d StoredDatabase, due []catalog.Tombstone, keys Keys) (by string, err error) {
	for _, t := range due {
		if t.Layout != tenancy.Database || d.Project != nil {
			continue
		}
		is := t.OID != 0 && t.OID == d.OID && t.SystemID == l.Snapshot.SystemID && t.Timeline == l.Snapshot.Timeline
		if !is {
			if is, err = isOf(ctx, t, tenancy.LayoutOf(t), d.Name, keys); err != nil {
				return "", err
			}
		}
		if is {
			return t.ID, nil
		}
	}
	return "", nil
}

// Within are the tombstones of projects inside a database, and the schemas of which it
// is known by their OIDs whose they are.
func (l *Logical) Within(d StoredDatabase, due []catalog.Tombstone) (tombs []catalog.Tombstone, known map[string]string) {
	known = map[string]string{}
	for _, t := range due {
		if d.Project != nil || t.Layout == tenancy.Database || t.Database != d.Name {
			continue
		}
		tombs = append(tombs, t)
		if t.Layout != tenancy.Schema || t.OID == 0 || t.SystemID != l.Snapshot.SystemID || t.Timeline != l.Snapshot.Timeline {
			continue
		}
		for name, oid := range d.Schemas {
			if oid == t.OID {
				known[t.ID] = name
			}
		}
	}
	return tombs, known
}

// LoadedDatabase is a database that was loaded.
type LoadedDatabase struct {
	Rows       int64              `json:"rows"`
	Tables     []catalog.Count    `json:"tables"` // as they were loaded, before deleted projects were removed
	Views      []string           `json:"views_not_filled"`
	Tombstones []AppliedTombstone `json:"tombstones"`
	NotCovered []string           `json:"not_covered"`
}

// Load makes a database's tables and loads their rows into a fresh database, and removes
// what belongs to deleted projects, those of now: nobody else should be let in before.
func (l *Logical) Load(ctx context.Context, d StoredDatabase, conn *pgx.Conn, keys Keys, tell func(table string, rows int64)) (out LoadedDatabase, err error) {
	var m storedManifest
	if err := l.json(ctx, d.Dir+portable.ManifestName, &m); err != nil {
		return out, err
	}
	ddl, err := l.read(ctx, d.Dir+"schema.sql", maxStoredDDL)
	if err != nil {
		return out, err
	}
	if err := tenancy.Define(ctx, conn, ddl); err != nil {
		return out, err
	}
	loaded, err := tenancy.LoadStored(ctx, conn, l.stored(d, m), tell)
	if err != nil {
		return out, err
	}
	out = LoadedDatabase{Rows: loaded.Rows, Tables: loaded.Tables, Views: loaded.Views, Tombstones: []AppliedTombstone{}, NotCovered: m.NotCovered}
	due, err := l.Due(ctx)
	if err != nil {
		return out, err
	}
	if err := l.Refuse(ctx, d, due, keys); err != nil { // meanwhile
		return out, err
	}
	tombs, known := l.Within(d, due)
	if len(tombs) == 0 {
		return out, nil
	}
	applied, err := tenancy.ReplayIn(ctx, conn, tombs, known, func(epoch int) (seal.DigestKeys, error) { return keys(ctx, epoch) })
	for _, a := range applied {
		out.Tombstones = append(out.Tombstones, AppliedTombstone(a))
	}
	if err != nil {
		err = fmt.Errorf("removing deleted projects from the loaded database: %w", err)
	}
	return out, err
}

// stored is what a manifest says there is to load.
func (l *Logical) stored(d StoredDatabase, m storedManifest) tenancy.Stored {
	s := tenancy.Stored{Encoding: "UTF8", Sequences: m.Sequences}
	if m.Moment.Encoding == "SQL_ASCII" {
		s.Encoding = m.Moment.Encoding
	}
	for _, t := range m.Tables {
		one := tenancy.StoredTable{Schema: t.Schema, Table: t.Table, Rows: t.Rows}
		for _, c := range t.Columns {
			one.Columns = append(one.Columns, c.Name)
		}
		one.Write = func(ctx context.Context, to io.Writer) error { return l.Copy(ctx, d.Dir+t.File.Name, to) }
		s.Tables = append(s.Tables, one)
	}
	return s
}

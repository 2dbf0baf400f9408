package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// putIntent announces the snapshot before its first pack (W1).
func (t *take) putIntent(ctx context.Context) (from lsn.LSN, err error) {
	if from, err = t.whence(ctx); err != nil {
		return 0, err
	}
	body, err := seal.SignNote(catalog.KindIntent, catalog.Intent{
		Cluster: t.cfg.Cluster, ID: t.id, Epoch: t.cfg.Epoch, Node: t.cfg.Node, StartedAt: t.startedAt, Base: t.header.Base,
		SystemID: t.srv.facts.SystemID, Timeline: t.srv.facts.Timeline, From: from,
	}, t.cfg.Signer)
	if err != nil {
		return 0, err
	}
	_, err = t.put(ctx, catalog.IntentName(t.cfg.Cluster, t.id), body)
	return from, err
}

// whence is a place in the log of which no page that will be read is older: files
// are as new as the checkpoint with which a primary begins the backup, and those
// of a standby as its last restartpoint.
func (t *take) whence(ctx context.Context) (at lsn.LSN, err error) {
	var text string
	err = t.srv.conn.Pgx().QueryRow(ctx, `SELECT (CASE WHEN pg_is_in_recovery() THEN (SELECT redo_lsn FROM pg_control_checkpoint())
		ELSE pg_current_wal_insert_lsn() END)::text`).Scan(&text)
	if err == nil {
		at, err = lsn.Parse(text)
	}
	if err != nil {
		return 0, fmt.Errorf("ask where the log stands: %w", err)
	}
	return at, nil
}

func (t *take) put(ctx context.Context, name string, body []byte) (catalog.Ref, error) {
	stored, err := t.cfg.Store.Put(ctx, name, body, vault.PutOptions{LockUntil: t.cfg.LockUntil})
	return catalog.Ref{Name: name, Size: stored.Size, SHA256: stored.SHA256}, err
}

// putPack sends a sealed pack from the buffer that it was sealed in (W2).
func (t *take) putPack(ctx context.Context, n int, body []byte, sum [32]byte) (catalog.Ref, error) {
	name := catalog.PackName(t.cfg.Cluster, t.id, n, sum)
	stored, err := t.cfg.Store.Put(ctx, name, body, vault.PutOptions{LockUntil: t.cfg.LockUntil, SHA256: sum})
	return catalog.Ref{Name: name, Size: stored.Size, SHA256: stored.SHA256}, err
}

// commit makes the manifest and the list, and delivers them with the note (W3 to W5).
func (t *take) commit(ctx context.Context, m *mapper) (catalog.Snapshot, error) {
	s, err := t.summary(ctx)
	if err != nil {
		return s, err
	}
	packs := m.packs()
	maps, number := m.number()
	s.Oldest = oldest(t.startedAt, packs, maps)
	c := closing{Snapshot: s}
	if c.Manifest, err = t.sealManifest(packs, maps, m.order, number); err != nil {
		return s, fmt.Errorf("make the manifest: %w", err)
	}
	c.Snapshot.Manifest = refOf(catalog.ManifestName(t.cfg.Cluster, t.id), c.Manifest)
	refs := append([]catalog.Ref{c.Snapshot.Manifest}, s.WAL...)
	for _, p := range packs {
		refs = append(refs, p.Ref)
	}
	for _, p := range maps {
		refs = append(refs, p.Ref)
	}
	if c.Objects, err = catalog.EncodeObjects(refs); err != nil {
		return s, err
	}
	c.Snapshot.Objects = refOf(catalog.ObjectsName(t.cfg.Cluster, t.id), c.Objects)
	t.weigh(&c.Snapshot, refs, m)
	if err := t.store(c); err != nil {
		return s, err
	}
	if s, err = t.deliver(ctx, c); err != nil {
		return s, err
	}
	t.prune(maps)
	return s, nil
}

// weigh sums up what was made for the snapshot, and what it needs in all.
func (t *take) weigh(s *catalog.Snapshot, refs []catalog.Ref, m *mapper) {
	s.NewBytes = s.Manifest.Size + s.Objects.Size
	for _, p := range t.pack.packs {
		s.NewBytes += p.Ref.Size
	}
	for _, p := range m.maps {
		s.NewBytes += p.Ref.Size
	}
	s.StoredSize = s.Objects.Size
	for _, r := range refs {
		s.StoredSize += r.Size
	}
}

// summary is the note's body as far as it is known before the manifest.
func (t *take) summary(ctx context.Context) (catalog.Snapshot, error) {
	f := t.header.Facts
	files, raw := t.roll.sum()
	s := catalog.Snapshot{
		Cluster: t.cfg.Cluster, ID: t.id, Kind: "physical", Source: t.cfg.Source, Node: t.cfg.Node, Epoch: t.cfg.Epoch,
		SystemID: f.SystemID, Major: f.Major, ServerNum: f.ServerNum, Timeline: f.Timeline,
		StartLSN: f.StartLSN, StopLSN: f.StopLSN, StartedAt: f.StartedAt, FinishedAt: f.FinishedAt,
		SegSize: f.WALSegSize, RawBytes: raw, Files: files, Pages: t.judge(),
		Recipients: t.cfg.Fingerprints, LockUntil: t.cfg.LockUntil,
	}
	slices.Sort(t.reasons) // workers note them in any order
	s.Suspect, s.Reasons = len(t.reasons) > 0, t.reasons
	if t.cfg.WALRefs != nil {
		var err error
		// The header of a segment is read before a record in its middle.
		from := f.StartLSN.SegmentStart(f.WALSegSize)
		if s.WAL, err = t.cfg.WALRefs(ctx, f.Timeline, from, f.StopLSN); err != nil {
			return s, fmt.Errorf("find the WAL that the snapshot needs: %w", err)
		}
	}
	return s, nil
}

// sealManifest seals the manifest to whoever reads the index or the data. The files
// are in the order of their paths.
func (t *take) sealManifest(packs []catalog.ManifestPack, maps []catalog.ManifestMap, order []int32, number map[int32]int) ([]byte, error) {
	var body bytes.Buffer
	w, err := seal.NewBlobWriter(&body, t.cfg.readers())
	if err != nil {
		return nil, err
	}
	m, err := catalog.NewManifestWriter(w, t.header)
	if err != nil {
		return nil, err
	}
	for _, p := range packs {
		err = errors.Join(err, m.Pack(p))
	}
	for _, p := range maps {
		err = errors.Join(err, m.Map(p))
	}
	for _, n := range order {
		if err == nil {
			err = m.File(t.roll.entry(int(n), number))
		}
	}
	err = errors.Join(err, m.Close(), w.Close()) // before its bytes are whole
	return body.Bytes(), err
}

// nextLink continues the chain of a node's snapshot notes in one lineage: it names
// the one of the highest number, which after a step of the clock need not be that of
// the newest id. An answer that may miss some is an error, for two notes would get one
// number.
func (t *take) nextLink(ctx context.Context, node string, epoch int) (catalog.Link, error) {
	all, err := t.cfg.Catalog.Snapshots(ctx, t.cfg.Cluster)
	if err == nil && !all.Complete {
		err = catalog.ErrIncomplete
	}
	for _, f := range all.Faults {
		if errors.Is(f, vault.ErrDoubt) { // what nobody vouches for is no link, and must not end snapshots
			err = errors.Join(err, f)
		}
	}
	if err != nil {
		return catalog.Link{}, fmt.Errorf("look for the snapshot before: %w", err)
	}
	var last catalog.Snapshot
	for _, s := range all.All {
		if s.Body.Node == node && s.Body.Epoch == epoch && s.Body.Number > last.Number {
			last = s.Body
		}
	}
	if last.Number == 0 {
		return catalog.Link{Number: 1}, nil
	}
	_, hash, err := openSnapshot(ctx, t.cfg.Store, t.cfg.Trust, catalog.SnapshotName(t.cfg.Cluster, last.ID), t.cfg.Cluster)
	return catalog.Link{Number: last.Number + 1, Prev: hash}, err
}

// openSnapshot fetches one note and the hash of its bytes.
func openSnapshot(ctx context.Context, src catalog.Source, trust catalog.Truster, name, cluster string) (catalog.Snapshot, string, error) {
	var s catalog.Snapshot
	data, err := src.Fetch(ctx, name, func(_ string, data []byte) error {
		var body catalog.Snapshot
		_, err := trust.Open(data, catalog.KindSnapshot, string(catalog.DutySnapshot), cluster, &body)
		if err == nil {
			s = body
		}
		return err
	})
	if err != nil {
		return s, "", fmt.Errorf("read %s: %w", name, err)
	}
	sum := sha256.Sum256(data)
	return s, hex.EncodeToString(sum[:]), nil
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/retention"
)

// scrubRefs are the objects that must be there: what trusted notes name, the
// notes themselves, the ledgers, and the digest keys where they can be opened. What
// lies under a forgotten mark is left out. ends, where it is not nil, is told until
// when the objects of clusters must be locked. Notes that known has are not read again,
// for they are written once; where it is not nil it is told of the others.
func (w *world) scrubRefs(ctx context.Context, ends lockEnds, known knownRefs) (refs []catalog.Ref, faults []string, err error) {
	all := refSet{seen: map[string]bool{}}
	clusters, err := w.catalog.Clusters(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range clusters {
		if err := all.cluster(ctx, w, c, ends, known); err != nil {
			return nil, nil, err
		}
	}
	for _, prefix := range []string{catalog.TombstonesDir, catalog.ForgottenDir, catalog.HoldsDir, catalog.RetiredDir, catalog.CertificateDir, catalog.ProofsDir, approval.PlansDir} {
		if err := all.add(w.noteRefs(ctx, prefix, func(string) bool { return false }, known)); err != nil {
			return nil, nil, err
		}
	}
	if err := all.add(w.approvalRefs(ctx, known)); err != nil {
		return nil, nil, err
	}
	if err := all.add(w.keyRefs(ctx, known)); err != nil {
		return nil, nil, err
	}
	entries, bad, err := ledger.Objects(ctx, ledger.FromReader(w.vault.Reader()), w.trust, w.repoID)
	for _, o := range entries {
		err = errors.Join(err, all.add([]catalog.Ref{catalog.Ref(o)}, nil, nil))
	}
	maps.DeleteFunc(known, func(name string, _ catalog.Ref) bool { return !all.seen[name] })
	return all.refs, append(all.faults, bad...), err
}

// knownRefs are notes and digest keys that were read, by name.
type knownRefs map[string]catalog.Ref

// bind binds an object by the bytes that are accepted.
func (w *world) bind(ctx context.Context, name string, known knownRefs, accept func(body []byte) error) (catalog.Ref, error) {
	if r, ok := known[name]; ok {
		return r, nil
	}
	body, err := w.vault.Reader().Fetch(ctx, name, func(_ string, body []byte) error { return accept(body) })
	if err != nil {
		return catalog.Ref{}, err
	}
	sum := sha256.Sum256(body)
	r := catalog.Ref{Name: name, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])}
	if known != nil {
		known[name] = r
	}
	return r, nil
}

// refSet collects references, each name once.
type refSet struct {
	seen   map[string]bool
	refs   []catalog.Ref
	faults []string
}

func (s *refSet) add(refs []catalog.Ref, faults []string, err error) error {
	for _, r := range refs {
		if r.Name != "" && !s.seen[r.Name] {
			s.seen[r.Name] = true
			s.refs = append(s.refs, r)
		}
	}
	s.faults = append(s.faults, faults...)
	return err
}

func (s *refSet) cluster(ctx context.Context, w *world, cluster string, ends lockEnds, known knownRefs) error {
	m, err := w.marksOf(ctx, cluster)
	if err != nil {
		return err
	}
	if err := s.add(w.clusterRefs(ctx, cluster, m, ends)); err != nil {
		return err
	}
	marked := func(name string) bool { return m.covers(strings.TrimPrefix(name, catalog.ClusterDir(cluster))) }
	for _, prefix := range []string{catalog.LineagesDir(cluster), catalog.SnapshotsDir(cluster), catalog.WALRoot(cluster)} {
		if err := s.add(w.noteRefs(ctx, prefix, marked, known)); err != nil {
			return err
		}
	}
	return nil
}

// clusterRefs are what a cluster's snapshots and WAL notes name.
func (w *world) clusterRefs(ctx context.Context, cluster string, m marks, ends lockEnds) (refs []catalog.Ref, faults []string, err error) {
	snaps, err := w.catalog.Snapshots(ctx, cluster)
	if err != nil {
		return nil, nil, err
	}
	var held retention.OnHold
	if ends != nil && w.locks() {
		if held, err = w.asker(cluster).OnHold(ctx); err != nil {
			return nil, nil, err
		}
	}
	plan := w.lockPlan(cluster, snaps.Bodies(), held, ends)
	for _, s := range snaps.Bodies() {
		refs = append(refs, s.Manifest, s.Objects)
		plan.snapshot(s, catalog.SnapshotName(cluster, s.ID), catalog.IntentName(cluster, s.ID), s.Manifest.Name, s.Objects.Name)
		body, err := w.vault.Reader().Get(ctx, s.Objects.Name, s.Objects.Size, s.Objects.SHA256)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: no zone has a good copy: %v", s.Objects.Name, err))
			continue
		}
		list, err := catalog.DecodeObjects(strings.NewReader(string(body)))
		if err != nil {
			return nil, nil, fmt.Errorf("reading %s: %w", s.Objects.Name, err)
		}
		refs = append(refs, list...)
		for _, r := range list {
			plan.snapshot(s, r.Name)
		}
	}
	wal, err := w.catalog.WALEntries(ctx, cluster, "")
	if err != nil {
		return nil, nil, err
	}
	entries := slices.DeleteFunc(wal.List, func(e catalog.WALEntry) bool {
		return m.covers(strings.TrimPrefix(e.Name, catalog.ClusterDir(cluster)))
	})
	for batch := range slices.Chunk(entries, 1000) {
		notes, bad, err := w.catalog.WALNotes(ctx, cluster, batch)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range bad {
			faults = append(faults, f.Error())
		}
		for _, n := range notes {
			refs = append(refs, n.Body.Object, n.Body.Index)
			plan.wal(n.Body, n.Name)
		}
	}
	return refs, faults, nil
}

// keyRefs binds the digest keys by the bytes that open.
func (w *world) keyRefs(ctx context.Context, known knownRefs) (refs []catalog.Ref, faults []string, err error) {
	if len(w.index) == 0 {
		return nil, nil, nil
	}
	listing, err := w.vault.Reader().List(ctx, catalog.DigestKeysDir)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range listing.Objects {
		ref, err := w.bind(ctx, o.Name, known, func(body []byte) error {
			_, err := seal.OpenDigestKeys(body, w.index)
			return err
		})
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", o.Name, err))
			continue
		}
		refs = append(refs, ref)
	}
	return refs, faults, nil
}

// noteRefs binds each note under prefix by the bytes that a trusted signer
// vouches for.
func (w *world) noteRefs(ctx context.Context, prefix string, skip func(string) bool, known knownRefs) (refs []catalog.Ref, faults []string, err error) {
	return w.boundRefs(ctx, prefix, known, w.vouched, skip)
}

// boundRefs binds the notes below a prefix that are accepted.
func (w *world) boundRefs(ctx context.Context, prefix string, known knownRefs, accept func(body []byte) error, skip ...func(string) bool) (refs []catalog.Ref, faults []string, err error) {
	listing, err := w.vault.Reader().List(ctx, prefix)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range listing.Objects {
		if !strings.HasSuffix(o.Name, ".note") || slices.ContainsFunc(skip, func(out func(string) bool) bool { return out(o.Name) }) {
			continue
		}
		ref, err := w.bind(ctx, o.Name, known, accept)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", o.Name, err))
			continue
		}
		refs = append(refs, ref)
	}
	return refs, faults, nil
}

// approvalRefs are the approvals by approvers of this configuration: another's vouches for
// nothing, and nobody needs it.
func (w *world) approvalRefs(ctx context.Context, known knownRefs) (refs []catalog.Ref, faults []string, err error) {
	b := w.board()
	if !b.Rule.Asks() {
		return nil, nil, nil
	}
	refs, _, err = w.boundRefs(ctx, approval.ApprovalsDir, known, b.Signed)
	return refs, nil, err
}

// vouched says whether a trusted signer with the duty for its kind signed a note.
func (w *world) vouched(body []byte) error {
	kind, text := seal.PeekNote(body)
	var about struct {
		Cluster string `json:"cluster"`
	}
	if err := json.Unmarshal(text, &about); err != nil {
		return fmt.Errorf("%w: it is no note: %w", seal.ErrDamaged, err)
	}
	_, err := w.trust.Open(body, kind, string(catalog.DutyOf(kind)), about.Cluster, nil)
	return err
}

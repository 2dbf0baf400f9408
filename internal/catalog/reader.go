package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/vault"
)

// Source is what the catalog reads from: the reading side of a vault.
type Source interface {
	List(ctx context.Context, prefix string) (vault.Listing, error)
	Fetch(ctx context.Context, name string, accept func(zone string, body []byte) error) ([]byte, error)
}

// Truster opens signed notes: seal.Trust.
type Truster interface {
	Open(data []byte, kind, duty, cluster string, into any) (signer string, err error)
}

// Reader reads the catalog out of the zones. Notes are write-once, so it
// remembers the ones that it opened. It is safe for concurrent use.
type Reader struct {
	src   Source
	trust Truster

	mu    sync.Mutex
	notes map[string]any // by object name
}

// NewReader reads from src and believes what trust vouches for.
func NewReader(src Source, trust Truster) *Reader {
	return &Reader{src: src, trust: trust, notes: map[string]any{}}
}

// maxNotes bounds the memory that remembered notes take.
const maxNotes = 200_000

// parallel is how many notes are fetched at a time.
const parallel = 16

// open fetches and opens one note, from whichever zone has one that opens.
func open[T any](ctx context.Context, r *Reader, name, kind, cluster string) (T, error) {
	var body T
	r.mu.Lock()
	if known, ok := r.notes[name].(T); ok {
		r.mu.Unlock()
		return known, nil
	}
	r.mu.Unlock()
	_, err := r.src.Fetch(ctx, name, func(_ string, data []byte) error {
		var b T
		if _, err := r.trust.Open(data, kind, string(DutyOf(kind)), cluster, &b); err != nil {
			return err
		}
		body = b
		return nil
	})
	if err != nil {
		return body, fmt.Errorf("reading %s: %w", name, err)
	}
	r.mu.Lock()
	if len(r.notes) >= maxNotes {
		clear(r.notes)
	}
	r.notes[name] = body
	r.mu.Unlock()
	return body, nil
}

// Fault is a note that could not be believed.
type Fault struct {
	Name string
	Err  error
}

func (f Fault) Error() string { return f.Name + ": " + f.Err.Error() }
func (f Fault) Unwrap() error { return f.Err }

// Noted is a note with where it was found.
type Noted[T any] struct {
	Body  T
	Name  string
	Zones []string
}

// Notes is an answer about notes of one kind.
type Notes[T any] struct {
	List   []Noted[T] // by name
	Faults []Fault
	// Complete says that at least N−W+1 zones answered, so that nothing that was
	// ever acknowledged is missing. Missing names the zones that did not.
	Complete bool
	Missing  []Fault
}

// Bodies is the list without where it was found.
func (n Notes[T]) Bodies() []T {
	out := make([]T, len(n.List))
	for i, x := range n.List {
		out[i] = x.Body
	}
	return out
}

// notes lists prefix and opens every name that want accepts.
func notes[T any](ctx context.Context, r *Reader, prefix, kind, cluster string, want func(name string) bool) (Notes[T], error) {
	listing, err := r.list(ctx, prefix)
	if err != nil {
		return Notes[T]{}, err
	}
	return pick[T](ctx, r, listing, kind, cluster, want)
}

func (r *Reader) list(ctx context.Context, prefix string) (vault.Listing, error) {
	listing, err := r.src.List(ctx, prefix)
	if err != nil {
		return listing, fmt.Errorf("listing %s: %w", prefix, err)
	}
	return listing, nil
}

// pick opens every name of a listing that want accepts.
func pick[T any](ctx context.Context, r *Reader, listing vault.Listing, kind, cluster string, want func(name string) bool) (out Notes[T], err error) {
	var entries []vault.Entry
	for _, e := range listing.Objects {
		if want(e.Name) {
			entries = append(entries, e)
		}
	}
	out.Complete = listing.Complete
	for _, z := range listing.Zones {
		if z.Err != nil {
			out.Missing = append(out.Missing, Fault{z.Name, z.Err})
		}
	}
	out.List, out.Faults, err = openAll[T](ctx, r, entries, kind, cluster)
	return out, err
}

func openAll[T any](ctx context.Context, r *Reader, entries []vault.Entry, kind, cluster string) ([]Noted[T], []Fault, error) {
	found := make([]*Noted[T], len(entries))
	faults := make([]error, len(entries))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, e := range entries {
		g.Go(func() error {
			body, err := open[T](gctx, r, e.Name, kind, cluster)
			if removed(err) {
				return nil // since it was listed
			}
			if err != nil {
				faults[i] = err
				return gctx.Err()
			}
			found[i] = &Noted[T]{body, e.Name, e.Zones}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var list []Noted[T]
	var bad []Fault
	for i, e := range entries {
		switch {
		case found[i] != nil:
			list = append(list, *found[i])
		case faults[i] != nil:
			bad = append(bad, Fault{e.Name, faults[i]})
		}
	}
	return list, bad, nil
}

// removed says that enough zones know an object to be absent (R4).
func removed(err error) bool {
	return errors.Is(err, fs.ErrNotExist) && !errors.Is(err, vault.ErrDoubt) && !errors.Is(err, vault.ErrNoGoodCopy)
}

func suffix(s string) func(string) bool {
	return func(n string) bool { return strings.HasSuffix(n, s) }
}

// Clusters names the clusters that the repository has ever held.
func (r *Reader) Clusters(ctx context.Context) ([]string, error) {
	listing, err := r.src.List(ctx, ClustersPrefix)
	if err != nil {
		return nil, fmt.Errorf("listing clusters: %w", err)
	}
	seen := map[string]bool{}
	var out []string
	for _, e := range listing.Objects {
		name, _, ok := strings.Cut(strings.TrimPrefix(e.Name, ClustersPrefix), "/")
		if ok && !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out, nil
}

// Snapshots is what the repository holds of one cluster's snapshots.
type Snapshots struct {
	Notes[Snapshot] // committed and not forgotten, the oldest first by start LSN's clock
	// Forgotten are those under a mark, by snapshot id, with the mark: without those
	// that a hold keeps for all that.
	Forgotten map[string]Forgotten
	// Intents are snapshots begun and not committed.
	Intents []Noted[Intent]
	// Begun are the intents of all whose directories have one, by snapshot id:
	// committed or not, forgotten or not.
	Begun map[string]Intent
	// All is List and the forgotten ones together.
	All []Noted[Snapshot]
}

// Snapshots reads a cluster's snapshots: notes first, then forgotten marks (R2).
func (r *Reader) Snapshots(ctx context.Context, cluster string) (Snapshots, error) {
	listing, err := r.list(ctx, SnapshotsDir(cluster))
	if err != nil {
		return Snapshots{}, err
	}
	all, err := pick[Snapshot](ctx, r, listing, KindSnapshot, cluster, suffix("/snapshot.note"))
	if err != nil {
		return Snapshots{}, err
	}
	intents, err := pick[Intent](ctx, r, listing, KindIntent, cluster, suffix("/intent.note"))
	if err != nil {
		return Snapshots{}, err
	}
	forgotten, marks, err := r.Marked(ctx, cluster)
	if err != nil {
		return Snapshots{}, err
	}
	out := Snapshots{Notes: all, Forgotten: forgotten, All: all.List, Begun: map[string]Intent{}}
	out.Complete = all.Complete && marks.Complete
	out.Faults = append(out.Faults, marks.Faults...)
	sort.SliceStable(out.All, func(i, j int) bool { return olderSnapshot(out.All[i].Body, out.All[j].Body) })
	out.List = nil
	committed := map[string]bool{}
	for _, s := range out.All {
		committed[s.Body.ID] = true
		if _, gone := out.Forgotten[s.Body.ID]; !gone {
			out.List = append(out.List, s)
		}
	}
	for _, in := range intents.List {
		out.Begun[in.Body.ID] = in.Body
		if !committed[in.Body.ID] {
			out.Intents = append(out.Intents, in)
		}
	}
	return out, nil
}

// olderSnapshot sorts by lineage, then by where the snapshot ends: never by a
// name or by a clock alone (P13 of the pains: "retain N deleted the newest").
func olderSnapshot(a, b Snapshot) bool {
	switch {
	case a.Epoch != b.Epoch:
		return a.Epoch < b.Epoch
	case a.StopLSN != b.StopLSN:
		return a.StopLSN < b.StopLSN
	}
	return a.FinishedAt.Before(b.FinishedAt)
}

// Snapshot reads one committed snapshot by id, forgotten or not.
func (r *Reader) Snapshot(ctx context.Context, cluster, id string) (Snapshot, error) {
	return open[Snapshot](ctx, r, SnapshotName(cluster, id), KindSnapshot, cluster)
}

// Lineages reads a cluster's writer epochs, the first first.
func (r *Reader) Lineages(ctx context.Context, cluster string) (Notes[Lineage], error) {
	return notes[Lineage](ctx, r, LineagesDir(cluster), KindLineage, cluster, suffix(".note"))
}

// Forgotten reads a cluster's removal marks.
func (r *Reader) Forgotten(ctx context.Context, cluster string) (Notes[Forgotten], error) {
	return notes[Forgotten](ctx, r, ForgottenDir+cluster+"/", KindForgotten, cluster, suffix(".note"))
}

// Tombstones reads all tombstones; cluster "" reads every cluster's.
func (r *Reader) Tombstones(ctx context.Context, cluster string) (Notes[Tombstone], error) {
	n, err := notes[Tombstone](ctx, r, TombstonesDir, KindTombstone, "", suffix("/tombstone.note"))
	return keep(n, func(t Tombstone) bool { return cluster == "" || t.Cluster == cluster }), err
}

// Absences reads when live was seen without each tombstone's project, by tombstone id.
func (r *Reader) Absences(ctx context.Context) (map[string]Absent, error) {
	n, err := notes[Absent](ctx, r, TombstonesDir, KindAbsent, "", suffix("/absent.note"))
	out := map[string]Absent{}
	for _, a := range n.List {
		out[a.Body.Tombstone] = a.Body
	}
	return out, err
}

// Statements reads the certificates of phase 1, by tombstone id.
func (r *Reader) Statements(ctx context.Context) (map[string]Certificate, error) {
	n, err := notes[Certificate](ctx, r, TombstonesDir, KindStatement, "", suffix("/statement.note"))
	out := map[string]Certificate{}
	for _, s := range n.List {
		out[s.Body.Tombstone] = s.Body
	}
	return out, err
}

// Certificates reads the certificates of purged projects.
func (r *Reader) Certificates(ctx context.Context) (Notes[Certificate], error) {
	return notes[Certificate](ctx, r, CertificateDir, KindCertificate, "", suffix(".note"))
}

// Proofs reads what drills proved; cluster "" reads every cluster's.
func (r *Reader) Proofs(ctx context.Context, cluster string) (Notes[Proof], error) {
	n, err := notes[Proof](ctx, r, ProofsDir, KindProof, "", func(name string) bool {
		return strings.HasSuffix(name, ".note") && !strings.Contains(name, "/probe-") && !strings.Contains(name, "/placement-")
	})
	return keep(n, func(p Proof) bool { return cluster == "" || p.Cluster == cluster }), err
}

func keep[T any](n Notes[T], want func(T) bool) Notes[T] {
	list := n.List[:0:0]
	for _, x := range n.List {
		if want(x.Body) {
			list = append(list, x)
		}
	}
	n.List = list
	return n
}

// ErrIncomplete means that too few zones answered to say that nothing is missing.
var ErrIncomplete = errors.New("too few zones answered to know that nothing is missing")

// Require turns an incomplete answer into an error that names the zones.
func (n Notes[T]) Require() error {
	if n.Complete {
		return nil
	}
	errs := []error{ErrIncomplete}
	for _, m := range n.Missing {
		errs = append(errs, m)
	}
	return errors.Join(errs...)
}

// HashNote is the hash that a Link refers to.
func HashNote(note []byte) string {
	sum := sha256.Sum256(note)
	return hex.EncodeToString(sum[:])
}

package retention

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Ledger takes entries. Append returns when they are on this node's disk,
// AppendAnchored when the quorum of zones holds them under a checkpoint.
type Ledger interface {
	Append(ctx context.Context, typ string, subject map[string]string, body any) (index int64, err error)
	AppendAnchored(ctx context.Context, typ string, subject map[string]string, body any) (index int64, err error)
}

// Store reads whole objects and writes notes: a vault's Writer.
type Store interface {
	Get(ctx context.Context, name string, size int64, sha256 string) ([]byte, error)
	Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error)
}

// Remover removes from every zone, and lists every version: a vault's Remover.
type Remover interface {
	RemoveAll(ctx context.Context, name string) map[string]error
	Versions(ctx context.Context, prefix string) (map[string][]zone.Object, map[string]error)
}

// Keeper carries out one cluster's policy. Its methods are to be called one at a
// time; the lane of a cluster is the caller's.
type Keeper struct {
	Cluster   string
	Policy    Policy
	Catalog   *catalog.Reader
	Store     Store
	Remover   Remover
	Ledger    Ledger
	Signer    note.Signer
	Index     []age.Identity // opens the histories of timelines
	State     string         // file that remembers what happened last; losing it loses no backup
	Now       func() time.Time
	IntentAge time.Duration
	MaxShare  float64
	// ApproveShorter refuses plans by a policy that keeps less than the one applied
	// last, until the change is approved: by approvers' signatures on the Board, or,
	// where that asks nobody, when Approved is its hash.
	ApproveShorter bool
	Approved       string
	Board          *approval.Board
	Confirmed      bool   // a person typed the cluster's name: see Retire
	Early          *Early // nil: what holds deleted projects ages
}

// state is what a Keeper remembers.
type state struct {
	Last   time.Time            `json:"last,omitzero"`    // when a plan was last carried out
	Policy *Terms               `json:"policy,omitempty"` // by which it was
	Swept  map[string]time.Time `json:"swept,omitempty"`  // marks of which nothing is left
	// Waits are marks of which only what other snapshots need is left, with the
	// snapshots that stayed then: while these do, there is nothing to look for.
	Waits map[string]string `json:"waits,omitempty"`
	daily
}

func (k *Keeper) load() (s state, err error) {
	data, err := os.ReadFile(k.State)
	if err == nil {
		err = json.Unmarshal(data, &s)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if s.Swept == nil {
		s.Swept = map[string]time.Time{}
	}
	if s.Waits == nil {
		s.Waits = map[string]string{}
	}
	if err != nil {
		err = fmt.Errorf("reading what retention remembers: %w; remove the file to go on without", err)
	}
	return s, err
}

func (k *Keeper) save(s state) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return durable.WriteFile(k.State, data, 0o600)
}

// Plan reads the repository and decides.
func (k *Keeper) Plan(ctx context.Context, force bool) (Plan, error) {
	in, err := k.Gather(ctx)
	if err != nil {
		return Plan{}, err
	}
	st, err := k.load()
	if err != nil {
		return Plan{}, err
	}
	if in.RetiredAt.IsZero() { // a policy that keeps nothing any more has no terms
		if in.Change, err = k.change(in, st.Policy); err != nil {
			return Plan{}, err
		}
	}
	if in.Change != nil && k.ApproveShorter && len(in.Change.Shorter) > 0 {
		ok, standing, err := k.approved(ctx, in.Change.Hash)
		if err != nil {
			return Plan{}, err
		}
		in.Change.Approvals, in.Unapproved = standing.Given, ""
		if !ok {
			in.Unapproved = how(standing, "look at what goes, and apply it with --approve "+in.Change.Hash)
		}
	}
	if err := k.gatherEarly(ctx, &in); err != nil {
		return Plan{}, fmt.Errorf("looking for what holds deleted projects: %w", err)
	}
	if in.Early, err = k.planEarly(ctx, in); err != nil {
		return Plan{}, err
	}
	in.Force = force
	p, err := MakePlan(in)
	if err == nil && in.Unapproved != "" {
		p.Pending = append(p.Pending, in.Change.pending())
	}
	if e := in.Early; err == nil && e != nil && e.Hash != "" && !e.Approved {
		p.Pending = append(p.Pending, e.pending())
	}
	return p, err
}

// Gather reads all that a plan follows from.
func (k *Keeper) Gather(ctx context.Context) (in Inputs, err error) {
	if in, err = k.gather(ctx); err != nil {
		return in, err
	}
	return in, k.gatherPassed(ctx, &in)
}

// gather leaves out where spans on hold end: which snapshots stay does not follow from it.
func (k *Keeper) gather(ctx context.Context) (in Inputs, err error) {
	st, err := k.load()
	if err != nil {
		return in, err
	}
	in = Inputs{Cluster: k.Cluster, Now: k.Now(), Last: st.Last, Policy: k.Policy, IntentAge: k.IntentAge, MaxShare: k.MaxShare, Complete: true}
	snaps, err := k.Catalog.Snapshots(ctx, k.Cluster)
	if err != nil {
		return in, err
	}
	in.Snapshots = snaps.Bodies()
	incomplete(&in, "snapshots", snaps.Notes)
	in.Complete = in.Complete && snaps.Complete // its marks included
	for _, i := range snaps.Intents {
		if _, gone := snaps.Forgotten[i.Body.ID]; !gone {
			in.Intents = append(in.Intents, i.Body)
		}
	}
	if err := k.gatherMarks(ctx, &in, st); err != nil {
		return in, err
	}
	proofs, err := k.Catalog.Proofs(ctx, k.Cluster)
	if err != nil {
		return in, err
	}
	in.Proofs = proofs.Bodies()
	incomplete(&in, "proofs", proofs)
	if err := k.gatherHolds(ctx, &in); err != nil {
		return in, err
	}
	if err := k.gatherRetired(ctx, &in); err != nil {
		return in, err
	}
	if err := k.gatherWAL(ctx, &in); err != nil {
		return in, err
	}
	return in, k.gatherPurged(ctx, &in, snaps.Begun)
}

// gatherMarks reads what WAL goes already.
func (k *Keeper) gatherMarks(ctx context.Context, in *Inputs, st state) error {
	marks, err := k.Catalog.Forgotten(ctx, k.Cluster)
	if err != nil {
		return err
	}
	incomplete(in, "marks", marks)
	for _, m := range marks.Bodies() {
		// What a mark that is done left behind, because it was needed then, is marked
		// again when it no longer is.
		if _, done := st.Swept[m.ID]; !done && st.Waits[m.ID] == "" {
			if m.OnlyCovered() {
				in.Slices = append(in.Slices, m.WAL...)
			} else {
				in.Marked = append(in.Marked, m.WAL...)
			}
		}
	}
	return nil
}

func incomplete[T any](in *Inputs, what string, n catalog.Notes[T]) {
	if err := n.Require(); err != nil {
		in.Complete = false
		in.Missing = append(in.Missing, what+": "+strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	for _, f := range n.Faults {
		in.Complete = false
		in.Missing = append(in.Missing, what+": "+f.Error())
	}
}

func (k *Keeper) gatherWAL(ctx context.Context, in *Inputs) error {
	lineages, err := k.Catalog.Lineages(ctx, k.Cluster)
	if err != nil {
		return err
	}
	in.Lineages = lineages.Bodies()
	incomplete(in, "lineages", lineages)
	entries, err := k.Catalog.WALEntries(ctx, k.Cluster, "")
	if err != nil {
		return err
	}
	if !entries.Complete {
		in.Complete = false
		in.Missing = append(in.Missing, "WAL: too few zones answered")
	}
	var small []catalog.WALEntry
	for _, e := range entries.List {
		in.WAL = append(in.WAL, File{WALEntry: e})
		if e.From == e.To {
			small = append(small, e)
		}
	}
	notes, _, err := k.Catalog.WALNotes(ctx, k.Cluster, small)
	if err != nil {
		return err
	}
	in.Histories = map[Branch][]lsn.Switch{}
	for _, n := range notes {
		i := slices.IndexFunc(in.WAL, func(f File) bool { return f.Name == n.Name })
		in.WAL[i].File = n.Body.File
		if strings.HasSuffix(n.Body.File, ".history") {
			if err := k.readHistory(ctx, in, n.Body); err != nil {
				return err
			}
		}
	}
	return nil
}

// readHistory notes the history of a timeline; one that cannot be opened stays
// unknown, and the plan keeps what hangs on it.
func (k *Keeper) readHistory(ctx context.Context, in *Inputs, w catalog.WAL) error {
	sealed, err := k.Store.Get(ctx, w.Object.Name, w.Object.Size, w.Object.SHA256)
	if err != nil {
		return fmt.Errorf("reading %s: %w", w.File, err)
	}
	if raw, openErr := seal.OpenFile(sealed, k.Index, 1<<20); openErr == nil {
		in.Histories[Branch{w.SystemID, w.Timeline}], err = lsn.ParseHistory(raw)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", w.File, err)
	}
	return nil
}

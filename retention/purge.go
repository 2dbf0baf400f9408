package retention

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

// Purger sees deleted projects of one cluster through to their certificates. Its
// Keeper must be the cluster's own; connections go to the layout's database.
type Purger struct {
	*Keeper
	Layout   tenancy.Layout
	Registry string                                   // query that lists projects
	Within   time.Duration                            // 0: keep_at_most, removal_grace and 7 d together
	Keys     func(epoch int) (seal.DigestKeys, error) // of digest epochs
	Epoch    int                                      // the digest epoch of new tombstones
	Origin   string                                   // of this node's ledger
	Software string                                   // the program and its version
	// Made tells what copies Holdfast made that may have held a tombstone's project, and
	// which ledgers could not be asked.
	Made   func(ctx context.Context, t catalog.Tombstone) (list []catalog.Made, unread []string, err error)
	Memory string // file that remembers looks at live; losing it costs a vacuum
}

// ErrConfirm means that what was typed is not the name that was asked for.
var ErrConfirm = errors.New("what was typed is not the name, or id, that was asked for")

// Preview is what a request would do: people read it before they type.
type Preview struct {
	ID           string          `json:"id"`
	Name         string          `json:"name"`
	Counts       []catalog.Count `json:"counts"`
	LastActivity time.Time       `json:"last_activity,omitzero"` // the newest time in its root row
	NotCovered   []string        `json:"not_covered"`
	Deadline     time.Time       `json:"deadline"`
	LastCopyEnds time.Time       `json:"last_copy_ends_at,omitzero"` // if live is empty now; zero: no policy ends it
	tied         []string        // what depends on a schema from outside it
}

// Preview looks at a project without changing anything.
func (p *Purger) Preview(ctx context.Context, conn *pgx.Conn, key string) (v Preview, err error) {
	if err := p.Layout.Check(); err != nil {
		return v, err
	}
	projects, err := tenancy.Projects(ctx, conn, p.Registry)
	if err != nil {
		return v, err
	}
	v = Preview{ID: key, Deadline: p.Now().UTC().Add(p.within()), LastCopyEnds: p.ends(p.Now())}
	found := false
	for _, one := range projects {
		if one.ID == key {
			v.Name, found = one.Name, true
		}
	}
	v.Counts, err = tenancy.Count(ctx, conn, p.Layout, key)
	if err != nil && !errors.Is(err, tenancy.ErrNoProject) {
		return v, err
	}
	switch {
	case found && err != nil:
		return v, fmt.Errorf("cluster %s: %w: projects.registry lists it, and live has nothing of it", p.Cluster, tenancy.ErrNoProject)
	case !found:
		return v, fmt.Errorf("cluster %s: %w; `project list` shows them", p.Cluster, tenancy.ErrNoProject)
	}
	if v.LastActivity, err = tenancy.LastActivity(ctx, conn, p.Layout, key); err != nil {
		return v, err
	}
	if v.NotCovered, err = tenancy.NotCovered(ctx, conn, p.Layout); err != nil {
		return v, err
	}
	v.tied, err = tenancy.Tied(ctx, conn, p.Layout, key)
	for _, what := range v.tied {
		v.NotCovered = append(v.NotCovered, what+" (it depends on the project, whose deletion is refused until it does no more)")
	}
	return v, err
}

func (p *Purger) within() time.Duration {
	if p.Within > 0 {
		return p.Within
	}
	return p.Policy.KeepAtMost + p.Policy.RemovalGrace + 7*24*time.Hour
}

// ends is when a snapshot that begins at a moment is gone.
func (p *Purger) ends(t time.Time) time.Time {
	if p.Policy.KeepAtMost == 0 {
		return time.Time{}
	}
	return t.UTC().Add(p.Policy.KeepAtMost)
}

// Request records that a project is to be gone: its tombstone is in the quorum,
// and in the ledger before, when it returns. typed is what the user typed and
// must be the project's id or name. Live is left as it is. A project that has a
// tombstone which is not yet absent from live gets no second one.
func (p *Purger) Request(ctx context.Context, conn *pgx.Conn, key, typed string) (catalog.Tombstone, error) {
	v, err := p.Preview(ctx, conn, key)
	if err != nil {
		return catalog.Tombstone{}, fmt.Errorf("requesting a purge: %w", err)
	}
	if typed != v.ID && typed != v.Name {
		return catalog.Tombstone{}, fmt.Errorf("requesting a purge: %w", ErrConfirm)
	}
	// Restores drop what depends on a schema with it: nothing of live's may.
	if err := tenancy.TiedError(v.tied); err != nil {
		return catalog.Tombstone{}, fmt.Errorf("requesting a purge: %w", err)
	}
	t, err := p.tombstone(ctx, conn, key, v)
	if err != nil {
		return t, fmt.Errorf("requesting a purge: %w", err)
	}
	if old, err := p.open(ctx, t.KeyMAC); err != nil || old != nil {
		if err != nil {
			return t, fmt.Errorf("requesting a purge: %w", err)
		}
		return *old, nil
	}
	body := struct {
		Layout   string          `json:"layout"`
		Deadline time.Time       `json:"deadline"`
		LSN      string          `json:"lsn"`
		Counts   []catalog.Count `json:"counts"`
	}{t.Layout, t.Deadline, t.LSN.String(), t.Counts}
	if _, err := p.Ledger.AppendAnchored(ctx, entryTombstone, p.about(t), body); err != nil {
		return t, fmt.Errorf("requesting a purge: %w", err)
	}
	if err := p.putNote(ctx, catalog.TombstoneName(t.ID), catalog.KindTombstone, t); err != nil {
		return t, fmt.Errorf("requesting a purge: %w", err)
	}
	return t, nil
}

func (p *Purger) about(t catalog.Tombstone) map[string]string {
	return map[string]string{"cluster": p.Cluster, "tombstone": t.ID}
}

func (p *Purger) tombstone(ctx context.Context, conn *pgx.Conn, key string, v Preview) (t catalog.Tombstone, err error) {
	k, err := p.Keys(p.Epoch)
	if err != nil {
		return t, err
	}
	var id [10]byte
	_, _ = rand.Read(id[:])
	kind := p.Layout.Kind
	if kind == "" {
		kind = tenancy.Rows
	}
	t = catalog.Tombstone{
		ID: hex.EncodeToString(id[:]), Cluster: p.Cluster, Layout: kind, Database: p.Layout.Database, Root: p.Layout.Root, Key: p.Layout.Key,
		KeyMAC: tenancy.MAC(k, p.Cluster, p.Layout, key), DigestEpoch: k.Epoch, RequestedAt: p.Now().UTC(), Deadline: v.Deadline, Counts: v.Counts,
	}
	if t.OID, err = tenancy.ObjectID(ctx, conn, p.Layout, key); err != nil {
		return t, err
	}
	at, err := tenancy.Where(ctx, conn)
	if err != nil {
		return t, err
	}
	t.SystemID, t.Timeline, t.LSN = at.SystemID, at.Timeline, at.LSN
	t.Epoch, err = p.epoch(ctx, at.SystemID)
	return t, err
}

// epoch is the newest lineage of the system; 0: it has none yet.
func (p *Purger) epoch(ctx context.Context, system string) (epoch int, err error) {
	lineages, err := p.Catalog.Lineages(ctx, p.Cluster)
	for _, l := range lineages.Bodies() {
		if l.SystemID == system {
			epoch = max(epoch, l.Epoch)
		}
	}
	return epoch, err
}

// open finds a tombstone of the same key that live was not yet seen without.
func (p *Purger) open(ctx context.Context, mac string) (*catalog.Tombstone, error) {
	tombs, err := p.Catalog.Tombstones(ctx, p.Cluster)
	if err != nil {
		return nil, err
	}
	absences, err := p.Catalog.Absences(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range tombs.Bodies() {
		if _, gone := absences[t.ID]; t.KeyMAC == mac && !gone {
			return &t, nil
		}
	}
	return nil, tombs.Require()
}

// DeleteInLive deletes a project in live, in one transaction. typed is as in
// Request; show sees the counts before anything is deleted, and its error ends
// it. What vacuums live stays live's own. The error is ErrOnHold where a hold is on
// the project.
func (p *Purger) DeleteInLive(ctx context.Context, conn *pgx.Conn, key, typed string, show func(Preview) error) ([]catalog.Count, error) {
	v, err := p.Preview(ctx, conn, key)
	if err == nil && typed != v.ID && typed != v.Name {
		err = ErrConfirm
	}
	if err == nil {
		err = p.forbidden(ctx, key)
	}
	if err == nil && show != nil {
		err = show(v)
	}
	if err != nil {
		return nil, fmt.Errorf("deleting a project in live: %w", err)
	}
	counts, err := tenancy.Erase(ctx, conn, p.Layout, key)
	if err != nil {
		return nil, fmt.Errorf("deleting a project in live: %w", err)
	}
	return counts, nil
}

// memory is what the Purger remembers of looks at live, by tombstone.
type memory map[string]tenancy.Memo

func (p *Purger) recall() (memory, error) {
	m := memory{}
	data, err := os.ReadFile(p.Memory)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what was seen of purges: %w; remove the file to look afresh", err)
	}
	return m, nil
}

func (p *Purger) remember(m memory) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return durable.WriteFile(p.Memory, data, 0o600)
}

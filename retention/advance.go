package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

// The states of a purge, in order.
const (
	PurgeRequested = "requested"       // live has rows
	PurgeResidue   = "residue in live" // no rows, tables not vacuumed since
	PurgeAgeing    = "ageing"          // absent from live; copies hold it
	PurgeDone      = "certified"
)

// Purge is where one purge stands: the document of `purge show`. It names the
// tombstone, not the project: the repository does not know the key.
type Purge struct {
	Project      string               `json:"project"` // the tombstone's id
	Cluster      string               `json:"cluster"`
	State        string               `json:"state"`
	RequestedAt  time.Time            `json:"requested_at"`
	Deadline     time.Time            `json:"deadline"`
	Overdue      bool                 `json:"overdue"`
	LastCopyEnds time.Time            `json:"last_copy_ends_at,omitzero"` // zero where a hold keeps one: nobody knows
	Waiting      []string             `json:"waiting,omitempty"`          // tables in live that must yet be vacuumed, or what else stands in the way
	Reappeared   bool                 `json:"reappeared"`                 // the key is in use again, after live was seen without it
	SuspendedBy  []string             `json:"suspended_by,omitempty"`     // holds on the project: no certificate before they are released
	Zones        []PurgeZone          `json:"zones"`
	Early        *EarlyPurge          `json:"early,omitempty"`     // the plan that would remove its copies before retention does
	Statement    *catalog.Certificate `json:"statement,omitempty"` // the certificate's first phase
	Certificate  *catalog.Certificate `json:"certificate"`
}

// PurgeZone is what one zone's own listing of versions shows.
type PurgeZone struct {
	Name      string      `json:"name"`
	Copies    int64       `json:"copies"` // versions of objects that may hold the project
	LastEnds  time.Time   `json:"last_ends_at,omitzero"`
	BlockedBy []string    `json:"blocked_by"`
	Objects   []PurgeCopy `json:"objects,omitempty"` // the copies by name, where they were asked for
	versions  int64
	oldest    time.Time
	silent    bool // it did not answer
}

// PurgeCopy is one version of an object that may hold the project.
type PurgeCopy struct {
	Name    string    `json:"name"`
	Version string    `json:"version,omitempty"`
	EndsAt  time.Time `json:"ends_at,omitzero"` // zero where a hold keeps it, or no policy ends it
}

// Advance moves every purge of the cluster as far as it can go now and tells
// where each stands. It is idempotent. conn is live's database; nil where this
// node reaches none: then nothing can become absent from live.
func (p *Purger) Advance(ctx context.Context, conn *pgx.Conn) ([]Purge, error) {
	return p.each(ctx, &advance{Purger: p, conn: conn, act: true}, "")
}

// Show tells where one purge stands, or all of them for an empty id, and changes
// nothing. With name it names every copy, of which there may be millions.
func (p *Purger) Show(ctx context.Context, id string, name bool) ([]Purge, error) {
	return p.each(ctx, &advance{Purger: p, name: name}, id)
}

func (p *Purger) each(ctx context.Context, a *advance, id string) (out []Purge, err error) {
	tombs, err := p.Catalog.Tombstones(ctx, p.Cluster)
	if err != nil {
		return nil, err
	}
	if err := tombs.Require(); err != nil && a.act {
		return nil, fmt.Errorf("advancing the purges of %s: %w", p.Cluster, err)
	}
	if a.absences, err = p.Catalog.Absences(ctx); err != nil {
		return nil, err
	}
	if a.stated, err = p.Catalog.Statements(ctx); err != nil {
		return nil, err
	}
	certs, err := p.Catalog.Certificates(ctx)
	if err != nil {
		return nil, err
	}
	if a.mem, err = p.recall(); err != nil {
		return nil, err
	}
	if p.Early != nil && !a.act {
		plan, err := p.Plan(ctx, false)
		if err != nil {
			return nil, err
		}
		a.early = plan.Early
	}
	for _, t := range tombs.Bodies() {
		if id != "" && t.ID != id {
			continue
		}
		var one Purge
		if i := slices.IndexFunc(certs.List, func(c catalog.Noted[catalog.Certificate]) bool { return c.Body.Tombstone == t.ID }); i >= 0 {
			one = certified(t, certs.List[i].Body)
			one.Statement = a.statement(t.ID)
		} else if one, err = a.one(ctx, t); err != nil {
			return out, fmt.Errorf("purge %s of cluster %s: %w", t.ID, p.Cluster, err)
		}
		out = append(out, one)
	}
	return out, nil
}

func certified(t catalog.Tombstone, c catalog.Certificate) Purge {
	one := Purge{Project: t.ID, Cluster: t.Cluster, State: PurgeDone, RequestedAt: t.RequestedAt, Deadline: t.Deadline, Certificate: &c, Zones: []PurgeZone{}}
	for _, z := range c.Zones {
		one.Zones = append(one.Zones, PurgeZone{Name: z.Name, Copies: z.Remaining, BlockedBy: []string{}})
	}
	return one
}

// advance is one run over all purges.
type advance struct {
	*Purger
	conn     *pgx.Conn
	act      bool
	name     bool // every copy by its name
	absences map[string]catalog.Absent
	stated   map[string]catalog.Certificate // phase 1
	mem      memory
	early    *EarlyPurge // what waits to be approved, or was
	found    *copies     // what the zones hold, read once
}

func (a *advance) one(ctx context.Context, t catalog.Tombstone) (Purge, error) {
	one := Purge{
		Project: t.ID, Cluster: t.Cluster, State: PurgeRequested, RequestedAt: t.RequestedAt, Deadline: t.Deadline,
		Overdue: a.Now().After(t.Deadline), Zones: []PurgeZone{},
	}
	if memo := a.mem[t.ID]; !memo.GoneAt.IsZero() {
		one.State, one.Waiting = PurgeResidue, memo.Waiting
	}
	if a.conn != nil {
		if err := a.look(ctx, t, &one); err != nil {
			return one, err
		}
	}
	absent, ok := a.absences[t.ID]
	if ok {
		one.State = PurgeAgeing
	}
	if err := a.count(ctx, &one, t, absent, ok); err != nil {
		return one, err
	}
	if _, stated := a.stated[t.ID]; ok && !stated && a.act && len(one.Zones) > 0 && len(one.SuspendedBy) == 0 && !slices.ContainsFunc(one.Zones, func(z PurgeZone) bool { return z.silent }) {
		if err := a.state(ctx, t, absent, one); err != nil {
			return one, err
		}
	}
	one.Statement = a.statement(t.ID)
	if a.early != nil && slices.Contains(a.early.Plan.Purges, t.ID) {
		one.Early = a.early
	}
	clear := ok && len(one.Zones) > 0 && !slices.ContainsFunc(one.Zones, func(z PurgeZone) bool { return z.Copies > 0 || len(z.BlockedBy) > 0 })
	if !clear || !a.act {
		return one, nil
	}
	c, err := a.certify(ctx, t, absent, one)
	if err != nil {
		return one, err
	}
	done := certified(t, c)
	done.Statement = one.Statement
	return done, nil
}

func (a *advance) statement(id string) *catalog.Certificate {
	if s, ok := a.stated[id]; ok {
		return &s
	}
	return nil
}

// look looks at live, and records when it is without the project.
func (a *advance) look(ctx context.Context, t catalog.Tombstone, one *Purge) error {
	keys, err := a.Keys(t.DigestEpoch)
	if err != nil {
		return err
	}
	seen, err := tenancy.Live(ctx, a.conn, t, keys, a.mem[t.ID])
	if errors.Is(err, tenancy.ErrElsewhere) { // the others' purges go on
		one.Waiting = []string{"a look at live: " + err.Error()}
		return nil
	}
	if err != nil {
		return err
	}
	if _, gone := a.absences[t.ID]; gone {
		one.Reappeared = seen.State == tenancy.Present
		return nil
	}
	one.State, one.Waiting = map[tenancy.State]string{tenancy.Present: PurgeRequested, tenancy.Residue: PurgeResidue, tenancy.Absent: PurgeAgeing}[seen.State], seen.Waiting
	if !a.act {
		return nil
	}
	if seen.State == tenancy.Absent {
		return a.absent(ctx, t, seen)
	}
	a.mem[t.ID] = seen.Memo // nothing, while there are rows: they may go and come
	return a.remember(a.mem)
}

func (a *advance) absent(ctx context.Context, t catalog.Tombstone, seen tenancy.Seen) error {
	n := catalog.Absent{Tombstone: t.ID, SystemID: seen.SystemID, Timeline: seen.Timeline, LSN: seen.LSN, SeenAt: seen.At.UTC(), Vacuumed: seen.Vacuumed}
	var err error
	if n.Epoch, err = a.epoch(ctx, seen.SystemID); err != nil {
		return err
	}
	if _, err := a.Ledger.AppendAnchored(ctx, entryAbsent, a.about(t), n); err != nil {
		return err
	}
	if err := a.putNote(ctx, catalog.AbsentName(t.ID), catalog.KindAbsent, n); err != nil {
		return err
	}
	a.absences[t.ID] = n
	delete(a.mem, t.ID)
	return a.remember(a.mem)
}

// holdingID is the snapshot that an object belongs to.
func holdingID(cluster, name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, catalog.SnapshotsDir(cluster))
	id, _, _ := strings.Cut(rest, "/")
	return id, ok
}

package snapshot

import (
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Why a writer epoch is refused. After any of them nothing may be archived.
var (
	// ErrClaimed means that another writer holds the cluster and shows life.
	ErrClaimed = errors.New("another writer holds this cluster's lineage")
	// ErrForeignServer means that the server is another PostgreSQL cluster than
	// the one that the repository knows under this name.
	ErrForeignServer = errors.New("the server is not the cluster that the repository knows under this name")
	// ErrOldTimeline means that the lineage went on to a timeline that this
	// server has not reached: it is an old primary, or a copy of one.
	ErrOldTimeline = errors.New("the server is on an older timeline than the lineage")
	// ErrFenced means that a higher epoch appeared while this writer ran.
	ErrFenced = errors.New("another writer has claimed a higher epoch")
)

// Server is what a claim must know of the PostgreSQL cluster that will be
// archived.
type Server struct {
	SystemID string
	Major    int
	Timeline uint32
	LSN      lsn.LSN
	// History is Timeline's own history, the oldest first; empty on timeline 1.
	History []lsn.Switch
}

// descends says whether the server's history goes through timeline.
func (s Server) descends(timeline uint32) bool {
	for _, h := range s.History {
		if h.Timeline == timeline && s.Timeline > timeline {
			return true
		}
	}
	return false
}

// Holder is the newest epoch of a cluster and what is known of its writer.
type Holder struct {
	catalog.Lineage
	// Timeline is the newest that it archived or claimed on (the body's own is
	// the one of the claim).
	Reached uint32
	// Seen is its newest sign of life: its claim, a WAL note, a checkpoint of its
	// ledger; by its own clock.
	Seen time.Time
}

// Verdict is what a claim may do: go on with the holder's epoch, or claim Next.
type Verdict struct {
	Continue bool
	Next     catalog.Lineage
}

// DecideClaim says whether c may write to its cluster: a pure function of who
// holds it (nil for nobody) and now.
func DecideClaim(c LineageConfig, holder *Holder, now time.Time) (Verdict, error) {
	next := catalog.Lineage{
		Cluster: c.Cluster, Epoch: 1, SystemID: c.Server.SystemID, Major: c.Server.Major, Timeline: c.Server.Timeline,
		StartLSN: c.Server.LSN, Node: c.Node, State: c.StateID, Boot: c.Boot, ClaimedAt: now.UTC(),
	}
	if holder == nil {
		return Verdict{Next: next}, nil
	}
	next.Epoch, next.Parent = holder.Epoch+1, holder.Epoch
	if holder.SystemID != c.Server.SystemID {
		return decideForeign(c, *holder, next, now)
	}
	old := c.Server.Timeline < holder.Reached
	switch alive := c.alive(*holder, now); {
	case c.TakeOver && holder.State != c.StateID || c.TakeOver && old:
		next.How = "taken_over"
	case old:
		return Verdict{}, fmt.Errorf("cluster %s, epoch %d: %w: the server is on timeline %d, the lineage on %d; if the newer timeline is to be given up, run: holdfast lineage open %s --take-over",
			c.Cluster, holder.Epoch, ErrOldTimeline, c.Server.Timeline, holder.Reached, c.Cluster)
	case holder.State == c.StateID:
		return Verdict{Continue: true}, nil
	case c.Server.descends(holder.Reached):
		next.How = "promoted"
	case alive:
		return Verdict{}, refusal(c, *holder, now)
	default:
		next.How = "taken_over"
	}
	return Verdict{Next: next}, nil
}

func decideForeign(c LineageConfig, holder Holder, next catalog.Lineage, now time.Time) (Verdict, error) {
	if !c.Upgrade {
		return Verdict{}, fmt.Errorf("cluster %s: %w: system identifier %s, the repository has %s (epoch %d); give this server a name of its own, or after pg_upgrade run: holdfast lineage open %s --upgraded",
			c.Cluster, ErrForeignServer, c.Server.SystemID, holder.SystemID, holder.Epoch, c.Cluster)
	}
	if holder.State != c.StateID && !c.TakeOver && c.alive(holder, now) {
		return Verdict{}, refusal(c, holder, now)
	}
	next.How = "upgraded"
	return Verdict{Next: next}, nil
}

func (c LineageConfig) alive(h Holder, now time.Time) bool { return now.Sub(h.Seen) < c.lifeWindow() }

func refusal(c LineageConfig, h Holder, now time.Time) error {
	return fmt.Errorf("cluster %s: %w: node %s (epoch %d, timeline %d) showed life %s ago, and is taken for dead after %s; stop it, or if it must be replaced now, run: holdfast lineage open %s --take-over",
		c.Cluster, ErrClaimed, h.Node, h.Epoch, h.Reached, now.Sub(h.Seen).Round(time.Second), c.lifeWindow(), c.Cluster)
}

package retention

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

func (p *planner) refuse(format string, args ...any) {
	p.plan.Refused = append(p.plan.Refused, fmt.Sprintf(format, args...))
}

// guard finds why nothing may be decided at all.
func (p *planner) guard() {
	if !p.Complete {
		p.refuse("the listing is not complete: %v", p.Missing)
	}
	if p.Unapproved != "" {
		p.refuse("the policy keeps less than the one before (%s), and that is to be approved: %s", strings.Join(p.Change.Shorter, "; "), p.Unapproved)
	}
	latest := slices.MaxFunc(append(p.Snapshots, catalog.Snapshot{}), func(a, b catalog.Snapshot) int { return a.FinishedAt.Compare(b.FinishedAt) })
	seen := latest.FinishedAt
	if p.Last.After(seen) {
		seen = p.Last
	}
	if seen.IsZero() {
		return
	}
	if p.Now.Before(seen.Add(-clockMargin)) {
		p.refuse("the clock went back: it is %s, and %s was seen already; set the clock", stamp(p.Now), stamp(seen))
	}
	if p.retired() {
		return // nothing newer is to come
	}
	if jump := max(7*24*time.Hour, p.Policy.KeepAtMost/4); p.Now.Sub(seen) > jump {
		p.refuse("the clock may have jumped: it is %s, and nothing newer than %s was seen; set the clock, or take a snapshot first", stamp(p.Now), stamp(seen))
	}
}

// checkShare refuses a plan that removes suspiciously much.
func (p *planner) checkShare() {
	share := p.MaxShare
	if share <= 0 {
		share = 0.5
	}
	gone := 0
	for _, d := range p.plan.Snapshots {
		if !d.Keep && !p.gone(d.ID) { // those were approved, or asked for, one by one
			gone++
		}
	}
	if gone >= 2 && float64(gone) > share*float64(len(p.plan.Snapshots)) && !p.Force && !p.retired() {
		p.refuse("it removes %d of %d snapshots, more than %.0f %%: look at it, and force it if it is meant", gone, len(p.plan.Snapshots), share*100)
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// graphDoc is how a cluster came to be where it is: who wrote, and which timeline
// left which.
type graphDoc struct {
	Lineages  []lineageNode  `json:"lineages"`
	Timelines []timelineNode `json:"timelines"`
}

// lineageNode is a writer epoch; Parent is the one that it followed, 0 for none.
type lineageNode struct {
	Lineage  int     `json:"lineage"`
	Parent   int     `json:"parent,omitempty"`
	How      string  `json:"how"`
	Node     string  `json:"node"`
	Timeline uint32  `json:"timeline"`
	From     lsn.LSN `json:"from_lsn"`
}

// timelineNode is a timeline of one system, whose first lineage is Root. It left
// Parent at Switch; both are 0 where no history is archived.
type timelineNode struct {
	Root     int       `json:"root"`
	Timeline uint32    `json:"timeline"`
	Parent   uint32    `json:"parent,omitempty"`
	Switch   lsn.LSN   `json:"switch_lsn,omitzero"`
	Held     []stretch `json:"held"`
}

// graph is drawn from the names in the repository: a history is noted where its
// timeline begins, and what it left is the highest lower timeline that is archived
// up to there.
func (r walRecord) graph() graphDoc {
	g := graphDoc{Lineages: []lineageNode{}, Timelines: []timelineNode{}}
	for _, l := range r.lineages {
		g.Lineages = append(g.Lineages, lineageNode{l.Epoch, l.Parent, cmp.Or(l.How, "first"), l.Node, l.Timeline, l.StartLSN})
	}
	for _, s := range catalog.Stretches(r.entries.List) {
		t := g.timeline(r.rootOf(s.Epoch), s.Timeline)
		t.Held = append(t.Held, stretch{s.Epoch, s.Timeline, s.From, s.To})
	}
	for _, e := range r.entries.List {
		if e.From != e.To || e.Timeline == 1 {
			continue
		}
		// What a timeline leaves at its own end lies behind its history.
		if t := g.timeline(r.rootOf(e.Epoch), e.Timeline); t.Switch == 0 || e.From < t.Switch {
			t.Switch = e.From
		}
	}
	slices.SortFunc(g.Timelines, func(a, b timelineNode) int {
		return cmp.Or(cmp.Compare(a.Root, b.Root), cmp.Compare(a.Timeline, b.Timeline))
	})
	for i := range g.Timelines {
		g.Timelines[i].Parent = g.parent(g.Timelines[i])
	}
	return g
}

func (g *graphDoc) timeline(root int, timeline uint32) *timelineNode {
	for i := range g.Timelines {
		if t := &g.Timelines[i]; t.Root == root && t.Timeline == timeline {
			return t
		}
	}
	g.Timelines = append(g.Timelines, timelineNode{Root: root, Timeline: timeline, Held: []stretch{}})
	return &g.Timelines[len(g.Timelines)-1]
}

func (g *graphDoc) parent(of timelineNode) (parent uint32) {
	for _, t := range g.Timelines {
		reaches := slices.ContainsFunc(t.Held, func(s stretch) bool { return s.From < of.Switch && of.Switch <= s.To })
		if t.Root == of.Root && t.Timeline < of.Timeline && reaches {
			parent = max(parent, t.Timeline)
		}
	}
	return parent
}

func (g graphDoc) text(w io.Writer) {
	for _, l := range g.Lineages {
		how := l.How
		if l.Parent > 0 {
			how += fmt.Sprintf(" after %d", l.Parent)
		}
		fmt.Fprintf(w, "  lineage %d: node %s, %s, on timeline %d from %s\n", l.Lineage, l.Node, how, l.Timeline, l.From)
	}
	for _, t := range g.Timelines {
		if t.Parent == 0 {
			g.branch(w, t, 1)
		}
	}
}

// branch prints a timeline and, further in, those that left it.
func (g graphDoc) branch(w io.Writer, t timelineNode, depth int) {
	in := strings.Repeat("  ", depth)
	at := ""
	if t.Switch != 0 {
		at = fmt.Sprintf(", which began at %s", t.Switch)
	}
	fmt.Fprintf(w, "%stimeline %d%s\n", in, t.Timeline, at)
	for _, s := range t.Held {
		fmt.Fprintf(w, "%s  %s to %s by lineage %d\n", in, s.From, s.To, s.Lineage)
	}
	for _, child := range g.Timelines {
		if child.Root == t.Root && child.Parent == t.Timeline {
			g.branch(w, child, depth+1)
		}
	}
}

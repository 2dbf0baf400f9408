package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// mayHold refuses what a cluster's residency does not permit in a place: by this
// node's configuration, and by the newest signed placement record of the repository,
// which a restore node's configuration need not repeat.
func (w *world) mayHold(ctx context.Context, cluster, what, where string) error {
	rules := []configs.Residency{}
	if i := slices.IndexFunc(w.cfg.Clusters, func(c configs.Cluster) bool { return c.Name == cluster }); i >= 0 {
		rules = append(rules, w.cfg.Clusters[i].Residency)
	}
	records, err := w.catalog.Placements(ctx, cluster)
	if err != nil {
		return err
	}
	if p := newestPlacement(records.Bodies()); p != nil {
		rules = append(rules, configs.Residency{Allow: p.Allow, Forbid: p.Forbid})
	}
	for _, r := range rules {
		if why := r.Refuses(where); why != "" {
			return refused("restore in a place that the cluster's residency permits, and say where it is: environments[].jurisdiction or node.jurisdiction",
				"cluster %s may not be in %s (%s): %s", cluster, what, cmp.Or(where, "its jurisdiction is not said"), why)
		}
	}
	return nil
}

// place gives a cluster's objects the zones that its residency allows.
func (w *world) place() func(string) []string {
	allowed := map[string][]string{}
	for _, c := range w.cfg.Clusters {
		if !c.Residency.Given() {
			continue
		}
		allowed[c.Name] = []string{} // and not nil, which is every zone
		for _, z := range w.cfg.Repository.Allowed(c.Residency) {
			allowed[c.Name] = append(allowed[c.Name], z.Name)
		}
	}
	return func(name string) []string {
		rest, ok := strings.CutPrefix(name, catalog.ClustersPrefix)
		if !ok {
			return nil
		}
		cluster, _, _ := strings.Cut(rest, "/")
		return allowed[cluster]
	}
}

func newestPlacement(list []catalog.Placement) *catalog.Placement {
	var newest *catalog.Placement
	for _, p := range list {
		if newest == nil || p.At.After(newest.At) {
			newest = &p
		}
	}
	return newest
}

// placeOf says what a directory is part of, an environment or the node, and where.
func (w *world) placeOf(dir string) (what, where string) {
	abs, err := filepath.Abs(dir)
	for _, e := range w.cfg.Environments {
		if err == nil && (abs == e.Directory || strings.HasPrefix(abs, e.Directory+"/")) {
			return "environment " + e.Name, w.cfg.Jurisdiction(e)
		}
	}
	return "node " + cmp.Or(w.cfg.Node.Name, "without a configuration"), w.cfg.Node.Jurisdiction
}

// placement is where a cluster goes, by the configuration.
func (w *world) placement(c configs.Cluster) catalog.Placement {
	p := catalog.Placement{
		Cluster: c.Name, Node: w.cfg.Node.Name, At: w.now().UTC(), Where: w.cfg.Node.Jurisdiction,
		Allow: c.Residency.Allow, Forbid: c.Residency.Forbid, Copies: c.Residency.Copies,
	}
	for _, z := range w.cfg.Repository.Zones {
		place := z.Directory
		if z.S3 != nil {
			place = cmp.Or(z.S3.Endpoint, z.S3.Region) + "/" + z.S3.Bucket + "/" + z.S3.Prefix
		}
		p.Zones = append(p.Zones, catalog.PlacedZone{Name: z.Name, Jurisdiction: z.Jurisdiction, Place: place, Refused: c.Residency.Refuses(z.Jurisdiction)})
	}
	return p
}

// recordPlacement signs where a cluster goes when that is not what the newest record
// says, before anything is written there.
func (n *node) recordPlacement(ctx context.Context, c configs.Cluster) error {
	records, err := n.catalog.Placements(ctx, c.Name)
	if err != nil {
		return err
	}
	p := n.placement(c)
	if last := newestPlacement(records.Bodies()); last != nil {
		same := *last
		same.At = p.At
		if string(marshal(same)) == string(marshal(p)) {
			return nil
		}
	}
	note, err := n.putNote(ctx, catalog.PlacementName(n.ledger.Origin(), c.Name, snapshot.NewID(n.now())), catalog.KindPlacement, p)
	if err != nil {
		return fmt.Errorf("recording where cluster %s is placed: %w", c.Name, err)
	}
	n.log.Info("placement recorded", zap.String("cluster", c.Name), zap.String("note", note.Name))
	_, err = n.append(ctx, "placement", map[string]string{"cluster": c.Name}, map[string]any{"placement": p, "note": note})
	return err
}

// placementsDoc is the answer of `zone placement`.
type placementsDoc struct {
	OK       bool              `json:"ok"` // nothing lies where it must not
	At       time.Time         `json:"at"`
	Clusters []placedCluster   `json:"clusters"`
	Errors   map[string]string `json:"errors,omitempty"` // zones that did not answer
}

type placedCluster struct {
	Cluster string             `json:"cluster"`
	Record  *catalog.Placement `json:"record,omitempty"` // the newest signed one
	Zones   []placedIn         `json:"zones"`
}

type placedIn struct {
	catalog.PlacedZone
	Versions int64 `json:"versions"` // of objects of the cluster, by the zone's own listing
	Bytes    int64 `json:"bytes"`
}

// placements are read from the zones' own listings, beside what was signed.
func (w *world) placements(ctx context.Context) (placementsDoc, error) {
	doc := placementsDoc{OK: true, At: w.now().UTC(), Clusters: []placedCluster{}, Errors: map[string]string{}}
	for _, c := range w.cfg.Clusters {
		records, err := w.catalog.Placements(ctx, c.Name)
		if err != nil {
			return doc, err
		}
		one := placedCluster{Cluster: c.Name, Record: newestPlacement(records.Bodies())}
		zones, faults := w.vault.Remover().Versions(ctx, catalog.ClusterDir(c.Name))
		for z, err := range faults {
			doc.Errors[z], doc.OK = err.Error(), false
		}
		for _, z := range w.placement(c).Zones {
			in := placedIn{PlacedZone: z}
			if one.Record != nil && in.Refused == "" {
				in.Refused = configs.Residency{Allow: one.Record.Allow, Forbid: one.Record.Forbid}.Refuses(z.Jurisdiction)
			}
			for _, o := range zones[z.Name] {
				in.Versions++
				in.Bytes += o.Size
			}
			doc.OK = doc.OK && (in.Refused == "" || in.Versions == 0)
			one.Zones = append(one.Zones, in)
		}
		doc.Clusters = append(doc.Clusters, one)
	}
	return doc, nil
}

func (e *env) placementCommand() *cobra.Command {
	return &cobra.Command{
		Use: "placement", Short: "Where each cluster's objects are, by the zones' own listings, and where they may be", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := e.open(cmd.Context())
			if err != nil {
				return err
			}
			defer w.close()
			doc, err := w.placements(cmd.Context())
			if err == nil {
				err = e.print(doc, doc.text)
			}
			if err == nil && !doc.OK {
				err = quietly(exitNotHeld)
			}
			return err
		},
	}
}

func (d placementsDoc) text(out io.Writer) {
	for _, c := range d.Clusters {
		fmt.Fprintf(out, "%s\n", c.Cluster)
		if c.Record != nil {
			fmt.Fprintf(out, "  recorded %s by %s: allow %s; forbid %s\n", clock(c.Record.At), c.Record.Node, orNone(c.Record.Allow), orNone(c.Record.Forbid))
		}
		for _, z := range c.Zones {
			note := ""
			switch {
			case z.Refused != "" && z.Versions > 0:
				note = "  MUST NOT BE THERE: " + z.Refused
			case z.Refused != "":
				note = "  kept out: " + z.Refused
			}
			fmt.Fprintf(out, "  zone %-12s %-6s %d versions, %s%s\n", z.Name, cmp.Or(z.Jurisdiction, "-"), z.Versions, size(z.Bytes), note)
		}
	}
	for z, err := range d.Errors {
		fmt.Fprintf(out, "zone %s did not answer: %s\n", z, err)
	}
}

func orNone(list []string) string { return cmp.Or(strings.Join(list, ", "), "none") }

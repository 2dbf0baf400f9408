package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

func (e *env) catalogCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "catalog", Short: "What the repository holds"}
	cmd.AddCommand(&cobra.Command{
		Use:   "rebuild",
		Short: "Drop what this node has cached, read everything anew from the zones, and tell what is there",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return e.rebuildCatalog(cmd.Context()) },
	})
	return cmd
}

type catalogDocument struct {
	Repository   string           `json:"repository"`
	Complete     bool             `json:"complete"` // so many zones answered that nothing is missing
	Clusters     []catalogCluster `json:"clusters"`
	DigestEpochs int              `json:"digest_epochs"`
	Tombstones   int              `json:"tombstones"`
	Certificates int              `json:"certificates"`
	Proofs       int              `json:"proofs"`
	Holds        int              `json:"holds"`  // in force
	Faults       []string         `json:"faults"` // notes that could not be believed
}

type catalogCluster struct {
	Name       string            `json:"name"`
	Lineages   int               `json:"lineages"`
	Snapshots  int               `json:"snapshots"`
	Forgotten  int               `json:"forgotten"`
	Unfinished int               `json:"unfinished"` // begun and not committed
	WAL        []catalog.WALSpan `json:"wal"`        // runs without a gap
	WALNotes   int               `json:"wal_notes"`
}

func (e *env) rebuildCatalog(ctx context.Context) error {
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	if w.cfg.Node.State != "" { // nothing but caches lies there; all of it can be read again
		if err := os.RemoveAll(w.state("cache")); err != nil {
			return fmt.Errorf("dropping the cache: %w", err)
		}
	}
	doc, err := w.readCatalog(ctx)
	if err != nil {
		return err
	}
	if err := e.print(doc, func(out io.Writer) { printCatalog(out, doc) }); err != nil {
		return err
	}
	if len(doc.Faults) > 0 || !doc.Complete {
		return quietly(exitNotHeld)
	}
	return nil
}

// readCatalog opens every note of the repository.
func (w *world) readCatalog(ctx context.Context) (catalogDocument, error) {
	doc := catalogDocument{Repository: w.repoID, Complete: true, Clusters: []catalogCluster{}, Faults: []string{}}
	names, err := w.catalog.Clusters(ctx)
	if err != nil {
		return doc, err
	}
	for _, name := range names {
		c, err := w.readCluster(ctx, name, &doc)
		if err != nil {
			return doc, fmt.Errorf("reading cluster %s: %w", name, err)
		}
		doc.Clusters = append(doc.Clusters, c)
	}
	tombs, err := w.catalog.Tombstones(ctx, "")
	if err != nil {
		return doc, err
	}
	certs, err := w.catalog.Certificates(ctx)
	if err != nil {
		return doc, err
	}
	proofs, err := w.catalog.Proofs(ctx, "")
	if err != nil {
		return doc, err
	}
	keys, err := w.vault.Reader().List(ctx, catalog.DigestKeysDir)
	if err != nil {
		return doc, err
	}
	doc.Tombstones, doc.Certificates, doc.Proofs, doc.DigestEpochs = len(tombs.List), len(certs.List), len(proofs.List), len(keys.Objects)
	doc.add(tombs.Complete && certs.Complete && proofs.Complete && keys.Complete, tombs.Faults, certs.Faults, proofs.Faults)
	return doc, nil
}

func (d *catalogDocument) add(complete bool, faults ...[]catalog.Fault) {
	d.Complete = d.Complete && complete
	for _, list := range faults {
		for _, f := range list {
			d.Faults = append(d.Faults, f.Error())
		}
	}
}

func (w *world) readCluster(ctx context.Context, name string, doc *catalogDocument) (catalogCluster, error) {
	c := catalogCluster{Name: name}
	holds, err := w.catalog.Holds(ctx, name)
	if err != nil {
		return c, err
	}
	doc.Holds += len(holds.InForce())
	lineages, err := w.catalog.Lineages(ctx, name)
	if err != nil {
		return c, err
	}
	snaps, err := w.catalog.Snapshots(ctx, name)
	if err != nil {
		return c, err
	}
	wal, err := w.catalog.WALEntries(ctx, name, "")
	if err != nil {
		return c, err
	}
	notes, faults, err := w.catalog.WALNotes(ctx, name, wal.List)
	if err != nil {
		return c, err
	}
	doc.add(lineages.Complete && snaps.Complete && wal.Complete && holds.Complete, lineages.Faults, snaps.Faults, holds.Faults, faults)
	c.Lineages, c.Snapshots, c.Forgotten, c.Unfinished = len(lineages.List), len(snaps.List), len(snaps.Forgotten), len(snaps.Intents)
	c.WAL, c.WALNotes = catalog.Stretches(wal.List), len(notes)
	return c, nil
}

func printCatalog(w io.Writer, doc catalogDocument) {
	fmt.Fprintf(w, "repository %s: %s, %s, %s, %s in force, %s, %s of digest keys\n", doc.Repository, count(len(doc.Clusters), "cluster"),
		count(doc.Tombstones, "tombstone"), count(doc.Certificates, "certificate"), count(doc.Holds, "hold"), count(doc.Proofs, "proof"), count(doc.DigestEpochs, "epoch"))
	for _, c := range doc.Clusters {
		fmt.Fprintf(w, "cluster %s: %s (and %d forgotten, %d unfinished), %s, %s\n", c.Name, count(c.Snapshots, "snapshot"), c.Forgotten, c.Unfinished, count(c.Lineages, "lineage"), count(c.WALNotes, "WAL note"))
		for _, s := range c.WAL {
			fmt.Fprintf(w, "  WAL of lineage %d, timeline %d: %s to %s\n", s.Epoch, s.Timeline, s.From, s.To)
		}
	}
	if !doc.Complete {
		fmt.Fprintln(w, "too few zones answered to say that this is all: `holdfast zone list` shows which")
	}
	for _, f := range doc.Faults {
		fmt.Fprintln(w, "not believed:", f)
	}
}

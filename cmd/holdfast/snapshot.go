package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// snapshotsDoc is the answer of `snapshot list`.
type snapshotsDoc struct {
	Snapshots []snapshotDoc `json:"snapshots"`
	// Complete is false when too few zones answered to know that none is missing.
	Complete bool     `json:"complete"`
	Faults   []string `json:"faults,omitempty"`
}

// snapshotDoc is one snapshot.
type snapshotDoc struct {
	ID         string        `json:"id"`
	Cluster    string        `json:"cluster"`
	Kind       string        `json:"kind"`
	Source     string        `json:"source"`
	KeyMAC     string        `json:"key_mac,omitempty"` // whose a project's is
	StartedAt  time.Time     `json:"started_at"`
	FinishedAt time.Time     `json:"finished_at"`
	StartLSN   lsn.LSN       `json:"start_lsn"`
	StopLSN    lsn.LSN       `json:"stop_lsn"`
	Timeline   uint32        `json:"timeline"`
	Lineage    int           `json:"lineage"`
	Major      int           `json:"major"`
	RawBytes   int64         `json:"raw_bytes"`
	StoredSize int64         `json:"stored_bytes"` // of all objects that it needs, older ones included
	NewBytes   int64         `json:"new_bytes"`    // of those that were made for it
	Pages      pagesDoc      `json:"pages"`
	Zones      []zoneHolding `json:"zones"`
	Suspect    bool          `json:"suspect"`
	ProvenAt   time.Time     `json:"proven_at,omitzero"`
	ExpiresAt  time.Time     `json:"expires_at,omitzero"`
	Holds      []string      `json:"holds"`
}

type pagesDoc struct {
	Checked int64 `json:"checked"`
	Bad     int64 `json:"bad"`
}

type zoneHolding struct {
	Name     string `json:"name"`
	Complete bool   `json:"complete"`
}

func (w *world) snapshotDoc(s catalog.Snapshot, zones []string, proofs []catalog.Proof, holds []string) snapshotDoc {
	d := snapshotDoc{
		ID: s.ID, Cluster: s.Cluster, Kind: s.Kind, Source: s.Source, KeyMAC: s.KeyMAC, StartedAt: s.StartedAt.UTC(), FinishedAt: s.FinishedAt.UTC(), StartLSN: s.StartLSN,
		StopLSN: s.StopLSN, Timeline: s.Timeline, Lineage: s.Epoch, Major: s.Major, RawBytes: s.RawBytes, StoredSize: s.StoredSize,
		NewBytes: s.NewBytes, Pages: pagesDoc{s.Pages.Checked, s.Pages.Bad}, Suspect: s.Suspect, Zones: []zoneHolding{}, Holds: append([]string{}, holds...),
	}
	has := map[string]bool{}
	for _, z := range zones {
		has[z] = true
	}
	for _, z := range w.cfg.Repository.Zones {
		d.Zones = append(d.Zones, zoneHolding{z.Name, has[z.Name]})
	}
	for _, p := range proofs {
		if p.Snapshot == s.ID && p.Cluster == s.Cluster && proves(p) && p.At.After(d.ProvenAt) {
			d.ProvenAt = p.At.UTC()
		}
	}
	for _, c := range w.cfg.Clusters {
		if c.Name == s.Cluster {
			d.ExpiresAt = policyOf(c.Retention).Expires(s)
		}
	}
	return d
}

func proves(p catalog.Proof) bool { return drills.Passed(p.Outcome) }

// describe is a snapshot that was just committed.
func (n *node) describe(_ context.Context, s catalog.Snapshot) snapshotDoc {
	d := n.snapshotDoc(s, nil, nil, nil)
	d.Zones = nil
	return d
}

// clusterNames are the one asked for, else all that are configured or known.
func (w *world) clusterNames(ctx context.Context, one string) ([]string, error) {
	if one != "" {
		return []string{one}, catalog.CheckName(one)
	}
	return w.catalog.Clusters(ctx)
}

func (w *world) snapshotList(ctx context.Context, in clusterQuery) (snapshotsDoc, error) {
	doc := snapshotsDoc{Snapshots: []snapshotDoc{}, Complete: true}
	names, err := w.clusterNames(ctx, in.Cluster)
	if err != nil {
		return doc, err
	}
	for _, name := range names {
		list, err := w.catalog.Snapshots(ctx, name)
		if err != nil {
			return doc, err
		}
		proofs, err := w.catalog.Proofs(ctx, name)
		if err != nil {
			return doc, err
		}
		held, err := w.held(ctx, name)
		if err != nil {
			doc.Faults = append(doc.Faults, heldFault(name, err))
		}
		doc.Complete = doc.Complete && list.Complete
		for _, f := range list.Faults {
			doc.Faults = append(doc.Faults, f.Error())
		}
		for _, s := range list.List {
			doc.Snapshots = append(doc.Snapshots, w.snapshotDoc(s.Body, s.Zones, proofs.Bodies(), held[s.Body.ID]))
		}
	}
	return doc, nil
}

// heldFault tells that the holds of a cluster's snapshots are not shown.
func heldFault(cluster string, err error) string {
	return fmt.Sprintf("which snapshots of %s are on hold is not known: %v", cluster, err)
}

func (d snapshotsDoc) text(w io.Writer) {
	var rows [][]string
	for _, s := range d.Snapshots {
		var zones []string
		for _, z := range s.Zones {
			if z.Complete {
				zones = append(zones, z.Name)
			}
		}
		state := "ok"
		switch {
		case s.Suspect:
			state = "SUSPECT"
		case s.Kind != catalog.Physical:
			state = "-"
		}
		rows = append(rows, []string{s.ID, s.Cluster, s.Kind, clock(s.FinishedAt), s.StopLSN.String(), size(s.RawBytes), size(s.NewBytes), size(s.StoredSize), strings.Join(zones, ","), state, clock(s.ProvenAt), clock(s.ExpiresAt), strings.Join(s.Holds, ",")})
	}
	if len(rows) == 0 {
		fmt.Fprintln(w, "no snapshots")
	} else {
		table(w, "ID\tCLUSTER\tKIND\tFINISHED\tSTOP\tRAW\tNEW\tNEEDS\tZONES\tPAGES\tPROVEN\tEXPIRES\tHOLDS", rows)
	}
	if !d.Complete {
		fmt.Fprintln(w, "too few zones answered to know that none is missing")
	}
	for _, f := range d.Faults {
		fmt.Fprintln(w, "fault:", f)
	}
}

func (e *env) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Short: "Take, list and verify snapshots"}
	cmd.AddCommand(
		e.takeSnapshotCommand(),
		&cobra.Command{Use: "list [CLUSTER]", Short: "List the snapshots", Args: cobra.MaximumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
			in := optionalCluster(args)
			doc, err := call(c.Context(), e, opSnapshotList, in, (*world).snapshotList)
			if err != nil {
				return err
			}
			return e.print(doc, doc.text)
		}},
		&cobra.Command{Use: "show ID", Short: "Show one snapshot", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			return e.showSnapshot(c.Context(), args[0])
		}},
		e.verifySnapshotCommand(),
	)
	return cmd
}

func (e *env) takeSnapshotCommand() *cobra.Command {
	var in takeIn
	cmd := &cobra.Command{Use: "take CLUSTER", Short: "Take a snapshot now", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		in.Cluster = args[0]
		return e.takeSnapshot(c.Context(), in)
	}}
	f := cmd.Flags()
	f.BoolVar(&in.Full, "full", false, "store every block, and refer to no older snapshot")
	f.BoolVar(&in.Logical, "logical", false, "copy rows and DDL of every database, in place of files")
	f.StringVar(&in.Project, "project", "", "copy the rows and DDL of project `ID` alone")
	cmd.MarkFlagsMutuallyExclusive("full", "logical", "project")
	return cmd
}

func init() {
	takeFirst = func(ctx context.Context, e *env, cluster string) error {
		return e.takeSnapshot(ctx, takeIn{Cluster: cluster})
	}
}

func (e *env) takeSnapshot(ctx context.Context, in takeIn) error {
	out, err := e.actTake(ctx, in)
	if err != nil {
		return err
	}
	var doc snapshotDoc
	if err := json.Unmarshal(out, &doc); err != nil {
		return fmt.Errorf("reading the snapshot's description: %w", err)
	}
	return e.print(doc, func(w io.Writer) { takenText(w, doc) })
}

func takenText(w io.Writer, doc snapshotDoc) {
	if catalog.Exported(doc.Kind) {
		fmt.Fprintf(w, "%s snapshot %s of %s: %s read, %s stored, as of %s\n", doc.Kind, doc.ID, doc.Cluster, size(doc.RawBytes), size(doc.NewBytes), clock(doc.FinishedAt))
		return
	}
	fmt.Fprintf(w, "snapshot %s of %s: %s read, %s stored, %d pages checked, %d bad; restorable from %s on\n",
		doc.ID, doc.Cluster, size(doc.RawBytes), size(doc.NewBytes), doc.Pages.Checked, doc.Pages.Bad, clock(doc.FinishedAt))
	if doc.Suspect {
		fmt.Fprintln(w, "it is SUSPECT: see `holdfast snapshot show "+doc.ID+"`")
	}
}

// findSnapshot looks for an id in every cluster.
func (w *world) findSnapshot(ctx context.Context, id string) (catalog.Noted[catalog.Snapshot], error) {
	names, err := w.catalog.Clusters(ctx)
	if err != nil {
		return catalog.Noted[catalog.Snapshot]{}, err
	}
	for _, name := range names {
		list, err := w.catalog.Snapshots(ctx, name)
		if err != nil {
			return catalog.Noted[catalog.Snapshot]{}, err
		}
		for _, s := range list.All {
			if s.Body.ID == id {
				return s, nil
			}
		}
	}
	return catalog.Noted[catalog.Snapshot]{}, usage("there is no snapshot %q; `holdfast snapshot list` shows those there are", id)
}

// shownSnapshot is the answer of `snapshot show`.
type shownSnapshot struct {
	snapshotDoc
	Note   catalog.Snapshot `json:"note"`
	Faults []string         `json:"faults,omitempty"`
}

func (e *env) showSnapshot(ctx context.Context, id string) error {
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	s, err := w.findSnapshot(ctx, id)
	if err != nil {
		return err
	}
	proofs, err := w.catalog.Proofs(ctx, s.Body.Cluster)
	if err != nil {
		return err
	}
	held, err := w.held(ctx, s.Body.Cluster)
	doc := shownSnapshot{snapshotDoc: w.snapshotDoc(s.Body, s.Zones, proofs.Bodies(), held[s.Body.ID]), Note: s.Body}
	if err != nil {
		doc.Faults = []string{heldFault(s.Body.Cluster, err)}
	}
	return e.print(doc, func(out io.Writer) { doc.text(out, s.Zones) })
}

func (d shownSnapshot) text(out io.Writer, zones []string) {
	b := d.Note
	fmt.Fprintf(out, "snapshot   %s (%s, from %s, by node %s)\ncluster    %s, system id %s, PostgreSQL %d\n", b.ID, b.Kind, b.Source, b.Node, b.Cluster, b.SystemID, b.Major)
	if catalog.Exported(b.Kind) {
		d.exportedText(out)
	} else {
		fmt.Fprintf(out, "taken      %s to %s\nWAL        %s to %s on timeline %d, lineage %d\n", clock(b.StartedAt), clock(b.FinishedAt), b.StartLSN, b.StopLSN, b.Timeline, b.Epoch)
		fmt.Fprintf(out, "size       %s in %d files, in objects of %s, %s of which were made for it\npages      %d checked, %d skipped, %d bad\n",
			size(b.RawBytes), b.Files, size(b.StoredSize), size(b.NewBytes), b.Pages.Checked, b.Pages.Skipped, b.Pages.Bad)
	}
	fmt.Fprintf(out, "zones      %s\nproven     %s\nexpires    %s\nopened by  %s\n", strings.Join(zones, ", "), clock(d.ProvenAt), clock(d.ExpiresAt), strings.Join(b.Recipients, ", "))
	if len(d.Holds) > 0 {
		fmt.Fprintf(out, "on hold    %s\n", strings.Join(d.Holds, ", "))
	}
	for _, r := range b.Reasons {
		fmt.Fprintln(out, "suspect:  ", r)
	}
	for _, f := range d.Faults {
		fmt.Fprintln(out, "fault:    ", f)
	}
}

// exportedText is for snapshots that are rows and DDL: they have no pages, and need no WAL.
func (d shownSnapshot) exportedText(out io.Writer) {
	b := d.Note
	fmt.Fprintf(out, "as of      %s to %s, at %s of timeline %d, lineage %d\n", clock(b.StartedAt), clock(b.FinishedAt), b.StopLSN, b.Timeline, b.Epoch)
	fmt.Fprintf(out, "size       %s in %d files, in objects of %s\n", size(b.RawBytes), b.Files, size(b.StoredSize))
	if b.KeyMAC != "" {
		fmt.Fprintf(out, "project    %s (MAC of its key, digest epoch %d)\n", b.KeyMAC, b.DigestEpoch)
	}
}

func (e *env) verifySnapshotCommand() *cobra.Command {
	var deep, heal bool
	var identity string
	cmd := &cobra.Command{
		Use: "verify [ID]", Short: "Compare every copy of a snapshot's objects with its digest; the newest one if no ID is given", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if deep && identity == "" {
				return usage("--deep opens the data and needs --identity FILE")
			}
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			return e.verifySnapshot(c.Context(), id, identity, heal)
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "open the packs, check frames and pages")
	cmd.Flags().StringVar(&identity, "identity", "", "age identity `FILE` that opens data")
	cmd.Flags().BoolVar(&heal, "heal", false, "repair wrong and missing copies from a good one (no daemon may run)")
	return cmd
}

func (e *env) verifySnapshot(ctx context.Context, id, identity string, heal bool) error {
	check := func(ctx context.Context, w *world, healer snapshot.Healer) error {
		cfg := snapshot.VerifyConfig{ID: id, Reader: w.vault.Reader(), Trust: w.trust, Heal: healer}
		s, err := w.pickSnapshot(ctx, id)
		if err != nil {
			return err
		}
		cfg.ID, cfg.Cluster = s.ID, s.Cluster
		if identity != "" {
			if cfg.Identities, err = loadIdentities(configs.Secret{File: identity}); err != nil {
				return err
			}
			cfg.Digests = w.digestsBy(cfg.Identities)
			cfg.Identities = append(cfg.Identities, w.index...)
		}
		rep, err := snapshot.Verify(ctx, cfg)
		if err != nil {
			return err
		}
		if err := e.print(rep, func(out io.Writer) { verifyText(out, rep) }); err != nil || rep.OK() {
			return err
		}
		return notHeld("`--heal` repairs copies from a good one; `holdfast zone list` says which zones are away", "verifying snapshot %s: not every copy is as it should be", s.ID)
	}
	if heal {
		return e.asNode(ctx, func(ctx context.Context, n *node) error { return check(ctx, n.world, n.vault.Writer()) })
	}
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	return check(ctx, w, nil)
}

func verifyText(out io.Writer, rep snapshot.VerifyReport) {
	fmt.Fprintf(out, "snapshot %s: %d objects\n", rep.Snapshot.ID, rep.Objects)
	for _, z := range rep.Zones {
		fmt.Fprintf(out, "  zone %-12s %d good, %d missing, %d wrong, %d healed %s\n", z.Name, z.Good, z.Missing, z.Wrong, len(z.Healed), z.Unreachable)
		for _, f := range z.Faults {
			fmt.Fprintf(out, "    %s: %s\n", f.Name, f.Fault)
		}
	}
	if rep.Deep != nil {
		d := rep.Deep
		fmt.Fprintf(out, "  opened: %d packs, %d frames, %d blocks held against their digests, %d pages checked, %d bad, %d faults\n", d.Packs, d.Frames, d.Blocks, d.Pages.Checked, d.Pages.Bad, len(d.Faults))
		for _, f := range d.Faults {
			fmt.Fprintf(out, "    %s: %s\n", f.Name, f.Fault)
		}
	}
}

// pickSnapshot is the one with id, or the newest of all.
func (w *world) pickSnapshot(ctx context.Context, id string) (catalog.Snapshot, error) {
	if id != "" {
		s, err := w.findSnapshot(ctx, id)
		return s.Body, err
	}
	doc, err := w.snapshotList(ctx, clusterQuery{})
	if err != nil {
		return catalog.Snapshot{}, err
	}
	if len(doc.Snapshots) == 0 {
		return catalog.Snapshot{}, failed("`holdfast snapshot take CLUSTER` takes one", "there is no snapshot")
	}
	newest := doc.Snapshots[0]
	for _, s := range doc.Snapshots {
		if s.FinishedAt.After(newest.FinishedAt) {
			newest = s
		}
	}
	return w.catalog.Snapshot(ctx, newest.Cluster, newest.ID)
}

// loadIdentities reads age identities from where a secret is.
func loadIdentities(s configs.Secret) ([]age.Identity, error) {
	data, err := s.Load()
	if err != nil {
		return nil, usage("reading the identity: %w", err)
	}
	ids, err := seal.ParseIdentities(data)
	if err != nil {
		return nil, usage("reading the identity: %w", err)
	}
	return ids, nil
}

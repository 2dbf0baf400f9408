package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// maxScrubFaults bounds what one zone's report lists.
const maxScrubFaults = 1000

type scrubDocument struct {
	OK    bool        `json:"ok"`
	Zones []scrubZone `json:"zones"`
	// Faults are notes that no trusted signer vouches for, in any zone.
	Faults []string `json:"faults"`
}

type scrubZone struct {
	Name        string        `json:"name"`
	Objects     int           `json:"objects"` // that it should hold
	Good        int           `json:"good"`
	Missing     int           `json:"missing"`
	Wrong       int           `json:"wrong"`
	Unreachable string        `json:"unreachable,omitempty"`
	Faults      []scrubFault  `json:"faults"` // the first thousand
	Healed      []string      `json:"healed,omitempty"`
	broken      []catalog.Ref // missing or wrong
}

type scrubFault struct {
	Name  string `json:"name"`
	Fault string `json:"fault"`
}

// scrubZones reads all that signed notes name. Only healing needs the node.
func (e *env) scrubZones(ctx context.Context, only string, heal bool) (err error) {
	var w *world
	var n *node
	if heal {
		cfg, err := e.load()
		if err != nil {
			return err
		}
		if n, err = e.openNode(asHuman(ctx), cfg, e.logger()); err != nil {
			return err
		}
		w = n.world
	} else if w, err = e.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if only != "" {
		if _, err := configuredZone(w.cfg, only); err != nil {
			return err
		}
	}
	doc, err := w.scrub(ctx, only, e.progress("scrub"))
	if err != nil {
		return err
	}
	if heal {
		if err := n.healAll(ctx, &doc); err != nil {
			return err
		}
	}
	doc.judge()
	if err := e.print(doc, func(out io.Writer) { printScrub(out, doc, heal) }); err != nil {
		return err
	}
	if !doc.OK {
		return quietly(exitNotHeld)
	}
	return nil
}

func (d *scrubDocument) judge() {
	d.OK = len(d.Faults) == 0
	for _, z := range d.Zones {
		d.OK = d.OK && z.Unreachable == "" && z.Missing+z.Wrong == len(z.Healed)
	}
}

// scrub compares every zone's copy of every object that notes name.
func (w *world) scrub(ctx context.Context, only string, p *progress) (scrubDocument, error) {
	doc := scrubDocument{Faults: []string{}}
	refs, faults, err := w.scrubRefs(ctx)
	if err != nil {
		return doc, err
	}
	doc.Faults = append(doc.Faults, faults...)
	place := w.place()
	var wg sync.WaitGroup
	for _, z := range w.zones {
		if only == "" || z.Name() == only {
			doc.Zones = append(doc.Zones, scrubZone{Name: z.Name(), Faults: []scrubFault{}})
		}
	}
	for i := range doc.Zones {
		out := &doc.Zones[i]
		z := w.zones[slices.IndexFunc(w.zones, func(z *zone.Zone) bool { return z.Name() == out.Name })]
		wg.Go(func() {
			var done, total int64
			for _, r := range refs {
				total += r.Size
			}
			for _, r := range refs {
				if where := place(r.Name); where != nil && !slices.Contains(where, out.Name) {
					continue
				}
				if !out.look(ctx, z, r) {
					return
				}
				done += r.Size
				p.show("zone "+out.Name, done, total)
			}
		})
	}
	wg.Wait()
	return doc, ctx.Err()
}

// look reads one copy; false when the zone cannot be read at all.
func (s *scrubZone) look(ctx context.Context, z *zone.Zone, want catalog.Ref) bool {
	s.Objects++
	fault := func(format string, args ...any) bool {
		s.broken = append(s.broken, want)
		if len(s.Faults) < maxScrubFaults {
			s.Faults = append(s.Faults, scrubFault{want.Name, fmt.Sprintf(format, args...)})
		}
		return true
	}
	size, digest, err := digestOf(ctx, z, want.Name, want.Size)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Missing++
		return fault("it is missing")
	case errors.Is(err, zone.ErrUnreachable) || ctx.Err() != nil:
		s.Objects--
		s.Unreachable = err.Error()
		return false
	case err != nil:
		s.Wrong++
		return fault("it cannot be read: %v", err)
	case size != want.Size || digest != want.SHA256:
		s.Wrong++
		return fault("its bytes are not those that were stored")
	}
	s.Good++
	return true
}

// digestOf hashes an object as it comes; it reads at most one byte more than it
// should have.
func digestOf(ctx context.Context, z *zone.Zone, name string, size int64) (int64, string, error) {
	body, err := z.Read(ctx, name, "", 0, size+1)
	if err != nil {
		return 0, "", err
	}
	defer body.Close()
	h := sha256.New()
	n, err := io.Copy(h, body)
	return n, hex.EncodeToString(h.Sum(nil)), err
}

// scrubRefs are the objects that must be there: what trusted notes name, the
// notes themselves, and the ledgers. What lies under a forgotten mark is left out.
func (w *world) scrubRefs(ctx context.Context) (refs []catalog.Ref, faults []string, err error) {
	clusters, err := w.catalog.Clusters(ctx)
	if err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	add := func(list ...catalog.Ref) {
		for _, r := range list {
			if r.Name != "" && !seen[r.Name] {
				seen[r.Name] = true
				refs = append(refs, r)
			}
		}
	}
	notes := func(prefix string, skip func(string) bool) error {
		found, bad, err := w.noteRefs(ctx, prefix, skip)
		faults = append(faults, bad...)
		add(found...)
		return err
	}
	for _, c := range clusters {
		m, err := w.marksOf(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		found, bad, err := w.clusterRefs(ctx, c, m)
		if err != nil {
			return nil, nil, err
		}
		faults = append(faults, bad...)
		add(found...)
		marked := func(name string) bool { return m.covers(strings.TrimPrefix(name, catalog.ClusterDir(c))) }
		for _, prefix := range []string{catalog.LineagesDir(c), catalog.SnapshotsDir(c), catalog.WALRoot(c)} {
			if err := notes(prefix, marked); err != nil {
				return nil, nil, err
			}
		}
	}
	for _, prefix := range []string{catalog.TombstonesDir, catalog.CertificateDir, catalog.ProofsDir} {
		if err := notes(prefix, func(string) bool { return false }); err != nil {
			return nil, nil, err
		}
	}
	entries, bad, err := ledger.Objects(ctx, ledger.FromReader(w.vault.Reader()), w.trust, w.repoID)
	if err != nil {
		return nil, nil, err
	}
	faults = append(faults, bad...)
	for _, o := range entries {
		add(catalog.Ref(o))
	}
	return refs, faults, nil
}

// clusterRefs are what a cluster's snapshots and WAL notes name.
func (w *world) clusterRefs(ctx context.Context, cluster string, m marks) (refs []catalog.Ref, faults []string, err error) {
	snaps, err := w.catalog.Snapshots(ctx, cluster)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range snaps.Bodies() {
		refs = append(refs, s.Manifest, s.Objects)
		body, err := w.vault.Reader().Get(ctx, s.Objects.Name, s.Objects.Size, s.Objects.SHA256)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: no zone has a good copy: %v", s.Objects.Name, err))
			continue
		}
		list, err := catalog.DecodeObjects(strings.NewReader(string(body)))
		if err != nil {
			return nil, nil, fmt.Errorf("reading %s: %w", s.Objects.Name, err)
		}
		refs = append(refs, list...)
	}
	wal, err := w.catalog.WALEntries(ctx, cluster, "")
	if err != nil {
		return nil, nil, err
	}
	entries := slices.DeleteFunc(wal.List, func(e catalog.WALEntry) bool {
		return m.covers(strings.TrimPrefix(e.Name, catalog.ClusterDir(cluster)))
	})
	for batch := range slices.Chunk(entries, 1000) {
		notes, bad, err := w.catalog.WALNotes(ctx, cluster, batch)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range bad {
			faults = append(faults, f.Error())
		}
		for _, n := range notes {
			refs = append(refs, n.Body.Object, n.Body.Index)
		}
	}
	return refs, faults, nil
}

// noteRefs binds each note under prefix by the bytes that a trusted signer
// vouches for.
func (w *world) noteRefs(ctx context.Context, prefix string, skip func(string) bool) (refs []catalog.Ref, faults []string, err error) {
	listing, err := w.vault.Reader().List(ctx, prefix)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range listing.Objects {
		if !strings.HasSuffix(o.Name, ".note") || skip(o.Name) {
			continue
		}
		body, err := w.vault.Reader().Fetch(ctx, o.Name, func(_ string, body []byte) error { return w.vouched(body) })
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", o.Name, err))
			continue
		}
		sum := sha256.Sum256(body)
		refs = append(refs, catalog.Ref{Name: o.Name, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])})
	}
	return refs, faults, nil
}

// vouched says whether a trusted signer with the duty for its kind signed a note.
func (w *world) vouched(body []byte) error {
	kind, text := seal.PeekNote(body)
	var about struct {
		Cluster string `json:"cluster"`
	}
	if err := json.Unmarshal(text, &about); err != nil {
		return fmt.Errorf("%w: it is no note: %w", seal.ErrDamaged, err)
	}
	_, err := w.trust.Open(body, kind, string(catalog.DutyOf(kind)), about.Cluster, nil)
	return err
}

// healAll repairs what scrub found, each object in all zones at once.
func (n *node) healAll(ctx context.Context, doc *scrubDocument) error {
	done := map[string][]string{}
	for i := range doc.Zones {
		z := &doc.Zones[i]
		for _, r := range z.broken {
			healed, tried := done[r.Name]
			if !tried {
				var err error
				if healed, err = n.vault.Writer().Heal(ctx, r.Name, r.Size, r.SHA256); err != nil {
					doc.Faults = append(doc.Faults, fmt.Sprintf("healing %s: %v", r.Name, err))
				}
				done[r.Name] = healed
			}
			if slices.Contains(healed, z.Name) {
				z.Healed = append(z.Healed, r.Name)
			}
		}
		if len(z.Healed) > 0 {
			body := map[string]any{"objects": len(z.Healed), "first": z.Healed[0]}
			if _, err := n.append(asHuman(ctx), "zone.healed", map[string]string{"zone": z.Name}, body); err != nil {
				return err
			}
		}
	}
	if len(done) == 0 {
		return nil
	}
	if _, err := n.ledger.Anchor(ctx); err != nil {
		return fmt.Errorf("writing into the ledger what was healed: %w", err)
	}
	return nil
}

func printScrub(w io.Writer, doc scrubDocument, heal bool) {
	var rows [][]string
	for _, z := range doc.Zones {
		state := "whole"
		switch {
		case z.Unreachable != "":
			state = "not looked at to the end: " + z.Unreachable
		case z.Missing+z.Wrong > len(z.Healed):
			state = "NOT whole"
		case len(z.Healed) > 0:
			state = "healed"
		}
		rows = append(rows, []string{z.Name, fmt.Sprint(z.Objects), fmt.Sprint(z.Good), fmt.Sprint(z.Missing), fmt.Sprint(z.Wrong), fmt.Sprint(len(z.Healed)), state})
	}
	table(w, "ZONE\tOBJECTS\tGOOD\tMISSING\tWRONG\tHEALED\tSTATE", rows)
	for _, z := range doc.Zones {
		for i, f := range z.Faults {
			if i == 20 {
				fmt.Fprintf(w, "%s: and %d more (--output json lists a thousand)\n", z.Name, z.Missing+z.Wrong-i)
				break
			}
			fmt.Fprintf(w, "%s: %s: %s\n", z.Name, f.Name, f.Fault)
		}
	}
	for _, f := range doc.Faults {
		fmt.Fprintln(w, f)
	}
	if !doc.OK && !heal {
		fmt.Fprintln(w, "what to do: `holdfast zone scrub --heal` with the daemon stopped repairs from good copies; the daemon copies missing ones by itself")
	}
}

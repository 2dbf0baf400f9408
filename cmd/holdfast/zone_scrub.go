package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/vault"
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
	Hidden      int           `json:"hidden"` // right, but other versions or a delete marker lie on top
	Unreachable string        `json:"unreachable,omitempty"`
	Faults      []scrubFault  `json:"faults"` // the first thousand
	Healed      []string      `json:"healed,omitempty"`
	broken      []catalog.Ref // missing or wrong
}

func (s scrubZone) notWhole() int { return s.Missing + s.Wrong + s.Hidden }

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
		d.OK = d.OK && z.Unreachable == "" && z.notWhole() == len(z.Healed)
	}
}

// scrub compares every zone's copy of every object that notes name.
func (w *world) scrub(ctx context.Context, only string, p *progress) (scrubDocument, error) {
	doc := scrubDocument{Faults: []string{}}
	refs, faults, err := w.scrubRefs(ctx, nil, nil)
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
				if !out.look(ctx, w, z, r) {
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
func (s *scrubZone) look(ctx context.Context, w *world, z *zone.Zone, want catalog.Ref) bool {
	s.Objects++
	fault := func(format string, args ...any) bool {
		s.broken = append(s.broken, want)
		if len(s.Faults) < maxScrubFaults {
			s.Faults = append(s.Faults, scrubFault{want.Name, fmt.Sprintf(format, args...)})
		}
		return true
	}
	x, err := w.vault.Examine(ctx, z.Name(), vault.Need(want), nil)
	switch {
	case errors.Is(err, zone.ErrUnreachable) || ctx.Err() != nil:
		s.Objects--
		s.Unreachable = err.Error()
		return false
	case errors.Is(err, fs.ErrNotExist):
		s.Missing++
		return fault("it is missing")
	case errors.Is(err, zone.ErrDigest):
		s.Wrong++
		return fault("its bytes are not those that were stored")
	case err != nil:
		s.Wrong++
		return fault("it cannot be read: %v", err)
	case x.Hidden != nil:
		s.Hidden++
		return fault("a later version or a delete marker lies over it; version %s is right, and is what restores read", x.Version)
	}
	s.Good++
	return true
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
		case z.notWhole() > len(z.Healed):
			state = "NOT whole"
		case len(z.Healed) > 0:
			state = "healed"
		}
		rows = append(rows, []string{z.Name, fmt.Sprint(z.Objects), fmt.Sprint(z.Good), fmt.Sprint(z.Missing), fmt.Sprint(z.Wrong), fmt.Sprint(z.Hidden), fmt.Sprint(len(z.Healed)), state})
	}
	table(w, "ZONE\tOBJECTS\tGOOD\tMISSING\tWRONG\tHIDDEN\tHEALED\tSTATE", rows)
	for _, z := range doc.Zones {
		for i, f := range z.Faults {
			if i == 20 {
				fmt.Fprintf(w, "%s: and %d more (--output json lists a thousand)\n", z.Name, z.notWhole()-i)
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

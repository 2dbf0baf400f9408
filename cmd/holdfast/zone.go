package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

func (e *env) zoneCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "zone", Short: "The places where backups are"}
	var heal bool
	scrub := &cobra.Command{
		Use:   "scrub [NAME]",
		Short: "Read every object that signed notes name, in every zone, and compare it with its digest",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return e.scrubZones(cmd.Context(), first(args), heal) },
	}
	scrub.Flags().BoolVar(&heal, "heal", false, "repair wrong and missing copies from a good one (no daemon may run)")
	cmd.AddCommand(
		&cobra.Command{
			Use: "list", Short: "List the zones, and whether each shows that it is the one meant", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return e.listZones(cmd.Context()) },
		},
		&cobra.Command{
			Use: "add NAME", Short: "Make a zone of the configuration that is empty one of the repository's", Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return e.addZone(asHuman(cmd.Context()), args[0]) },
		},
		&cobra.Command{
			Use: "probe [NAME]", Short: "Try what a zone really does: conditional creation, versions, locks, checksums; record it signed", Args: cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return e.probeZones(asHuman(cmd.Context()), first(args))
			},
		},
		scrub,
		e.placementCommand(),
		e.confirmCommand(),
		&cobra.Command{
			Use: "heal [NAME]", Short: "scrub --heal", Args: cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return e.scrubZones(cmd.Context(), first(args), true) },
		},
	)
	return cmd
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

type zonesDocument struct {
	Zones []zoneDocument `json:"zones"`
}

type zoneDocument struct {
	Name         string `json:"name"`
	Kind         string `json:"kind"` // s3 | directory
	Place        string `json:"place"`
	Jurisdiction string `json:"jurisdiction,omitempty"`
	ObjectLock   string `json:"object_lock"`
	State        string `json:"state"` // up | down
	Error        string `json:"error,omitempty"`
	// Verified is how far this node's rolling verification has come; nil: not begun.
	Verified *vault.Coverage `json:"verified,omitempty"`
}

func (e *env) listZones(ctx context.Context) error {
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	errs := w.checkIdentities(ctx)
	doc := zonesDocument{[]zoneDocument{}}
	cover := w.coverage()
	for _, z := range w.cfg.Repository.Zones {
		d := zoneDocument{Name: z.Name, Kind: "directory", Place: z.Directory, Jurisdiction: z.Jurisdiction, ObjectLock: z.ObjectLock, State: "up"}
		if z.S3 != nil {
			d.Kind, d.Place = "s3", cmp.Or(z.S3.Endpoint, z.S3.Region)+"/"+z.S3.Bucket+"/"+z.S3.Prefix
		}
		if err := errs[z.Name]; err != nil {
			d.State, d.Error = "down", err.Error()
		}
		if c, ok := cover[z.Name]; ok {
			d.Verified = &c
		}
		doc.Zones = append(doc.Zones, d)
	}
	return e.print(doc, func(out io.Writer) {
		fmt.Fprintf(out, "repository %s, a write needs %d of %s\n", w.repoID, w.cfg.Repository.WriteQuorum, count(len(doc.Zones), "zone"))
		var rows [][]string
		for _, z := range doc.Zones {
			rows = append(rows, []string{z.Name, z.Kind, cmp.Or(z.Jurisdiction, "-"), z.ObjectLock, z.State, z.Place, coverText(z.Verified, w.now())})
		}
		table(out, "NAME\tKIND\tJURISDICTION\tLOCK\tSTATE\tPLACE\tVERIFIED", rows)
		for _, z := range doc.Zones {
			if z.Error != "" {
				fmt.Fprintf(out, "%s: %s\n", z.Name, z.Error)
			}
		}
	})
}

// checkIdentities asks every zone at once who it is; nil for one that showed it.
func (w *world) checkIdentities(ctx context.Context) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string]error{}
	for _, z := range w.zones {
		wg.Go(func() {
			err := z.Check(ctx)
			mu.Lock()
			defer mu.Unlock()
			out[z.Name()] = err
		})
	}
	wg.Wait()
	return out
}

// configuredZone finds a zone of the configuration.
func configuredZone(cfg *configs.Config, name string) (configs.Zone, error) {
	var known []string
	for _, z := range cfg.Repository.Zones {
		if z.Name == name {
			return z, nil
		}
		known = append(known, z.Name)
	}
	return configs.Zone{}, usage("zone %q is not in the configuration (it has: %s)", name, strings.Join(known, ", "))
}

// addZone initialises a zone that the configuration has and the repository has not.
func (e *env) addZone(ctx context.Context, name string) (err error) {
	cfg, err := e.load()
	if err != nil {
		return err
	}
	if _, err := configuredZone(cfg, name); err != nil {
		return err
	}
	n, err := e.openNode(ctx, cfg, e.logger())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	want := zone.Identity{Format: zone.Format, Repository: n.repoID, Zone: name}
	if have, err := zone.ReadIdentity(ctx, n.drivers[name]); err == nil && have == want {
		return e.print(want, func(w io.Writer) { fmt.Fprintf(w, "zone %s belongs to repository %s already\n", name, n.repoID) })
	}
	if err := zone.Initialise(ctx, n.drivers[name], want); err != nil {
		return initialiseFault(name, err)
	}
	z, err := configuredZone(cfg, name)
	if err == nil {
		err = n.lockNew(ctx, z)
	}
	if err != nil {
		return err
	}
	if _, err := n.append(ctx, "zone.added", map[string]string{"zone": name}, want); err != nil {
		return err
	}
	if _, err := n.ledger.Anchor(ctx); err != nil {
		return fmt.Errorf("writing into the ledger that zone %s was added: %w", name, err)
	}
	return e.print(want, func(w io.Writer) {
		fmt.Fprintf(w, "zone %s is one of repository %s now; the daemon copies into it what the others hold, from its next start on\n", name, n.repoID)
	})
}

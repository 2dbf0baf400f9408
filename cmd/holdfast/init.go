package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
)

// takeFirst takes the first snapshot of a cluster, for init.
var takeFirst func(ctx context.Context, e *env, cluster string) error

func (e *env) initCommand() *cobra.Command {
	var a answers
	var take, noTake bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create the repository, and a configuration with keys where there is none yet",
		Long: `With a configuration: creates the repository in its zones, checks everything, and takes a
snapshot with --snapshot. It asks nothing and changes no configuration; a second run is harmless.

Without one: asks for what it needs, or takes it from the flags, writes a configuration and keys,
and goes on as above, the first snapshot included.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := asHuman(cmd.Context())
			path, err := filepath.Abs(a.configPath(e.config))
			if err != nil {
				return fmt.Errorf("finding the place of the configuration: %w", err)
			}
			_, err = os.Stat(path)
			switch {
			case err == nil && a.given():
				return refused("leave the flags out to create the repository of that configuration, or name another --config or --out-dir",
					"writing a configuration: %s exists and is not replaced", path)
			case err == nil:
				e.config = path
				return e.initialise(ctx, take, "")
			case !errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("looking for the configuration %s: %w", path, err)
			}
			identity, err := e.begin(ctx, &a, path)
			if err != nil {
				return err
			}
			e.config = path
			return e.initialise(ctx, !noTake, identity)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&take, "snapshot", false, "with a configuration: take a snapshot of each cluster at the end")
	f.BoolVar(&noTake, "no-snapshot", false, "without a configuration: do not take the first snapshot")
	f.StringArrayVar(&a.zones, "zone", nil, "a zone in a directory that exists, as `NAME=DIR`; once for each, three are best")
	f.StringVar(&a.cluster, "cluster", "", "`NAME` for the PostgreSQL cluster")
	f.StringVar(&a.connection, "connection", "", "libpq connection `STRING` without a password")
	f.StringVar(&a.dataDirectory, "data-directory", "", "PGDATA, when it is on this host (else taken over the replication protocol)")
	f.StringVar(&a.outDir, "out-dir", "", "put configuration, keys, state and socket under `DIR`")
	return cmd
}

// initialise creates the repository of the configuration, checks it and takes
// snapshots. pending is a data identity just written here, to be moved away.
func (e *env) initialise(ctx context.Context, take bool, pending string) error {
	cfg, err := e.load()
	if err != nil {
		return err
	}
	if err := e.createRepository(ctx, cfg); err != nil {
		return err
	}
	e.say("\nchecking:")
	report := e.examine(ctx, cfg, "", pending)
	report.print(e.progressTo())
	if !report.OK {
		return notHeld("mend what is marked FAIL, then run `holdfast check` and `holdfast snapshot take CLUSTER`",
			"the repository is created, but not everything is in order")
	}
	if take {
		if err := e.takeFirstSnapshots(ctx, cfg); err != nil {
			return err
		}
	}
	e.farewell(cfg, take, pending)
	if e.output == "json" {
		return e.print(report, nil)
	}
	return nil
}

func (e *env) takeFirstSnapshots(ctx context.Context, cfg *configs.Config) error {
	for _, c := range cfg.Clusters {
		if c.Connection == "" {
			continue
		}
		e.say("\ntaking a snapshot of %s:", c.Name)
		if takeFirst == nil {
			return failed("run `holdfast snapshot take "+c.Name+"`", "this build of holdfast takes no snapshot from init")
		}
		if err := takeFirst(ctx, e, c.Name); err != nil {
			return fmt.Errorf("taking the first snapshot of %s: %w", c.Name, err)
		}
	}
	return nil
}

// farewell says what comes next.
func (e *env) farewell(cfg *configs.Config, taken bool, pending string) {
	name := ""
	for _, c := range cfg.Clusters {
		if c.Connection != "" {
			name = c.Name
		}
	}
	e.say("\nwhat comes next:")
	if pending != "" {
		e.say("  first move %s off this host, to where a restore would need it,\n     and keep a second copy elsewhere: without it no backup can be opened,\n     and with it here whoever takes this host can open them all", pending)
	}
	type step struct{ command, does string }
	steps := []step{{"daemon", "archives WAL and runs every schedule"}, {"status", "one screen: what can be restored, and what is late"}}
	if name != "" && !taken {
		steps = append([]step{{"snapshot take " + name, "takes a snapshot now"}}, steps...)
	}
	if name != "" {
		steps = append(steps, step{"restore plan " + name, "what a restore would do, without doing it"})
	}
	for _, s := range steps {
		e.say("  holdfast --config %s %-24s %s", cfg.Path, s.command, s.does)
	}
}

// say tells a person how it goes: on standard output, unless a document goes there.
func (e *env) say(format string, args ...any) {
	fmt.Fprintf(e.progressTo(), format+"\n", args...)
}

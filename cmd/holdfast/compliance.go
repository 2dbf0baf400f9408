package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

// confirmed is what a person said once of a zone whose locks nobody can take back.
type confirmed struct {
	At   time.Time `json:"at"`
	For  float64   `json:"locked_seconds"` // the longest floor then
	Told bool      `json:"told"`           // the ledger has it
}

const confirmedFile = "compliance.json"

func (w *world) confirmations() (map[string]confirmed, error) {
	out := map[string]confirmed{}
	data, err := os.ReadFile(w.state(confirmedFile))
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading which zones were confirmed for compliance: %w", err)
	}
	return out, nil
}

func (w *world) keepConfirmations(all map[string]confirmed) error {
	return durable.WriteFile(w.state(confirmedFile), marshal(all), 0o600)
}

// requireConfirmed refuses to write where locks are of mode compliance before a person
// has typed the zone's name once: not even the owner of the bucket can end such a lock.
func (w *world) requireConfirmed() error {
	all, err := w.confirmations()
	if err != nil {
		return err
	}
	for _, z := range w.cfg.Repository.Zones {
		if _, ok := all[z.Name]; !ok && z.ObjectLock == "compliance" {
			return refused("`holdfast zone confirm "+z.Name+"` says for how long, and asks for the zone's name; or configure governance",
				"zone %s locks in mode compliance, which nobody can take back, and that was not confirmed on this node", z.Name)
		}
	}
	return nil
}

// tellConfirmed writes into the ledger what was confirmed since.
func (n *node) tellConfirmed(ctx context.Context) error {
	all, err := n.confirmations()
	if err != nil {
		return err
	}
	for name, c := range all {
		if c.Told {
			continue
		}
		if _, err := n.append(asHuman(ctx), "zone.compliance", map[string]string{"zone": name}, c); err != nil {
			return err
		}
		c.Told = true
		all[name] = c
		if err := n.keepConfirmations(all); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) confirmCommand() *cobra.Command {
	var typed string
	cmd := &cobra.Command{
		Use: "confirm NAME", Short: "Accept once that what is locked in a zone of mode compliance cannot be removed by anybody", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return e.confirmZone(args[0], typed) },
	}
	cmd.Flags().StringVar(&typed, "typed", "", "the zone's `NAME` again, instead of asking for it")
	return cmd
}

func (e *env) confirmZone(name, typed string) error {
	cfg, err := e.load()
	if err != nil {
		return err
	}
	z, err := configuredZone(cfg, name)
	if err != nil {
		return err
	}
	if z.ObjectLock != "compliance" {
		return usage("zone %s is of mode %s: only compliance needs to be confirmed", name, z.ObjectLock)
	}
	w := &world{cfg: cfg, now: time.Now}
	if typed == "" {
		if typed, err = e.askZone(w, name); err != nil {
			return err
		}
	}
	if typed != name {
		return refused("type the zone's name", "confirming compliance in zone %s: %q was typed", name, typed)
	}
	if err := durable.MkdirAll(cfg.Node.State, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	all, err := w.confirmations()
	if err != nil {
		return err
	}
	all[name] = confirmed{At: w.now().UTC(), For: w.goodFloor().Seconds()}
	if err := w.keepConfirmations(all); err != nil {
		return err
	}
	return e.print(all[name], func(out io.Writer) {
		fmt.Fprintf(out, "zone %s is confirmed; the ledger gets it when this node acts next\n", name)
	})
}

// askZone says what compliance means, and reads what is typed.
func (e *env) askZone(w *world, name string) (string, error) {
	fmt.Fprintf(e.err, "What is written to zone %s is locked for up to %s from each look at it on. Nobody can end\nsuch a lock: not this program, not you, not the owner of the bucket; it is paid for until then.\n", name, span(w.goodFloor()))
	for _, c := range w.cfg.Clusters {
		fmt.Fprintf(e.err, "  cluster %s: snapshots %s, WAL %s\n", c.Name, span(c.Retention.KeepAtLeast.Std()), span(floorOf(c)))
	}
	fmt.Fprintf(e.err, "Type the zone's name to go on: ")
	line, err := bufio.NewReader(e.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSpace(line), nil
}

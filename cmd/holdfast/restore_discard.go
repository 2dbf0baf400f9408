package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/restore"
)

func (e *env) restoreDiscardCommand() *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{Use: "discard ID|DIR", Short: "Remove what a restore made; one that took another's place gives it back", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		dir, records, err := e.restoreDir(args[0])
		if err != nil {
			return err
		}
		if dir, err = e.putBack(c.Context(), dir, &t); err != nil {
			return err
		}
		rec, kept, err := records.of(dir)
		if err != nil {
			return err
		}
		if m, err := restore.ReadMarker(dir); err == nil && kept && args[0] == rec.ID && rec.Plan != "" && m.Plan != rec.Plan {
			return refused("name the directory, if that is what you want to remove", "discarding restore %s: another restore went over %s since", rec.ID, dir)
		}
		if err := mayDiscard(dir, &t); err != nil {
			return err
		}
		// A restore that ended before it made anything leaves a record alone.
		err = restore.Discard(dir)
		gone := errors.Is(err, fs.ErrNotExist)
		if err != nil && !(kept && gone) {
			return refused("", "%w", err)
		}
		if err := records.forget(dir); err != nil {
			return err
		}
		fmt.Fprintln(e.out, "discarded", dir)
		if kept && !gone {
			e.recordDiscard(c.Context(), rec)
		}
		return nil
	}}
	t.addPlace(cmd)
	return cmd
}

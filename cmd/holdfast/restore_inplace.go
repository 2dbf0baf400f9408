package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/restore"
)

// addPlace adds the flags of the commands about a directory that took a place.
func (t *targetFlags) addPlace(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.confirm, "confirm", "", "the cluster's `NAME`, typed")
	f.StringVar(&t.user, "user", "", "operating system user that owns it when Holdfast is root (postgres)")
}

// inPlace looks whether the plan may take the place of a directory.
func (w *world) inPlace(p restore.Plan, t *targetFlags) (*restore.InPlace, error) {
	dir := t.to
	for _, c := range w.cfg.Clusters {
		if dir == "" && c.Name == p.Cluster {
			dir = c.DataDirectory
		}
	}
	if dir == "" {
		return nil, usage("--in-place: whose place? give --to DIR, or clusters[].data_directory in the configuration")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, usage("--to %s: %w", t.to, err)
	}
	if t.confirm != p.Cluster {
		return nil, refused("stop its server, then add --confirm "+p.Cluster, "restoring in the place of %s replaces that directory: want the cluster's name typed", dir)
	}
	place, err := restore.NewInPlace(dir, p.SystemID, w.now())
	if err != nil {
		return nil, placeFault(err)
	}
	return &place, nil
}

func placeFault(err error) error {
	switch {
	case errors.Is(err, restore.ErrRunning):
		return refused("stop that server first", "%w", err)
	case errors.Is(err, restore.ErrStarted):
		return refused("what was written since would be lost: add --confirm CLUSTER if that is what you want", "%w", err)
	}
	return refused("", "%w", err)
}

// placePrograms own files as the server's user; nothing is run.
func placePrograms(t *targetFlags) sandbox.Programs { return sandbox.Programs{User: t.user} }

// takePlace lets a restore take its place, and tells. The ledger hears of the copy that
// is kept, which is what was there before, before there is one.
func (e *env) takePlace(ctx context.Context, w *world, p restore.Plan, doc restoreDoc, place restore.InPlace, t *targetFlags) error {
	doc.InPlace, doc.RestoredTo = &place, place.Dir
	e.recordRestore(ctx, w, ledger.TypeRestoreEnded, p.Cluster, keptCopy(place, p.Hash))
	err := place.Swap(placePrograms(t))
	var taken *restore.TakenError
	if err != nil && !errors.As(err, &taken) {
		e.recordDiscard(ctx, restoreRecord{Dir: place.Kept, Cluster: p.Cluster, Plan: p.Hash})
		return restoreFault(fmt.Errorf("%w; the restored cluster is whole in %s, and takes the place by: holdfast restore resume %s", err, place.Beside, place.Beside))
	}
	if err := w.restores().moved(place.Beside, place.Dir); err != nil {
		e.unkept(err)
	}
	return errors.Join(err, e.print(doc, func(out io.Writer) {
		restoreText(out, doc, place.Dir)
		fmt.Fprintf(out, "in place   %s is the restored cluster, with its own settings; start it as always\n", place.Dir)
		fmt.Fprintf(out, "kept       what was there, in %s\n", place.Kept)
		fmt.Fprintf(out, "then       holdfast restore signoff %s --confirm %s   removes that; holdfast restore discard %s   puts it back\n", place.Dir, p.Cluster, place.Dir)
		if _, err := os.Lstat(place.Beside + ".tablespaces"); err == nil {
			fmt.Fprintf(out, "tablespaces of the restored cluster are in %s.tablespaces; those of before were not touched\n", place.Beside)
		}
	}))
}

// resumePlace goes on with a restore that is whole and has not taken its place.
func (e *env) resumePlace(ctx context.Context, t *targetFlags, m restore.Marker) error {
	if m.InPlace.Dir == t.to {
		return refused("holdfast restore show "+t.to, "%s has taken its place already", t.to)
	}
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	doc := restoreDoc{Result: *m.Result}
	return e.takePlace(ctx, w, restore.Plan{Cluster: m.Cluster, Hash: m.Plan}, doc, *m.InPlace, t)
}

// keptCopy is what the ledger is told: certificates of deleted projects ask for
// every copy that may hold one.
func keptCopy(place restore.InPlace, plan string) map[string]any {
	return map[string]any{"plan": plan, "restored_to": place.Kept, "in_place": place.Dir}
}

// moved gives the record of a restore the directory that it went to in the end.
func (r restoreRecords) moved(from, to string) error {
	rec, ok, err := r.of(from)
	if err != nil || !ok {
		return err
	}
	rec.Dir = to
	return r.write(rec)
}

// putBack gives a place back before what took it is discarded, and returns where
// that is then.
func (e *env) putBack(ctx context.Context, dir string, t *targetFlags) (string, error) {
	m, err := restore.ReadMarker(dir)
	if err != nil || m.InPlace == nil || m.InPlace.At.IsZero() {
		return dir, nil //nolint:nilerr // no marker: Discard says so
	}
	restored, err := restore.PutBack(dir, t.confirm == m.Cluster, placePrograms(t))
	if err != nil {
		return "", placeFault(err)
	}
	fmt.Fprintf(e.out, "put back what was in %s before\n", dir)
	e.recordDiscard(ctx, restoreRecord{Dir: m.InPlace.Kept, Cluster: m.Cluster, Plan: m.Plan})
	if records, err := e.stateRecords(); err == nil {
		if err := records.moved(dir, restored); err != nil {
			e.unkept(err)
		}
	}
	return restored, nil
}

func (e *env) restoreSignOffCommand() *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{
		Use: "signoff DIR --confirm CLUSTER", Short: "Remove what an in-place restore kept of before", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, records, err := e.restoreDir(args[0])
			if err != nil {
				return err
			}
			m, err := restore.ReadMarker(dir)
			if err != nil {
				return refused("", "%w", err)
			}
			if t.confirm != m.Cluster {
				return refused("add --confirm "+m.Cluster+" once the restored cluster is what you want", "signing off %s removes what was there before: want the cluster's name typed", dir)
			}
			place := m.InPlace
			gone, err := restore.SignOff(dir)
			if errors.Is(err, fs.ErrNotExist) {
				return refused("nothing is left to remove", "%w", err)
			}
			if err != nil {
				return placeFault(err)
			}
			if err := records.forget(dir); err != nil {
				e.unkept(err)
			}
			fmt.Fprintf(e.out, "removed %s; %s stands for itself now\n", gone, dir)
			e.recordDiscard(c.Context(), restoreRecord{Dir: place.Kept, Cluster: m.Cluster, Plan: m.Plan})
			return nil
		},
	}
	t.addPlace(cmd)
	return cmd
}

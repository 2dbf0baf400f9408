package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/restore"
)

// restoresDoc is the answer of `restore list`.
type restoresDoc struct {
	Restores []restoreView `json:"restores"`
}

// restoreView is a restore as it stands: its record, where this node keeps one, and
// what the directory's own marker says.
type restoreView struct {
	restoreRecord
	// Status is running, done, failed, cancelled, interrupted (killed, or the machine
	// went down), replaced (another restore went over it) or gone.
	Status string `json:"status"`
	// State is the marker's; "": nothing was made, or nothing is there any more.
	State string   `json:"state,omitempty"`
	Can   []string `json:"can"` // cancel | resume | open | signoff | discard

	marker *restore.Marker
}

// restoreShown is the answer of `restore show`: the marker's fields, as far as there
// is one, beside those of the listing.
type restoreShown struct {
	restoreView
	At          time.Time         `json:"at,omitzero"`
	SystemID    string            `json:"system_id,omitempty"`
	Result      *restore.Result   `json:"result,omitempty"`
	Tablespaces []string          `json:"tablespaces,omitempty"`
	Mapping     map[string]string `json:"mapping,omitempty"`
	SavedWAL    string            `json:"saved_wal,omitempty"`
	InPlace     *restore.InPlace  `json:"in_place,omitempty"`
}

// viewRestore looks at a restore's process and directory. newest: no later one has
// the same directory.
func viewRestore(rec restoreRecord, newest bool) (restoreView, error) {
	v := restoreView{restoreRecord: rec, Can: []string{}}
	if !newest && !alive(rec.Process) {
		v.Status = "replaced"
		return v, nil
	}
	m, err := restore.ReadMarker(rec.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return v, err
	}
	if err == nil && (rec.Plan == "" || m.Plan == rec.Plan) {
		v.describe(m)
	}
	whole := slices.Contains([]string{"closed", "open", "quarantined", "standby"}, v.State)
	switch {
	case alive(v.Process):
		v.Status, v.Can = "running", []string{"cancel"}
		return v, nil
	case v.Ended != "" && (v.marker != nil || v.Ended != "done"):
		v.Status = v.Ended
	case v.marker == nil:
		v.Status = "gone"
	case whole || v.State == "fetched":
		v.Status = "done"
	default:
		v.Status = "interrupted"
	}
	switch {
	case whole && v.marker.InPlace != nil && v.marker.InPlace.Dir == v.Dir:
		v.Can = []string{"signoff", "discard"}
	case whole && v.marker.InPlace != nil:
		v.Can = []string{"resume", "discard"}
	case whole:
		v.Can = []string{"open", "discard"}
		if v.State == "standby" {
			v.Can = standbyCan(v.Dir, *v.marker)
		}
	case v.marker != nil:
		v.Can = []string{"resume", "discard"}
	}
	return v, nil
}

// describe takes from the marker what no record says.
func (v *restoreView) describe(m restore.Marker) {
	v.State, v.marker = m.State, &m
	v.Cluster, v.Plan, v.Snapshot = m.Cluster, m.Plan, m.Snapshot
	if v.Process == nil {
		v.Process = m.Process
	}
}

// stateRecords are this node's, as its configuration says; err is why there are none.
func (e *env) stateRecords() (restoreRecords, error) {
	if e.repository != "" {
		return restoreRecords{}, usage("--repository keeps no list of restores: name the directory, or give --config")
	}
	cfg, err := e.load()
	if err != nil {
		return restoreRecords{}, err
	}
	return (&world{cfg: cfg}).restores(), nil
}

// findRestore is the restore of an id, or into a directory: that needs no
// configuration, and no record.
func (e *env) findRestore(what string) (restoreView, error) {
	records, stateless := e.stateRecords()
	all, err := records.list()
	if err != nil {
		return restoreView{}, err
	}
	if i := slices.IndexFunc(all, func(r restoreRecord) bool { return r.ID == what }); i >= 0 {
		newest := !slices.ContainsFunc(all[:i], func(r restoreRecord) bool { return r.Dir == all[i].Dir })
		return viewRestore(all[i], newest)
	}
	dir, err := filepath.Abs(what)
	if err != nil {
		return restoreView{}, usage("%w", err)
	}
	if i := slices.IndexFunc(all, func(r restoreRecord) bool { return r.Dir == dir }); i >= 0 {
		return viewRestore(all[i], true)
	}
	if _, err := restore.ReadMarker(dir); err != nil {
		return restoreView{}, failed("`holdfast restore list` has the ids and directories of this node", "looking for the restore %s: %w", what, errors.Join(err, stateless))
	}
	return viewRestore(restoreRecord{Dir: dir}, true)
}

// restoreDir is the directory of a restore's id, or the one that is named, and the
// records of this node, if there are any.
func (e *env) restoreDir(what string) (string, restoreRecords, error) {
	records, _ := e.stateRecords() // a directory needs none
	all, err := records.list()
	if err != nil {
		return "", records, err
	}
	if i := slices.IndexFunc(all, func(r restoreRecord) bool { return r.ID == what }); i >= 0 {
		return all[i].Dir, records, nil
	}
	dir, err := filepath.Abs(what)
	if err != nil {
		return "", records, usage("%w", err)
	}
	return dir, records, nil
}

func (e *env) restoreListCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the restores that this node began", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		records, err := e.stateRecords()
		if err != nil {
			return err
		}
		all, err := records.list()
		if err != nil {
			return err
		}
		doc, seen := restoresDoc{Restores: []restoreView{}}, map[string]bool{}
		for _, rec := range all {
			v, err := viewRestore(rec, !seen[rec.Dir])
			if err != nil {
				return err
			}
			seen[rec.Dir] = true
			doc.Restores = append(doc.Restores, v)
		}
		return e.print(doc, doc.text)
	}}
}

func (d restoresDoc) text(w io.Writer) {
	var rows [][]string
	for _, v := range d.Restores {
		rows = append(rows, []string{v.ID, v.Cluster, v.Target, clock(v.BeganAt), v.Status, v.State, v.Dir, strings.Join(v.Can, ", ")})
	}
	if len(rows) == 0 {
		fmt.Fprintln(w, "this node began no restore that it knows of; drills are in `holdfast drill list`")
		return
	}
	table(w, "ID\tCLUSTER\tTO\tBEGAN\tSTATUS\tSTATE\tDIRECTORY\tCAN", rows)
}

func (e *env) restoreShowCommand() *cobra.Command {
	return &cobra.Command{Use: "show ID|DIR", Short: "Say how a restore, or a restored directory, stands", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		v, err := e.findRestore(args[0])
		if err != nil {
			return err
		}
		shown := restoreShown{restoreView: v}
		if m := v.marker; m != nil {
			shown.At, shown.SystemID, shown.Result, shown.Tablespaces, shown.Mapping, shown.SavedWAL, shown.InPlace = m.At, m.SystemID, m.Result, m.Tablespaces, m.Mapping, m.SavedWAL, m.InPlace
		}
		return e.print(shown, shown.text)
	}}
}

func (v restoreShown) text(out io.Writer) {
	fmt.Fprintf(out, "%s: %s", v.Dir, v.Status)
	if v.State != "" {
		fmt.Fprintf(out, "; it is %s since %s", v.State, clock(v.At))
	}
	fmt.Fprintf(out, "\n%s from snapshot %s, plan %s\n", v.Cluster, v.Snapshot, v.Plan)
	if v.Error != "" {
		fmt.Fprintf(out, "failed     %s\n", v.Error)
	}
	if v.SavedWAL != "" {
		fmt.Fprintf(out, "old WAL    put aside in %s\n", v.SavedWAL)
	}
	if p := v.InPlace; p != nil && p.Dir == v.Dir {
		fmt.Fprintf(out, "in place   since %s; what was there before is in %s\n", clock(p.At), p.Kept)
	}
	if v.Result != nil && v.Result.Standby != nil {
		standbyShown(out, *v.Result.Standby)
	}
	for _, act := range v.Can {
		fmt.Fprintf(out, "next       holdfast restore %s %s\n", act, v.Dir)
	}
}

func (e *env) restoreCancelCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{Use: "cancel ID|DIR", Short: "End a restore that runs; what it made is gone on with or discarded", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		v, err := e.findRestore(args[0])
		if err != nil {
			return err
		}
		if err := endRestore(c.Context(), v, wait); err != nil {
			return err
		}
		dir := v.Dir
		if v, err = e.findRestore(dir); errors.Is(err, fs.ErrNotExist) {
			v, err = restoreView{restoreRecord: restoreRecord{Dir: dir}, Status: "cancelled", Can: []string{}}, nil
		}
		if err != nil {
			return err
		}
		if slices.Contains(v.Can, "open") {
			return refused("open it, or discard it: holdfast restore discard "+dir, "cancelling the restore into %s: it was whole before it could be ended", dir)
		}
		return e.print(v, func(out io.Writer) { cancelledText(out, dir, v) })
	}}
	cmd.Flags().DurationVar(&wait, "wait", 3*time.Minute, "how long the restore may take to end: it stops its server first")
	return cmd
}

// endRestore asks the process of a restore to end, and waits for it.
func endRestore(ctx context.Context, v restoreView, wait time.Duration) error {
	err := restore.ErrGone
	if v.Status == "running" {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		err = v.Process.Terminate(ctx)
	}
	switch {
	case errors.Is(err, restore.ErrGone) && len(v.Can) > 0 && v.Status != "running":
		return refused("it can be: holdfast restore "+strings.Join(v.Can, "|")+" "+v.Dir, "the restore into %s does not run: it is %s", v.Dir, v.Status)
	case errors.Is(err, restore.ErrGone):
		return refused("holdfast restore show "+v.Dir, "the restore into %s does not run any more", v.Dir)
	case err != nil:
		return failed("wait; or kill -9 it, after which `restore resume` or `discard` serve as well", "cancelling the restore into %s: %w", v.Dir, err)
	}
	return nil
}

func cancelledText(out io.Writer, dir string, v restoreView) {
	fmt.Fprintln(out, "cancelled", dir)
	if !slices.Contains(v.Can, "resume") {
		fmt.Fprintln(out, "nothing was made there yet")
		return
	}
	fmt.Fprintf(out, "it was     %s; it cannot be started\ngo on      holdfast restore resume %s\nor remove  holdfast restore discard %s\n", v.State, dir, dir)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/thin"
	"github.com/holdfast-dr/holdfast/restore"
)

// repo is what restores read from; the identity is one given, else that of the
// only environment.
func (w *world) repo(given configs.Secret) (restore.Repo, error) {
	r := restore.Repo{Reader: w.vault.Reader(), Catalog: w.catalog, Trust: w.trust, Index: w.index}
	secret := &given
	if given == (configs.Secret{}) {
		secret = nil
		for _, env := range w.cfg.Environments {
			if env.Identity != nil {
				secret = env.Identity
				break
			}
		}
	}
	if secret == nil {
		return r, nil
	}
	var err error
	r.Data, err = loadIdentities(*secret)
	return r, err
}

// digestsBy opens digest keys that data identities open.
func (w *world) digestsBy(data []age.Identity) func(ctx context.Context, epoch int) (seal.DigestKeys, error) {
	return func(ctx context.Context, epoch int) (seal.DigestKeys, error) {
		return w.digestKeys(ctx, epoch, data...)
	}
}

// replayer removes deleted projects, by the digest keys that data identities open.
func (w *world) replayer(data []age.Identity) restore.Replayer {
	return restore.ReplayWith(w.digestsBy(data))
}

// plan gathers and plans a restore.
func (w *world) plan(ctx context.Context, repo restore.Repo, cluster string, t restore.Target) (restore.Plan, error) {
	if err := catalog.CheckName(cluster); err != nil {
		return restore.Plan{}, usage("%w", err)
	}
	in, err := restore.Gather(ctx, repo, cluster, t, w.now())
	if err != nil {
		return restore.Plan{}, err
	}
	for _, c := range w.cfg.Clusters {
		if c.Name == cluster {
			in.RTO = c.Objectives.RTO.Std()
		}
	}
	return restore.MakePlan(in)
}

func (e *env) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "restore", Short: "Plan and carry out restores"}
	cmd.AddCommand(e.restorePlanCommand(), e.restoreRunCommand(), e.restoreResumeCommand(), e.restoreListCommand(), e.restoreShowCommand(), e.restoreCancelCommand(), e.restoreOpenCommand(), e.restoreDiscardCommand(), e.restoreSignOffCommand())
	return cmd
}

func (e *env) restorePlanCommand() *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{Use: "plan CLUSTER", Short: "Say what a restore would do, before anything moves", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		target, err := t.target()
		if err != nil {
			return err
		}
		if err := t.checkStandby(); err != nil {
			return err
		}
		w, err := e.open(c.Context())
		if err != nil {
			return err
		}
		defer w.close()
		repo, err := w.repo(configs.Secret{File: t.identity})
		if err != nil {
			return err
		}
		if target.Standby, err = w.standby(args[0], &t); err != nil {
			return err
		}
		p, err := w.plan(c.Context(), repo, args[0], target)
		if err == nil && t.to != "" {
			here, where := w.placeOf(t.to)
			err = w.mayHold(c.Context(), p.Cluster, here, where)
		}
		if err != nil {
			return err
		}
		e.keepPlan(w, p)
		return e.print(p, func(out io.Writer) { planText(out, p) })
	}}
	t.add(cmd)
	t.addStandby(cmd)
	return cmd
}

func planText(w io.Writer, p restore.Plan) {
	fmt.Fprintf(w, "plan %s\n", p.Hash)
	fmt.Fprintf(w, "restore %s to %s\n", p.Cluster, p.Target)
	for _, why := range p.Why {
		fmt.Fprintf(w, "  %s\n", why)
	}
	fmt.Fprintf(w, "expected end   %s (%s)\n", p.ExpectedEnd.LSN, clock(p.ExpectedEnd.Time))
	fmt.Fprintf(w, "to fetch       %s; on disk up to %s\n", size(p.Bytes), size(p.DiskNeeded))
	fmt.Fprintf(w, "takes          %s to %s\n", span(time.Duration(p.ETA.Low*float64(time.Second))), span(time.Duration(p.ETA.High*float64(time.Second))))
	if p.RTO != nil {
		holds := "will hold"
		if !p.RTO.WillHold {
			holds = "may be MISSED"
		}
		fmt.Fprintf(w, "objective      %s: %s\n", span(time.Duration(p.RTO.Seconds*float64(time.Second))), holds)
	}
	planEnd(w, p)
	fmt.Fprintf(w, "freshness      %s\n", p.Freshness)
	for _, z := range p.Zones {
		has := "lacks the snapshot or parts of it"
		if z.Snapshot {
			has = "has the snapshot whole"
		}
		fmt.Fprintf(w, "zone %-10s %s, WAL to %s%s\n", z.Name, has, z.WALTo, after(": ", z.Err))
	}
	fmt.Fprintln(w, "the same by hand:")
	for _, c := range p.Commands {
		fmt.Fprintf(w, "  %s\n", c)
	}
}

// planEnd tells what becomes of the copy and of deleted projects in it.
func planEnd(w io.Writer, p restore.Plan) {
	if p.Target.Standby == nil {
		fmt.Fprintf(w, "tombstones     %d deleted projects are removed before anyone can connect\n", len(p.Tombstones))
		return
	}
	fmt.Fprintf(w, "then           %s\n", standbyText(*p.Target.Standby))
	fmt.Fprintf(w, "tombstones     %d deleted projects may still be in it then: it admits no reader before it has replayed what took them away\n", len(p.Tombstones))
}

func (e *env) restoreRunCommand() *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{
		Use: "run CLUSTER|PLAN-HASH --to DIR | CLUSTER --snapshot ID --on CONNECTION", Args: cobra.ExactArgs(1),
		Short: "Restore beside production: fetch, replay, compare, promote, forget, and start if asked; or load a logical snapshot into a server",
		RunE: func(c *cobra.Command, args []string) error {
			if done, err := e.restoreLogical(c.Context(), args[0], &t); done || err != nil {
				return err
			}
			return e.runRestore(c.Context(), args[0], &t)
		},
	}
	t.add(cmd)
	t.addHow(cmd)
	f := cmd.Flags()
	f.BoolVar(&t.delta, "delta", false, "go over a stopped, damaged or stale directory of the same system: fetch only the pages that differ")
	f.StringToStringVar(&t.tablespaces, "tablespace", nil, "a tablespace's `NAME=DIR` (or its OID, or old path), absent or empty unless --delta; the others go to DIR.tablespaces")
	f.BoolVar(&t.inPlace, "in-place", false, "take the place of the stopped cluster in --to (default clusters[].data_directory): what was there is kept until `restore signoff`")
	f.StringVar(&t.confirm, "confirm", "", "the cluster's `NAME`, typed: --in-place replaces its directory")
	cmd.MarkFlagsMutuallyExclusive("in-place", "delta")
	cmd.MarkFlagsMutuallyExclusive("in-place", "start")
	cmd.MarkFlagsMutuallyExclusive("in-place", "fetch-only")
	cmd.MarkFlagsMutuallyExclusive("in-place", "quarantine")
	f.StringVar(&t.on, "on", "", "load the logical snapshot --snapshot into fresh databases of this server: `CONNECTION` string, as a superuser; its password from PGPASSWORD or a password file")
	f.StringToStringVar(&t.databases, "database", nil, "with --on: this database of the snapshot alone, into one called NEW: `NAME=NEW` (repeat; the same name for its own)")
	t.addStandby(cmd)
	cmd.MarkFlagsOneRequired("to", "in-place", "on")
	for _, other := range []string{"to", "in-place", "delta", "start", "fetch-only", "quarantine", "tablespace", "latest", "time", "lsn", "xid", "name", "immediate", "timeline", "standby"} {
		cmd.MarkFlagsMutuallyExclusive("on", other)
	}
	return cmd
}

// restoreDoc is how a restore ends.
type restoreDoc struct {
	restore.Result
	Opened  *restore.Opened  `json:"opened,omitempty"`
	InPlace *restore.InPlace `json:"in_place,omitempty"`
}

func (e *env) runRestore(ctx context.Context, what string, t *targetFlags) error {
	target, err := t.target()
	if err != nil {
		return err
	}
	if err := t.checkStandby(); err != nil {
		return err
	}
	if planHash.MatchString(what) && (t.latest || t.standby || target != restore.Target{Kind: restore.Latest}) {
		return usage("a plan's hash says to which moment, from what and along which timeline: leave those flags out, or give the cluster's name for a new plan")
	}
	w, repo, err := e.openForRestore(ctx, t)
	if err != nil {
		return err
	}
	defer w.close()
	var p restore.Plan
	if planHash.MatchString(what) {
		p, err = w.keptPlan(what)
	} else if target.Standby, err = w.standby(what, t); err == nil {
		p, err = w.plan(ctx, repo, what, target)
	}
	if err != nil {
		return err
	}
	var place *restore.InPlace
	if t.inPlace {
		if place, err = w.inPlace(p, t); err != nil {
			return err
		}
		t.to = place.Beside
	}
	opt, err := e.restoreOptions(ctx, w, repo, p, t)
	if err != nil {
		return err
	}
	opt.Delta, opt.Tablespaces, opt.InPlace = t.delta, t.tablespaces, place
	return e.carryOut(ctx, w, repo, p, opt, t)
}

// openForRestore opens the repository with an identity that opens data.
func (e *env) openForRestore(ctx context.Context, t *targetFlags) (*world, restore.Repo, error) {
	w, err := e.open(ctx)
	if err != nil {
		return nil, restore.Repo{}, err
	}
	repo, err := w.repo(configs.Secret{File: t.identity})
	if err == nil && len(repo.Data) == 0 {
		err = usage("restoring: no identity that opens data: give --identity FILE")
	}
	if err != nil {
		return nil, repo, errors.Join(err, w.close())
	}
	return w, repo, nil
}

// carryOut does what a plan says, and tells of it.
func (e *env) carryOut(ctx context.Context, w *world, repo restore.Repo, p restore.Plan, opt restore.Options, t *targetFlags) error {
	if !e.quiet && e.output == "text" {
		fmt.Fprintf(e.err, "restoring %s to %s from snapshot %s; expected end %s; plan %s\n", p.Cluster, p.Target, p.Snapshot, p.ExpectedEnd.LSN, p.Hash[:12])
	}
	e.keepPlan(w, p)
	bar := e.progress("restore of " + p.Cluster)
	opt.Progress = bar.restore
	e.recordRestore(ctx, w, "restore.started", p.Cluster, p)
	var doc restoreDoc
	err := e.recordRun(ctx, w, p, opt, func() (err error) {
		doc, err = restoreTo(ctx, repo, p, opt, t)
		return err
	})
	bar.end()
	if err != nil {
		e.recordRestore(ctx, w, "restore.finished", p.Cluster, failedRestore(p, opt, err))
		return restoreFault(err)
	}
	if opt.InPlace != nil {
		return e.takePlace(ctx, w, p, doc, *opt.InPlace, t)
	}
	e.recordRestore(ctx, w, "restore.finished", p.Cluster, doc)
	return e.print(doc, func(out io.Writer) { restoreText(out, doc, opt.To) })
}

func restoreTo(ctx context.Context, repo restore.Repo, p restore.Plan, opt restore.Options, t *targetFlags) (doc restoreDoc, err error) {
	if t.fetchOnly {
		doc.Result, err = restore.Fetch(ctx, repo, p, opt)
		return doc, err
	}
	room, err := restore.Prepare(ctx, repo, p, opt)
	if err != nil {
		return doc, err
	}
	err = room.Close(ctx)
	doc.Result = room.Result
	if err != nil || !t.start {
		return doc, err
	}
	o, err := restore.Open(ctx, opt.To, restore.OpenOptions{Binaries: t.binaries, User: t.user, Listen: t.listen, Port: t.port})
	doc.Opened = &o
	return doc, err
}

// restoreOptions say how a cluster is restored, and refuse a place that may not hold it.
func (e *env) restoreOptions(ctx context.Context, w *world, repo restore.Repo, p restore.Plan, t *targetFlags) (restore.Options, error) {
	to, err := filepath.Abs(t.to)
	if err != nil {
		return restore.Options{}, usage("--to %s: %w", t.to, err)
	}
	here, where := w.placeOf(to)
	if err := w.mayHold(ctx, p.Cluster, here, where); err != nil {
		return restore.Options{}, err
	}
	program, err := thin.Small()
	if err != nil {
		return restore.Options{}, fmt.Errorf("finding this program: %w", err)
	}
	process, err := restore.ThisProcess()
	if err != nil {
		return restore.Options{}, fmt.Errorf("asking when this process began: %w", err)
	}
	if err := standbyAllows(p, t); err != nil {
		return restore.Options{}, err
	}
	fetch, err := e.fetchCommand(program, p.Cluster, t.identity)
	if err != nil {
		return restore.Options{}, err
	}
	return restore.Options{
		To: to, Process: &process, Binaries: t.binaries, User: t.user, Program: program, FetchCommand: fetch, Workers: max(2, w.cfg.Node.Limits.Workers),
		Replay: w.replayer(repo.Data), Quarantine: t.quarantine,
		Digests: w.digestsBy(repo.Data),
	}, nil
}

// restoreFault gives a restore's end its exit code.
func restoreFault(err error) error {
	switch {
	case errors.Is(err, restore.ErrNotEmpty):
		return &fault{exit: exitRefused, err: err, remedy: "give an empty --to, go over a stopped directory of this cluster with --delta, or discard what a restore left there: holdfast restore discard DIR"}
	case errors.Is(err, restore.ErrRunning):
		return &fault{exit: exitRefused, err: err, remedy: "stop that server first"}
	case errors.Is(err, restore.ErrPreflight):
		return &fault{exit: exitFailed, err: err, remedy: "PostgreSQL's user must be able to run this program and to read the configuration, what that names, and the identity; or give --stream-only. Nothing was written"}
	case errors.Is(err, restore.ErrUnfit):
		return &fault{exit: exitRefused, err: err, remedy: "restore on a machine like the snapshot's host; nothing was written here"}
	case errors.Is(err, restore.ErrIncomplete):
		return &fault{exit: exitNotHeld, err: err, remedy: "nothing was promoted; bring the zones back and run it again, or restore to an earlier moment"}
	}
	return err
}

func restoreText(out io.Writer, d restoreDoc, to string) {
	fmt.Fprintf(out, "restored to %s\n", d.RestoredTo)
	if d.SavedWAL != "" {
		fmt.Fprintf(out, "old WAL    put aside in %s: remove it when nothing in it is wanted\n", d.SavedWAL)
	}
	if d.Unchecked != "" {
		fmt.Fprintf(out, "blocks     not held against the digests of the page maps: %s\n", d.Unchecked)
	}
	if d.BySize {
		fmt.Fprintln(out, "files      all were there; they were taken by their sizes and not compared again")
	}
	for _, w := range d.Warnings {
		fmt.Fprintf(out, "warning    %s\n", w)
	}
	if !d.Complete {
		fmt.Fprintf(out, "fetched    %s in %.1f s; nothing is recovered yet. Check it with: pg_verifybackup -n %s\n", size(d.Bytes), d.Seconds.Total, to)
		fmt.Fprintf(out, "go on      holdfast restore resume %s\n", to)
		return
	}
	fmt.Fprintf(out, "reached    %s (%s); expected %s: complete\n", d.Reached.LSN, clock(d.Reached.Time), d.Expected.LSN)
	for _, t := range d.Tombstones {
		was := "nothing of that project was in it"
		if t.Found {
			was = "the project was in it, and was removed from " + count(len(t.Counts), "table")
		}
		fmt.Fprintf(out, "tombstone  %s: %s\n", t.ID, was)
	}
	if d.Standby != nil {
		standbyLeft(out, *d.Standby, to)
		return
	}
	fmt.Fprintf(out, "took       %.1f s: fetch %.1f, replay %.1f, verify %.1f\n", d.Seconds.Total, d.Seconds.Fetch, d.Seconds.Replay, d.Seconds.Verify)
	if d.Opened != nil {
		fmt.Fprintf(out, "open       psql '%s'\n", d.Opened.Connection)
		return
	}
	if d.InPlace != nil {
		return
	}
	fmt.Fprintf(out, "closed     start it with: holdfast restore open %s   (or pg_ctl -D %s start)\n", to, to)
}

// recordRestore writes a restore into this node's ledger where it can: a restore
// waits for nothing.
func (e *env) recordRestore(ctx context.Context, w *world, typ, cluster string, body any) {
	if err := e.tryRecord(context.WithoutCancel(ctx), w, typ, cluster, body); err != nil {
		fmt.Fprintf(e.err, "holdfast: this restore is not written into a ledger: %v\n", err)
	}
}

func (e *env) restoreOpenCommand() *cobra.Command {
	var opt restore.OpenOptions
	cmd := &cobra.Command{Use: "open ID|DIR", Short: "Start a restored cluster for its users", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		dir, _, err := e.restoreDir(args[0])
		if err != nil {
			return err
		}
		if m, err := restore.ReadMarker(dir); err == nil && m.Result != nil && m.Result.Standby != nil {
			return e.admitReaders(c.Context(), dir, opt.User)
		}
		o, err := restore.Open(c.Context(), dir, opt)
		if err != nil {
			return err
		}
		return e.print(o, func(out io.Writer) { fmt.Fprintf(out, "open: psql '%s'; log: %s\n", o.Connection, o.Log) })
	}}
	f := cmd.Flags()
	f.StringVar(&opt.Binaries, "binaries", "", "PostgreSQL's programs, as /usr/lib/postgresql/{major}/bin")
	f.StringVar(&opt.User, "user", "", "operating system user that runs it when Holdfast is root (postgres)")
	f.StringVar(&opt.Listen, "listen", "", "listen_addresses (localhost)")
	f.IntVar(&opt.Port, "port", 0, "port (the first free one from 5433)")
	return cmd
}

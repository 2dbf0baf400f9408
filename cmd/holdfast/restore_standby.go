package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"

	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/restore"
)

// checkStandby refuses the flags of a standby where none is asked for.
func (t *targetFlags) checkStandby() error {
	if !t.standby && (t.primary != "" || t.slot != "" || t.streamOnly) {
		return usage("--primary, --slot and --stream-only are a standby's: add --standby")
	}
	return nil
}

// password finds one in a connection string, as keywords or as a URL.
var password = regexp.MustCompile(`(?i)(^|[\s?&])(ssl)?password\s*=|^postgres(ql)?://[^/@]*:[^/@]*@`)

// standby is what the flags ask for: nil for none.
func (w *world) standby(cluster string, t *targetFlags) (*restore.Standby, error) {
	if !t.standby {
		return nil, nil
	}
	s := &restore.Standby{Primary: t.primary, Slot: t.slot, StreamOnly: t.streamOnly}
	for _, c := range w.cfg.Clusters {
		if s.Primary == "" && c.Name == cluster {
			s.Primary = c.Connection
		}
	}
	switch {
	case password.MatchString(s.Primary):
		return nil, usage("--primary: no password, which would be written into a file: it belongs in a passfile of PostgreSQL's user (~/.pgpass, or passfile=FILE in the connection)")
	case s.Primary == "" && (s.StreamOnly || s.Slot != ""):
		return nil, usage("a standby that streams needs a primary: give --primary CONNECTION; this configuration has no connection of %s", cluster)
	}
	return s, nil
}

// standbyAllows refuses what a plan by its hash may not be carried out with.
func standbyAllows(p restore.Plan, t *targetFlags) error {
	if p.Target.Standby != nil && (t.start || t.quarantine || t.inPlace) {
		return usage("the plan is of a standby: --start, --quarantine and --in-place are not for one; PostgreSQL's user starts it")
	}
	return nil
}

// fetchCommand is the restore_command of a standby that this command leaves.
func (e *env) fetchCommand(program, cluster, identity string) (string, error) {
	args := []string{"--config", e.config}
	if e.repository != "" {
		args = []string{"--repository", e.repository}
	}
	args = append(args, "wal", "fetch", "--cluster", cluster)
	files := []int{1}
	if identity != "" {
		args = append(args, "--identity", identity)
		files = append(files, len(args)-1)
	}
	for _, i := range files {
		abs, err := filepath.Abs(args[i])
		if err != nil {
			return "", usage("%s %s: %w", args[i-1], args[i], err)
		}
		args[i] = abs
	}
	return restore.FetchCommand(program, args...), nil
}

func standbyText(s restore.Standby) string {
	out := "it stays a standby"
	if s.Primary != "" {
		out += " that streams from " + s.Primary + after(" by slot ", s.Slot)
	}
	switch {
	case s.StreamOnly:
		return out + ", and reads nothing from the archive any more"
	case s.Primary == "":
		return out + " that follows the archive alone"
	}
	return out + ", and takes from the archive what live has no more"
}

// standbyLeft tells what was left, and what is to be done with it.
func standbyLeft(out io.Writer, f restore.Following, to string) {
	fmt.Fprintf(out, "standby    %s\n", standbyText(f.Standby))
	standbyShown(out, f)
	if f.Slot != "" {
		fmt.Fprintf(out, "first      on the primary, unless it is there: SELECT pg_create_physical_replication_slot('%s', true)\n", f.Slot)
	}
	if f.Primary != "" {
		fmt.Fprintln(out, "password   none is written: where the primary asks for one, it belongs in the passfile of PostgreSQL's user here")
	}
	fmt.Fprintf(out, "start      as PostgreSQL's user, with live's own port and settings: pg_ctl -D %s start\n", to)
}

func standbyShown(out io.Writer, f restore.Following) {
	if f.Readers {
		fmt.Fprintf(out, "readers    admitted, from %s on\n", f.Replayed)
		return
	}
	fmt.Fprintf(out, "readers    NONE (hot_standby = off): it has replayed to %s\n", f.Replayed)
	for _, w := range f.Waits {
		fmt.Fprintf(out, "waits      %s\n", w)
	}
	fmt.Fprintln(out, "then       once it has replayed that: pg_ctl stop, holdfast restore open DIR, pg_ctl start")
}

// standbyCan is what can be done with a standby's directory.
func standbyCan(dir string, m restore.Marker) []string {
	can := []string{}
	if m.Result != nil && m.Result.Standby != nil && !m.Result.Standby.Readers {
		can = append(can, "open")
	}
	if started, err := restore.Started(dir, m); err == nil && !started {
		can = append(can, "discard")
	}
	return can
}

// mayDiscard keeps a standby that was started since: it is a replica in use.
func mayDiscard(dir string, t *targetFlags) error {
	m, err := restore.ReadMarker(dir)
	if err != nil {
		return nil //nolint:nilerr // Discard says so
	}
	started, err := restore.Started(dir, m)
	if err != nil {
		return refused("", "discarding %s: whether it was started since cannot be seen: %w", dir, err)
	}
	if started && t.confirm != m.Cluster {
		return refused("if that is what you want, stop it and add --confirm "+m.Cluster, "discarding %s: it is a standby that was started since it was restored, and may be a replica in use", dir)
	}
	return nil
}

// admitReaders lets readers into a standby that has replayed what it waited for.
func (e *env) admitReaders(ctx context.Context, dir, user string) error {
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	repo := restore.Repo{Reader: w.vault.Reader(), Catalog: w.catalog, Trust: w.trust}
	m, err := restore.Admit(ctx, repo, dir, sandbox.Programs{User: user})
	switch {
	case errors.Is(err, restore.ErrReaders):
		return refused("let it replay further (pg_ctl start; a pg_ctl stop then makes it certain), and ask again", "%w", err)
	case err != nil:
		return err
	}
	doc := restoreDoc{Result: *m.Result}
	e.recordRestore(ctx, w, ledger.TypeRestoreEnded, m.Cluster, doc)
	return e.print(doc, func(out io.Writer) {
		fmt.Fprintf(out, "readers    admitted from its next start on: pg_ctl -D %s restart\n", dir)
	})
}

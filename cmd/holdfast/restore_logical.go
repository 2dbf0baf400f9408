package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
	"github.com/holdfast-dr/holdfast/restore"
)

// logicalDoc is how the restore of a logical snapshot ends.
type logicalDoc struct {
	RestoredTo string                     `json:"restored_to"`
	Plan       string                     `json:"plan"` // what the ledger calls it
	Cluster    string                     `json:"cluster"`
	Snapshot   string                     `json:"snapshot"`
	Kind       string                     `json:"kind"`
	Complete   bool                       `json:"complete"`
	Databases  []logicalDatabase          `json:"databases"`
	Tombstones []restore.AppliedTombstone `json:"tombstones"`
	NotCovered []string                   `json:"not_covered"`
	Seconds    restore.Seconds            `json:"seconds"`
}

// logicalDatabase is one database that was loaded, or is in the directory.
type logicalDatabase struct {
	Name   string          `json:"name"`         // in the snapshot
	As     string          `json:"as,omitempty"` // on the server
	Moment tenancy.Moment  `json:"moment"`
	Rows   int64           `json:"rows"`
	Tables []catalog.Count `json:"tables,omitempty"`
	Views  []string        `json:"views_not_filled,omitempty"`
}

// loading is one restore of a logical snapshot.
type loading struct {
	e    *env
	w    *world
	l    *restore.Logical
	keys restore.Keys
	t    *targetFlags
	doc  logicalDoc
}

// restoreLogical restores a logical snapshot, where one is asked for; done is false
// where the restore is of a cluster's files.
func (e *env) restoreLogical(ctx context.Context, cluster string, t *targetFlags) (done bool, err error) {
	if len(t.databases) > 0 && t.on == "" {
		return true, usage("--database goes with --on")
	}
	if t.snapshot == "" || planHash.MatchString(cluster) {
		if t.on != "" {
			return true, usage("--on loads a logical snapshot of a cluster: name it with --snapshot; `holdfast snapshot list CLUSTER` shows those there are")
		}
		return false, nil
	}
	if err := errors.Join(catalog.CheckName(cluster), catalog.CheckID(t.snapshot)); err != nil {
		return true, usage("%w", err)
	}
	w, repo, err := e.openForRestore(ctx, t)
	if err != nil {
		return true, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	s, err := repo.Catalog.Snapshot(ctx, cluster, t.snapshot)
	if err != nil || !catalog.Exported(s.Kind) {
		if t.on == "" {
			return false, nil // a plan says what there is of it
		}
		switch {
		case err == nil:
			err = usage("snapshot %s is a physical one, of a cluster's files: give --to DIR", s.ID)
		case errors.Is(err, fs.ErrNotExist):
			err = usage("cluster %s has no snapshot %q: `holdfast snapshot list %[1]s` shows those there are", cluster, t.snapshot)
		}
		return true, err
	}
	if err := filesOnly(t); err != nil {
		return true, err
	}
	x := &loading{e: e, w: w, keys: w.digestsBy(repo.Data), t: t}
	if x.l, err = restore.OpenLogical(ctx, repo, t.zone, s); err != nil {
		return true, err
	}
	return true, x.run(ctx)
}

// filesOnly refuses flags that mean something for a cluster's files alone.
func filesOnly(t *targetFlags) error {
	if t.latest || t.time != "" || t.lsn != "" || t.xid != 0 || t.name != "" || t.immediate || t.timeline != 0 {
		return usage("a logical snapshot is of one moment: leave the target flags out")
	}
	if t.start || t.fetchOnly || t.inPlace || t.delta || t.quarantine || len(t.tablespaces) > 0 {
		return usage("--start, --fetch-only, --in-place, --delta, --quarantine and --tablespace are for a cluster's files, and this snapshot is rows and DDL: give --on CONNECTION, or --to DIR for the files of its export")
	}
	return nil
}

func (x *loading) run(ctx context.Context) error {
	began := time.Now()
	var id [32]byte
	_, _ = rand.Read(id[:])
	s := x.l.Snapshot
	x.doc = logicalDoc{Plan: hex.EncodeToString(id[:]), Cluster: s.Cluster, Snapshot: s.ID, Kind: s.Kind, Databases: []logicalDatabase{}, Tombstones: []restore.AppliedTombstone{}, NotCovered: []string{}}
	list, notCovered, err := x.l.Databases(ctx)
	if err != nil {
		return err
	}
	x.doc.NotCovered = append(x.doc.NotCovered, notCovered...)
	due, err := x.l.Due(ctx)
	if err != nil {
		return err
	}
	for _, d := range list {
		if err := x.l.Refuse(ctx, d, due, x.keys); err != nil {
			return x.fault(err)
		}
	}
	x.e.recordRestore(ctx, x.w, ledger.TypeRestoreStarted, s.Cluster, map[string]string{"hash": x.doc.Plan, "snapshot": s.ID, "kind": s.Kind})
	if x.t.on != "" {
		err = x.load(ctx, list, due)
	} else {
		err = x.unpack(ctx, list, due)
	}
	x.doc.Seconds.Total = time.Since(began).Seconds()
	if err != nil {
		body := map[string]string{"plan": x.doc.Plan, "error": "it failed"} // words could name a project
		if x.doc.RestoredTo != "" {
			body["restored_to"] = x.doc.RestoredTo
		}
		x.e.recordRestore(ctx, x.w, ledger.TypeRestoreEnded, s.Cluster, body)
		return x.fault(err)
	}
	x.doc.Complete = true
	x.e.recordRestore(ctx, x.w, ledger.TypeRestoreEnded, s.Cluster, map[string]any{
		"plan": x.doc.Plan, "restored_to": x.doc.RestoredTo, "snapshot": s.ID, "complete": true, "tombstones": x.doc.Tombstones, "seconds": x.doc.Seconds,
	})
	return x.e.print(x.doc, func(w io.Writer) { logicalText(w, x.doc) })
}

func (x *loading) fault(err error) error {
	s := x.l.Snapshot
	switch {
	case errors.Is(err, restore.ErrDeleted):
		return refused("a request to delete cannot be taken back: `holdfast purge list` tells how far it is", "restoring snapshot %s of %s: %w", s.ID, s.Cluster, err)
	case errors.Is(err, restore.ErrTombstones):
		return notHeld("bring more zones back", "restoring snapshot %s of %s: %w", s.ID, s.Cluster, err)
	case errors.Is(err, portable.ErrExists):
		return refused("name a target that is not there", "%w", err)
	}
	return err
}

// wanted are the databases to load, and how they are to be called; those that are deleted
// projects are left out, and told.
func (x *loading) wanted(ctx context.Context, list []restore.StoredDatabase, due []catalog.Tombstone, server *pgx.ConnConfig) (out []restore.StoredDatabase, as map[string]string, err error) {
	as = map[string]string{}
	for _, d := range list {
		name, asked := x.t.databases[d.Name]
		switch {
		case asked:
		case len(x.t.databases) > 0:
			continue
		case d.Project != nil:
			name = server.Database
		default:
			name = d.Name
		}
		by, err := x.l.Gone(ctx, d, due, x.keys)
		if err != nil {
			return nil, nil, err
		}
		if by != "" {
			x.doc.Tombstones = append(x.doc.Tombstones, restore.AppliedTombstone{ID: by, Found: true})
			continue
		}
		out, as[d.Name] = append(out, d), name
	}
	for _, name := range slices.Sorted(maps.Keys(x.t.databases)) {
		if !slices.ContainsFunc(list, func(d restore.StoredDatabase) bool { return d.Name == name }) {
			return nil, nil, usage("--database %s: snapshot %s holds no such database", name, x.l.Snapshot.ID)
		}
	}
	return out, as, nil
}

// target reads --on, and refuses a place that may not hold the cluster.
func (x *loading) target(ctx context.Context) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(x.t.on)
	if err != nil {
		return nil, usage("--on: the connection string does not parse; it looks like \"host=… user=… dbname=NEW\"")
	}
	if err := environmentOn(x.w.cfg, x.t.on); err != nil {
		return nil, err
	}
	if x.l.Snapshot.Kind == catalog.Project && cfg.Database == "" {
		return nil, usage("--on: the connection string names no database for the project: add dbname=NEW")
	}
	what, where := "the server "+cfg.Host, ""
	if ip := net.ParseIP(cfg.Host); strings.HasPrefix(cfg.Host, "/") || cfg.Host == "localhost" || ip != nil && ip.IsLoopback() {
		where = x.w.cfg.Node.Jurisdiction
	}
	return cfg, x.w.mayHold(ctx, x.l.Snapshot.Cluster, what, where)
}

// load loads databases into a server. Nobody but superusers is let in before all is
// there and deleted projects are not; what fails leaves no database behind.
func (x *loading) load(ctx context.Context, list []restore.StoredDatabase, due []catalog.Tombstone) (err error) {
	server, err := x.target(ctx)
	if err != nil {
		return err
	}
	list, as, err := x.wanted(ctx, list, due, server)
	if err != nil {
		return err
	}
	var fresh []*freshDatabase
	defer func() {
		for _, f := range fresh {
			err = errors.Join(err, f.end(ctx, err))
		}
	}()
	for _, d := range list { // all of them before the first row: a refusal is to cost nothing
		f, err := makeFresh(ctx, postgres.InDatabase(x.t.on, as[d.Name]), d.Moment)
		if errors.Is(err, tenancy.ErrNotFresh) {
			return refused("load it under another name: --database NAME=NEW, for each database that is wanted", "%w", errors.Unwrap(err))
		}
		if err != nil {
			return err
		}
		fresh = append(fresh, f)
		if err := f.closed(ctx); err != nil {
			return err
		}
	}
	x.doc.RestoredTo = fmt.Sprintf("server %s port %d", server.Host, server.Port)
	for i, d := range list {
		if err := x.loadOne(ctx, d, fresh[i], as[d.Name]); err != nil {
			return err
		}
	}
	for _, f := range fresh {
		if err := f.open(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (x *loading) loadOne(ctx context.Context, d restore.StoredDatabase, f *freshDatabase, as string) error {
	bar := x.e.progress("load of " + f.where)
	defer bar.end()
	done, err := x.l.Load(ctx, d, f.conn, x.keys, func(table string, rows int64) {
		bar.show(fmt.Sprintf("%d rows of %s", rows, table), 0, 0)
	})
	if err != nil {
		return fmt.Errorf("loading %s: %w", f.where, err)
	}
	x.doc.Databases = append(x.doc.Databases, logicalDatabase{Name: d.Name, As: as, Moment: d.Moment, Rows: done.Rows, Tables: done.Tables, Views: done.Views})
	x.doc.Tombstones = append(x.doc.Tombstones, done.Tombstones...)
	if d.Project == nil {
		for _, what := range done.NotCovered {
			x.doc.NotCovered = append(x.doc.NotCovered, d.Name+": "+what)
		}
	}
	return nil
}

// unpack writes the files of the export into a directory that is not there.
func (x *loading) unpack(ctx context.Context, list []restore.StoredDatabase, due []catalog.Tombstone) (err error) {
	here, where := x.w.placeOf(x.t.to)
	if err := x.w.mayHold(ctx, x.l.Snapshot.Cluster, here, where); err != nil {
		return err
	}
	for _, d := range list {
		by, err := x.l.Gone(ctx, d, due, x.keys)
		if err != nil {
			return err
		}
		within, _ := x.l.Within(d, due)
		if by != "" || len(within) > 0 {
			return refused("load it with --on CONNECTION, which removes them", "restoring snapshot %s to %s: rows of deleted projects may be in it, and nothing takes them out of files", x.l.Snapshot.ID, x.t.to)
		}
		x.doc.Databases = append(x.doc.Databases, logicalDatabase{Name: d.Name, Moment: d.Moment, Rows: d.Rows})
	}
	out, err := portable.Create(x.t.to)
	if err != nil {
		return err
	}
	bar := x.e.progress("restore of " + x.l.Snapshot.ID)
	defer bar.end()
	for _, name := range x.l.Files() {
		bar.show(name, 0, 0)
		if _, err := out.Add(name, func(w io.Writer) error { return x.l.Copy(ctx, name, w) }); err != nil {
			return errors.Join(err, out.Abort())
		}
	}
	x.doc.RestoredTo = x.t.to
	return out.Commit()
}

func logicalText(w io.Writer, d logicalDoc) {
	fmt.Fprintf(w, "restored %s snapshot %s to %s in %.1f s\n", d.Kind, d.Snapshot, d.RestoredTo, d.Seconds.Total)
	for _, db := range d.Databases {
		as := ""
		if db.As != "" && db.As != db.Name {
			as = " as " + db.As
		}
		in := ""
		if len(db.Tables) > 0 { // not of files, which were not read
			in = " in " + count(len(db.Tables), "table")
		}
		fmt.Fprintf(w, "database %s%s, as of %s (%s): %s%s\n", db.Name, as, clock(db.Moment.Time), db.Moment.LSN, count(int(db.Rows), "row"), in)
		for _, v := range db.Views {
			fmt.Fprintln(w, "  materialized view not filled:", v)
		}
	}
	for _, t := range d.Tombstones {
		was := "nothing of that project was in it"
		if t.Found {
			was = "the project was in it, and was removed or left out"
		}
		fmt.Fprintf(w, "tombstone %s: %s\n", t.ID, was)
	}
	for _, s := range d.NotCovered {
		fmt.Fprintln(w, "not covered:", s)
	}
}

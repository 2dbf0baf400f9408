package tenancy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Applied says what replaying one tombstone did. Found is false where the copy
// does not hold the project, or not even its database.
type Applied struct {
	ID     string          `json:"id"`
	Found  bool            `json:"found"`
	Counts []catalog.Count `json:"counts,omitempty"`
	// Tied is how much outside a schema depended on what is in it, and went with it.
	Tied int `json:"also_dropped,omitempty"`
	// Gone is what was dropped. It is the project's name: no record has it.
	Gone []Gone `json:"-"`
}

// Gone is a database, or a schema of one, that a replay dropped.
type Gone struct {
	Database string
	Schema   string // "": the database
}

// Connector opens a connection to a database of a restored server.
type Connector func(ctx context.Context, db string) (*pgx.Conn, error)

// Replay removes the projects of tombs from a restored server and vacuums the
// tables that they were in. connect must make superusers' connections; keys gives
// the keys of a digest epoch. It fails closed: where a database is there and its
// root table is not, nobody can say what belongs to a project, and the copy must
// not open. A database that did not exist yet at the restored point holds no
// project: its tombstones are applied and not found. What was applied before an
// error is in the answer; Replay can be called again. A tombstone's OID is trusted: it
// must be 0 unless the copy is of the tombstone's own timeline.
func Replay(ctx context.Context, connect func(ctx context.Context, db string) (*pgx.Conn, error), tombs []catalog.Tombstone, keys func(epoch int) (seal.DigestKeys, error)) ([]Applied, error) {
	byDB := map[string][]catalog.Tombstone{}
	for _, t := range tombs {
		if err := LayoutOf(t).Check(); err != nil {
			return nil, fmt.Errorf("replaying tombstone %s: %w", t.ID, err)
		}
		byDB[t.Database] = append(byDB[t.Database], t)
	}
	there, err := databases(ctx, connect)
	if err != nil {
		return nil, fmt.Errorf("replaying tombstones: %w", err)
	}
	var done []Applied
	for _, db := range slices.Sorted(maps.Keys(byDB)) {
		if db != "" && !there[db] {
			for _, t := range byDB[db] {
				done = append(done, Applied{ID: t.ID})
			}
			continue
		}
		some, err := replayDatabase(ctx, connect, db, byDB[db], keys)
		done = append(done, some...)
		if err != nil {
			return done, fmt.Errorf("replaying tombstones in database %s: %w", db, err)
		}
	}
	return done, nil
}

// databases asks any database that can be reached for the names of all.
func databases(ctx context.Context, connect Connector) (map[string]bool, error) {
	conn, err := connectTo(ctx, connect, "")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT datname FROM pg_database`)
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	there := map[string]bool{}
	for _, n := range names {
		there[n] = true
	}
	return there, err
}

// connectTo connects to a database; "" is any that is no project's.
func connectTo(ctx context.Context, connect Connector, db string) (*pgx.Conn, error) {
	if db != "" {
		return connect(ctx, db)
	}
	conn, err := connect(ctx, "postgres")
	if err == nil {
		return conn, nil
	}
	conn, second := connect(ctx, "template1")
	if second != nil {
		return nil, errors.Join(err, second)
	}
	return conn, nil
}

func replayDatabase(ctx context.Context, connect Connector, db string, tombs []catalog.Tombstone, keys func(int) (seal.DigestKeys, error)) ([]Applied, error) {
	conn, err := connectTo(ctx, connect, db)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	found, err := find(ctx, conn, tombs, keys)
	if err != nil {
		return nil, err
	}
	return eraseAll(ctx, conn, connect, tombs, found)
}

// ReplayIn is [Replay] in the one database that conn is to, however it is called now:
// of projects that are rows or schemas. known are schemas of which it is known whose
// they are, by tombstone id; a tombstone's OID means nothing here.
func ReplayIn(ctx context.Context, conn *pgx.Conn, tombs []catalog.Tombstone, known map[string]string, keys func(epoch int) (seal.DigestKeys, error)) ([]Applied, error) {
	tombs = slices.Clone(tombs)
	for i, t := range tombs {
		err := LayoutOf(t).Check()
		if err == nil && t.Layout == Database {
			err = errors.New("its project was a database")
		}
		if err != nil {
			return nil, fmt.Errorf("replaying tombstone %s in one database: %w", t.ID, err)
		}
		tombs[i].OID = 0
	}
	found, err := find(ctx, conn, tombs, keys)
	if err != nil {
		return nil, fmt.Errorf("replaying tombstones: %w", err)
	}
	for id, name := range known {
		yes, err := there(ctx, conn, Layout{Kind: Schema}, name)
		if err != nil {
			return nil, fmt.Errorf("replaying tombstone %s: %w", id, hide(err, name))
		}
		if yes && !slices.Contains(found[id], name) {
			found[id] = append(found[id], name)
		}
	}
	done, err := eraseAll(ctx, conn, nil, tombs, found)
	if err != nil {
		err = fmt.Errorf("replaying tombstones: %w", err)
	}
	return done, err
}

// eraseAll erases what was found of each tombstone's project.
func eraseAll(ctx context.Context, conn *pgx.Conn, connect Connector, tombs []catalog.Tombstone, found map[string][]string) ([]Applied, error) {
	var done []Applied
	erased := map[Layout]map[string]bool{} // two tombstones may be of one project
	for _, t := range tombs {
		one := Applied{ID: t.ID}
		for _, text := range found[t.ID] {
			if one.Found = true; erased[LayoutOf(t)][text] {
				continue
			}
			counts, tied, err := erase(ctx, conn, connect, LayoutOf(t), text)
			if err != nil {
				return done, fmt.Errorf("tombstone %s: %w", t.ID, hide(err, text))
			}
			if erased[LayoutOf(t)] == nil {
				erased[LayoutOf(t)] = map[string]bool{}
			}
			erased[LayoutOf(t)][text] = true
			one.Counts, one.Tied = append(one.Counts, counts...), one.Tied+tied
			switch l := LayoutOf(t); l.Kind {
			case Schema:
				one.Gone = append(one.Gone, Gone{Database: l.Database, Schema: text})
			case Database:
				one.Gone = append(one.Gone, Gone{Database: text})
			}
		}
		done = append(done, one)
	}
	return done, nil
}

// erase deletes in a transaction of its own, then vacuums. What depends on a schema
// goes with it: nothing did when the tombstone was written.
func erase(ctx context.Context, conn *pgx.Conn, connect Connector, l Layout, text string) (counts []catalog.Count, tied int, err error) {
	var touched []Table
	switch {
	case l.rows():
		err = inTx(ctx, conn, pgx.TxOptions{}, func(tx pgx.Tx) error {
			counts, touched, err = deleteProject(ctx, tx, l, text)
			return err
		})
	case l.Kind == Schema:
		var strays []string
		counts, strays, err = dropSchema(ctx, conn, text, true)
		tied = len(strays)
	default:
		if counts, err = evict(ctx, conn, connect, l, text); err == nil {
			err = dropDatabase(ctx, conn, text, true)
		}
	}
	if err == nil && !l.rows() {
		touched, err = catalogues(ctx, conn, l)
	}
	if err != nil {
		return nil, 0, err
	}
	return counts, tied, Vacuum(ctx, conn, touched)
}

// place is what tombstones of one MAC have in common.
type place struct {
	cluster string
	layout  Layout
	epoch   int
}

// find gives the keys' texts of tombstones whose projects the database holds, by
// tombstone id; a schema's or database's under whatever name it has there. It asks for each root table, and each digest epoch, once.
func find(ctx context.Context, conn *pgx.Conn, tombs []catalog.Tombstone, keys func(int) (seal.DigestKeys, error)) (map[string][]string, error) {
	wanted := map[place]map[string][]string{} // ids by MAC
	for _, t := range tombs {
		p := place{t.Cluster, LayoutOf(t), t.DigestEpoch}
		if wanted[p] == nil {
			wanted[p] = map[string][]string{}
		}
		wanted[p][t.KeyMAC] = append(wanted[p][t.KeyMAC], t.ID)
	}
	found := map[string][]string{}
	order := slices.SortedFunc(maps.Keys(wanted), func(a, b place) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	for _, p := range order {
		k, err := keys(p.epoch)
		if err != nil {
			return nil, fmt.Errorf("the keys of digest epoch %d are needed to know whose rows to delete: %w", p.epoch, err)
		}
		err = eachKey(ctx, conn, p.layout, func(text string) {
			for _, id := range wanted[p][MAC(k, p.cluster, p.layout, text)] {
				found[id] = append(found[id], text)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	for _, t := range tombs {
		name, yes, err := renamed(ctx, conn, t)
		if err != nil {
			return nil, err
		}
		if yes && !slices.Contains(found[t.ID], name) {
			found[t.ID] = append(found[t.ID], name)
		}
	}
	return found, nil
}

// eachKey gives the text of every key of the root table, or the name of every schema or
// database that can be a project.
func eachKey(ctx context.Context, conn *pgx.Conn, l Layout, yield func(text string)) error {
	return inTx(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := settle(ctx, tx); err != nil {
			return err
		}
		sql := namesOf[l.Kind]
		if l.rows() {
			g, err := readGraph(ctx, tx, l)
			if err != nil {
				return err
			}
			sql = fmt.Sprintf(`SELECT DISTINCT r.%s::text FROM %s r WHERE r.%s IS NOT NULL`, g.col, g.from(g.root), g.col)
		}
		rows, err := tx.Query(ctx, sql)
		if err != nil {
			return err
		}
		var text string
		_, err = pgx.ForEachRow(rows, []any{&text}, func() error { yield(text); return nil })
		return err
	})
}

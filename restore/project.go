package restore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

// ErrDeleted means that a project is deleted: no restore brings it back.
var ErrDeleted = errors.New("the project has a tombstone")

// Deleted refuses a project that a restore by the plan would remove from the copy:
// one with a tombstone that applies there, or that is newer than the plan. A request cannot be taken back in this
// version, so nothing lifts it. keys opens digest epochs.
func Deleted(ctx context.Context, r Repo, p Plan, l tenancy.Layout, keyText string, keys func(ctx context.Context, epoch int) (seal.DigestKeys, error)) error {
	tombs, err := tombstones(ctx, r, p.Cluster)
	if err != nil {
		return err
	}
	applies := map[string]bool{}
	for _, id := range p.Tombstones {
		applies[id] = true
	}
	for _, t := range tombs {
		if !applies[t.ID] && !t.RequestedAt.After(p.MadeAt) {
			continue
		}
		is, err := isOf(ctx, t, l, keyText, keys)
		if err != nil {
			return err
		}
		if is {
			return fmt.Errorf("%w %s, requested %s", ErrDeleted, t.ID, stamp(t.RequestedAt))
		}
	}
	return nil
}

// isOf says whether a tombstone is of the project.
func isOf(ctx context.Context, t catalog.Tombstone, l tenancy.Layout, keyText string, keys func(context.Context, int) (seal.DigestKeys, error)) (bool, error) {
	k, err := keys(ctx, t.DigestEpoch)
	if err != nil {
		return false, fmt.Errorf("the keys of digest epoch %d are needed to know whose tombstone %s is: %w", t.DigestEpoch, t.ID, err)
	}
	return tenancy.MAC(k, t.Cluster, l, keyText) == t.KeyMAC, nil
}

// View begins to read a project of the restored cluster; end closes it. The error is
// tenancy.ErrNoProject where the project is a database that the copy has not.
func (room *Room) View(ctx context.Context, l tenancy.Layout, keyText string) (v *tenancy.View, end func() error, err error) {
	return tenancy.ViewOf(ctx, room.Server.Conn, l, keyText)
}

// DDL writes the DDL of the schemas of a view, by the restored server's own pg_dump.
func (room *Room) DDL(ctx context.Context, v *tenancy.View, to io.Writer) error {
	schemas, extensions, id, err := ofView(ctx, v)
	if err != nil {
		return err
	}
	return room.dump(ctx, v, postgres.DumpArgs(id, schemas, extensions), to)
}

// OwnDDL is DDL for the server that the copy is of, with owners and grants: of one
// schema, which finds its extensions there, or of all for none.
func (room *Room) OwnDDL(ctx context.Context, v *tenancy.View, schema string, to io.Writer) error {
	schemas, extensions, id, err := ofView(ctx, v)
	if err != nil {
		return err
	}
	if schema != "" {
		schemas, extensions = []string{schema}, nil
	}
	return room.dump(ctx, v, postgres.OwnDumpArgs(id, schemas, extensions), to)
}

// ofView is what of a view is dumped, and the name of its moment.
func ofView(ctx context.Context, v *tenancy.View) (schemas, extensions []string, id string, err error) {
	if schemas, err = v.Schemas(ctx); err != nil {
		return nil, nil, "", err
	}
	if extensions, err = v.Extensions(ctx); err != nil {
		return nil, nil, "", err
	}
	id, err = v.Export(ctx)
	return schemas, extensions, id, err
}

func (room *Room) dump(ctx context.Context, v *tenancy.View, args []string, to io.Writer) error {
	once := postgres.PublicOnce(to)
	if err := room.Server.Run(ctx, once, "pg_dump", append(args, "--dbname="+postgres.InDatabase("", v.Database))...); err != nil {
		return fmt.Errorf("reading the DDL of the restored database: %w", err)
	}
	return once.Close()
}

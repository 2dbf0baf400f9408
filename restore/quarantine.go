package restore

import (
	"cmp"
	"context"
	"fmt"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The files that hold a quarantined cluster closed to all but superusers, who
// come over the socket as PostgreSQL's own operating system user or root.
const (
	quarantineHBA   = "holdfast-quarantine.hba"
	quarantineIdent = "holdfast-quarantine.ident"
)

func quarantined(dir, cluster string) map[string]string {
	return map[string]string{
		"hba_file": filepath.Join(dir, quarantineHBA), "ident_file": filepath.Join(dir, quarantineIdent), "listen_addresses": "",
		"unix_socket_permissions": "0700", "cluster_name": "quarantined " + cluster,
	}
}

// readSupers asks who the superusers are, while the server still answers.
func (room *Room) readSupers(ctx context.Context) error {
	conn, err := room.Server.Conn(ctx, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY rolname")
	if err != nil {
		return fmt.Errorf("asking for the superusers: %w", err)
	}
	room.supers, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}

// quarantine writes the cluster's doors.
func (room *Room) quarantine() (map[string]string, error) {
	hba, ident := &strings.Builder{}, &strings.Builder{}
	fmt.Fprintln(hba, "# Written by holdfast: the tombstones of deleted projects were not all known.")
	who := []string{"root", cmp.Or(room.opt.User, "postgres")}
	if u, err := user.Current(); err == nil {
		who = append(who, u.Username)
	}
	for _, role := range room.supers {
		quoted := `"` + strings.ReplaceAll(role, `"`, `""`) + `"`
		fmt.Fprintf(hba, "local all %s peer map=holdfast\n", quoted)
		for _, name := range who {
			fmt.Fprintf(ident, "holdfast %s %s\n", name, quoted)
		}
	}
	fmt.Fprintln(hba, "local all all reject")
	for name, text := range map[string]string{quarantineHBA: hba.String(), quarantineIdent: ident.String()} {
		if err := room.tree.write(name, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	more := quarantined(room.opt.To, room.Plan.Cluster)
	more["unix_socket_directories"] = room.opt.To
	return more, nil
}

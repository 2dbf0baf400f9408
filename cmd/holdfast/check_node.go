package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/server"
)

// checkState sees that the state directory is this user's alone and has room.
func checkState(c *configs.Config) []finding {
	dir := c.Node.State
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []finding{bad("state", "`holdfast init` makes it, as the user that runs the daemon", "%s does not exist", dir)}
	case err != nil:
		return []finding{bad("state", "give it to the user that runs holdfast, mode 0700", "looking at %s: %v", dir, err)}
	case !info.IsDir():
		return []finding{bad("state", "name a directory as node.state", "%s is no directory", dir)}
	case info.Mode().Perm()&0o022 != 0:
		return []finding{bad("state", "chmod 700 "+dir, "others can write in %s", dir)}
	case info.Mode().Perm()&0o077 != 0:
		return []finding{warn("state", "chmod 700 "+dir, "others can look into %s", dir), judgeRoom("state disk", dir, "room for the spool")}
	}
	return append([]finding{judgeRoom("state", dir, "this user's alone")}, judgeSpools(c)...)
}

// judgeSpools warns where the spools may take more than the disk has.
func judgeSpools(c *configs.Config) []finding {
	s, err := durable.NewReserve(filepath.Join(c.Node.State, "reserve"), int64(c.Node.Limits.Reserve)).State()
	if err != nil {
		return nil // judgeRoom has told
	}
	want := int64(0)
	for _, cl := range c.Clusters {
		if cl.Connection != "" {
			want += int64(cl.WAL.Spool)
		}
	}
	if s.Free >= want {
		return nil
	}
	return []finding{warn("spool", "give node.state a larger disk, or lower clusters[].wal.spool: on a full disk WAL goes out one part at a time", "%s has %s free, and WAL may take %s there", c.Node.State, size(s.Free), size(want))}
}

// checkDaemon says whether somebody archives.
func checkDaemon(ctx context.Context, c *configs.Config) []finding {
	if !slices.ContainsFunc(c.Clusters, func(c configs.Cluster) bool { return c.Connection != "" }) && len(c.Drills) == 0 {
		return nil
	}
	if _, err := server.Dial(ctx, c.Node.Socket); err != nil {
		return []finding{warn("daemon", "start it: `systemctl enable --now holdfast`, or `holdfast daemon`; until then no WAL is archived by streaming and no schedule runs", "%v", err)}
	}
	return []finding{good("daemon", "it answers on %s", c.Node.Socket)}
}

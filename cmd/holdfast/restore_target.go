package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/restore"
)

// targetFlags are how a moment is asked for.
type targetFlags struct {
	latest, immediate               bool
	time, lsn, name, snapshot, zone string
	xid                             uint32
	timeline                        uint32
	to, identity, binaries, user    string
	start, quarantine               bool
	delta, fetchOnly, inPlace       bool
	confirm                         string            // the cluster's name, typed
	on                              string            // connection string
	databases                       map[string]string // name in a logical snapshot: name on the server
	tablespaces                     map[string]string
	listen                          string
	port                            int
	standby, streamOnly             bool
	primary, slot                   string
}

func (t *targetFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&t.latest, "latest", false, "to the end of the archive (the default)")
	f.StringVar(&t.time, "time", "", "to just before the first transaction that ended after `T`, RFC 3339 with a zone")
	f.StringVar(&t.lsn, "lsn", "", "up to position `L`")
	f.Uint32Var(&t.xid, "xid", 0, "up to and with transaction `X`")
	f.StringVar(&t.name, "name", "", "to the restore point `N`")
	f.BoolVar(&t.immediate, "immediate", false, "to the snapshot's own end")
	cmd.MarkFlagsMutuallyExclusive("latest", "time", "lsn", "xid", "name", "immediate")
	f.StringVar(&t.snapshot, "snapshot", "", "from snapshot `ID` instead of the best")
	f.Uint32Var(&t.timeline, "timeline", 0, "along timeline `N` instead of the newest")
	f.StringVar(&t.zone, "zone", "", "read from zone `Z` alone")
	f.StringVar(&t.to, "to", "", "data directory `DIR`, absent or empty unless --delta")
	f.StringVar(&t.identity, "identity", "", "age identity `FILE` that opens data; it is never sent to a daemon")
}

// addStandby adds the flags of a standby, after those of targets and of how.
func (t *targetFlags) addStandby(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&t.standby, "standby", false, "leave it a standby of live: to the end of the archive, and from there on behind the primary")
	f.StringVar(&t.primary, "primary", "", "what the standby streams from: a `CONNECTION` without a password (default clusters[].connection)")
	f.StringVar(&t.slot, "slot", "", "the replication slot `NAME` on the primary that the standby streams by")
	f.BoolVar(&t.streamOnly, "stream-only", false, "write no restore_command, so that no identity that opens data need stay with the standby")
	for _, other := range []string{"time", "lsn", "xid", "name", "immediate", "timeline", "start", "quarantine", "in-place"} {
		if f.Lookup(other) != nil {
			cmd.MarkFlagsMutuallyExclusive("standby", other)
		}
	}
}

// target reads the flags.
func (t *targetFlags) target() (restore.Target, error) {
	out := restore.Target{Kind: restore.Latest, Snapshot: t.snapshot, Timeline: t.timeline, Zone: t.zone}
	var err error
	switch {
	case t.time != "":
		out.Kind = restore.AtTime
		out.Time, err = time.Parse(time.RFC3339Nano, strings.Replace(t.time, " ", "T", 1))
	case t.lsn != "":
		out.Kind = restore.AtLSN
		out.LSN, err = lsn.Parse(t.lsn)
	case t.xid != 0:
		out.Kind, out.XID = restore.AtXID, t.xid
	case t.name != "":
		out.Kind, out.Name = restore.AtName, t.name
	case t.immediate:
		out.Kind = restore.Immediate
	}
	if err != nil {
		return out, usage("%w; a time looks like 2026-01-31T12:00:00+01:00", err)
	}
	return out, nil
}

// addHow adds the flags that say how a plan is carried out.
func (t *targetFlags) addHow(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&t.start, "start", false, "start the restored server for its users")
	f.BoolVar(&t.fetchOnly, "fetch-only", false, "end when all files are there, before recovery: for pg_verifybackup -n, and `restore resume` later")
	cmd.MarkFlagsMutuallyExclusive("start", "fetch-only")
	f.BoolVar(&t.quarantine, "quarantine", false, "open to superusers only, although deleted projects may be in it")
	f.StringVar(&t.binaries, "binaries", "", "PostgreSQL's programs, as /usr/lib/postgresql/{major}/bin")
	f.StringVar(&t.user, "user", "", "operating system user that runs it when Holdfast is root (postgres)")
	f.StringVar(&t.listen, "listen", "", "listen_addresses of the started server (localhost)")
	f.IntVar(&t.port, "port", 0, "port of the started server (the first free one from 5433)")
}

package snapshot

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

const (
	// reachBack is what is read before a segment for the start of a record that
	// reaches into it: more than the headers of any record, in whole pages.
	reachBack = 64 << 10
	// reachName is not the archiver's, which may be named as a synchronous standby.
	reachName = "holdfast-reach"
)

// reaching is what a record that reaches into the segment at start began with. The
// process that read it may be gone, and the archive's own bytes cannot be opened
// here: the server is asked again. Where it no longer has them the Carry is zero,
// and the index says that it does not know all changes.
func (a *Archiver) reaching(ctx context.Context, server Server, start lsn.LSN) walrec.Carry {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if start < reachBack {
		return walrec.Carry{}
	}
	timeline := server.timelineAt(start - 1)
	data, err := a.readBefore(ctx, server, timeline, start)
	if err == nil {
		var c walrec.Carry
		cfg := walrec.Config{SegSize: a.c.SegSize, Major: server.Major, Timeline: timeline, Start: start - reachBack}
		if _, c, err = walrec.BuildIndex(cfg, walrec.Carry{}, data); err == nil && c.Start() < start {
			return c
		}
	}
	if err == nil { // no record reaches over, or one whose headers lie before all that was read
		return walrec.Carry{}
	}
	a.w.c.Log.Info("the WAL before where archiving begins cannot be read again; if a record reaches over, its changes are not known", zap.Stringer("at", start), zap.Error(err))
	return walrec.Carry{}
}

// readBefore reads the last bytes before start, on a connection of its own and
// without the slot, which must not go back.
func (a *Archiver) readBefore(ctx context.Context, server Server, timeline uint32, start lsn.LSN) (data []byte, err error) {
	conn, err := postgres.Connect(ctx, a.c.DSN, postgres.ConnectOptions{Replication: true, AppName: reachName})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	sys, err := postgres.IdentifySystem(ctx, conn)
	if err != nil {
		return nil, err
	}
	if sys.SystemID != server.SystemID || sys.Timeline != server.Timeline {
		return nil, fmt.Errorf("another server answers: system identifier %s, timeline %d", sys.SystemID, sys.Timeline)
	}
	stream, err := postgres.StartStream(ctx, conn, "", start-reachBack, timeline)
	if err != nil {
		return nil, err
	}
	for len(data) < reachBack {
		m, err := stream.Next(ctx)
		if err != nil {
			return nil, err
		}
		switch m.Kind {
		case postgres.Data:
			data = append(data, m.Data...)
		case postgres.EndOfTimeline:
			return nil, fmt.Errorf("timeline %d ends at %s", timeline, m.SwitchLSN)
		}
	}
	return data[:reachBack], nil
}

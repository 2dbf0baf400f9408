package snapshot

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/postgres"
)

// connect finds the server to archive. One that is not ours, or an old primary that
// came back, does not hide another behind it in the connection string.
func (a *Archiver) connect(ctx context.Context) (*postgres.Conn, Server, error) {
	opt := postgres.ConnectOptions{Replication: true, AppName: a.c.AppName}
	conn, server, err := a.connectTo(ctx, opt)
	if !errors.Is(err, ErrOldTimeline) && !errors.Is(err, ErrForeignServer) {
		return conn, server, err
	}
	hosts, herr := postgres.Hosts(a.c.DSN)
	if herr != nil || len(hosts) == 1 {
		return nil, Server{}, errors.Join(err, herr)
	}
	for _, h := range hosts {
		opt.Only = &h
		conn, server, oerr := a.connectTo(ctx, opt)
		if oerr == nil {
			a.w.c.Log.Warn("passed over a server of the connection string", zap.Error(err), zap.Stringer("for", h))
			return conn, server, nil
		}
		err = errors.Join(err, oerr)
	}
	return nil, Server{}, err
}

func (a *Archiver) connectTo(ctx context.Context, opt postgres.ConnectOptions) (*postgres.Conn, Server, error) {
	conn, err := postgres.Connect(ctx, a.c.DSN, opt)
	if err != nil {
		return nil, Server{}, err
	}
	server, err := a.identify(ctx, conn)
	if err == nil {
		err = a.onward(ctx, server)
	}
	if err != nil {
		return nil, Server{}, errors.Join(err, conn.Close())
	}
	return conn, server, nil
}

// identify refuses another cluster's server, on every connection (C-47).
func (a *Archiver) identify(ctx context.Context, conn *postgres.Conn) (Server, error) {
	sys, err := postgres.IdentifySystem(ctx, conn)
	if err != nil {
		return Server{}, err
	}
	l := a.w.c.Lineage
	if sys.SystemID != l.SystemID {
		return Server{}, fmt.Errorf("cluster %s: %w: system identifier %s, the lineage has %s", l.Cluster, ErrForeignServer, sys.SystemID, l.SystemID)
	}
	s := Server{SystemID: sys.SystemID, Major: conn.Major(), Timeline: sys.Timeline, LSN: sys.Flushed}
	if sys.Timeline > 1 {
		h, err := postgres.TimelineHistory(ctx, conn, sys.Timeline)
		if err != nil {
			return Server{}, err
		}
		s.History = h.Parsed
	}
	return s, nil
}

// onward sees whether what was received so far lies on the server's own history.
// A server of an older timeline is not archived: it is an old primary that came
// back. On a server that left our timeline before where we are, the WAL behind
// that belongs to a dead branch: it is kept as such, and begin looks anew.
func (a *Archiver) onward(ctx context.Context, server Server) error {
	if a.asm == nil || server.passes(Place{a.asm.cfg.Timeline, a.asm.pos()}) {
		return nil
	}
	at := Place{a.asm.cfg.Timeline, a.asm.pos()}
	if server.Timeline <= at.Timeline {
		return fmt.Errorf("cluster %s: %w: the archive is at %s, the server on timeline %d", a.w.c.Lineage.Cluster, ErrOldTimeline, at, server.Timeline)
	}
	if p, ok := a.asm.slice(); ok {
		a.queue(p)
	}
	a.w.c.Log.Warn("the server's history left the timeline before the archive's end; going on where it did",
		zap.Stringer("archive_ends", at), zap.Uint32("server_timeline", server.Timeline))
	if err := a.drain(ctx); err != nil {
		return err
	}
	// What is durable of the dead branch must not be told to this server.
	a.w.done.forget()
	a.asm, a.told = nil, 0
	a.mu.Lock()
	a.st.received, a.st.serverEnd = 0, 0
	a.mu.Unlock()
	return nil
}

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// refillName is not the archiver's, which may be named as a synchronous standby.
const refillName = "holdfast-refill"

// Hole is a stretch of WAL that no zone holds.
type Hole struct {
	Timeline uint32
	From, To lsn.LSN // To exclusive
}

// Refill asks each server that dsn names, primaries and standbys alike, for the
// WAL of a hole, and stores it in whole segments under this writer's epoch. It
// uses no slot, and moves none. Where none has the WAL any more the error is
// [postgres.ErrWALRemoved].
func (w *WALWriter) Refill(ctx context.Context, dsn string, segSize int64, h Hole) error {
	hosts, err := postgres.Hosts(dsn)
	if err != nil {
		return err
	}
	var faults []error
	for _, host := range hosts {
		err := w.refillFrom(ctx, dsn, host, segSize, h)
		if err == nil {
			return nil
		}
		faults = append(faults, fmt.Errorf("refilling WAL from %s to %s from %s: %w", h.From, h.To, host, err))
	}
	return errors.Join(faults...)
}

func (w *WALWriter) refillFrom(ctx context.Context, dsn string, host postgres.Host, segSize int64, h Hole) error {
	conn, err := postgres.Connect(ctx, dsn, postgres.ConnectOptions{Replication: true, AppName: refillName, Only: &host})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	sys, err := postgres.IdentifySystem(ctx, conn)
	if err != nil {
		return err
	}
	if l := w.c.Lineage; sys.SystemID != l.SystemID {
		return fmt.Errorf("cluster %s: %w: system identifier %s, the lineage has %s", l.Cluster, ErrForeignServer, sys.SystemID, l.SystemID)
	}
	stream, err := postgres.StartStream(ctx, conn, "", h.From.SegmentStart(segSize), h.Timeline)
	if err != nil {
		return err
	}
	asm := newAssembler(walrec.Config{SegSize: segSize, Major: conn.Major(), Timeline: h.Timeline}, h.From.SegmentStart(segSize), walrec.Carry{}, func(err error) {
		w.c.Log.Error("refilled WAL cannot be read; it is archived without an index", zap.Error(err))
	})
	for asm.start < h.To {
		parts, ended, err := asm.next(ctx, stream, h.To)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if err := w.refillPart(ctx, p); err != nil {
				return fmt.Errorf("storing %s: %w", p.file, err)
			}
		}
		if ended {
			break
		}
	}
	return nil
}

// next takes one message; ended says that nothing more is to be had, and that what
// there is of the last segment came as a slice.
func (a *assembler) next(ctx context.Context, stream *postgres.Stream, to lsn.LSN) (parts []part, ended bool, err error) {
	m, err := stream.Next(ctx)
	if err != nil {
		return nil, false, err
	}
	if m.Kind == postgres.Data {
		if parts, err = a.accept(m.Start, m.Data, time.Now()); err != nil {
			return nil, false, err
		}
	}
	// The server's last segment may never fill: all that it has is enough.
	ended = m.Kind == postgres.EndOfTimeline || (a.pos() >= to && a.pos() >= m.ServerEnd && a.start < to)
	if ended {
		if p, ok := a.slice(); ok {
			parts = append(parts, p)
		}
	}
	return parts, ended, nil
}

// refillPart stores a part whose name may be taken by a note that vouches for an
// object which is gone from every zone: then it goes under a slice's name, which
// no note has.
func (w *WALWriter) refillPart(ctx context.Context, p part) error {
	p.known = true
	err := w.store(ctx, p)
	if err == nil || p.slice || ctx.Err() != nil {
		return err
	}
	w.c.Log.Warn("a refilled segment cannot go under its own name; storing it as a slice", zap.String("segment", p.file), zap.Error(err))
	p.slice = true
	return w.store(ctx, p)
}

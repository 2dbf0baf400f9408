package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// spoolDoc is the WAL that waits on this node's disk.
type spoolDoc struct {
	Bytes int64  `json:"bytes"`
	Quota int64  `json:"quota"`
	Parts int    `json:"parts"`
	Full  string `json:"full,omitempty"` // why nothing more is taken from the server now
}

func spoolDocOf(s snapshot.SpoolState) *spoolDoc {
	d := &spoolDoc{Bytes: s.Bytes, Quota: s.Quota, Parts: s.Parts}
	if s.Full != nil {
		d.Full = s.Full.Error()
	}
	return d
}

func (d *spoolDoc) text(w io.Writer) {
	if d == nil {
		return
	}
	fmt.Fprintf(w, "  spool: %s of %s, %s\n", size(d.Bytes), size(d.Quota), count(d.Parts, "part"))
	if d.Full != "" {
		fmt.Fprintf(w, "    nothing more is taken from the server: %s\n", d.Full)
	}
}

// When a spool is told to fill, as a share of its quota, and when no longer.
const (
	spoolFills = 0.7
	spoolWell  = 0.5
)

// diskEvery is how often the disk of the state directory is looked at.
const diskEvery = 2 * time.Second

// watchDisk sees to the reserve and to the spools. It asks no zone, so that nothing that
// hangs keeps it from a disk that fills.
func (n *node) watchDisk(ctx context.Context) error {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		n.watchReserve(ctx)
		for name, p := range n.protectors() {
			p.mu.Lock()
			s := p.session
			p.mu.Unlock()
			if s != nil {
				n.watchSpool(ctx, name, s.archive.Position().Spool)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// watchReserve gives the reserve up or makes it again, and tells of a disk that fills.
func (n *node) watchReserve(ctx context.Context) {
	const key = "state-disk"
	s, err := n.holder.reserve.Tend()
	if err != nil {
		n.log.Error("cannot see to the reserve of the state directory", zap.Error(err))
	}
	dir := n.cfg.Node.State
	switch {
	case s.Low():
		n.raise(ctx, incident.Incident{
			Key: key, Severity: "critical", Title: "the disk of " + dir + " is full or nearly so", Detail: reserveWords(s),
			Remedy: "make room in its file system, but remove nothing below " + dir + "; the daemon goes on by itself; see docs/runbooks/wal-on-a-full-disk.md",
		})
	case s.Free >= 2*s.Size:
		n.settle(ctx, key, reserveWords(s))
	}
}

func reserveWords(s durable.ReserveState) string {
	switch {
	case s.Size == 0:
		return size(s.Free) + " free, no reserve is configured"
	case s.Held:
		return fmt.Sprintf("%s free beside the reserve of %s", size(s.Free), size(s.Size))
	}
	return fmt.Sprintf("%s free, the reserve of %s is given up: WAL goes out one part at a time", size(s.Free), size(s.Size))
}

// watchSpool warns before a spool is full, and tells when it is.
func (n *node) watchSpool(ctx context.Context, cluster string, s snapshot.SpoolState) {
	fills, full := "spool/"+cluster, "spool-full/"+cluster
	words := fmt.Sprintf("%s of %s wait in %s", size(s.Bytes), size(s.Quota), count(s.Parts, "part"))
	share := float64(s.Bytes) / float64(max(s.Quota, 1))
	switch {
	case s.Quota > 0 && (share >= spoolFills || s.Full != nil): // a small one is full before: a segment must fit
		n.raise(ctx, incident.Incident{
			Key: fills, Cluster: cluster, Severity: "warning", Title: "the WAL spool of " + cluster + " fills", Detail: words,
			Remedy: "bring the zones back (`holdfast status`), or raise clusters[].wal.spool; at the quota the server keeps its WAL itself, and its disk fills; docs/runbooks/wal-on-a-full-disk.md",
		})
	case share < spoolWell:
		n.settle(ctx, fills, words)
	}
	if s.Full == nil {
		if share < spoolFills { // at the quota room comes and goes
			n.settle(ctx, full, words)
		}
		return
	}
	n.raise(ctx, incident.Incident{
		Key: full, Cluster: cluster, Severity: "critical", Title: "no more WAL of " + cluster + " is taken from its server", Detail: s.Full.Error(),
		Remedy: "nothing is lost: the server keeps its WAL until its own disk is full; bring the zones back; docs/runbooks/wal-on-a-full-disk.md",
	})
}

func (c collector) disk(gauge func(*prometheus.Desc, float64, ...string)) {
	s, err := c.n.holder.reserve.State()
	if err != nil {
		return
	}
	gauge(descStateFree, float64(s.Free))
	held := 0.0
	if s.Held {
		held = 1
	}
	if s.Size > 0 {
		gauge(descReserveHeld, held)
	}
}

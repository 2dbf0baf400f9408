package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// slotDoc is the replication slot on one server.
type slotDoc struct {
	Host        string    `json:"host"`
	SeenAt      time.Time `json:"seen_at"`
	Restart     lsn.LSN   `json:"restart_lsn"`
	Active      bool      `json:"active"`
	WALStatus   string    `json:"wal_status,omitempty"`
	Invalidated string    `json:"invalidation_reason,omitempty"`
	Kept        int64     `json:"kept_bytes"`
	Safe        *int64    `json:"safe_bytes,omitempty"`   // until it is in danger, by max_slot_wal_keep_size
	Room        *int64    `json:"room_bytes,omitempty"`   // the lesser of that and what the disk has free
	FullIn      *float64  `json:"full_seconds,omitempty"` // until Room is used up, at the rate of the last minutes
	Err         string    `json:"error,omitempty"`
}

func (d slotDoc) lost() bool { return d.WALStatus == "lost" || d.Invalidated != "" }

// slots is how the slot stands on each server of a session that streams.
func (p *protected) slots(s *session) []slotDoc {
	streaming, ok := s.archive.(interface{ Slots() []snapshot.SlotView })
	if !ok {
		return nil
	}
	var out []slotDoc
	for _, v := range streaming.Slots() {
		out = append(out, slotDocOf(v, freeFor(p.cfg.DataDirectory, v.Host)))
	}
	return out
}

func slotDocOf(v snapshot.SlotView, free *int64) slotDoc {
	d := slotDoc{
		Host: v.Host, SeenAt: v.SeenAt.UTC(), Restart: v.Restart, Active: v.Active, WALStatus: v.WALStatus, Invalidated: v.Invalidated,
		Kept: v.Behind, Safe: v.SafeBytes, Room: free,
	}
	if v.SafeBytes != nil && (free == nil || *v.SafeBytes < *free) {
		d.Room = v.SafeBytes
	}
	if d.Room != nil && v.Err == nil {
		if in, ok := v.FullIn(*d.Room); ok {
			d.FullIn = new(in.Seconds())
		}
	}
	if v.Err != nil {
		d.Err = v.Err.Error()
	}
	return d
}

// freeFor is what the disk of the WAL has free, of a server on this host whose
// directory is configured.
func freeFor(dataDir, host string) *int64 {
	local := strings.HasPrefix(host, "/") || strings.HasPrefix(host, "localhost ") || strings.HasPrefix(host, "127.0.0.1 ")
	if dataDir == "" || !local {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Join(dataDir, "pg_wal"), &st); err != nil {
		return nil
	}
	return new(int64(st.Bavail) * st.Bsize)
}

func (d slotDoc) words() string {
	if d.Err != "" {
		return "cannot be seen: " + d.Err
	}
	s := fmt.Sprintf("at %s, %s, %s kept", d.Restart, strings.TrimSpace(d.WALStatus+" "+d.Invalidated), size(d.Kept))
	if d.Active {
		s += ", streamed from"
	}
	if d.Room != nil {
		s += ", room for " + size(*d.Room)
	}
	if d.FullIn != nil {
		s += ", full in " + span(time.Duration(*d.FullIn*float64(time.Second)))
	}
	return s
}

// When a forecast is told.
const (
	slotSoon = 24 * time.Hour
	slotNow  = time.Hour
)

// trouble says what is wrong with a slot; severity "" is nothing.
func (d slotDoc) trouble() (severity, title string) {
	switch {
	case d.Err != "":
		return "", ""
	case d.lost():
		return "critical", "the replication slot on " + d.Host + " is lost"
	case d.WALStatus == "unreserved":
		return "critical", "the replication slot on " + d.Host + " is about to be lost"
	case d.FullIn != nil && *d.FullIn < slotNow.Seconds():
		return "critical", "the WAL kept on " + d.Host + " fills its room within the hour"
	case d.FullIn != nil && *d.FullIn < slotSoon.Seconds():
		return "warning", "the WAL kept on " + d.Host + " fills its room within a day"
	}
	return "", ""
}

// watchSlots opens and closes the incidents of the slots. One that cannot be seen
// now leaves its incident as it is.
func (n *node) watchSlots(ctx context.Context) {
	for name, p := range n.protectors() {
		p.mu.Lock()
		s := p.session
		p.mu.Unlock()
		if s == nil {
			continue
		}
		for _, d := range p.slots(s) {
			key := "slot/" + name + "/" + strings.ReplaceAll(d.Host, " ", "-")
			severity, title := d.trouble()
			switch {
			case severity != "":
				n.raise(ctx, incident.Incident{
					Key: key, Cluster: name, Severity: severity, Title: title, Detail: d.words(),
					Remedy: "let the WAL leave: see `holdfast wal status " + name + "` for what archiving waits for; docs/runbooks/slot-fills-the-disk.md",
				})
			case d.Err == "":
				n.settle(ctx, key, d.words())
			}
		}
	}
}

func (d slotDoc) measure(cluster string, gauge func(*prometheus.Desc, float64, ...string)) {
	if d.Err != "" {
		return
	}
	lost := 0.0
	if d.lost() {
		lost = 1
	}
	gauge(descSlotLost, lost, cluster, d.Host)
	gauge(descSlotKept, float64(d.Kept), cluster, d.Host)
	if d.FullIn != nil {
		gauge(descSlotFullIn, *d.FullIn, cluster, d.Host)
	}
}

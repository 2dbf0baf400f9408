package main

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// provenWithin is how old a proof may be to count for the coverage.
const provenWithin = 30 * 24 * time.Hour

// provenDoc says how much of what is kept was restored by a drill of late. A drill
// that reads all zones proves no zone by itself: Zones counts those that one was
// restored from alone.
type provenDoc struct {
	Days        int       `json:"days"`
	Snapshots   int       `json:"snapshots"`
	Share       float64   `json:"share"` // of the snapshots
	Bytes       int64     `json:"bytes"` // that were made for them
	BytesShare  float64   `json:"bytes_share"`
	Of          int       `json:"of"` // how many there are to prove: drills are of physical snapshots
	Zones       []string  `json:"zones"`
	Oldest      string    `json:"oldest_unproven,omitempty"`
	OldestSince time.Time `json:"oldest_unproven_at,omitzero"` // when it was taken
}

// provenOf is a pure function of what is kept and proven.
func provenOf(list []catalog.Snapshot, proofs []catalog.Proof, now time.Time) provenDoc {
	doc := provenDoc{Days: int(provenWithin / (24 * time.Hour)), Of: len(list), Zones: []string{}}
	when, zones := map[string]time.Time{}, map[string]bool{}
	for _, p := range proofs {
		if !proves(p) || now.Sub(p.At) > provenWithin {
			continue
		}
		if p.At.After(when[p.Snapshot]) {
			when[p.Snapshot] = p.At
		}
		if p.Zone != "" && !zones[p.Zone] {
			zones[p.Zone] = true
			doc.Zones = append(doc.Zones, p.Zone)
		}
	}
	var all int64
	for _, s := range list {
		all += s.NewBytes
		if !when[s.ID].IsZero() {
			doc.Snapshots, doc.Bytes = doc.Snapshots+1, doc.Bytes+s.NewBytes
		} else if doc.Oldest == "" || s.StartedAt.Before(doc.OldestSince) {
			doc.Oldest, doc.OldestSince = s.ID, s.StartedAt.UTC()
		}
	}
	if len(list) > 0 {
		doc.Share = float64(doc.Snapshots) / float64(len(list))
	}
	if all > 0 {
		doc.BytesShare = float64(doc.Bytes) / float64(all)
	}
	return doc
}

// text tells it of kept snapshots, those that no drill restores among them.
func (d provenDoc) text(kept int, now time.Time) string {
	text := fmt.Sprintf("%d of %s in the last %d days, %.0f %% of the bytes", d.Snapshots, count(d.Of, "snapshot"), d.Days, 100*d.BytesShare)
	if d.Oldest != "" {
		text += fmt.Sprintf("; %s, taken %s, is the oldest that is not", d.Oldest, ago(d.OldestSince, now))
	}
	if logical := kept - d.Of; logical > 0 {
		text += fmt.Sprintf("; drills do not restore the logical ones (%d)", logical)
	}
	return text
}

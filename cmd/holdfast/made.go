package main

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/restore"
)

// madeEntry is what the entries that tell of copies have in their bodies.
type madeEntry struct {
	RestoredTo  string                     `json:"restored_to"`
	Error       string                     `json:"error"`
	Tombstones  []restore.AppliedTombstone `json:"tombstones"`
	Projects    []string                   `json:"projects"` // MACs
	DigestEpoch int                        `json:"digest_epoch"`
	Into        string                     `json:"into"`
	Complete    bool                       `json:"complete"`
	Quarantined bool                       `json:"quarantined"`
	Plan        string                     `json:"plan"`
	Standby     *restore.Following         `json:"standby"`
	Hash        string                     `json:"hash"` // of the plan, where it is begun
	Cleanup     *struct {
		Verified   bool      `json:"verified"`
		VerifiedAt time.Time `json:"verified_at"`
	} `json:"cleanup"`
}

// made lists the copies that the ledgers of all nodes tell of in which a tombstone's
// project was, or may have been; unread are the ledgers that could not be read.
func (w *world) made(ctx context.Context, t catalog.Tombstone) (list []catalog.Made, unread []string, err error) {
	origins, err := w.origins(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range origins {
		records, err := w.ledgerEntries(ctx, o, 0)
		if err != nil {
			if ctx.Err() != nil {
				return nil, nil, err
			}
			unread = append(unread, o)
			continue
		}
		list = append(list, madeBy(records, t)...)
	}
	return list, unread, nil
}

// madeBy reads one ledger.
func madeBy(records []ledger.Record, t catalog.Tombstone) (list []catalog.Made) {
	at := map[string]int{}          // of the restore that a directory holds
	begun := map[string]time.Time{} // by plan
	for _, r := range records {
		var b madeEntry
		if r.Subject["cluster"] != t.Cluster || json.Unmarshal(r.Body, &b) != nil {
			continue
		}
		one := catalog.Made{What: r.Type, At: r.Time.Wall, Origin: r.Origin, Index: r.Index, State: catalog.MadeBeyond}
		switch r.Type {
		case "project.exported", "project.cloned", "project.restored":
			if b.Into != "live" && b.DigestEpoch == t.DigestEpoch && slices.Contains(b.Projects, t.KeyMAC) {
				list = append(list, one)
			}
		case ledger.TypeRestoreStarted:
			begun[b.Hash] = r.Time.Wall
		case ledger.TypeRestoreEnded:
			if b.RestoredTo == "" {
				continue // it made nothing
			}
			if cleared(b, t, begun[b.Plan]) {
				one.State = catalog.MadeCleared
			}
			if i, ok := at[b.RestoredTo]; ok && b.Standby != nil && list[i].State == catalog.MadeBeyond && one.State == catalog.MadeCleared {
				list[i] = one // the same standby, which has replayed more by now
				continue
			}
			at[b.RestoredTo] = len(list)
			list = append(list, one)
		case ledger.TypeRestoreGone:
			if i, ok := at[b.RestoredTo]; ok {
				list[i].State, list[i].RemovedAt = catalog.MadeRemoved, r.Time.Wall
			}
		case ledger.TypeDrillOutcome:
			if b.Cleanup != nil && r.Time.Wall.Before(t.RequestedAt) {
				if b.Cleanup.Verified {
					one.State, one.RemovedAt = catalog.MadeRemoved, b.Cleanup.VerifiedAt
				}
				list = append(list, one)
			}
		}
	}
	return list
}

// cleared says that a restore was whole and knew the tombstone: it was replayed, or it
// was there when the restore began and the restored history passes through the absence.
func cleared(b madeEntry, t catalog.Tombstone, begun time.Time) bool {
	if b.Quarantined || !b.Complete || b.Error != "" {
		return false
	}
	if b.Standby != nil { // nothing was removed from it but by live's own WAL
		return slices.Contains(b.Standby.Passed, t.ID)
	}
	return begun.After(t.RequestedAt) || slices.ContainsFunc(b.Tombstones, func(a restore.AppliedTombstone) bool { return a.ID == t.ID })
}

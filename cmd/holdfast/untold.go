package main

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// tellUntold writes into the ledger the snapshots that this node committed just
// before its process died: a snapshot is committed by its note, and told after.
func (p *protected) tellUntold(ctx context.Context) error {
	list, err := p.n.catalog.Snapshots(ctx, p.cfg.Name)
	if err != nil {
		return err
	}
	const most = 16 // each death leaves one at the most, and each start looks
	var own []catalog.Snapshot
	for _, s := range list.All {
		if s.Body.Node == p.n.cfg.Node.Name {
			own = append(own, s.Body)
		}
	}
	own = own[max(0, len(own)-most):]
	if len(own) == 0 {
		return nil
	}
	told, since, err := p.n.told(ctx, own[0].StartedAt)
	if err != nil {
		return err
	}
	for _, s := range own {
		if told[s.ID] || s.StartedAt.Before(since) {
			continue
		}
		p.n.log.Warn("a snapshot was committed by a process that died before it could tell", zap.String("cluster", s.Cluster), zap.String("id", s.ID))
		if _, err := p.n.append(ctx, "snapshot.taken", map[string]string{"cluster": s.Cluster, "snapshot": s.ID}, summary(s)); err != nil {
			return err
		}
	}
	return nil
}

// told are the snapshots that this node's ledger tells of, back to a moment or to
// the ledger's beginning, whichever is later: since.
func (n *node) told(ctx context.Context, back time.Time) (told map[string]bool, since time.Time, err error) {
	const batch = 512
	told = map[string]bool{}
	for to := n.ledger.Status().Size; to > 0; to -= batch {
		records, err := n.ledger.Entries(ctx, max(to-batch, 0), to)
		if err != nil {
			return nil, since, fmt.Errorf("looking for what the ledger tells: %w", err)
		}
		for _, r := range records {
			if r.Type == "snapshot.taken" {
				told[r.Subject["snapshot"]] = true
			}
		}
		if since = records[0].Time.Wall; since.Before(back) {
			return told, back, nil
		}
	}
	return told, since, nil
}

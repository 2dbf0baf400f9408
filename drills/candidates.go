package drills

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/restore"
)

// pick gathers what the choice is made from, before anybody knows the choice.
func (r *run) pick(ctx context.Context) (Pick, error) {
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	p := Pick{Select: r.def.Select, Zone: r.def.Zone, Seed: hex.EncodeToString(seed[:]), Candidates: []Candidate{}}
	cat := r.catalog()
	snaps, err := cat.Snapshots(ctx, r.def.Cluster)
	if err != nil {
		return p, err
	}
	if len(snaps.List) == 0 && !snaps.Complete {
		return p, snaps.Require()
	}
	proven, err := r.proven(ctx)
	if err != nil {
		return p, err
	}
	var all []Candidate
	var bodies []catalog.Snapshot
	for _, s := range snaps.Bodies() {
		if s.Kind == "physical" {
			all = append(all, Candidate{s.ID, proven[s.ID]})
			bodies = append(bodies, s)
		}
	}
	p.Candidates, p.LeftOut = sample(p.Seed, all)
	if len(all) == 0 {
		return p, nil
	}
	if p.Select == RandomTime {
		p.Spans, err = r.spans(ctx, bodies)
	}
	return p, err
}

// catalog reads from the drill's zones.
func (r *run) catalog() *catalog.Reader {
	if r.def.Zone == "" {
		return r.deps.Repo.Catalog
	}
	return catalog.NewReader(r.deps.Repo.Reader.Only(r.def.Zone), r.deps.Repo.Trust)
}

// proven tells when each snapshot was last seen to hold, in the drill's zone if
// it has one.
func (r *run) proven(ctx context.Context) (map[string]time.Time, error) {
	out := map[string]time.Time{}
	if r.def.Select != Stalest {
		return out, nil
	}
	proofs, err := r.deps.Repo.Catalog.Proofs(ctx, r.def.Cluster)
	if err != nil {
		return nil, err
	}
	for _, p := range proofs.Bodies() {
		good := Passed(p.Outcome)
		if good && (r.def.Zone == "" || r.def.Zone == p.Zone) && p.At.After(out[p.Snapshot]) {
			out[p.Snapshot] = p.At
		}
	}
	return out, nil
}

// reach is how far the WAL behind one snapshot goes.
type reach struct {
	epoch int
	end   lsn.LSN
	span  Span
}

// spans are the moments that can be restored to: from the end of each snapshot to
// the last commit that the WAL behind it holds. A snapshot inside the reach of the
// one before is not asked about. A snapshot behind which WAL is missing has none;
// it is no candidate for a moment, and the other selectors find it.
func (r *run) spans(ctx context.Context, snaps []catalog.Snapshot) ([]Span, error) {
	var out []reach
	for _, s := range snaps {
		if n := len(out); n > 0 && out[n-1].epoch == s.Epoch && s.StopLSN <= out[n-1].end {
			continue
		}
		in, err := restore.Gather(ctx, r.deps.Repo, r.def.Cluster, restore.Target{Kind: restore.Latest, Snapshot: s.ID, Zone: r.def.Zone}, r.deps.Now())
		if errors.Is(err, restore.ErrUnreachable) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, reach{s.Epoch, in.Moment.End.LSN, Span{s.FinishedAt.UTC(), in.Moment.End.Time.UTC()}})
	}
	all := merge(out)
	return all[max(len(all)-maxCandidates, 0):], nil
}

// merge joins spans that touch, so that no moment counts twice.
func merge(in []reach) []Span {
	out := []Span{}
	slices.SortStableFunc(in, func(a, b reach) int { return a.span.From.Compare(b.span.From) })
	for _, x := range in {
		if n := len(out); n > 0 && !x.span.From.After(out[n-1].To) {
			if x.span.To.After(out[n-1].To) {
				out[n-1].To = x.span.To
			}
			continue
		}
		if x.span.To.After(x.span.From) {
			out = append(out, x.span)
		}
	}
	return out
}

// newest is the moment up to which the archive is known to hold everything that
// the server had done: its newest commit, or the server's own clock as it told it
// with the newest WAL.
func (r *run) newest(ctx context.Context) (time.Time, error) {
	in, err := restore.Gather(ctx, r.deps.Repo, r.def.Cluster, restore.Target{Kind: restore.Latest, Zone: r.def.Zone}, r.deps.Now())
	if err != nil {
		return time.Time{}, err
	}
	at := in.Moment.End.Time
	for _, n := range in.Notes {
		if n.Body.ServerTime.After(at) {
			at = n.Body.ServerTime
		}
	}
	if at.IsZero() {
		return at, errors.New("the archive tells no time")
	}
	return at, nil
}

// recoveryPoint measures how much would be lost if live ended now.
func (r *run) recoveryPoint(ctx context.Context) {
	now := r.deps.Now()
	at, err := r.newest(ctx)
	if err != nil {
		r.rec.RPO = measure(r.def.Objectives.RPO, nil, "")
		r.skip("the recovery point", err.Error())
		return
	}
	r.rec.RPO = measure(r.def.Objectives.RPO, ptr(max(now.Sub(at), 0)), "now less the newest moment that the archive is known to hold, "+at.UTC().Format(time.RFC3339Nano))
}

// plan finds out what the choice means: a pure plan whose end is known.
func (r *run) plan(ctx context.Context) error {
	in, err := restore.Gather(ctx, r.deps.Repo, r.def.Cluster, r.choice.Target, r.deps.Now())
	if err != nil {
		return err
	}
	in.RTO = r.def.Objectives.RTO
	p, err := restore.MakePlan(in)
	if err != nil {
		return err
	}
	r.restore = &p
	r.describe(in.Snapshot)
	r.rec.Snapshot, r.rec.Expected = p.Snapshot, &p.ExpectedEnd
	r.rec.Source.RestoreOf, r.rec.Source.WALFrom, r.rec.Source.WALTo = p.Hash, p.WAL.From, p.WAL.To
	r.rec.Source.Freshness = cut(p.Freshness, maxWords)
	if limit := r.def.Limits.Disk; limit > 0 && p.DiskNeeded > limit {
		return fmt.Errorf("%w: the restore needs up to %d bytes of disk and limits.disk is %d", errPolicy, p.DiskNeeded, limit)
	}
	return nil
}

// describe notes which snapshot it is.
func (r *run) describe(s catalog.Snapshot) {
	r.snap = s
	r.rec.Snapshot = s.ID
	r.rec.Source = &Source{
		SystemID: s.SystemID, Epoch: s.Epoch, Timeline: s.Timeline, Major: s.Major, FinishedAt: s.FinishedAt.UTC(),
		AgeSeconds: r.deps.Now().Sub(s.FinishedAt).Seconds(), Manifest: s.Manifest, Objects: s.Objects, Recipients: s.Recipients, LockUntil: s.LockUntil,
	}
}

// look reads the chosen snapshot's note, for what the ladder asks of it.
func (r *run) look(ctx context.Context) error {
	if r.snap.ID != "" {
		return nil
	}
	id := cmp.Or(r.rec.Snapshot, r.choice.Snapshot)
	if id == "" {
		return errNothing
	}
	s, err := r.catalog().Snapshot(ctx, r.def.Cluster, id)
	if err != nil {
		return err
	}
	r.describe(s)
	return nil
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// archiving is what takes a cluster's WAL: a stream or pushes.
type archiving interface {
	snapshot.WALWaiter
	Run(ctx context.Context) error
	Position() snapshot.Position
	WALRefs(ctx context.Context, timeline uint32, from, to lsn.LSN) ([]catalog.Ref, error)
}

// protected is one cluster that this node writes: its lineage and its WAL.
type protected struct {
	n   *node
	cfg configs.Cluster
	dsn string

	mu        sync.Mutex
	session   *session      // nil: not archiving now
	changed   chan struct{} // closed when session or err changes
	err       error         // why there is no session
	end       func()        // ends Run; nil before it
	ended     bool          // the cluster is retired
	takeOver  bool          // once: asked for by `lineage open --take-over`
	forgotten marks
	chain     sync.Mutex // held while a snapshot's note is given its number
}

// session is one claim of the lineage and what archives under it.
type session struct {
	lineage catalog.Lineage
	facts   postgres.Facts
	archive archiving
	writer  *snapshot.WALWriter
	pusher  *snapshot.Pusher // nil in stream mode
}

// protect makes the protector of a configured cluster; it does nothing before Run.
func (n *node) protect(c configs.Cluster) (*protected, error) {
	dsn, err := dsnOf(c)
	if err != nil {
		return nil, err
	}
	p := &protected{n: n, cfg: c, dsn: dsn, changed: make(chan struct{}), err: errors.New("archiving has not begun yet")}
	n.mu.Lock()
	n.clusters[c.Name] = p
	n.mu.Unlock()
	return p, nil
}

func (p *protected) set(s *session, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.err = s, err
	close(p.changed)
	p.changed = make(chan struct{})
}

// ready waits until the lineage is claimed and WAL is being archived.
func (p *protected) ready(ctx context.Context) (*session, error) {
	for {
		p.mu.Lock()
		s, err, changed := p.session, p.err, p.changed
		p.mu.Unlock()
		if s != nil {
			return s, nil
		}
		if err != nil && final(err) {
			return nil, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting until the WAL of %s is archived: %w: %w", p.cfg.Name, ctx.Err(), err)
		}
	}
}

// final says that waiting does not help: another writer has the cluster.
func final(err error) bool {
	for _, e := range []error{snapshot.ErrClaimed, snapshot.ErrForeignServer, snapshot.ErrOldTimeline, snapshot.ErrFenced, errRetired} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Run archives until ctx ends, claiming the lineage again and again: a server or
// zones that are away come back. A refusal is an incident.
func (p *protected) Run(ctx context.Context) error {
	key := "archiving/" + p.cfg.Name
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	p.mu.Lock()
	p.end = stop
	p.mu.Unlock()
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		began := time.Now()
		err := p.archive(ctx, key)
		if !final(err) { // commits may be waiting for us as the synchronous standby
			pause = min(pause, 5*time.Second)
		}
		if p.isRetired() || errors.Is(err, errRetired) {
			p.set(nil, errRetired)
			p.n.endArchiving(context.WithoutCancel(ctx), p.cfg.Name)
			return nil
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was told to stop
		}
		p.set(nil, err)
		p.n.raise(ctx, incident.Incident{
			Key: key, Cluster: p.cfg.Name, Severity: "critical", Title: "the WAL of " + p.cfg.Name + " is not being archived",
			Detail: err.Error(), Remedy: "see that the server and the zones can be reached, and that no other daemon writes this cluster; `holdfast check` tells more",
		})
		if time.Since(began) > time.Minute {
			pause = time.Second
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// archive claims the lineage and archives under it until something ends it.
func (p *protected) archive(ctx context.Context, key string) error {
	s, err := p.claim(ctx)
	if err != nil {
		return err
	}
	if err := p.tellUntold(ctx); err != nil && ctx.Err() == nil {
		p.n.log.Error("cannot tell the ledger what was taken before; the next start tries again", zap.String("cluster", p.cfg.Name), zap.Error(err))
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := s.archive.Run(gctx); err != nil || gctx.Err() != nil {
			return err
		}
		return errors.New("archiving ended by itself")
	})
	p.set(s, nil)
	p.n.settle(ctx, key, "the lineage is claimed and archiving began")
	return g.Wait()
}

// claim connects, claims the lineage, and makes what archives.
func (p *protected) claim(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if gone, err := p.n.retired(ctx, p.cfg.Name); err != nil || gone {
		return nil, cmp.Or(err, error(errRetired))
	}
	facts, server, err := p.look(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.n.recordPlacement(ctx, p.cfg); err != nil {
		return nil, err
	}
	p.mu.Lock()
	takeOver := p.takeOver
	p.takeOver = false
	p.mu.Unlock()
	w := p.n.world
	lineage, err := snapshot.Claim(ctx, snapshot.LineageConfig{
		Cluster: p.cfg.Name, Server: server, Node: w.cfg.Node.Name, StateID: w.holder.stateID, Boot: w.holder.boot,
		Signer: w.signer, Trust: w.trust, Quorum: w.cfg.Repository.WriteQuorum, TakeOver: takeOver, Now: w.now, LockUntil: w.lockUntil(p.cfg),
		LedgerSign: p.n.ledgerSign,
	}, w.vault.Writer())
	if err != nil {
		return nil, err
	}
	if _, err := p.n.append(ctx, "lineage", map[string]string{"cluster": p.cfg.Name}, lineage); err != nil {
		return nil, err
	}
	writer, err := snapshot.OpenWriter(snapshot.WriterConfig{
		Lineage: lineage, Store: w.vault.Writer(), Trust: w.trust, Signer: w.signer, Keys: p.n.keys, Data: w.data, Index: w.indexTo,
		Level: p.cfg.Snapshots.Level, Spool: w.state("spool", p.cfg.Name), Quota: int64(p.cfg.WAL.Spool),
		Disk: w.holder.reserve, LockUntil: w.lockWAL(p.cfg), Now: w.now, Log: w.log.Named("wal"),
	})
	if err != nil {
		return nil, err
	}
	return p.makeSession(lineage, facts, writer)
}

func (p *protected) makeSession(lineage catalog.Lineage, facts postgres.Facts, writer *snapshot.WALWriter) (*session, error) {
	s := &session{lineage: lineage, facts: facts, writer: writer}
	if p.cfg.WAL.Mode == "push" {
		dir := p.cfg.DataDirectory
		pusher, err := snapshot.NewPusher(snapshot.PushConfig{Major: facts.Major, SegSize: facts.SegSize, DataDir: dir, LookAhead: p.cfg.WAL.LookAhead, Switch: p.switchWAL}, writer)
		if err != nil {
			return nil, err
		}
		s.pusher, s.archive = pusher, pusher
		return s, nil
	}
	s.archive = snapshot.NewArchiver(snapshot.ArchiveConfig{
		DSN: p.dsn, Slot: p.cfg.WAL.Slot, SegSize: facts.SegSize, MaxLag: p.cfg.WAL.MaxLag.Std(), OnGap: p.gap,
	}, writer)
	return s, nil
}

// look asks the server who it is.
func (p *protected) look(ctx context.Context) (postgres.Facts, snapshot.Server, error) {
	conn, err := postgres.Connect(ctx, p.dsn, postgres.ConnectOptions{AppName: "holdfast"})
	if err != nil {
		return postgres.Facts{}, snapshot.Server{}, err
	}
	defer conn.Close()
	f, err := postgres.GetFacts(ctx, conn)
	if err != nil {
		return f, snapshot.Server{}, err
	}
	s := snapshot.Server{SystemID: f.SystemID, Major: f.Major, Timeline: f.Timeline, LSN: f.CurrentLSN}
	if f.Timeline > 1 {
		repl, err := postgres.Connect(ctx, p.dsn, postgres.ConnectOptions{Replication: true, AppName: "holdfast"})
		if err != nil {
			return f, s, err
		}
		defer repl.Close()
		h, err := postgres.TimelineHistory(ctx, repl, f.Timeline)
		if err != nil {
			return f, s, err
		}
		s.History = h.Parsed
	}
	return f, s, nil
}

func (p *protected) switchWAL(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, p.dsn, postgres.ConnectOptions{AppName: "holdfast"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Pgx().Exec(ctx, "SELECT pg_switch_wal()")
	return err
}

// gap writes down WAL that is lost, or that an operator gave up, and has a snapshot
// taken behind it.
func (p *protected) gap(ctx context.Context, g snapshot.Gap) error {
	fate, told := "lost", ctx
	if g.Dropped {
		fate, told = "given up", asHuman(ctx)
	}
	if _, err := p.n.append(told, "wal.gap", map[string]string{"cluster": p.cfg.Name}, g); err != nil {
		return err
	}
	p.n.raise(ctx, incident.Incident{
		Key: "wal-gap/" + p.cfg.Name + "/" + g.From.LSN.String(), Cluster: p.cfg.Name, Severity: "critical",
		Title:  fmt.Sprintf("the WAL of %s from %s to %s is %s", p.cfg.Name, g.From, g.To, fate),
		Detail: g.Why, Remedy: "a snapshot behind the gap is taken at once; moments inside the gap cannot be restored",
	})
	return p.n.enqueueSnapshot(ctx, p.cfg.Name, "gap-"+g.To.LSN.String())
}

// ledgerSign is when another node's ledger was last signed.
func (n *node) ledgerSign(ctx context.Context, name string) (time.Time, error) {
	src := ledger.FromReader(n.vault.Reader())
	listing, err := n.vault.Reader().List(ctx, catalog.LedgerDir+name+"-")
	if err != nil {
		return time.Time{}, err
	}
	var newest time.Time
	seen := map[string]bool{}
	for _, o := range listing.Objects {
		origin, _, _ := strings.Cut(strings.TrimPrefix(o.Name, catalog.LedgerDir), "/")
		if seen[origin] {
			continue
		}
		seen[origin] = true
		c, err := ledger.Latest(ctx, src, n.trust, n.repoID, origin)
		if err != nil || c.Size == 0 {
			continue
		}
		records, err := ledger.Read(ctx, src, c, c.Size-1, c.Size)
		if err == nil && len(records) == 1 && records[0].Envelope.Time.Wall.After(newest) {
			newest = records[0].Envelope.Time.Wall
		}
	}
	return newest, nil
}

// take takes one snapshot of the cluster.
func (p *protected) take(ctx context.Context, full bool, progress func(snapshot.Progress)) (catalog.Snapshot, error) {
	s, err := p.ready(ctx)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	due, err := p.fullIsDue(ctx)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	cfg := p.takeConfig(s, progress)
	cfg.Full = full || due
	snap, err := snapshot.Take(ctx, cfg)
	p.n.needsChanged(p)
	return snap, p.noteTaken(ctx, snap, err)
}

// takeConfig is how snapshots are taken under a session.
func (p *protected) takeConfig(s *session, progress func(snapshot.Progress)) snapshot.TakeConfig {
	w := p.n.world
	cfg := snapshot.TakeConfig{
		Cluster: p.cfg.Name, Node: w.cfg.Node.Name, Epoch: s.lineage.Epoch, Source: p.cfg.Snapshots.Source, DSN: p.dsn,
		DataDirectory: p.cfg.DataDirectory, Fast: p.cfg.Snapshots.Checkpoint != "spread", Store: w.vault.Writer(), Signer: w.signer, Trust: w.trust,
		Data: w.data, Index: w.indexTo, Fingerprints: w.fingerprints(), Level: p.cfg.Snapshots.Level,
		Workers: w.cfg.Node.Limits.Workers, Memory: int64(w.cfg.Node.Limits.Memory), WAL: s.archive, WALRefs: s.archive.WALRefs,
		Chain: &p.chain, State: w.state("snapshots", p.cfg.Name), Keys: p.n.keys, Identities: w.index, RenewAfter: p.cfg.Retention.RenewAfter.Std(), Catalog: w.catalog,
		Summaries: p.cfg.Snapshots.Summaries,
		Progress:  progress, Log: w.log.Named("snapshot"), Now: w.now,
	}
	if until := w.lockUntil(p.cfg); until != nil {
		cfg.LockUntil = until(w.now())
	}
	return cfg
}

// noteTaken writes a snapshot's end into the ledger and opens or closes incidents.
func (p *protected) noteTaken(ctx context.Context, snap catalog.Snapshot, err error) error {
	subject := map[string]string{"cluster": p.cfg.Name}
	key := "snapshot-failed/" + p.cfg.Name
	if err != nil {
		clean := context.WithoutCancel(ctx)
		_, lerr := p.n.append(clean, "snapshot.failed", subject, map[string]string{"error": err.Error()})
		if ctx.Err() == nil {
			p.n.raise(clean, incident.Incident{
				Key: key, Cluster: p.cfg.Name, Severity: "critical", Title: "no snapshot of " + p.cfg.Name + " could be taken",
				Detail: err.Error(), Remedy: "mend what it says; the next run tries again",
			})
		}
		return errors.Join(err, lerr)
	}
	subject["snapshot"] = snap.ID
	if _, err := p.n.append(ctx, "snapshot.taken", subject, summary(snap)); err != nil {
		return err
	}
	p.n.log.Info("snapshot taken", zap.String("cluster", p.cfg.Name), zap.String("id", snap.ID), zap.Int64("raw_bytes", snap.RawBytes), zap.Int64("new_bytes", snap.NewBytes))
	p.n.settle(ctx, key, "snapshot "+snap.ID+" was taken")
	p.n.notify.Send(ctx, "snapshot", summary(snap))
	if snap.Suspect {
		p.n.raise(ctx, incident.Incident{
			Key: "bad-pages/" + p.cfg.Name, Cluster: p.cfg.Name, Severity: "critical", Title: fmt.Sprintf("%s has %d pages whose checksum is wrong", p.cfg.Name, snap.Pages.Bad),
			Detail: strings.Join(snap.Reasons, "; "), Remedy: "restore the relation from an earlier snapshot beside production and compare; see docs/runbooks/bad-pages.md",
		})
	} else {
		p.n.settle(ctx, "bad-pages/"+p.cfg.Name, "snapshot "+snap.ID+" found none")
	}
	return nil
}

// summary is what a ledger entry says of a snapshot: all of its note but the WAL's names.
func summary(s catalog.Snapshot) catalog.Snapshot {
	s.WAL = nil
	return s
}

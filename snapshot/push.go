package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// PushConfig says whose WAL a [Pusher] takes.
type PushConfig struct {
	Major   int
	SegSize int64
	// DataDir is the data directory of the server; "" when it is not known here.
	DataDir string
	// LookAhead is how many segments behind the one that PostgreSQL pushes are
	// sent before it asks; 0 is none. They are taken from archive_status/*.ready.
	LookAhead int
	// Switch makes the server finish its segment (pg_switch_wal), for those who
	// wait for WAL in the middle of one; nil: they wait until it is full.
	Switch func(ctx context.Context) error
}

// Pusher takes what archive_command hands over. A push is acknowledged when the
// quorum holds it; a refused one stays with PostgreSQL, which tries again.
type Pusher struct {
	c     PushConfig
	w     *WALWriter
	want  wanted
	ahead chan string // paths of segments to send before they are asked for

	buffers *buffers

	mu       sync.Mutex
	done     map[string]sent    // segments that were sent ahead, by name
	underway map[string]*errand // what is to be sent ahead, by name
	forks    map[uint32]lsn.LSN // where timelines ended
	carries  map[lsn.LSN]walrec.Carry
	reading  map[lsn.LSN]chan struct{} // closed when the carry at the place is known, or never will be
}

// NewPusher writes through w.
func NewPusher(c PushConfig, w *WALWriter) (*Pusher, error) {
	id, err := strconv.ParseUint(w.c.Lineage.SystemID, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("system identifier %q of the lineage is not a number", w.c.Lineage.SystemID)
	}
	return &Pusher{
		c: c, w: w, buffers: newBuffers(c.SegSize, cap(w.comps)+1), want: wanted{id, c.Major, c.SegSize}, ahead: make(chan string, c.LookAhead),
		done: map[string]sent{}, underway: map[string]*errand{}, forks: map[uint32]lsn.LSN{}, carries: map[lsn.LSN]walrec.Carry{},
		reading: map[lsn.LSN]chan struct{}{},
	}, nil
}

// PushRequest is one call of archive_command.
type PushRequest struct {
	// Path is %p: relative to DataDir, or absolute.
	Path string
	// DataDir is the working directory of the command, which PostgreSQL sets to
	// its data directory.
	DataDir string
}

// Push makes one file durable: nil says that the quorum holds it (C-34). The
// same bytes again are success once the quorum is seen to hold them; other bytes
// under the name are refused. It sends following segments ahead meanwhile.
func (p *Pusher) Push(ctx context.Context, r PushRequest) error {
	path := r.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(r.DataDir, path)
	}
	if err := p.checkDir(r, path); err != nil {
		return fmt.Errorf("archiving %s: %w", r.Path, err)
	}
	if segmentRE.MatchString(filepath.Base(path)) {
		p.lookAhead(path)
	}
	if err := p.pushFile(ctx, path, true); err != nil {
		return fmt.Errorf("archiving %s: %w", r.Path, err)
	}
	return nil
}

// checkDir refuses a server that was copied together with its archive_command.
func (p *Pusher) checkDir(r PushRequest, path string) error {
	if p.c.DataDir == "" {
		return nil
	}
	for got, want := range map[string]string{filepath.Dir(path): filepath.Join(p.c.DataDir, "pg_wal"), r.DataDir: p.c.DataDir} {
		if got == "" {
			continue
		}
		a, err := os.Stat(got)
		if err != nil {
			return fmt.Errorf("looking at the pushing server's directory: %w", err)
		}
		b, err := os.Stat(want)
		if err != nil {
			return fmt.Errorf("looking at the configured data directory: %w", err)
		}
		if !os.SameFile(a, b) {
			return fmt.Errorf("%w: %s, want %s; set archive_mode = off on the copy, or configure it as a cluster of its own", ErrForeignDir, got, want)
		}
	}
	return nil
}

// pushFile makes a file durable; asked says that PostgreSQL waits for it.
func (p *Pusher) pushFile(ctx context.Context, path string, asked bool) error {
	name := filepath.Base(path)
	known := p.sentAhead(ctx, name, asked)
	if known.stamp.of(path) {
		return nil
	}
	data, stamp, err := readPushed(path, name, p.c.SegSize, p.buffers)
	if err != nil {
		return err
	}
	defer p.buffers.give(data)
	part, err := checkFile(name, data, p.want)
	if err != nil {
		return err
	}
	if err := p.checkFork(part); err != nil {
		return err
	}
	read := p.reads(part.to)
	defer read()
	part.mac = part.names(p.w.c.Lineage, p.w.c.Keys).mac
	if known.mac == part.mac {
		return nil
	}
	p.index(ctx, &part, path)
	read()
	if err := p.w.otherContent(ctx, part, part.mac); err != nil {
		return err
	}
	if err := p.w.store(ctx, part); err != nil {
		return err
	}
	p.learn(part, sent{part.mac, stamp}, asked)
	return nil
}

// checkFork refuses WAL behind the end of its timeline (C-42): an old primary
// that still runs.
func (p *Pusher) checkFork(f part) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if end, ok := p.forks[f.timeline]; ok && f.to > f.from && f.from >= end {
		return fmt.Errorf("%w: timeline %d ended at %s, the segment begins at %s; is an old primary still running?", ErrBeyondFork, f.timeline, end, f.from)
	}
	return nil
}

// errand is a segment that is to be sent ahead.
type errand struct {
	begun bool
	ended chan struct{} // closed when one that was begun is sent, or has failed
}

// sentAhead is what became durable of a file before it was asked for, after the
// end of what has begun; what has not is the caller's then. Each such entry is used
// up: PostgreSQL asks once.
func (p *Pusher) sentAhead(ctx context.Context, name string, asked bool) sent {
	if !asked {
		return sent{}
	}
	p.mu.Lock()
	e := p.underway[name]
	if e != nil && !e.begun {
		delete(p.underway, name)
		e = nil
	}
	p.mu.Unlock()
	if e != nil {
		select {
		case <-e.ended:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.done[name]
	delete(p.done, name)
	return known
}

// maxDone bounds what is remembered of segments sent ahead; what is forgotten is
// found again in the repository when PostgreSQL asks.
const maxDone = 1024

func (p *Pusher) learn(f part, s sent, asked bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !asked {
		if len(p.done) >= maxDone {
			clear(p.done)
		}
		p.done[f.file] = s
	}
	if historyRE.MatchString(f.file) {
		forks, _ := lsn.ParseHistory(f.data) // it was checked before it was stored
		for _, s := range forks {
			p.forks[s.Timeline] = s.LSN
		}
	}
}

// otherContent notices that a name is archived with other bytes (C-35): the MACs
// in the names differ, and no host needs to decrypt anything to see it.
func (w *WALWriter) otherContent(ctx context.Context, f part, mac string) error {
	l := w.c.Lineage
	prefix := strings.TrimSuffix(catalog.WALName(l.Cluster, l.Epoch, f.timeline, f.file, ""), ".age")
	listing, err := w.c.Store.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("looking whether it is archived already: %w", err)
	}
	if !listing.Complete {
		return fmt.Errorf("looking whether it is archived already: %w: %w", catalog.ErrIncomplete, zoneErrors(listing))
	}
	for _, o := range listing.Objects {
		there, ok := strings.CutSuffix(strings.TrimPrefix(o.Name, prefix), ".age")
		if ok && !strings.Contains(there, ".") && there != mac {
			return fmt.Errorf("%w: digest %s is archived, the pushed file has %s; two servers may be archiving under one name: see which is right before anything is removed", ErrOtherContent, there, mac)
		}
	}
	return nil
}

// reads says that the segment which ends at to is being read: who needs what it
// leaves open waits for read to be called.
func (p *Pusher) reads(to lsn.LSN) (read func()) {
	done := make(chan struct{})
	p.mu.Lock()
	p.reading[to] = done
	p.mu.Unlock()
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.reading[to] == done {
			delete(p.reading, to)
		}
		close(done)
	})
}

// index reads a segment, going on from the one before where that is known or
// still lies beside it.
func (p *Pusher) index(ctx context.Context, f *part, path string) {
	if f.from == f.to {
		return
	}
	cfg := walrec.Config{SegSize: p.c.SegSize, Major: p.c.Major, Timeline: f.timeline, Start: f.from}
	carry := p.carry(ctx, cfg, path)
	m, next, err := indexOf(cfg, carry, f.data)
	if err != nil {
		p.w.c.Log.Error("WAL cannot be read; it is archived without an index, so recovery cannot aim at times within it", zap.String("segment", f.file), zap.Error(err))
		return
	}
	f.marks = m
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.carries) > 4*p.c.LookAhead+4 {
		clear(p.carries)
	}
	p.carries[f.to] = next
}

// carry is what the segment before cfg.Start left open; the zero Carry where it
// cannot be had.
func (p *Pusher) carry(ctx context.Context, cfg walrec.Config, path string) walrec.Carry {
	p.mu.Lock()
	reading := p.reading[cfg.Start]
	p.mu.Unlock()
	if reading != nil {
		select {
		case <-reading:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	c, ok := p.carries[cfg.Start]
	p.mu.Unlock()
	if ok || cfg.Start < lsn.LSN(cfg.SegSize) {
		return c
	}
	start := cfg.Start
	cfg.Start -= lsn.LSN(cfg.SegSize)
	name := lsn.SegmentName(cfg.Timeline, cfg.Start.Segment(cfg.SegSize), cfg.SegSize)
	data, _, err := readPushed(filepath.Join(filepath.Dir(path), name), name, cfg.SegSize, p.buffers)
	if err != nil {
		return walrec.Carry{}
	}
	defer p.buffers.give(data)
	if _, err := checkFile(name, data, p.want); err != nil {
		return walrec.Carry{} // recycled for later WAL
	}
	if _, c, err = indexOf(cfg, walrec.Carry{}, data); err != nil || c.Next() != start {
		return walrec.Carry{}
	}
	return c
}

// WaitDurable returns when the quorum holds all WAL before upTo. Where that is
// not so yet it makes the server finish its segment.
func (p *Pusher) WaitDurable(ctx context.Context, upTo lsn.LSN) error {
	if p.c.Switch != nil && !p.w.done.has(upTo) {
		if err := p.c.Switch(ctx); err != nil {
			return fmt.Errorf("making the server finish the WAL segment of %s: %w", upTo, err)
		}
	}
	if err := p.w.done.wait(ctx, upTo); err != nil {
		_, at, _, _ := p.w.done.newest()
		return fmt.Errorf("waiting until WAL before %s is durable (durable: %s; does archive_command run?): %w", upTo, at, errors.Join(err, p.w.fault.err()))
	}
	return nil
}

// WALRefs names the archived objects that hold a stretch.
func (p *Pusher) WALRefs(ctx context.Context, timeline uint32, from, to lsn.LSN) ([]catalog.Ref, error) {
	return p.w.WALRefs(ctx, timeline, from, to)
}

// Position is how far archiving has come, as far as this process saw it.
func (p *Pusher) Position() Position {
	var out Position
	out.Timeline, out.Durable, out.Commit, out.ServerTime = p.w.done.newest()
	p.w.look(&out)
	return out
}

package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// The sources of a physical snapshot.
const (
	SourceFiles  = "files"  // data_directory, read beside the server
	SourceStream = "stream" // BASE_BACKUP over the replication protocol
)

// Store is what [Take] needs of the vault.
type Store interface {
	catalog.Source
	Get(ctx context.Context, name string, size int64, sha256 string) ([]byte, error)
	Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error)
	PutNote(ctx context.Context, name string, body []byte, refs []vault.Need, opt vault.PutOptions) (vault.Stored, error)
}

// WALWaiter waits until the quorum of zones holds all WAL before an LSN. The
// archiver is one, whether it streams or takes pushes.
type WALWaiter interface {
	WaitDurable(ctx context.Context, upTo lsn.LSN) error
}

// TakeConfig says what to take and where to put it. Zero durations and numbers
// mean their defaults.
type TakeConfig struct {
	Cluster string
	Node    string
	Epoch   int    // the lineage's, claimed by who archives
	Source  string // SourceFiles | SourceStream
	DSN     string
	// DataDirectory is where this process sees the server's data directory; ""
	// means where the server says that it is. For SourceFiles.
	DataDirectory string
	// Fast asks for an immediate checkpoint; else the start waits for a spread
	// one, up to checkpoint_timeout times its target (C-5).
	Fast bool

	Store  Store
	Signer note.Signer
	Trust  catalog.Truster // opens our own notes, to continue their chain
	// Data opens the data and, with Index, the manifest. Fingerprints name Data.
	Data, Index  []age.Recipient
	Fingerprints []string
	LockUntil    time.Time // of all objects; zero: no lock
	Level        string    // of compression: fastest (default), default, better

	Workers int   // 2
	Memory  int64 // bytes for buffers; at least two packs (64 MiB) are needed (128 MiB)
	// State is where the snapshot in the making keeps what it must find again; ""
	// means a directory that is removed at the end.
	State string
	// Keys make the digests of blocks, by which the next snapshot tells what changed.
	Keys seal.DigestKeys
	// Identities open manifests and page maps. Without them, or with Full, nothing
	// is compared and every block is stored.
	Identities []age.Identity
	Full       bool
	// Summaries lets the server say what changed since the snapshot before, by its
	// WAL summaries (17.11 and 18.5 on); else a stream sends everything.
	Summaries bool
	// AnyMinor believes servers that are known to leave changes out (C-33): for tests.
	AnyMinor bool
	// Candidates says what tells which files' blocks must be read: [CandidatesAuto],
	// [CandidatesWAL] or [CandidatesAll]. Summaries come before it.
	Candidates string
	// RenewAfter is the age from which on no pack is referred to; 0: any.
	RenewAfter time.Duration
	Catalog    *catalog.Reader // of Store and Trust; nil: one of its own
	// Chain is held while the note is given its number and committed, where one process
	// takes several snapshots of a lineage at once.
	Chain sync.Locker

	WAL WALWaiter
	// WALRefs names the archived objects that hold the WAL from one position to
	// another, notes and indexes included, or says where there is a hole: see
	// [ArchivedWAL]. nil: they are not listed, and a hole is not noticed.
	WALRefs func(ctx context.Context, timeline uint32, from, to lsn.LSN) ([]catalog.Ref, error)
	// ArchiveCheck is how soon after the start all WAL before it must be durable
	// (2 min, C-8), WALTimeout how long to wait for the rest at the end (1 h).
	ArchiveCheck, WALTimeout time.Duration
	Progress                 func(Progress) // called often, by several goroutines, never at once
	Log                      *zap.Logger
	Now                      func() time.Time
}

// Progress is how far a Take has come.
type Progress struct {
	Step        string // start | copy | wal | commit
	Done, Total int64  // raw bytes; Total is an estimate, 0 before it is known
	Read        int64  // of Done, what had to be read
}

func (c *TakeConfig) check() error {
	var f faults
	c.checkWho(&f)
	f.need(c.Source == SourceFiles || c.Source == SourceStream, fmt.Sprintf("source %q: want files or stream", c.Source))
	f.need(slices.Contains([]string{CandidatesAuto, CandidatesAll, CandidatesWAL}, c.Candidates), fmt.Sprintf("candidates %q: want all or wal", c.Candidates))
	f.need(c.WAL != nil, "WAL must be given")
	return errors.Join(f...)
}

// checkWho looks at what snapshots of every kind need.
func (c *TakeConfig) checkWho(f *faults) {
	*f = append(*f, catalog.CheckName(c.Cluster), catalog.CheckName(c.Node), seal.CheckLevel(c.Level))
	f.need(c.Epoch > 0, "the lineage's epoch must be claimed first")
	f.need(c.Store != nil && c.Signer != nil && c.Trust != nil, "store, signer and trust must be given")
	f.need(len(c.Data) > 0 && len(c.Fingerprints) == len(c.Data), "data recipients and a fingerprint for each must be given")
	if len(c.Data) > 0 {
		// age refuses some to stand together: better now than after the copy.
		_, err := age.Encrypt(io.Discard, c.readers()...)
		*f = append(*f, err)
	}
}

// faults are what is wrong with a configuration; nil ones count for nothing.
type faults []error

func (f *faults) need(ok bool, what string) {
	if !ok {
		*f = append(*f, errors.New(what))
	}
}

// readers open the manifest.
func (c *TakeConfig) readers() []age.Recipient { return slices.Concat(c.Index, c.Data) }

func (c *TakeConfig) fill() {
	if c.Workers <= 0 {
		c.Workers = 2
	}
	if c.Memory <= 0 {
		c.Memory = 128 << 20
	}
	if c.ArchiveCheck <= 0 {
		c.ArchiveCheck = 2 * time.Minute
	}
	if c.WALTimeout <= 0 {
		c.WALTimeout = time.Hour
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Catalog == nil {
		c.Catalog = catalog.NewReader(c.Store, c.Trust)
	}
	if c.Progress == nil {
		c.Progress = func(Progress) {}
	}
}

// NewID makes the id of a snapshot: it sorts by time, to the millisecond, and 20
// random bits tell apart what was begun in the same one. Two digits of base 32
// after the dash are the milliseconds.
func NewID(now time.Time) string {
	now = now.UTC()
	ms := now.Nanosecond() / int(time.Millisecond)
	id := []byte(now.Format("20060102T150405Z") + "-")
	id = append(id, idDigits[ms>>5], idDigits[ms&31])
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand, since Go 1.24)
	for _, r := range b {
		id = append(id, idDigits[r&31])
	}
	return string(id)
}

// idDigits ascend as their characters do.
const idDigits = "0123456789abcdefghijklmnopqrstuv"

// Take makes one physical snapshot and returns it when it is committed: the
// quorum of zones holds its note. An error or a cancellation leaves objects under
// an intent and no snapshot; nothing needs to be undone.
func Take(ctx context.Context, cfg TakeConfig) (catalog.Snapshot, error) {
	if err := cfg.check(); err != nil {
		return catalog.Snapshot{}, fmt.Errorf("take a snapshot of %s: %w", cfg.Cluster, err)
	}
	cfg.fill()
	for {
		t := &take{cfg: cfg, id: NewID(cfg.Now())}
		t.log = cfg.Log.With(zap.String("cluster", cfg.Cluster), zap.String("snapshot", t.id))
		snap, err := t.run(ctx)
		if err != nil {
			return catalog.Snapshot{}, fmt.Errorf("take snapshot %s of %s from %s: %w", t.id, cfg.Cluster, cfg.Source, err)
		}
		if t.making.closing == nil || cfg.Now().Sub(snap.FinishedAt) < freshEnough {
			return snap, nil
		}
		t.log.Info("committed what was taken earlier, and now take another")
	}
}

// take is one snapshot in the making.
type take struct {
	cfg       TakeConfig
	id        string
	log       *zap.Logger
	making    *making
	pack      *packer
	srv       *server           // the server's facts and connections
	snapshots catalog.Snapshots // those there are
	base      *base             // nil: every block is new
	from      lsn.LSN           // no page of an interrupted attempt's packs is older
	changes   changes
	roll      roll // the files

	startedAt time.Time // this host's clock

	mu      sync.Mutex
	pages   page.Report
	skipped int64  // pages that bear no checksums
	newest  string // the file whose page has pages.Latest
	reasons []string
	done    int64 // bytes of files that were read so far, or need not be
	read    int64 // of these, what was read
	total   int64
	header  catalog.ManifestHeader
}

// run does the steps in the order of docs/format.md: W1 to W5.
func (t *take) run(ctx context.Context) (catalog.Snapshot, error) {
	t.step("start")
	t.startedAt = t.cfg.Now().UTC()
	srv, err := openServer(ctx, t.cfg)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	defer srv.close()
	t.srv = srv
	t.describe()
	if err := t.openMaking(); err != nil {
		return catalog.Snapshot{}, err
	}
	snap, err := t.make(ctx)
	t.closeMaking(err == nil)
	return snap, err
}

func (t *take) make(ctx context.Context) (catalog.Snapshot, error) {
	defer t.closeBase()
	if err := t.prepare(ctx); err != nil {
		return catalog.Snapshot{}, err
	}
	if c := t.making.closing; c != nil {
		return t.deliver(ctx, *c)
	}
	if err := t.copy(ctx); err != nil {
		return catalog.Snapshot{}, err
	}
	t.step("wal")
	maps, err := t.settle(ctx)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	t.step("commit")
	return t.commit(ctx, maps)
}

// prepare asks the server for its inventory while the zones are asked for the rest.
func (t *take) prepare(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		t.header.Inventory, err = readInventory(ctx, t.cfg.DSN, t.srv.facts)
		return err
	})
	group.Go(func() error {
		if err := t.openBase(ctx); err != nil {
			return err
		}
		return t.begin(ctx)
	})
	return group.Wait()
}

// settle writes the page maps while the last WAL becomes durable (W3).
func (t *take) settle(ctx context.Context) (maps *mapper, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.awaitWAL(ctx, t.header.Facts.StopLSN, t.cfg.WALTimeout) })
	group.Go(func() (err error) {
		maps, err = t.putMaps(ctx)
		return err
	})
	return maps, group.Wait()
}

// copy brings all files into packs, watched by the early archive check.
func (t *take) copy(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t.pack = newPacker(ctx, t.cfg.Data, t.flying(), t.putPack)
	t.pack.packs, t.pack.kept = t.making.packs, t.making.sent
	var watch sync.WaitGroup
	started := func(at lsn.LSN) {
		watch.Go(func() {
			// Of the segment in which the backup starts nothing need be whole yet.
			before := at.SegmentStart(t.srv.facts.SegSize)
			if err := t.awaitWAL(ctx, before, t.cfg.ArchiveCheck); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("early archive check: %w", err))
			}
		})
	}
	copyFrom := t.fromFiles
	if t.cfg.Source == SourceStream {
		copyFrom = t.fromStream
	}
	err := copyFrom(ctx, started)
	if err == nil {
		err = t.pack.flush()
	}
	if err != nil {
		cancel(err)
	}
	err = errors.Join(err, t.pack.wait())
	if cause := context.Cause(ctx); cause != nil {
		err = cause // what ended it, not what that broke
	}
	cancel(nil)
	watch.Wait()
	return err
}

// flying is how many sealed packs may be on their way at once, beside the one in
// the making and what the workers hold. More than two make nothing faster: each is
// sent to all zones at once.
func (t *take) flying() int {
	const worker, pack = 24 << 20, seal.PackTarget + 1<<20
	free := t.cfg.Memory - int64(t.cfg.Workers)*worker - pack
	return int(min(2, max(1, free/pack)))
}

// awaitWAL waits until the quorum holds all WAL before upTo (C-8).
func (t *take) awaitWAL(ctx context.Context, upTo lsn.LSN, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("WAL before %s is not durable after %s: look at the archiver's status and the zones", upTo, limit))
	defer cancel()
	if err := t.cfg.WAL.WaitDurable(ctx, upTo); err != nil {
		return fmt.Errorf("wait for WAL before %s: %w", upTo, errors.Join(context.Cause(ctx), err))
	}
	return nil
}

func (t *take) step(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cfg.Progress(Progress{Step: name, Done: t.done, Total: t.total, Read: t.read})
}

// took counts n raw bytes. How fast they come is up to the packs, which the zones
// and the limit of what is sent to them hold back.
func (t *take) took(ctx context.Context, n int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += int64(n)
	t.read += int64(n)
	t.cfg.Progress(Progress{Step: "copy", Done: t.done, Total: max(t.total, t.done), Read: t.read})
	return context.Cause(ctx)
}

// passed counts n raw bytes that need not be read.
func (t *take) passed(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += int64(n)
}

// suspect notes a reason not to trust the snapshot.
func (t *take) suspect(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doubt(format, args...)
}

// doubt is suspect for who holds the lock.
func (t *take) doubt(format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	t.log.Warn("the snapshot is suspect", zap.String("reason", reason))
	const most = 100
	if len(t.reasons) < most {
		t.reasons = append(t.reasons, reason)
	}
}

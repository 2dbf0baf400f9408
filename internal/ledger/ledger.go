package ledger

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Config is what a ledger needs.
type Config struct {
	Dir        string // of the state, this node's alone
	Repository string // the repository's id
	// Origin is the node's name. The log's own origin is this, a dash and eight
	// random digits chosen when Dir is new, so that a node that lost its state can
	// begin again while no zone answers and never meets its old log: see
	// [Ledger.Origin].
	Origin string
	Signer note.Signer
	Trust  seal.Trust // must trust Signer's key with the duty "ledger"
	Store  Store      // nil: Anchor always fails; entries wait
	// Witnesses see each checkpoint before the zones do; nil: nobody does.
	Witnesses *Cosigners
	Now       func() time.Time

	ConfigHash string // into every envelope
	Software   Software
	Host       Host

	AnchorAfter time.Duration // how long Run gathers appends; default 2 s
	Heartbeat   time.Duration // how often Run notes that it lives; default 10 min
	// OnAnchor hears the end of each attempt that Run makes; nil: nobody does.
	OnAnchor func(Checkpoint, error)
}

// Ledger is one origin's log, open for writing. Its methods may be called at once.
type Ledger struct {
	conf Config

	mu       sync.Mutex // what follows
	state    *state
	anchored Checkpoint // the last one that the quorum holds; Size 0: none
	failed   time.Time  // since when anchoring fails; zero: it does not
	late     Late       // what went to the zones late and is not yet recorded

	anchoring chan struct{} // a token: one Anchor at a time
	looked    bool          // under anchoring: the zones' checkpoints were listed
	grown     chan struct{} // tells Run of appends
}

// Origin is the body of a log's entry of type "origin".
type Origin struct {
	Node string `json:"node"`
	// After are the last checkpoints of the node's earlier origins, as the zones
	// showed them: their states were lost or given up.
	After []Predecessor `json:"after"`
}

// Predecessor names a checkpoint of another origin.
type Predecessor struct {
	Origin string    `json:"origin"`
	Size   int64     `json:"size"`
	Root   tlog.Hash `json:"root"`
}

// Late is the body of an entry of type "anchored_late": entries From to To-1
// stood on this machine alone from Since until the quorum held them at Until.
type Late struct {
	From  int64     `json:"from"`
	To    int64     `json:"to"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// Open opens the state in conf.Dir, or begins a new origin there. It asks no
// zone. A directory that is open elsewhere is durable.ErrHeld, a damaged one
// [ErrState].
func Open(conf Config) (*Ledger, error) {
	conf, err := conf.complete()
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	var suffix [4]byte
	_, _ = rand.Read(suffix[:])
	st, err := openState(conf.Dir, header{
		Format: 1, Repository: conf.Repository, Origin: conf.Origin + "-" + hex.EncodeToString(suffix[:]),
	})
	if err != nil {
		return nil, err
	}
	l := &Ledger{conf: conf, state: st, anchoring: make(chan struct{}, 1), grown: make(chan struct{}, 1)}
	if err := l.recall(); err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", conf.Dir, errors.Join(err, st.log.Close()))
	}
	return l, nil
}

func (c Config) complete() (Config, error) {
	switch {
	case c.Dir == "" || c.Repository == "" || c.Signer == nil:
		return c, errors.New("want a state directory, a repository id and a signer")
	case !originRE.MatchString(c.Origin) || len(c.Origin) > 63:
		return c, fmt.Errorf("origin %q: want 1 to 63 of a-z, 0-9, '-' and '_'", c.Origin)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.AnchorAfter <= 0 {
		c.AnchorAfter = 2 * time.Second
	}
	if c.Heartbeat <= 0 {
		c.Heartbeat = 10 * time.Minute
	}
	if c.Host.Node == "" {
		c.Host.Node = c.Origin
	}
	return c, nil
}

// recall reads the last anchored checkpoint and checks the log against it: an
// entry or tile that changed on this disk is found before anything is signed.
func (l *Ledger) recall() error {
	data, err := os.ReadFile(l.state.path("anchored"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := openCheckpoint(data, l.conf.Repository, l.state.head.Origin, l.conf.Trust)
	if err != nil {
		return fmt.Errorf("its last checkpoint: %w", err)
	}
	if c.Size > l.state.size() {
		return fmt.Errorf("%w: %d entries, and a checkpoint of %d: move the directory away, and a new origin begins", ErrState, l.state.size(), c.Size)
	}
	root, err := tlog.TreeHash(c.Size, l.state)
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("%w: its entries do not give the root of its checkpoint of size %d: move the directory away, and a new origin begins", ErrState, c.Size)
	}
	l.anchored = c
	return nil
}

// Origin is the name of this log: the directory under ledger/.
func (l *Ledger) Origin() string { return l.state.head.Origin }

// Append makes e durable on this machine and returns its index. No zone is
// waited for; Run and Anchor send it.
func (l *Ledger) Append(ctx context.Context, e Entry) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("append to ledger: %w", err)
	}
	leaf, err := e.encode(&l.conf, l.conf.Now())
	if err != nil {
		return 0, fmt.Errorf("append to ledger: %w", err)
	}
	l.mu.Lock()
	index, err := l.state.append(leaf)
	l.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("append to ledger %s: %w", l.conf.Dir, err)
	}
	select {
	case l.grown <- struct{}{}:
	default:
	}
	return index, nil
}

// AppendAnchored is Append that returns when the write quorum holds the entry
// and a signed checkpoint over it. After an error that is a [*WaitingError] the
// entry stands on this machine and is sent later: what it announced must not be
// done.
func (l *Ledger) AppendAnchored(ctx context.Context, e Entry) (int64, error) {
	index, err := l.Append(ctx, e)
	if err != nil {
		return 0, err
	}
	if _, err := l.Anchor(ctx); err != nil {
		return index, fmt.Errorf("%s entry %d is not in the quorum: %w", e.Type, index, err)
	}
	return index, nil
}

// Entries returns the records [from, to) of this log; to beyond its end or
// negative is its end.
func (l *Ledger) Entries(ctx context.Context, from, to int64) ([]Record, error) {
	if size := l.Status().Size; to < 0 || to > size {
		to = size
	}
	var out []Record
	for i := max(from, 0); i < to; {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("read ledger: %w", err)
		}
		end := min(to, (i/width+1)*width)
		l.mu.Lock()
		leaves, err := l.state.entries(i/width, int(end-i/width*width))
		l.mu.Unlock()
		if err != nil {
			return nil, fmt.Errorf("read ledger: %w", err)
		}
		for ; i < end; i++ {
			r, err := decodeRecord(l.Origin(), i, leaves[i%width])
			if err != nil {
				return nil, fmt.Errorf("read ledger, entry %d: %w", i, err)
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// Status is what waits.
type Status struct {
	Origin   string     `json:"origin"`
	Size     int64      `json:"size"`     // entries on this machine
	Anchored Checkpoint `json:"anchored"` // the last checkpoint that the quorum holds
	Failing  time.Time  `json:"failing_since,omitzero"`
}

// Status tells how much stands on this machine alone.
func (l *Ledger) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Status{Origin: l.state.head.Origin, Size: l.state.size(), Anchored: l.anchored, Failing: l.failed}
}

// Close gives the state directory back. No method may be running.
func (l *Ledger) Close() error { return l.state.log.Close() }

// save makes data durable in the state directory.
func (l *Ledger) save(name string, data []byte) error {
	return durable.WriteFile(l.state.path(name), data, 0o600)
}

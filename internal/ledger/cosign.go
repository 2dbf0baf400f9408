package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Cosigners are the witnesses that a ledger shows each checkpoint to before it
// goes to the zones. One that does not answer holds nothing up: it is left alone
// for a while, and the checkpoint goes without it.
type Cosigners struct {
	// Told hears of each attempt: nil is a cosignature.
	Told func(url string, err error)

	list []*cosigner
}

type cosigner struct {
	url  string
	key  seal.CosignVerifier
	http *http.Client

	mu     sync.Mutex
	size   int64     // that it is believed to have
	resume time.Time // not asked before
}

// How long a witness may take, and how long one that failed is left alone.
const (
	cosignWithin = 5 * time.Second
	cosignPause  = time.Minute
)

// NewCosigners takes each witness's URL and verifier key.
func NewCosigners(keys map[string]string) (*Cosigners, error) {
	out := &Cosigners{}
	for url, vkey := range keys {
		key, err := seal.NewCosignVerifier(vkey)
		if err != nil {
			return nil, err
		}
		out.list = append(out.list, &cosigner{url: strings.TrimSuffix(url, "/"), key: key, http: &http.Client{Timeout: cosignWithin}})
	}
	return out, nil
}

// cosign returns c with the lines of the witnesses that answered. That a witness
// shows a checkpoint of this log, signed by a trusted key, which c does not go on
// from, is [ErrRolledBack] or [ErrForked]; its word alone stops nothing.
func (w *Cosigners) cosign(ctx context.Context, conf Config, c Checkpoint, hashes tlog.HashReader) (Checkpoint, error) {
	if w == nil {
		return c, nil
	}
	lines, errs := make([][]byte, len(w.list)), make([]error, len(w.list))
	var g sync.WaitGroup
	for i, one := range w.list {
		g.Go(func() {
			if lines[i], errs[i] = one.ask(ctx, conf, c, hashes); w.Told != nil && (lines[i] != nil || errs[i] != nil) {
				w.Told(one.url, errs[i])
			}
		})
	}
	g.Wait()
	for i := range w.list {
		if isFatal(errs[i]) {
			return c, errs[i]
		}
		c.Signed = append(bytes.Clone(c.Signed), lines[i]...)
	}
	return c, nil
}

// ask shows one witness the checkpoint; neither a line nor an error: it is left alone.
func (o *cosigner) ask(ctx context.Context, conf Config, c Checkpoint, hashes tlog.HashReader) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := conf.Now()
	if now.Before(o.resume) {
		return nil, nil
	}
	line, err := o.try(ctx, conf, c, hashes)
	if ctx.Err() != nil {
		return nil, nil // it is we who did not wait
	}
	if err != nil && !isFatal(err) {
		o.resume = now.Add(cosignPause)
		return nil, fmt.Errorf("cosigning by the witness %s: %w", o.url, err)
	}
	return line, err
}

// try asks twice where the witness has another size than was believed.
func (o *cosigner) try(ctx context.Context, conf Config, c Checkpoint, hashes tlog.HashReader) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, cosignWithin)
	defer cancel()
	for again := range 2 {
		var proof tlog.TreeProof
		if o.size > 0 && o.size < c.Size {
			var err error
			if proof, err = tlog.ProveTree(c.Size, o.size, hashes); err != nil {
				return nil, err
			}
		}
		status, body, err := o.send(ctx, http.MethodPost, "/add-checkpoint", formatAdd(o.size, proof, c.Signed))
		switch {
		case err != nil:
			return nil, err
		case status == http.StatusOK:
			text, _, _ := bytes.Cut(c.Signed, []byte("\n\n"))
			line, err := o.key.Line(append(bytes.Clone(text), '\n'), body)
			if err == nil {
				o.size = c.Size
			}
			return line, err
		case status == http.StatusConflict && again == 0 && o.smaller(c, body):
		case status == http.StatusConflict || status == http.StatusUnprocessableEntity:
			return nil, cmpOr(o.proven(ctx, conf, c, hashes), fmt.Errorf("it says that it saw another history of this ledger (%d, %.200q), and shows no proof of that", status, body))
		default:
			return nil, fmt.Errorf("it answered %d: %.200q", status, body)
		}
	}
	return nil, nil // not reached: the second turn returns
}

// smaller takes the size that the witness says it has, where c can go on from there.
func (o *cosigner) smaller(c Checkpoint, body []byte) bool {
	size, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
	if err != nil || size < 0 || size > c.Size {
		return false
	}
	o.size = size
	return true
}

// proven asks for the checkpoint that the witness saw last, and says what it proves:
// nil where it is none of this log's, or one that c goes on from.
func (o *cosigner) proven(ctx context.Context, conf Config, c Checkpoint, hashes tlog.HashReader) error {
	status, body, err := o.send(ctx, http.MethodGet, LatestPath+c.Origin, nil)
	if err != nil || status != http.StatusOK {
		return nil //nolint:nilerr // no proof
	}
	seen, err := openCheckpoint(body, conf.Repository, c.Origin, conf.Trust)
	switch {
	case err != nil:
		return nil //nolint:nilerr // no proof
	case seen.Size > c.Size:
		return fmt.Errorf("%w: the witness %s shows a signed checkpoint of %d entries of %s, and this state has %d: move the directory away and start again, and a new origin that names this one begins", ErrRolledBack, o.url, seen.Size, c.Origin, c.Size)
	}
	if root, err := tlog.TreeHash(seen.Size, hashes); err != nil || root == seen.Root {
		return nil //nolint:nilerr // no proof
	}
	return fmt.Errorf("%w: the witness %s shows another signed checkpoint of size %d: stop the other copy, move the directory away and start again, and a new origin begins", ErrForked, o.url, seen.Size)
}

func isFatal(err error) bool { return errors.Is(err, ErrForked) || errors.Is(err, ErrRolledBack) }

func (o *cosigner) send(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error) {
	q, err := http.NewRequestWithContext(ctx, method, o.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r, err := o.http.Do(q)
	if err != nil {
		return 0, nil, err
	}
	defer r.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(r.Body, 64<<10))
	return r.StatusCode, answer, err
}

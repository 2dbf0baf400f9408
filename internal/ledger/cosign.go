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
// has a later state of the log, or another, is [ErrRolledBack] or [ErrForked].
func (w *Cosigners) cosign(ctx context.Context, c Checkpoint, hashes tlog.HashReader, now time.Time) (Checkpoint, error) {
	if w == nil {
		return c, nil
	}
	lines, errs := make([][]byte, len(w.list)), make([]error, len(w.list))
	var g sync.WaitGroup
	for i, one := range w.list {
		g.Go(func() {
			if lines[i], errs[i] = one.ask(ctx, c, hashes, now); w.Told != nil && (lines[i] != nil || errs[i] != nil) {
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
func (o *cosigner) ask(ctx context.Context, c Checkpoint, hashes tlog.HashReader, now time.Time) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Before(o.resume) {
		return nil, nil
	}
	line, err := o.try(ctx, c, hashes)
	if err != nil && !isFatal(err) {
		o.resume = now.Add(cosignPause)
		return nil, fmt.Errorf("cosigning by the witness %s: %w", o.url, err)
	}
	return line, err
}

// try asks twice where the witness has another size than was believed.
func (o *cosigner) try(ctx context.Context, c Checkpoint, hashes tlog.HashReader) ([]byte, error) {
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
		status, body, err := o.post(ctx, formatAdd(o.size, proof, c.Signed))
		switch {
		case err != nil:
			return nil, err
		case status == http.StatusOK:
			if _, err := o.key.Cosigned(append(bytes.Clone(c.Signed), body...)); err != nil {
				return nil, err
			}
			o.size = c.Size
			return body, nil
		case status == http.StatusUnprocessableEntity:
			return nil, fmt.Errorf("%w: the witness %s saw another log of %s: stop the other copy, move the directory away and start again, and a new origin begins", ErrForked, o.url, c.Origin)
		case status != http.StatusConflict:
			return nil, fmt.Errorf("it answered %d: %s", status, strings.TrimSpace(string(body)))
		}
		if err := o.conflict(c, body); err != nil || again > 0 {
			return nil, cmpOr(err, fmt.Errorf("it changed its mind: now it says %q", body))
		}
	}
	return nil, nil // not reached: the second turn returns
}

// conflict takes the size that the witness says it has.
func (o *cosigner) conflict(c Checkpoint, body []byte) error {
	size, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
	switch {
	case err != nil || size < 0:
		return fmt.Errorf("it says that it has size %q", body)
	case size > c.Size:
		return fmt.Errorf("%w: the witness %s cosigned %d entries of %s, and this state has %d: move the directory away and start again, and a new origin that names this one begins", ErrRolledBack, o.url, size, c.Origin, c.Size)
	case size == o.size:
		return fmt.Errorf("%w: the witness %s cosigned another checkpoint of size %d: stop the other copy, move the directory away and start again, and a new origin begins", ErrForked, o.url, size)
	}
	o.size = size
	return nil
}

func isFatal(err error) bool { return errors.Is(err, ErrForked) || errors.Is(err, ErrRolledBack) }

func (o *cosigner) post(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url+"/add-checkpoint", bytes.NewReader(body))
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

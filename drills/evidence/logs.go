package evidence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Logs says what a bundle of the period holds of each log that src shows: its
// entries from before the period, so far back that they say which drills were
// configured when it began, to the newest; and proofs of the period's outcomes.
// A log without a checkpoint that a trusted key signed is left out, and named.
func Logs(ctx context.Context, src ledger.Source, trust seal.Trust, repository string, p Period) (out []Log, left []string, err error) {
	tails, left, err := Tails(ctx, src, trust, repository, p.From)
	for _, t := range tails {
		l := Log{Checkpoint: t.Checkpoint, From: t.Records[0].Index}
		for _, r := range t.Records {
			if r.Type == ledger.TypeDrillOutcome && p.holds(r.Time.Wall) {
				l.Prove = append(l.Prove, r.Index)
			}
		}
		out = append(out, l)
	}
	return out, left, err
}

// Tail is the end of a log: the entries of its newest checkpoint's tree that
// [Entries] gives.
type Tail struct {
	Checkpoint ledger.Checkpoint
	Records    []ledger.Record
}

// Tails reads the tail of every log that src shows. Logs without a checkpoint that a
// trusted key signed are left out, and named.
func Tails(ctx context.Context, src ledger.Source, trust seal.Trust, repository string, from time.Time) (out []Tail, left []string, err error) {
	origins, err := Origins(ctx, src)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range origins {
		c, err := ledger.Latest(ctx, src, trust, repository, o)
		if errors.Is(err, ledger.ErrNoCheckpoint) {
			left = append(left, o)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		records, err := Entries(ctx, src, c, from)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, Tail{c, records})
	}
	return out, left, nil
}

// LeftOut says that logs were left out because nothing proves them.
func LeftOut(origins []string) (out []ledger.NotAssessed) {
	for _, o := range origins {
		out = append(out, ledger.NotAssessed{What: "the ledger " + o, Why: "it has no checkpoint that a trusted key signed: a node that has not reached the zones yet, a key that is not trusted here, or nobody's"})
	}
	return out
}

// Origins are the logs that src shows, sorted.
func Origins(ctx context.Context, src ledger.Source) ([]string, error) {
	names, err := src.List(ctx, logsDir)
	if err != nil {
		return nil, fmt.Errorf("list the ledgers: %w", err)
	}
	var out []string
	for _, name := range names {
		origin, _, ok := strings.Cut(strings.TrimPrefix(name, logsDir), "/")
		if ok && (len(out) == 0 || out[len(out)-1] != origin) {
			out = append(out, origin)
		}
	}
	return out, nil
}

// batch is how many entries are read at a time: a bundle of the ledger's.
const batch = 256

// Entries returns the entries of c's tree from before from on: so many that they
// hold the newest entry about the drills' plans that is older than from, or all.
func Entries(ctx context.Context, src ledger.Source, c ledger.Checkpoint, from time.Time) ([]ledger.Record, error) {
	var out []ledger.Record
	for to := c.Size; to > 0; {
		start := (to - 1) / batch * batch
		records, err := ledger.Read(ctx, src, c, start, to)
		if err != nil {
			return nil, err
		}
		out = append(records, out...)
		for _, r := range records {
			if r.Type == ledger.TypeDrillPlans && r.Time.Wall.Before(from) {
				return out, nil
			}
		}
		to = start
	}
	return out, nil
}

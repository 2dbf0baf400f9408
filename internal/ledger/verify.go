package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// VerifyOptions say what to hold the ledger against.
type VerifyOptions struct {
	Repository string
	Now        time.Time // slots whose deadline is before it must have their outcome
	// Known are checkpoints that the caller kept or was given elsewhere: the
	// ledger must still contain them, so that cutting it short is noticed.
	Known []Checkpoint
	// Each hears every record in the order of its log; nil: nobody does.
	Each func(Record) error
}

// Fault is one thing that is wrong, and where.
type Fault struct {
	Origin string `json:"origin"`
	Index  int64  `json:"index"` // of the first entry concerned; a checkpoint's size; -1 for none
	Name   string `json:"name"`  // the object, "" where it is the log as a whole
	What   string `json:"what"`
	Code   string `json:"code,omitempty"` // of an excerpt's fault: what kind it is of
}

func (f Fault) String() string {
	return fmt.Sprintf("%s, entry %d (%s): %s", f.Origin, f.Index, f.Name, f.What)
}

// OriginReport is what was found of one log.
type OriginReport struct {
	Origin      string    `json:"origin"`
	Size        int64     `json:"size"` // entries under the largest checkpoint
	Root        tlog.Hash `json:"root"`
	Checkpoints int       `json:"checkpoints"` // all that verify
	Signers     []string  `json:"signers"`
	First       time.Time `json:"first,omitzero"` // what the entries say of their time
	Last        time.Time `json:"last,omitzero"`
	Keys        []NewKey  `json:"keys,omitempty"` // that its entries announce
}

// NewKey is a key that an entry announces, in its place.
type NewKey struct {
	KeyRotated
	Index int64     `json:"index"`
	At    time.Time `json:"at"`
}

// Report is the outcome of Verify: the ledger holds when Faults is empty.
type Report struct {
	Origins []OriginReport `json:"origins"`
	Slots   SlotsReport    `json:"slots"`
	Faults  []Fault        `json:"faults"`
}

// Verify reads every log of the repository and computes all of it anew from the
// entries: leaf hashes, every tile, the root of every checkpoint (and with it
// that each is a prefix of the next), signatures, and the outcomes of drills over
// all logs together. What is wrong is in the Report; the error says only that
// src could not be read. It keeps about 150 bytes an entry in memory.
func Verify(ctx context.Context, src Source, trust seal.Trust, opt VerifyOptions) (Report, error) {
	names, err := src.List(ctx, dir)
	if err != nil {
		return Report{}, fmt.Errorf("verify ledger: %w", err)
	}
	v := &verifier{
		src: src, opt: opt, conf: Config{Repository: opt.Repository, Trust: trust},
		records: map[string]bool{}, logs: map[string]*verified{}, slots: newSlots(),
	}
	for _, o := range origins(names) {
		if err := v.origin(ctx, o); err != nil {
			return v.report, fmt.Errorf("verify ledger %s: %w", o.name, err)
		}
	}
	v.known()
	v.report.Slots = v.slots.judge(opt.Now, v.fault)
	return v.report, nil
}

type verifier struct {
	src     Source
	opt     VerifyOptions
	conf    Config
	report  Report
	records map[string]bool // ids seen
	logs    map[string]*verified
	slots   *slots
	named   []Checkpoint // predecessors that entries of type origin name
}

// verified is one log: its hashes as tlog stores them.
type verified struct {
	listed
	top     Checkpoint
	bundles map[int64][]tlog.Tile // of the listed tiles, those of entries by number
	hashes  []tlog.Hash
	report  OriginReport
}

// ReadHashes implements tlog.HashReader.
func (l *verified) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(l.hashes)) {
			return nil, fmt.Errorf("hash %d is not among the %d computed", index, len(l.hashes))
		}
		out[i] = l.hashes[index]
	}
	return out, nil
}

func (v *verifier) fault(f Fault) { v.report.Faults = append(v.report.Faults, f) }

func (v *verifier) faultf(origin string, index int64, path, format string, args ...any) {
	name := ""
	if path != "" {
		name = OriginDir(origin) + path
	}
	v.fault(Fault{Origin: origin, Index: index, Name: name, What: fmt.Sprintf(format, args...)})
}

func (v *verifier) origin(ctx context.Context, o listed) error {
	l := &verified{listed: o, report: OriginReport{Origin: o.name}, bundles: map[int64][]tlog.Tile{}}
	for _, t := range o.tiles {
		if t.L == entriesLevel {
			l.bundles[t.N] = append(l.bundles[t.N], t)
		}
	}
	v.logs[o.name] = l
	for _, name := range o.strange {
		v.fault(Fault{Origin: o.name, Index: -1, Name: name, What: "not an object of a ledger"})
	}
	checkpoints := v.checkpoints(ctx, l)
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(checkpoints) == 0 {
		v.faultf(o.name, -1, "", "it has no checkpoint that a trusted key signed: none of its entries is proven")
		return nil
	}
	l.top = checkpoints[len(checkpoints)-1]
	l.report.Size, l.report.Root, l.report.Checkpoints = l.top.Size, l.top.Root, len(checkpoints)
	err := v.entries(ctx, l)
	if err == nil {
		err = v.tiles(ctx, l)
	}
	if err != nil {
		return err
	}
	for _, c := range checkpoints {
		if !l.contains(c) {
			v.faultf(o.name, c.Size, checkpointPath(c.Size), "its root is not that of the first %d entries", c.Size)
		}
	}
	v.successors(l, checkpoints)
	v.report.Origins = append(v.report.Origins, l.report)
	return nil
}

// successors checks that no signing key signed before the entry that announces it was
// under the signature of another.
func (v *verifier) successors(l *verified, checkpoints []Checkpoint) {
	for _, k := range l.report.Keys {
		name, _, _ := strings.Cut(k.New, "+")
		for _, c := range checkpoints {
			if k.Kind == "signing" && c.Signer == name {
				v.faultf(l.name, c.Size, checkpointPath(c.Size), "it is signed by %s, which entry %d announces, before another key signed that", name, k.Index)
			}
			if c.Size > k.Index {
				break // this one has the announcement
			}
		}
	}
}

// contains says whether c is a checkpoint of l's own tree.
func (l *verified) contains(c Checkpoint) bool {
	if c.Size < 1 || c.Size > l.top.Size || tlog.StoredHashCount(c.Size) > int64(len(l.hashes)) {
		return false
	}
	root, err := tlog.TreeHash(c.Size, l)
	return err == nil && root == c.Root
}

// checkpoints returns those that a trusted key signed, by size.
func (v *verifier) checkpoints(ctx context.Context, l *verified) []Checkpoint {
	var out []Checkpoint
	for _, size := range l.listed.checkpoints {
		c, err := fetchCheckpoint(ctx, v.src, v.conf, l.name, size)
		if err != nil {
			v.faultf(l.name, size, checkpointPath(size), "%v", err)
			continue
		}
		out = append(out, c)
		if !slices.Contains(l.report.Signers, c.Signer) {
			l.report.Signers = append(l.report.Signers, c.Signer)
		}
	}
	return out
}

// known checks that nothing was cut from what others have seen.
func (v *verifier) known() {
	for _, c := range append(slices.Clone(v.opt.Known), v.named...) {
		l := v.logs[c.Origin]
		if l == nil || !l.contains(c) {
			v.faultf(c.Origin, c.Size, "", "a checkpoint of size %d with root %s was seen elsewhere, and this log does not contain it: it was cut or replaced", c.Size, c.Root)
		}
	}
}

// take reads one object and lets judge say whether it is right; every copy that
// is not is a fault. ok is false where no copy is.
func (v *verifier) take(ctx context.Context, l *verified, t tlog.Tile, judge func(body []byte) (index int64, what string)) (ok bool, err error) {
	first := t.N * width << (height * max(t.L, 0))
	refused := errors.New("refused")
	faults := 0
	_, err = v.src.Fetch(ctx, OriginDir(l.name)+tilePath(t), func(zone string, body []byte) error {
		index, what := judge(body)
		if what == "" {
			return nil
		}
		faults++
		v.faultf(l.name, index, tilePath(t), "%s (copy of %s)", what, zone)
		return refused
	})
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil && faults == 0 {
		v.faultf(l.name, first, tilePath(t), "%v", err)
	}
	return err == nil, nil
}

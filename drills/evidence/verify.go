package evidence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Options say what a bundle is held against.
type Options struct {
	Trust    seal.Trust
	Schedule Schedule
	// Known are checkpoints that the reader kept or was told elsewhere: the logs must
	// still contain them.
	Known []ledger.Checkpoint
	// Witnesses must each have cosigned the newest checkpoint of every log that goes
	// on: nobody then holds another one of the same size.
	Witnesses []seal.CosignVerifier
	// Gone are nodes that were given up: they may be silent in the period.
	Gone []string
	// Period is what the reader asked for; zero: what the bundle says.
	Period Period
}

// Report is the outcome of Verify: the evidence holds when Faults is empty.
type Report struct {
	OK         bool      `json:"ok"`
	Repository string    `json:"repository"`
	Period     Period    `json:"period"`
	MadeAt     time.Time `json:"made_at"` // as the bundle says
	Logs       []LogDoc  `json:"logs"`
	Findings
}

// LogDoc is what was found of one log.
type LogDoc struct {
	Origin string    `json:"origin"`
	Node   string    `json:"node,omitempty"`
	From   int64     `json:"from"` // its first entry that was delivered
	Size   int64     `json:"size"`
	Root   string    `json:"root,omitempty"`
	Signer string    `json:"signer,omitempty"`
	First  time.Time `json:"first,omitzero"`
	Last   time.Time `json:"last,omitzero"`
	// Cosigned is when each of the reader's witnesses saw it as the newest.
	Cosigned map[string]time.Time `json:"cosigned,omitempty"`
}

// Verify computes a bundle anew from its bytes and the trusted keys. What is wrong
// is in the report; the error says only that the file could not be read.
func Verify(ctx context.Context, in io.Reader, opt Options) (Report, error) {
	got, head, err := open(in)
	if errors.Is(err, errBundle) {
		rep := Report{Findings: Findings{Faults: []ledger.Fault{{Index: -1, Code: FaultBundle, What: err.Error()}}}}
		return rep.whole(), nil
	}
	if err != nil {
		return Report{}, err
	}
	v := &verifier{files: got, head: head, opt: opt, logs: map[string]*ledger.Excerpt{}}
	v.rep = Report{Repository: head.Repository, Period: head.Period, MadeAt: head.MadeAt}
	if opt.Period != (Period{}) {
		v.rep.Period = opt.Period
	}
	excerpts, err := ledger.Excerpts(ctx, got, opt.Trust, head.Repository)
	if err != nil {
		return Report{}, fmt.Errorf("verify evidence: %w", err)
	}
	if len(excerpts) == 0 {
		v.fault(FaultBundle, "", -1, "it holds no ledger")
	}
	var logs [][]ledger.Record
	for _, e := range excerpts {
		v.log(e)
		logs = append(logs, e.Records)
	}
	v.contained(excerpts)
	v.witnessed(excerpts)
	v.proofs()
	v.rep.add(Judge(logs, v.rep.Period, opt.Schedule))
	v.covered()
	return v.rep.whole(), nil
}

type verifier struct {
	files files
	head  Head
	opt   Options
	logs  map[string]*ledger.Excerpt
	rep   Report
}

func (v *verifier) fault(code, origin string, index int64, format string, args ...any) {
	v.rep.Faults = append(v.rep.Faults, ledger.Fault{Origin: origin, Index: index, Code: code, What: fmt.Sprintf(format, args...)})
}

// log takes what an excerpt shows, and wants its entries to reach back behind the
// period's beginning: else earlier ones of the period could be left out.
func (v *verifier) log(e *ledger.Excerpt) {
	v.logs[e.Origin] = e
	v.rep.Faults = append(v.rep.Faults, e.Faults...)
	doc := LogDoc{Origin: e.Origin, From: e.From, Size: e.Top.Size, Signer: e.Top.Signer}
	if e.Top.Size > 0 {
		doc.Root = e.Top.Root.String()
	}
	before := e.From == 0
	for _, r := range e.Records {
		if doc.First.IsZero() {
			doc.First, doc.Node = r.Time.Wall, r.Host.Node
		}
		doc.Last = r.Time.Wall
		before = before || r.Time.Wall.Before(v.rep.Period.From)
	}
	if !before && len(e.Records) > 0 {
		v.fault(ledger.FaultGap, e.Origin, e.From, "the first entry that is there is of %s: earlier ones of the period may be left out", stamp(doc.First))
	}
	v.rep.Logs = append(v.rep.Logs, doc)
}

// contained holds the logs against the checkpoints that others have seen.
func (v *verifier) contained(excerpts []*ledger.Excerpt) {
	known := slices.Clone(v.opt.Known)
	for _, e := range excerpts {
		for _, r := range e.Records {
			if r.Type != ledger.TypeOrigin {
				continue
			}
			o, err := origin(r)
			if err != nil {
				v.fault(ledger.FaultEntry, r.Origin, r.Index, "%v", err)
			}
			for _, p := range o.After {
				known = append(known, ledger.Checkpoint{Origin: p.Origin, Size: p.Size, Root: p.Root})
			}
		}
	}
	for _, c := range known {
		if e := v.logs[c.Origin]; e == nil || !e.Contains(c) {
			v.fault(ledger.FaultCut, c.Origin, c.Size, "a checkpoint of size %d with root %s was seen elsewhere, and the bundle's log does not contain it: it was cut or replaced", c.Size, c.Root)
		}
	}
}

// witnessed wants the cosignatures of the reader's witnesses.
func (v *verifier) witnessed(excerpts []*ledger.Excerpt) {
	for i, e := range excerpts {
		for _, w := range v.opt.Witnesses {
			if e.Top.Size == 0 || v.rep.Logs[i].Last.Before(v.rep.Period.From) {
				continue // nothing of the period is in it
			}
			at, err := w.Cosigned(e.Top.Signed)
			if err != nil {
				v.fault(FaultWitness, e.Origin, e.Top.Size, "no witness %s has cosigned the newest checkpoint: %v", w.Name(), err)
				continue
			}
			if v.rep.Logs[i].Cosigned == nil {
				v.rep.Logs[i].Cosigned = map[string]time.Time{}
			}
			v.rep.Logs[i].Cosigned[w.Name()] = at
		}
	}
}

// proofs checks the detached proofs against the entries.
func (v *verifier) proofs() {
	names, _ := v.files.List(context.Background(), proofsDir) // never fails
	for _, name := range names {
		origin, file, _ := strings.Cut(strings.TrimPrefix(name, proofsDir), "/")
		index, err := strconv.ParseInt(strings.TrimSuffix(file, ".tlog-proof"), 10, 64)
		if err != nil || index < 0 || proofName(origin, index) != name {
			v.fault(FaultBundle, "", -1, "it holds %q, which no bundle does", name)
			continue
		}
		leaf := v.leaf(origin, index)
		if leaf == nil {
			v.fault(FaultProof, origin, index, "%s: its entry is not there", name)
		} else if err := ledger.CheckProof(v.files[name], leaf, v.opt.Trust, v.head.Repository, origin, index); err != nil {
			v.fault(FaultProof, origin, index, "%s: %v", name, err)
		}
	}
}

func (v *verifier) leaf(origin string, index int64) []byte {
	if e := v.logs[origin]; e != nil {
		at, ok := slices.BinarySearchFunc(e.Records, index, func(r ledger.Record, index int64) int { return cmp.Compare(r.Index, index) })
		if ok {
			return e.Records[at].Leaf
		}
	}
	return nil
}

// endSlack is how long before the period's end the ledgers may fall silent: an
// hour is six heartbeats.
const endSlack = time.Hour

// covered wants the entries of every node to reach the period's end: a log that was
// cut back to an earlier checkpoint of its own is whole by itself.
func (v *verifier) covered() {
	newest := map[string]LogDoc{}
	for _, l := range v.rep.Logs {
		if known, ok := newest[l.Node]; !l.Last.IsZero() && (!ok || l.Last.After(known.Last)) {
			newest[l.Node] = l
		}
	}
	for node, l := range newest {
		switch {
		case slices.Contains(v.opt.Gone, node):
		case l.Last.Before(v.rep.Period.From):
			v.rep.NotAssessed = append(v.rep.NotAssessed, ledger.NotAssessed{What: "node " + node, Why: "the newest entry of its ledgers is of " + stamp(l.Last) + ", before the period"})
		case l.Last.Before(v.rep.Period.To.Add(-endSlack)):
			v.fault(ledger.FaultGap, l.Origin, l.Size, "the newest entry of node %s is of %s, and the period goes on until %s", node, stamp(l.Last), stamp(v.rep.Period.To))
		}
	}
	v.rep.NotAssessed = append(v.rep.NotAssessed, LeftOut(v.head.LeftOut)...)
	v.rep.NotAssessed = append(v.rep.NotAssessed,
		ledger.NotAssessed{What: "whether what was written into the ledgers was true", Why: "a ledger shows what was said, and that it was not changed since"},
		ledger.NotAssessed{What: "whether the repository has a ledger that the bundle leaves out, or the logs have later entries", Why: "compare the logs with checkpoints that you kept, or were told in alerts"},
		ledger.NotAssessed{What: "whether the clocks were right", Why: "nobody else's time stands in the ledgers"},
	)
}

func (r *Report) add(f Findings) {
	r.Drills, r.Until = f.Drills, f.Until
	r.Faults, r.NotAssessed = append(r.Faults, f.Faults...), append(r.NotAssessed, f.NotAssessed...)
}

// whole puts the report into its one order.
func (r *Report) whole() Report {
	slices.SortStableFunc(r.Faults, func(a, b ledger.Fault) int {
		return cmp.Or(cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Code, b.Code), cmp.Compare(a.What, b.What))
	})
	r.OK = len(r.Faults) == 0
	r.Drills, r.Faults, r.Logs = listOf(r.Drills), listOf(r.Faults), listOf(r.Logs)
	return *r
}

// listOf is list, which JSON shows as [] when it is empty.
func listOf[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

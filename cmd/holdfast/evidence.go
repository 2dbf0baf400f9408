package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/drills/evidence"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

func (e *env) evidenceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "evidence", Short: "Hand what the ledgers say of drills to a stranger, and verify it"}
	cmd.AddCommand(e.evidenceExportCommand(), e.evidenceVerifyCommand())
	return cmd
}

// periodFlags are --from and --to.
type periodFlags struct{ from, to string }

func (f *periodFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.from, "from", "", "`DAY` or time at which the period begins (default three months before its end)")
	cmd.Flags().StringVar(&f.to, "to", "", "`DAY` or time at which it ends, not included (default now)")
}

// read is the period; the default is the quarter to now.
func (f *periodFlags) read(now time.Time) (p evidence.Period, err error) {
	if p.To, err = reportTime("--to", f.to); err != nil {
		return p, err
	}
	if p.From, err = reportTime("--from", f.from); err != nil {
		return p, err
	}
	if p.To.IsZero() {
		p.To = now.Add(time.Second) // whole seconds, and what just happened is in it
	}
	if p.From.IsZero() {
		p.From = p.To.AddDate(0, -3, 0)
	}
	p.From, p.To = p.From.UTC().Truncate(time.Second), p.To.UTC().Truncate(time.Second)
	if !p.From.Before(p.To) {
		return p, usage("the period from %s to %s is empty", stampOf(p.From), stampOf(p.To))
	}
	return p, nil
}

func (e *env) evidenceExportCommand() *cobra.Command {
	var period periodFlags
	var out string
	cmd := &cobra.Command{
		Use: "export --out FILE", Short: "Write the evidence of a period into one file that anyone can verify offline", Args: cobra.NoArgs,
		Long: "The file is a tar of what the ledgers say from before the period to now, what proves that nothing\nis missing, and verify.py, which checks it with Python alone. It is verified before it is kept.\nExit 4 when something in it does not hold: it is written all the same.",
		RunE: func(c *cobra.Command, _ []string) error {
			w, err := e.open(c.Context())
			if err != nil {
				return err
			}
			defer w.close()
			p, err := period.read(w.now())
			if err != nil {
				return err
			}
			return e.exportEvidence(c.Context(), w, p, out)
		},
	}
	period.add(cmd)
	cmd.Flags().StringVar(&out, "out", "", "`FILE` to write; one that exists is never replaced")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err)
	}
	return cmd
}

// exportedDoc is the document of `evidence export`.
type exportedDoc struct {
	File   string `json:"file"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
	evidence.Report
}

func (e *env) exportEvidence(ctx context.Context, w *world, p evidence.Period, out string) error {
	if _, err := os.Lstat(out); err == nil {
		return refused("name another --out", "%s exists, and evidence never replaces a file", out)
	}
	body, rep, err := w.evidence(ctx, p)
	if err != nil {
		return err
	}
	if err := durable.Create(out, body, 0o600); errors.Is(err, fs.ErrExist) {
		return refused("name another --out", "%s exists, and evidence never replaces a file", out)
	} else if err != nil {
		return fmt.Errorf("writing the evidence to %s: %w", out, err)
	}
	sum := sha256.Sum256(body)
	doc := exportedDoc{out, len(body), hex.EncodeToString(sum[:]), rep}
	err = e.print(doc, func(o io.Writer) {
		evidenceText(o, rep)
		fmt.Fprintf(o, "%s: %s, sha256 %s\n", doc.File, size(int64(doc.Size)), doc.SHA256)
		fmt.Fprintf(o, "anyone verifies it: holdfast evidence verify %s --key VKEY, or python3 verify.py %s --key VKEY\n", out, out)
	})
	return errors.Join(err, heldText(rep))
}

// evidence makes the bundle of a period and verifies it.
func (w *world) evidence(ctx context.Context, p evidence.Period) ([]byte, evidence.Report, error) {
	src := ledger.FromReader(w.vault.Reader())
	logs, left, err := evidence.Logs(ctx, src, w.trust, w.repoID, p)
	if err != nil {
		return nil, evidence.Report{}, err
	}
	if len(logs) == 0 {
		return nil, evidence.Report{}, failed("a node writes one when its daemon runs, or a drill", "no zone holds a ledger: there is no evidence yet")
	}
	head := evidence.Head{Repository: w.repoID, Period: p, MadeAt: w.now().UTC(), Software: ledger.Software{Version: version}, LeftOut: left}
	for _, s := range w.cfg.Repository.TrustedSigners {
		head.Keys = append(head.Keys, s.Key)
	}
	var out bytes.Buffer
	if err := evidence.Write(ctx, &out, src, head, logs); err != nil {
		return nil, evidence.Report{}, err
	}
	rep, err := evidence.Verify(ctx, bytes.NewReader(out.Bytes()), evidence.Options{Trust: w.trust, Schedule: slotsOf})
	return out.Bytes(), rep, err
}

func (e *env) evidenceVerifyCommand() *cobra.Command {
	var period periodFlags
	var keys, known, witnesses, gone []string
	cmd := &cobra.Command{
		Use: "verify FILE", Short: "Verify a file of evidence offline; exit 4 where something does not hold", Args: cobra.ExactArgs(1),
		Long: "Verify computes everything anew from the file and the keys. With --key it needs no configuration:\nhave the keys from somebody you trust, not from the file. Without, the trusted signers of the\nconfiguration count. verify.py in the file takes the same arguments and finds the same.",
		RunE: func(c *cobra.Command, args []string) error {
			opt := evidence.Options{Schedule: slotsOf, Gone: gone}
			var err error
			if opt.Trust, err = e.evidenceTrust(keys); err != nil {
				return err
			}
			if (period.from == "") != (period.to == "") {
				return usage("--from and --to go together: they are the period that you asked for")
			}
			if period.from != "" {
				if opt.Period, err = period.read(time.Now()); err != nil {
					return err
				}
			}
			for _, k := range witnesses {
				w, err := seal.NewCosignVerifier(k)
				if err != nil {
					return usage("--witness: %w", err)
				}
				opt.Witnesses = append(opt.Witnesses, w)
			}
			if opt.Known, err = knownCheckpoints(known); err != nil {
				return err
			}
			return e.verifyEvidence(c.Context(), args[0], opt)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&keys, "key", nil, "verifier key `VKEY` to trust; may be repeated")
	f.StringArrayVar(&known, "known", nil, "a checkpoint or an earlier bundle that you kept, in `FILE`: the ledgers must still contain it; may be repeated")
	f.StringArrayVar(&witnesses, "witness", nil, "key `VKEY` of a witness that must have cosigned the newest checkpoints; may be repeated")
	f.StringArrayVar(&gone, "gone", nil, "a `NODE` that was given up and may be silent in the period; may be repeated")
	f.StringVar(&period.from, "from", "", "`DAY` or time at which the period begins that you asked for (default what the file says)")
	f.StringVar(&period.to, "to", "", "`DAY` or time at which it ends, not included")
	return cmd
}

func (e *env) evidenceTrust(keys []string) (seal.Trust, error) {
	if len(keys) > 0 {
		return trustKeys(keys)
	}
	cfg, err := e.load()
	if err != nil {
		return seal.Trust{}, usage("whose signature shall count? give --key VKEY, or a configuration with trusted signers: %w", err)
	}
	return trustOf(cfg.Repository.TrustedSigners)
}

func knownCheckpoints(files []string) (out []ledger.Checkpoint, err error) {
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, usage("--known: %w", err)
		}
		known, err := evidence.Known(data)
		if err != nil {
			return nil, usage("--known %s is neither a checkpoint nor a bundle: %w", name, err)
		}
		out = append(out, known...)
	}
	return out, nil
}

func (e *env) verifyEvidence(ctx context.Context, name string, opt evidence.Options) error {
	in, err := os.Open(name)
	if err != nil {
		return usage("the evidence: %w", err)
	}
	defer in.Close()
	rep, err := evidence.Verify(ctx, in, opt)
	if err != nil {
		return err
	}
	return errors.Join(e.print(rep, func(out io.Writer) { evidenceText(out, rep) }), heldText(rep))
}

// heldText ends a command with exit 4 when all was said already.
func heldText(rep evidence.Report) error {
	if rep.OK {
		return nil
	}
	return silent{exitNotHeld}
}

func evidenceText(out io.Writer, r evidence.Report) {
	for _, l := range r.Logs {
		fmt.Fprintf(out, "ledger %s of node %s: entries %d to %d, %s to %s, signed by %s\n", l.Origin, l.Node, l.From, l.Size-1, clock(l.First), clock(l.Last), l.Signer)
		for name, at := range l.Cosigned {
			fmt.Fprintf(out, "  seen by the witness %s on %s\n", name, clock(at))
		}
	}
	drillsText(out, r.Period, r.Findings)
	if r.OK {
		fmt.Fprintln(out, "everything holds")
	}
}

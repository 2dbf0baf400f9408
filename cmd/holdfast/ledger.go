package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/server"
)

// opRecord takes the record of a restore that a command of this node carried out.
var opRecord = server.Op[recordIn, recordDoc]{ID: "ledger-record", Method: http.MethodPost, Path: "/v1/ledger/restores", Summary: "Write a restore of this node into its ledger"}

type recordIn struct {
	Body struct {
		Type    string          `json:"type" enum:"restore.started,restore.finished,restore.discarded,project.exported,project.cloned,project.restored"`
		Cluster string          `json:"cluster"`
		About   json.RawMessage `json:"about"`
	}
}

type recordDoc struct {
	Index  int64  `json:"index"`
	Origin string `json:"origin"`
}

func (n *node) record(ctx context.Context, in recordIn) (recordDoc, error) {
	i, err := n.append(asHuman(ctx), in.Body.Type, map[string]string{"cluster": in.Body.Cluster}, in.Body.About)
	return recordDoc{i, n.ledger.Origin()}, err
}

// tryRecord writes a restore into this node's ledger: by its daemon, or itself.
func (e *env) tryRecord(ctx context.Context, w *world, typ, cluster string, body any) error {
	if e.repository != "" || w.cfg.Repository.SigningKey == nil {
		return errors.New("this configuration has no signing key")
	}
	var in recordIn
	in.Body.Type, in.Body.Cluster, in.Body.About = typ, cluster, marshal(body)
	if client, err := server.Dial(ctx, w.cfg.Node.Socket); err == nil {
		_, err = server.Call(ctx, client, opRecord, in)
		return err
	}
	n, err := e.openNode(ctx, w.cfg, zap.NewNop())
	if err != nil {
		return err
	}
	_, err = n.record(ctx, in)
	anchor, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, aerr := n.ledger.Anchor(anchor); aerr != nil && err == nil {
		fmt.Fprintf(e.err, "holdfast: the ledger's entry waits here until the zones take it: %v\n", aerr)
	}
	return errors.Join(err, n.close())
}

func (e *env) ledgerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ledger", Short: "Show and verify the append-only log"}
	cmd.AddCommand(e.ledgerShowCommand(), e.ledgerVerifyCommand())
	return cmd
}

// entryDoc is one entry of `ledger show`.
type entryDoc struct {
	Origin   string            `json:"origin"`
	Index    int64             `json:"index"`
	Type     string            `json:"type"`
	At       time.Time         `json:"at"`
	Actor    ledger.Actor      `json:"actor"`
	Subject  map[string]string `json:"subject"`
	RecordID string            `json:"record_id"`
	Body     json.RawMessage   `json:"body"`
}

func (e *env) ledgerShowCommand() *cobra.Command {
	var typ, origin string
	var last int
	cmd := &cobra.Command{Use: "show", Short: "Show the newest entries of every node's ledger", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		w, err := e.open(c.Context())
		if err != nil {
			return err
		}
		defer w.close()
		entries, err := w.ledgerEntries(c.Context(), origin, int64(last))
		if err != nil {
			return err
		}
		doc := struct {
			Entries []entryDoc `json:"entries"`
		}{[]entryDoc{}}
		for _, r := range entries {
			if typ == "" || r.Type == typ || strings.HasPrefix(r.Type, typ+".") {
				doc.Entries = append(doc.Entries, entryDoc{r.Origin, r.Index, r.Type, r.Time.Wall, r.Actor, r.Subject, r.RecordID, r.Body})
			}
		}
		return e.print(doc, func(out io.Writer) {
			var rows [][]string
			for _, d := range doc.Entries {
				var about []string
				for k, v := range d.Subject {
					about = append(about, k+"="+v)
				}
				rows = append(rows, []string{d.Origin, fmt.Sprint(d.Index), clock(d.At), d.Type, d.Actor.Kind, strings.Join(about, " ")})
			}
			table(out, "LEDGER\tINDEX\tAT\tTYPE\tBY\tABOUT", rows)
		})
	}}
	f := cmd.Flags()
	f.StringVar(&typ, "type", "", "only entries of `TYPE`, as drill or snapshot.taken")
	f.StringVar(&origin, "origin", "", "only the ledger `ORIGIN`")
	f.IntVar(&last, "last", 200, "the newest `N` entries of each ledger; 0 for all")
	return cmd
}

// origins are the ledgers that the repository shows.
func (w *world) origins(ctx context.Context) ([]string, error) {
	listing, err := w.vault.Reader().List(ctx, catalog.LedgerDir)
	if err != nil {
		return nil, fmt.Errorf("listing the ledgers: %w", err)
	}
	var out []string
	for _, o := range listing.Objects {
		origin, _, ok := strings.Cut(strings.TrimPrefix(o.Name, catalog.LedgerDir), "/")
		if ok && (len(out) == 0 || out[len(out)-1] != origin) {
			out = append(out, origin)
		}
	}
	return out, nil
}

// ledgerEntries reads the last entries of one origin or of all, as the zones hold them.
func (w *world) ledgerEntries(ctx context.Context, origin string, last int64) ([]ledger.Record, error) {
	origins, err := w.origins(ctx)
	if err != nil {
		return nil, err
	}
	src := ledger.FromReader(w.vault.Reader())
	var out []ledger.Record
	for _, o := range origins {
		if origin != "" && o != origin {
			continue
		}
		c, err := ledger.Latest(ctx, src, w.trust, w.repoID, o)
		if err != nil {
			return nil, fmt.Errorf("reading ledger %s: %w", o, err)
		}
		from := int64(0)
		if last > 0 {
			from = max(0, c.Size-last)
		}
		records, err := ledger.Read(ctx, src, c, from, c.Size)
		if err != nil {
			return nil, fmt.Errorf("reading ledger %s: %w", o, err)
		}
		out = append(out, records...)
	}
	return out, nil
}

func (e *env) ledgerVerifyCommand() *cobra.Command {
	var dir, repository string
	var keys []string
	cmd := &cobra.Command{
		Use: "verify", Short: "Recompute every ledger from its entries: signatures, tree, and one outcome for each due drill", Args: cobra.NoArgs,
		Long: "Verify reads the repository's zones. With --directory and --key it needs no configuration: a stranger can check a copy of one zone.",
		RunE: func(c *cobra.Command, _ []string) error {
			if dir != "" {
				return e.verifyDirectory(c.Context(), dir, repository, keys)
			}
			w, err := e.open(c.Context())
			if err != nil {
				return err
			}
			defer w.close()
			return e.verifyLedger(c.Context(), ledger.FromReader(w.vault.Reader()), w.trust, w.repoID)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "directory", "", "verify the copy of a repository in `DIR` instead of the zones")
	f.StringVar(&repository, "repository-id", "", "the repository's `ID`; left out: what DIR/holdfast.json says")
	f.StringArrayVar(&keys, "key", nil, "verifier key `VKEY` to trust (with --directory); may be repeated")
	return cmd
}

func (e *env) verifyDirectory(ctx context.Context, dir, repository string, keys []string) error {
	if len(keys) == 0 {
		return usage("--directory needs --key VKEY: whose signature shall count?")
	}
	if repository == "" {
		var id struct {
			Repository string `json:"repository"`
		}
		data, err := os.ReadFile(dir + "/holdfast.json")
		if err == nil {
			err = json.Unmarshal(data, &id)
		}
		if err != nil {
			return usage("%s is no copy of a zone: %w; give --repository-id", dir, err)
		}
		repository = id.Repository
	}
	trust, err := trustKeys(keys)
	if err != nil {
		return err
	}
	return e.verifyLedger(ctx, ledger.Dir(dir), trust, repository)
}

// trustKeys trusts the keys that --key gave with the duty of ledgers.
func trustKeys(keys []string) (seal.Trust, error) {
	var signers []configs.TrustedSigner
	for _, k := range keys {
		signers = append(signers, configs.TrustedSigner{Key: k, May: []string{"ledger"}})
	}
	trust, err := trustOf(signers)
	if err != nil {
		return trust, usage("--key: %w", err)
	}
	return trust, nil
}

// announcedKeys tells which keys follow which.
func announcedKeys(out io.Writer, rep ledger.Report) {
	for _, o := range rep.Origins {
		for _, k := range o.Keys {
			fmt.Fprintf(out, "key    %s: entry %d (%s) announces the %s key %s after %s\n", o.Origin, k.Index, clock(k.At), k.Kind, shorten(k.New), shorten(k.Old))
		}
	}
}

// outcomes counts how drills ended, in words.
func outcomes(counts map[string]int) string {
	var parts []string
	for _, o := range ledger.Outcomes {
		if n := counts[o]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, o))
		}
	}
	if len(parts) == 0 {
		return "no outcome yet"
	}
	return "outcomes: " + strings.Join(parts, ", ")
}

// verifyLedger verifies and says what was seen.
func (e *env) verifyLedger(ctx context.Context, src ledger.Source, trust seal.Trust, repository string) error {
	rep, err := ledger.Verify(ctx, src, trust, ledger.VerifyOptions{Repository: repository, Now: time.Now()})
	if err != nil {
		return err
	}
	err = e.print(rep, func(out io.Writer) {
		for _, o := range rep.Origins {
			fmt.Fprintf(out, "ledger %s: %d entries from %s to %s under %d checkpoints, root %s, signed by %s\n", o.Origin, o.Size, clock(o.First), clock(o.Last), o.Checkpoints, o.Root, strings.Join(o.Signers, ", "))
		}
		announcedKeys(out, rep)
		s := rep.Slots
		fmt.Fprintf(out, "drills: %d were due, %d of them still pending, %d without an outcome; %d unasked; %s\n", s.Due, s.Pending, len(s.Missing), s.Unasked, outcomes(s.Outcomes))
		for _, f := range rep.Faults {
			fmt.Fprintln(out, "FAULT", f)
		}
		if len(rep.Faults) == 0 {
			fmt.Fprintln(out, "everything holds")
		}
	})
	if err != nil || len(rep.Faults) == 0 {
		return err
	}
	return notHeld("compare with another zone's copy; an entry that changed was changed after it was signed", "verifying the ledger: %d faults", len(rep.Faults))
}

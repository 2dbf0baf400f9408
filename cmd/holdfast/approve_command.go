package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/approval"
)

// approver is a person's key, and its id.
type approver struct {
	signer note.Signer
	id     string
}

func (e *env) approveCommand() *cobra.Command {
	var key string
	var yes bool
	cmd := &cobra.Command{
		Use: "approve HASH", Short: "Sign a plan that waits for approvals, by an approver's own key", Args: cobra.ExactArgs(1),
		Long: "Shows what the plan with that hash would do, asks, signs its hash with the key in FILE, and stores the\napproval in the repository. With --repository a machine that has nothing but that and the key can do it.",
		RunE: func(c *cobra.Command, args []string) error { return e.approve(c.Context(), args[0], key, yes) },
	}
	cmd.Flags().StringVar(&key, "key", "", "`FILE` of the approver's key, as `keys new approver` wrote it")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	_ = cmd.MarkFlagRequired("key")
	return cmd
}

// approve shows a plan, asks and signs it. The key is opened here and sent nowhere.
func (e *env) approve(ctx context.Context, hash, path string, yes bool) error {
	w, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	b, plan, err := w.waiting(ctx, hash)
	if err != nil {
		return err
	}
	does, err := doesText(plan)
	if err != nil {
		return err
	}
	secret, err := os.ReadFile(path)
	if err != nil {
		return usage("--key: %v", err)
	}
	who, err := loadApprover(path, secret, b)
	if err != nil {
		return err
	}
	if err := e.confirmPlan(plan, does, yes); err != nil {
		return err
	}
	doc, err := e.sign(ctx, w, b, plan, who)
	if err != nil {
		return err
	}
	doc.Does = does
	return e.print(doc, doc.text)
}

// confirmPlan shows what a plan does, and asks unless yes.
func (e *env) confirmPlan(plan approval.Waiting, does []string, yes bool) error {
	if e.output == "text" {
		fmt.Fprintf(e.out, "plan %s: %s of cluster %s, asked for by node %s %s\n", plan.PlanHash, plan.What, plan.Cluster, plan.Node, clock(plan.AskedAt))
		for _, line := range does {
			fmt.Fprintln(e.out, " ", printable(line))
		}
		for _, line := range plan.Effect {
			fmt.Fprintln(e.out, "  when it was asked for:", printable(line))
		}
	}
	if yes {
		return nil
	}
	line, err := e.typed("Type yes to approve it: ")
	if err != nil {
		return err
	}
	if line != "yes" {
		return refused("type yes, or give --yes", "approving plan %s: it was not confirmed", plan.PlanHash)
	}
	return nil
}

// sign gives the approval, once for each key: through the node where there is one, whose
// ledger then has it.
func (e *env) sign(ctx context.Context, w *world, b *approval.Board, plan approval.Waiting, who *approver) (doc approvedDoc, err error) {
	s, err := b.Standing(ctx, plan.PlanHash)
	if err != nil {
		return doc, err
	}
	if slices.ContainsFunc(s.Given, func(g approval.Given) bool { return g.Key == who.id }) {
		return approvedDoc{Hash: plan.PlanHash, Kind: plan.What, Cluster: plan.Cluster, Key: who.id, Needed: s.Needed, Approvals: s.Given, Enough: s.Enough()}, nil
	}
	data, err := b.Sign(plan, who.signer)
	if err != nil {
		return doc, err
	}
	if e.repository != "" || w.cfg.Repository.SigningKey == nil {
		if err := w.writable(); err != nil {
			return doc, err
		}
		b.Repository = w.vault.Writer()
		return storeApproval(ctx, b, plan, who.id, data)
	}
	in := approveIn{Hash: plan.PlanHash}
	in.Body.Note = string(data)
	return asks(ctx, e, opApprove, in, (*node).approve)
}

func (d approvedDoc) text(out io.Writer) {
	what := "approved"
	if !d.New {
		what = "had been approved"
	}
	fmt.Fprintf(out, "%s by %s: %d of %d approvals\n", what, d.Key, len(d.Approvals), d.Needed)
	for _, g := range d.Approvals {
		fmt.Fprintf(out, "  %s  %s, until %s\n", g.Key, clock(g.At), clock(g.ExpiresAt))
	}
	if d.Enough {
		fmt.Fprintln(out, "that is enough: "+nextText[d.Kind])
	}
}

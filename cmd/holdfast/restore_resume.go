package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/restore"
)

// planHash is how a plan is named: no cluster has such a name.
var planHash = regexp.MustCompile(`^[0-9a-f]{64}$`)

// keptPlans is how many plans a state directory keeps, the newest.
const keptPlans = 64

// keepPlan keeps a plan for `restore run HASH` and `restore resume`; a restore
// does not wait for that.
func (e *env) keepPlan(w *world, p restore.Plan) {
	if err := w.keepPlan(p); err != nil {
		fmt.Fprintf(e.err, "holdfast: this plan is not kept, so that its hash alone will not find it: %v\n", err)
	}
}

func (w *world) keepPlan(p restore.Plan) error {
	if w.cfg.Node.State == "" {
		return errors.New("there is no state directory")
	}
	dir := w.state("plans")
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, p.Hash+".json"), data, 0o600); err != nil {
		return err
	}
	return prunePlans(dir)
}

func prunePlans(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) <= keptPlans {
		return err
	}
	age := map[string]int64{}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			age[e.Name()] = info.ModTime().UnixNano()
		}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(age[b.Name()], age[a.Name()]) })
	for _, e := range entries[keptPlans:] {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// keptPlan is the plan of a hash, which it must still have.
func (w *world) keptPlan(hash string) (p restore.Plan, err error) {
	if w.cfg.Node.State == "" {
		return p, failed("plan again, by the cluster's name", "there is no state directory that could keep plan %s", hash)
	}
	data, err := os.ReadFile(w.state("plans", hash+".json"))
	if err != nil {
		return p, failed("plan again: holdfast restore plan CLUSTER …", "looking for plan %s: %w", hash, err)
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("reading plan %s: %w", hash, err)
	}
	p.Hash = ""
	is, err := approval.Hash(p)
	if err != nil {
		return p, fmt.Errorf("reading plan %s: %w", hash, err)
	}
	if is != hash {
		return p, failed("plan again: holdfast restore plan CLUSTER …", "plan %s has been changed: its hash is %s", hash, is)
	}
	p.Hash = hash
	return p, nil
}

func (e *env) restoreResumeCommand() *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{Use: "resume ID|DIR", Short: "Go on with a restore that was ended: what is there and right is not fetched again", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var err error
		if t.to, _, err = e.restoreDir(args[0]); err != nil {
			return err
		}
		m, err := restore.ReadMarker(t.to)
		if err != nil {
			return refused("", "%w", err)
		}
		if m.State == "closed" && m.Result != nil && m.Result.Complete && m.InPlace != nil {
			return e.resumePlace(c.Context(), &t, m)
		}
		if m.Result != nil && m.State != "prepared" {
			return refused("go over it with: holdfast restore run "+m.Cluster+" --to DIR --delta", "the restore into %s is whole: it is %s", t.to, m.State)
		}
		w, repo, err := e.openForRestore(c.Context(), &t)
		if err != nil {
			return err
		}
		defer w.close()
		p, err := w.keptPlan(m.Plan)
		if err != nil {
			return err
		}
		opt, err := e.restoreOptions(c.Context(), w, repo, p, &t)
		if err != nil {
			return err
		}
		opt.Delta, opt.Resume, opt.Tablespaces, opt.InPlace = true, true, m.Mapping, m.InPlace
		return e.carryOut(c.Context(), w, repo, p, opt, &t)
	}}
	cmd.Flags().StringVar(&t.identity, "identity", "", "age identity `FILE` that opens data; it is never sent to a daemon")
	t.addHow(cmd)
	return cmd
}

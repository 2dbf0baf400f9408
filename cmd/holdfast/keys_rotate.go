package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/server"
)

// opRotated takes the announcement of a key that a command of this node made.
var opRotated = server.Op[rotatedIn, rotatedDoc]{ID: "ledger-rotated", Method: "POST", Path: "/v1/ledger/keys", Summary: "Announce a new key in this node's ledger, under the key that it follows"}

type rotatedIn struct {
	Body ledger.KeyRotated
}

type rotatedDoc struct {
	Origin string `json:"origin"`
	Index  int64  `json:"index"`
}

// rotated returns when the quorum holds the announcement, signed by the old key.
func (n *node) rotated(ctx context.Context, in rotatedIn) (rotatedDoc, error) {
	i, err := n.appendAnchored(asHuman(ctx), ledger.TypeKeyRotated, map[string]string{}, in.Body)
	return rotatedDoc{n.ledger.Origin(), i}, err
}

// rotation is a new key, and what is to be done with it.
type rotation struct {
	Kind     string   `json:"kind"`
	Public   string   `json:"public"`
	File     string   `json:"file"`
	Replaces string   `json:"replaces"`
	Steps    []string `json:"steps"`
	// KeepUntil is when the old half of a data or index key opens nothing that
	// retention keeps any more; holds may keep longer.
	KeepUntil time.Time   `json:"keep_old_until,omitzero"`
	Announced *rotatedDoc `json:"announced,omitempty"`
}

func (e *env) keysRotateCommand() *cobra.Command {
	var out, name, replaces string
	cmd := &cobra.Command{
		Use:   "rotate signing|data|index --out FILE",
		Short: "Make the key that follows one of the configuration's, announce it in the ledger, and say what to change where",
		Long:  "Writes the new secret half to FILE (mode 0600; an existing file is never replaced). The configuration\nstays as it is: what is to be changed, on which nodes and in which order, is printed.",
		Args:  cobra.ExactArgs(1), ValidArgs: []string{"signing", "data", "index"},
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := e.load()
			if err != nil {
				return err
			}
			r := rotation{Kind: args[0], File: out}
			switch args[0] {
			case "signing":
				err = e.rotateSigning(c.Context(), cfg, &r, name)
			case "data":
				err = e.rotateData(c.Context(), cfg, &r, replaces)
			case "index":
				err = e.rotateIndex(c.Context(), cfg, &r)
			default:
				err = usage("keys rotate %s: want one of signing, data, index; an approver's key is in its owner's hands: `keys new approver`", args[0])
			}
			if err != nil {
				return err
			}
			return e.print(r, r.text)
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "`FILE` for the new secret half")
	f.StringVar(&name, "name", "", "whose key the new signing key is (default: the old one's name and a number)")
	f.StringVar(&replaces, "replaces", "", "the `RECIPIENT` or its fingerprint that a new data key follows, where there are several")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err)
	}
	return cmd
}

func (r rotation) text(w io.Writer) {
	fmt.Fprintf(w, "%s\n", r.Public)
	fmt.Fprintf(w, "secret     in %s; the old key is where it was\n", r.File)
	fmt.Fprintf(w, "replaces   %s\n", shorten(r.Replaces))
	if r.Announced != nil {
		fmt.Fprintf(w, "ledger     entry %d of %s announces it, signed by the key of before\n", r.Announced.Index, r.Announced.Origin)
	}
	for i, s := range r.Steps {
		fmt.Fprintf(w, "%d. %s\n", i+1, s)
	}
	if !r.KeepUntil.IsZero() {
		fmt.Fprintf(w, "keep old   at least until %s, and longer where a hold keeps what was sealed to it\n", clock(r.KeepUntil))
	}
}

// rotateSigning makes the signing key that follows this node's. The ledger names it,
// under the old key's signature, before anything is signed by it.
func (e *env) rotateSigning(ctx context.Context, cfg *configs.Config, r *rotation, name string) error {
	old := listKeys(cfg.Repository)
	if old.Signing == nil || old.Signing.Error != "" {
		return usage("rotating the signing key: this node's own cannot be read: %s", cmp.Or(signingError(old), "repository.signing_key is not given"))
	}
	i := slices.IndexFunc(old.Signers, func(s signerKey) bool { return s.Own })
	if i < 0 {
		return usage("rotating the signing key: repository.trusted_signers does not have this node's own key %s, so nothing that it signed counts: correct that first", old.Signing.Key)
	}
	r.Replaces = old.Signing.Key
	before, _, _ := strings.Cut(r.Replaces, "+")
	if name = cmp.Or(name, nextName(before)); name == before {
		return usage("--name %s: that is the old key's name: readers tell the two apart by it", name)
	}
	var err error
	if r.Public, err = newKey("signing", name, r.File, false); err != nil {
		return err
	}
	if err := e.announce(ctx, cfg, r); err != nil {
		return err
	}
	r.Steps = signingSteps(*r, old.Signers[i])
	return nil
}

func signingError(d keysDocument) string {
	if d.Signing == nil {
		return ""
	}
	return d.Signing.Error
}

var numbered = regexp.MustCompile(`^(.*)-([0-9]+)$`)

// nextName is db1-2 after db1, and db1-3 after that.
func nextName(name string) string {
	if m := numbered.FindStringSubmatch(name); m != nil {
		if n, err := strconv.Atoi(m[2]); err == nil {
			return fmt.Sprintf("%s-%d", m[1], n+1)
		}
	}
	return name + "-2"
}

func signingSteps(r rotation, old signerKey) []string {
	clusters := ""
	if len(old.Clusters) > 0 {
		clusters = fmt.Sprintf(", clusters: [%s]", strings.Join(old.Clusters, ", "))
	}
	return []string{
		fmt.Sprintf("on every node, and in every file that is given as --repository: add to trusted_signers, beside the old one, {key: %q%s, may: [%s]}; restart the daemons", r.Public, clusters, strings.Join(old.May, ", ")),
		"give the key to who keeps keys of yours: readers of evidence (`evidence verify --key`, both keys), the operators of witnesses (`witness --log`); make the escrow kit anew (`keys kit`)",
		fmt.Sprintf("then, on each node that signs with the old key: repository.signing_key: {file: %s}; restart its daemon", r.File),
		"see `holdfast check` and `holdfast ledger verify`: the newest checkpoint is signed by the new key; then destroy the old secret half",
		"leave the old key in trusted_signers: snapshots, tombstones and checkpoints that it signed count only while it is there. Where the old secret half was stolen this is not enough: whoever has it can sign until it is taken out there, and then what it signed does not count",
	}
}

// rotateData makes the data identity that follows a recipient.
func (e *env) rotateData(ctx context.Context, cfg *configs.Config, r *rotation, replaces string) (err error) {
	if r.Replaces, err = recipientOf(cfg.Repository.Recipients, replaces); err != nil {
		return err
	}
	if r.Public, err = newKey("data", "", r.File, !postQuantum(r.Replaces)); err != nil {
		return err
	}
	if err := e.announce(ctx, cfg, r); err != nil {
		return err
	}
	r.KeepUntil = keptUntil(cfg, time.Now())
	r.Steps = []string{
		fmt.Sprintf("bring %s to every restore and drill node and into escrow, and take it off a database host; where an identity is read from one file, that can hold both, one behind the other", r.File),
		fmt.Sprintf("then, on every node that takes snapshots or archives WAL: put %s in the place of %s in repository.recipients; restart its daemon. The next snapshot is a full one, sealed to the new recipient, as is all WAL from then on", shorten(r.Public), seal.Fingerprint(r.Replaces)),
		"let a drill restore that snapshot with the new identity alone",
		"keep the old identity: it alone opens what was sealed before, until retention has removed it; and the keys of digests (keys/digest/) for good, unless the index identity of when they were made is kept",
	}
	return nil
}

// recipientOf is the one of the configured recipients that a new key follows.
func recipientOf(list []string, which string) (string, error) {
	if which == "" && len(list) == 1 {
		return list[0], nil
	}
	var known []string
	for _, r := range list {
		if which != "" && (r == which || seal.Fingerprint(r) == which) {
			return r, nil
		}
		known = append(known, seal.Fingerprint(r))
	}
	return "", usage("rotating a data key: which one? --replaces one of: %s", strings.Join(known, ", "))
}

func postQuantum(recipient string) bool { return strings.HasPrefix(recipient, "age1pq1") }

// rotateIndex makes the index identity that follows this node's, in a file with it.
func (e *env) rotateIndex(ctx context.Context, cfg *configs.Config, r *rotation) error {
	if cfg.Repository.IndexIdentity == nil {
		return usage("rotating the index identity: repository.index_identity is not given")
	}
	own, err := recipientsOf(*cfg.Repository.IndexIdentity)
	if err != nil {
		return usage("rotating the index identity: %w", err)
	}
	r.Replaces = own[0]
	if r.Public, err = newKey("index", "", r.File, !postQuantum(own[0])); err != nil {
		return err
	}
	if err := e.announce(ctx, cfg, r); err != nil {
		return err
	}
	r.KeepUntil = keptUntil(cfg, time.Now())
	r.Steps = []string{
		fmt.Sprintf("on every node: make a file that holds both identities, the new one (%s) and behind it the old one, mode 0600, and give it as repository.index_identity; restart the daemons. From then on manifests, page maps and WAL indexes are sealed to both", r.File),
		"when nothing that was sealed to the old one alone is kept any more, nodes that only read need the new one alone",
		"nodes that take snapshots, archive WAL or delete projects go on needing the old one: the keys of digests (keys/digest/) were sealed to it, and are not sealed anew in this version. An index identity opens names, sizes, times and those keys, never data",
	}
	return nil
}

// keptUntil is when retention has removed all that is sealed by now.
func keptUntil(cfg *configs.Config, now time.Time) time.Time {
	var longest time.Duration
	for _, c := range cfg.Clusters {
		longest = max(longest, c.Retention.KeepAtMost.Std()+c.Retention.RemovalGrace.Std())
	}
	if longest == 0 {
		return time.Time{}
	}
	return now.Add(longest).UTC()
}

// announce has the ledger name the new key, by the daemon or by this process. A new
// signing key that it could not name is removed again: nothing knows it yet.
func (e *env) announce(ctx context.Context, cfg *configs.Config, r *rotation) error {
	if cfg.Repository.SigningKey == nil {
		return nil // this node writes no ledger
	}
	in := rotatedIn{Body: ledger.KeyRotated{Kind: r.Kind, Old: r.Replaces, New: r.Public}}
	if r.Kind != "signing" {
		in.Body.Old, in.Body.New = seal.Fingerprint(r.Replaces), seal.Fingerprint(r.Public)
	}
	doc, err := e.tryAnnounce(ctx, cfg, in)
	if err == nil {
		r.Announced = &doc
		return nil
	}
	return errors.Join(failed("the new key was removed again; where the ledger comes to name it all the same, that does no harm: run this again when the zones answer (`holdfast status`)", "announcing the new %s key in the ledger, without which nobody can tell that it follows the old one: %w", r.Kind, err), os.Remove(r.File))
}

func (e *env) tryAnnounce(ctx context.Context, cfg *configs.Config, in rotatedIn) (rotatedDoc, error) {
	if client, err := server.Dial(ctx, cfg.Node.Socket); err == nil {
		return server.Call(ctx, client, opRotated, in)
	}
	n, err := e.openNode(ctx, cfg, zap.NewNop())
	if err != nil {
		return rotatedDoc{}, err
	}
	doc, err := n.rotated(ctx, in)
	return doc, errors.Join(err, n.close())
}

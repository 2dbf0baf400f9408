package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

func (e *env) keysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Make keys, and list those that the configuration names"}
	cmd.AddCommand(e.keysNewCommand(), e.keysListCommand(), e.keysRotateCommand(), e.keysKitCommand())
	return cmd
}

// keyKinds says what each kind of key is for.
var keyKinds = []struct{ kind, does string }{
	{"data", "opens the data: keep the secret half off the database host"},
	{"index", "opens manifests, page maps and WAL indexes, never data: for repository.index_identity"},
	{"signing", "signs a node's notes and ledger: for repository.signing_key"},
	{"approver", "signs a person's approvals"},
}

func (e *env) keysNewCommand() *cobra.Command {
	var out, name string
	var x25519 bool
	long := "Writes the secret half to FILE (mode 0600; an existing file is never replaced) and prints\nthe public half alone: an age recipient, or a note verifier key.\n"
	var kinds []string
	for _, k := range keyKinds {
		long += fmt.Sprintf("\n  %-9s %s", k.kind, k.does)
		kinds = append(kinds, k.kind)
	}
	cmd := &cobra.Command{
		Use:       "new data|index|signing|approver --out FILE",
		Short:     "Make a key: the secret half into a file, the public half on standard output",
		Long:      long,
		Args:      cobra.ExactArgs(1),
		ValidArgs: kinds,
		RunE: func(_ *cobra.Command, args []string) error {
			if !slices.Contains(kinds, args[0]) {
				return usage("keys new %s: want one of %s", args[0], strings.Join(kinds, ", "))
			}
			if x25519 && args[0] != "data" && args[0] != "index" {
				return usage("keys new %s --x25519: only data and index are age identities", args[0])
			}
			public, err := newKey(args[0], cmp.Or(name, defaultKeyName(args[0])), out, x25519)
			if err != nil {
				return err
			}
			return e.print(map[string]string{"kind": args[0], "public": public, "file": out}, func(w io.Writer) { fmt.Fprintln(w, public) })
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`FILE` for the secret half")
	cmd.Flags().StringVar(&name, "name", "", "whose key it is, in signing and approver keys (default holdfast, approver)")
	cmd.Flags().BoolVar(&x25519, "x25519", false, "classic age key instead of a post-quantum one; all recipients must be of one kind")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err)
	}
	return cmd
}

func defaultKeyName(kind string) string {
	if kind == "approver" {
		return "approver"
	}
	return "holdfast"
}

// newKey makes a key, writes its secret half to path, and returns the public half.
func newKey(kind, name, path string, x25519 bool) (public string, err error) {
	generate := seal.NewIdentity
	switch {
	case kind == "signing" || kind == "approver":
		generate = func() (string, string, error) { return seal.NewSigningKey(name) }
	case x25519:
		generate = seal.NewX25519Identity
	}
	secret, public, err := generate()
	if err != nil {
		return "", fmt.Errorf("making a %s key: %w", kind, err)
	}
	text := secret + "\n"
	if kind == "data" || kind == "index" {
		text = fmt.Sprintf("# holdfast %s identity: whoever has this file can open what is sealed to\n# public key: %s\n%s", kind, public, text)
	}
	err = durable.Create(path, []byte(text), 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return "", refused("name another file: what an existing key opens or signs would be lost with it", "writing the %s key: %s exists and is not replaced", kind, path)
	case errors.Is(err, fs.ErrNotExist):
		return "", failed("make the directory first, with mode 0700", "writing the %s key: %w", kind, err)
	case err != nil:
		return "", fmt.Errorf("writing the %s key: %w", kind, err)
	}
	return public, nil
}

type keysDocument struct {
	Recipients []recipientKey `json:"recipients"`
	Index      *recipientKey  `json:"index,omitempty"`
	Signing    *signerKey     `json:"signing,omitempty"`
	Signers    []signerKey    `json:"trusted_signers"`
}

type recipientKey struct {
	Recipient   string `json:"recipient,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Secret      string `json:"secret,omitempty"` // where it is
	Error       string `json:"error,omitempty"`
}

type signerKey struct {
	Key      string   `json:"key,omitempty"`
	Own      bool     `json:"own"` // this node's
	Clusters []string `json:"clusters,omitempty"`
	May      []string `json:"may,omitempty"`
	Secret   string   `json:"secret,omitempty"`
	Error    string   `json:"error,omitempty"`
}

func (e *env) keysListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List who can open data, what opens indexes, and whose signatures count",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := e.load()
			if err != nil {
				return err
			}
			doc := listKeys(cfg.Repository)
			return e.print(doc, func(w io.Writer) { printKeys(w, doc) })
		},
	}
}

// listKeys reads the public halves of the configured keys; a secret that cannot
// be read is told in its place.
func listKeys(r configs.Repository) keysDocument {
	doc := keysDocument{Recipients: []recipientKey{}, Signers: []signerKey{}}
	for _, text := range r.Recipients {
		doc.Recipients = append(doc.Recipients, recipientKey{Recipient: text, Fingerprint: seal.Fingerprint(text)})
	}
	if r.IndexIdentity != nil {
		k := recipientKey{Secret: r.IndexIdentity.String()}
		if own, err := recipientsOf(*r.IndexIdentity); err != nil {
			k.Error = err.Error()
		} else {
			k.Recipient, k.Fingerprint = own[0], seal.Fingerprint(own[0])
		}
		doc.Index = &k
	}
	own := ""
	if r.SigningKey != nil {
		k := signerKey{Own: true, Secret: r.SigningKey.String()}
		data, err := r.SigningKey.Load()
		if err == nil {
			_, own, err = seal.LoadSigner(strings.TrimSpace(string(data)))
		}
		if k.Key = own; err != nil {
			k.Error = err.Error()
		}
		doc.Signing = &k
	}
	for _, s := range r.TrustedSigners {
		doc.Signers = append(doc.Signers, signerKey{Key: s.Key, Own: s.Key == own, Clusters: s.Clusters, May: s.May})
	}
	return doc
}

// recipientsOf are the recipients of the identities in a secret, at least one.
func recipientsOf(s configs.Secret) ([]string, error) {
	data, err := s.Load()
	if err != nil {
		return nil, err
	}
	ids, err := seal.ParseIdentities(data)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", s, err)
	}
	var out []string
	for _, id := range ids {
		text, err := seal.RecipientOf(id)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", s, err)
		}
		out = append(out, text)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%v: it holds no identity", s)
	}
	return out, nil
}

func printKeys(w io.Writer, doc keysDocument) {
	var rows [][]string
	for _, r := range doc.Recipients {
		rows = append(rows, []string{"data", r.Fingerprint, shorten(r.Recipient), "opens data"})
	}
	if k := doc.Index; k != nil {
		rows = append(rows, []string{"index", cmp.Or(k.Fingerprint, "-"), cmp.Or(shorten(k.Recipient), "cannot be read"), cmp.Or(k.Error, "secret in "+k.Secret)})
	}
	if k := doc.Signing; k != nil {
		rows = append(rows, []string{"signing", "-", cmp.Or(k.Key, "cannot be read"), cmp.Or(k.Error, "secret in "+k.Secret)})
	}
	for _, s := range doc.Signers {
		clusters := "all clusters"
		if len(s.Clusters) > 0 {
			clusters = strings.Join(s.Clusters, ", ")
		}
		whose := "trusted"
		if s.Own {
			whose = "trusted (own)"
		}
		rows = append(rows, []string{whose, "-", s.Key, "may " + strings.Join(s.May, ", ") + " for " + clusters})
	}
	table(w, "KIND\tFINGERPRINT\tPUBLIC HALF\tNOTE", rows)
}

// shorten keeps a post-quantum recipient, which has two thousand characters, on a line.
func shorten(recipient string) string {
	if len(recipient) <= 64 {
		return recipient
	}
	return recipient[:24] + "…" + recipient[len(recipient)-12:]
}

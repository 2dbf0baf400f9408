package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// namedSecret is a secret of the configuration with the field that names it.
type namedSecret struct {
	field  string
	secret configs.Secret
}

// secretsOf lists every secret that a configuration names.
func secretsOf(c *configs.Config) (out []namedSecret) {
	add := func(field string, s *configs.Secret) {
		if s != nil && *s != (configs.Secret{}) {
			out = append(out, namedSecret{field, *s})
		}
	}
	add("node.tokens", c.Node.Tokens)
	add("node.jobs.postgres", c.Node.Jobs.Postgres)
	if c.Node.TLS != nil {
		add("node.tls.key", &c.Node.TLS.Key)
	}
	add("repository.index_identity", c.Repository.IndexIdentity)
	add("repository.signing_key", c.Repository.SigningKey)
	for _, z := range c.Repository.Zones {
		if z.S3 == nil {
			continue
		}
		add("repository.zones["+z.Name+"].s3.credentials", &configs.Secret{File: z.S3.Credentials.File, Credential: z.S3.Credentials.Credential})
		if l := z.S3.LedgerCredentials; l != nil {
			add("repository.zones["+z.Name+"].s3.ledger_credentials", &configs.Secret{File: l.File, Credential: l.Credential})
		}
	}
	for _, cl := range c.Clusters {
		add("clusters["+cl.Name+"].password", cl.Password)
	}
	for _, e := range c.Environments {
		add("environments["+e.Name+"].identity", e.Identity)
	}
	for _, n := range c.Notify {
		add("notify["+n.Name+"].url", &n.URL)
	}
	return out
}

// checkSecrets sees that each secret can be read, and by whom else.
func checkSecrets(c *configs.Config) []finding {
	var out []finding
	all := secretsOf(c)
	for _, s := range all {
		if f, ok := checkSecret(s); !ok {
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		out = append(out, good("secrets", "%s can be read, and by nobody else", count(len(all), "secret")))
	}
	return out
}

func checkSecret(s namedSecret) (finding, bool) {
	if _, err := s.secret.Load(); err != nil {
		remedy := "make the file readable to the user that runs holdfast, mode 0600"
		switch {
		case s.secret.Credential != "" && os.Getenv("CREDENTIALS_DIRECTORY") == "":
			remedy = "run the check as the service does: systemd-run --pipe --wait -p LoadCredential=" + s.secret.Credential + ":… -p User=… holdfast check"
		case s.secret.Env != "":
			remedy = "set " + s.secret.Env + " in the environment of the command and of the daemon"
		case os.IsNotExist(err) || strings.Contains(err.Error(), "no such file"):
			remedy = "`holdfast keys new` makes keys; put the file where the configuration says, or correct " + s.field
		}
		return bad("secret "+s.field, remedy, "%v", err), false
	}
	if s.secret.File != "" && othersRead(s.secret.File) {
		return bad("secret "+s.field, "chmod 600 "+s.secret.File+"; if others may have read it, replace the key", "every user of this host can read %s", s.secret.File), false
	}
	return finding{}, true
}

// othersRead says whether any user can open the file: its mode, and the way to it.
func othersRead(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o004 == 0 {
		return false
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// checkSigner sees that this node's own notes are believed, by signing one for
// each thing that it will have to say.
func checkSigner(w *world) []finding {
	if w.signer == nil {
		if len(w.cfg.Drills) > 0 {
			return []finding{bad("signing key", "`holdfast keys new signing --out FILE` makes one; name it as repository.signing_key", "none is configured, and drills are recorded signed")}
		}
		return []finding{warn("signing key", "`holdfast keys new signing --out FILE` makes one", "none is configured: this node reads and cannot act")}
	}
	try := func(kind, duty, cluster string) error {
		note, err := seal.SignNote(kind, map[string]string{"cluster": cluster}, w.signer)
		if err != nil {
			return err
		}
		_, err = w.trust.Open(note, kind, duty, cluster, nil)
		return err
	}
	var missing []string
	for _, c := range w.cfg.Clusters {
		if c.Connection == "" {
			continue
		}
		for _, duty := range []string{"snapshot", "wal", "tombstone"} {
			if duty == "tombstone" && c.Projects == nil {
				continue
			}
			if try("check v1", duty, c.Name) != nil {
				missing = append(missing, duty+" of "+c.Name)
			}
		}
	}
	if try("check v1", "ledger", "") != nil {
		missing = append(missing, "ledger")
	}
	if len(missing) > 0 {
		return []finding{bad("signing key", fmt.Sprintf("add to repository.trusted_signers, here and on every node that restores: {key: '%s', may: [snapshot, wal, tombstone, ledger]}", w.vkey),
			"this node's signature is not trusted for: %s", strings.Join(missing, ", "))}
	}
	return []finding{good("signing key", "%s is trusted for all that this node signs", w.vkey)}
}

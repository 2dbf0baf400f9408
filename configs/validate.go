package configs

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// checkConfig applies the rules between fields.
func (d *decoder) checkConfig(c *Config) {
	d.checkNode(&c.Node)
	d.checkRepository(c)
	for i := range c.Clusters {
		d.checkCluster(c, i)
	}
	d.unique("clusters", len(c.Clusters), func(i int) string { return c.Clusters[i].Name })
	d.unique("environments", len(c.Environments), func(i int) string { return c.Environments[i].Name })
	d.unique("drills", len(c.Drills), func(i int) string { return c.Drills[i].Name })
	d.unique("notify", len(c.Notify), func(i int) string { return c.Notify[i].Name })
	d.checkEnvironments(c)
	for i := range c.Drills {
		d.checkDrill(c, i)
	}
	for i := range c.Notify {
		d.checkSecret(fmt.Sprintf("notify[%d].url", i), &c.Notify[i].URL)
	}
	if c.Approvals != nil {
		d.checkApprovals(c.Approvals, c.Repository.TrustedSigners)
	}
}

// checkApprovals: an approver's key is a person's, so that no node approves itself.
func (d *decoder) checkApprovals(a *Approvals, signers []TrustedSigner) {
	for i, key := range a.Approvers {
		field := fmt.Sprintf("approvals.approvers[%d]", i)
		switch {
		case !vkeyRE.MatchString(key):
			d.at(field, quote(key), "a note verifier key, name+hash+base64, as keys new approver prints")
		case slices.ContainsFunc(signers, func(s TrustedSigner) bool { return publicKey(s.Key) == publicKey(key) }):
			d.at(field, quote(key)+", one of repository.trusted_signers", "a key of its own, made with keys new approver: a node must not approve what it asks for")
		}
	}
	d.unique("approvals.approvers", len(a.Approvers), func(i int) string { return publicKey(a.Approvers[i]) })
	if d.given("approvals.approvers") && !d.bad["approvals.needed"] && a.Needed > len(a.Approvers) {
		d.at("approvals.needed", fmt.Sprint(a.Needed), fmt.Sprintf("at most %d: there are no more approvers", len(a.Approvers)))
	}
}

// publicKey is a verifier key without the name that it goes by.
func publicKey(vkey string) string {
	parts := strings.SplitN(vkey, "+", 3)
	return parts[len(parts)-1]
}

func (d *decoder) checkNode(n *Node) {
	d.absolute("node.state", n.State)
	d.absolute("node.socket", n.Socket)
	d.checkSecret("node.tokens", n.Tokens)
	if d.given("node.jobs") && !d.bad["node.jobs"] && d.found["node.jobs"] == "a mapping" {
		if n.Jobs.Postgres == nil {
			d.at("node.jobs", "a mapping without postgres", "sqlite or {postgres: {file: …}}")
		}
		d.checkSecret("node.jobs.postgres", n.Jobs.Postgres)
	}
	if n.TLS != nil {
		d.checkSecret("node.tls.certificate", &n.TLS.Certificate)
		d.checkSecret("node.tls.key", &n.TLS.Key)
	}
	if n.Listen == "" {
		return
	}
	host, port, err := net.SplitHostPort(n.Listen)
	if err != nil || port == "" {
		d.at("node.listen", quote(n.Listen), "host:port such as 127.0.0.1:8420")
		return
	}
	if !loopback(host) && (n.TLS == nil || n.Tokens == nil) {
		d.at("node.listen", quote(n.Listen)+", which is not loopback, without node.tls and node.tokens", "127.0.0.1:"+port+", or both: TLS and sign-in are required off loopback")
	}
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func (d *decoder) checkRepository(c *Config) {
	r := &c.Repository
	d.checkZones(r, "repository")
	d.checkQuorum(c)
	d.checkRecipients(r.Recipients)
	d.checkSecret("repository.index_identity", r.IndexIdentity)
	d.checkSecret("repository.signing_key", r.SigningKey)
	names := make([]string, len(c.Clusters))
	for i := range c.Clusters {
		names[i] = c.Clusters[i].Name
	}
	d.checkSigners(r, "repository", names)
	d.checkWitnesses(r)
	takes := slices.ContainsFunc(c.Clusters, func(c Cluster) bool { return c.Connection != "" })
	const need = "it given: a node with clusters[].connection seals and signs"
	if takes && len(r.Recipients) == 0 {
		d.at("repository.recipients", "nothing", need)
	}
	if takes && r.IndexIdentity == nil {
		d.at("repository.index_identity", "nothing", need)
	}
	if (takes || len(c.Drills) > 0) && r.SigningKey == nil {
		d.at("repository.signing_key", "nothing", "it given: what this node records in its ledger is signed")
	}
}

func (d *decoder) checkZones(r *Repository, field string) {
	list := join(field, "zones")
	if len(r.Zones) == 0 && d.given(list) && !d.bad[list] {
		d.at(list, "no zone", "at least one")
	}
	for i := range r.Zones {
		d.checkZone(&r.Zones[i], fmt.Sprintf("%s[%d]", list, i))
	}
	d.unique(list, len(r.Zones), func(i int) string { return r.Zones[i].Name })
	if quorum := join(field, "write_quorum"); r.WriteQuorum > len(r.Zones) && len(r.Zones) > 0 {
		d.at(quorum, fmt.Sprint(r.WriteQuorum), fmt.Sprintf("at most %d: there are no more zones", len(r.Zones)))
	}
}

func (d *decoder) checkZone(z *Zone, field string) {
	switch {
	case d.bad[field] || d.bad[field+".s3"] || d.bad[field+".directory"]:
	case z.S3 != nil && z.Directory != "":
		d.at(field, "both s3 and directory", "exactly one of them")
	case z.S3 == nil && z.Directory == "":
		d.at(field, "neither s3 nor directory", "exactly one of them")
	}
	if z.Directory != "" {
		d.absolute(field+".directory", z.Directory)
		if z.S3 == nil && z.ObjectLock != "none" && !d.bad[field+".object_lock"] {
			d.at(field+".object_lock", z.ObjectLock, "none: a directory cannot lock")
		}
	}
	if z.S3 != nil {
		d.checkS3(z.S3, field+".s3")
	}
}

func (d *decoder) checkURL(field, text string) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil {
		d.at(field, d.found[field], "a URL such as https://s3.example.net, without a user")
	} else if u.Scheme == "http" && !loopback(u.Hostname()) {
		d.at(field, quote(text), "https: without TLS only on loopback")
	}
}

func (d *decoder) checkS3(s *S3, field string) {
	if s.Endpoint != "" {
		d.checkURL(field+".endpoint", s.Endpoint)
	}
	if p := s.Prefix; p != strings.Trim(p, "/") || slices.Contains(strings.Split(p, "/"), "..") {
		d.at(field+".prefix", quote(p), "a prefix without slashes at its ends and without ..")
	}
	d.checkSecret(field+".ca", s.CA)
	d.checkCredentials(field+".credentials", &s.Credentials)
	d.checkCredentials(field+".ledger_credentials", s.LedgerCredentials)
	d.checkCredentials(field+".delete_credentials", s.DeleteCredentials)
}

var (
	postQuantumRE = regexp.MustCompile(`^age1pq1[a-z0-9]+$`)
	nativeRE      = regexp.MustCompile(`^age1[02-9a-z]+$`) // a second 1 names a plugin
)

// checkRecipients knows the kinds by their prefix alone; whoever seals parses them.
func (d *decoder) checkRecipients(recipients []string) {
	first := ""
	for i, r := range recipients {
		field := fmt.Sprintf("repository.recipients[%d]", i)
		var kind string
		switch {
		case d.bad[field]:
			continue
		case postQuantumRE.MatchString(r):
			kind = "post-quantum"
		case nativeRE.MatchString(r):
			kind = "X25519"
		case strings.HasPrefix(r, "AGE-SECRET-KEY-") || strings.HasPrefix(r, "AGE-PLUGIN-"):
			d.at(field, "a secret identity", "the recipient that belongs to it; treat the identity as known to others")
			continue
		default:
			d.at(field, quote(r), "an age recipient, age1pq1… or age1…; plugins' recipients cannot seal packs")
			continue
		}
		if first == "" {
			first = kind
		} else if kind != first {
			d.at(field, "a recipient of kind "+kind, "kind "+first+" as the first: age refuses a mixture")
		}
	}
	d.unique("repository.recipients", len(recipients), func(i int) string { return recipients[i] })
}

var vkeyRE = regexp.MustCompile(`^[^+\s]+\+[0-9a-f]{8}\+[A-Za-z0-9+/]+={0,2}$`)

func (d *decoder) checkSigners(r *Repository, prefix string, clusters []string) {
	for i, s := range r.TrustedSigners {
		field := fmt.Sprintf("%s[%d]", join(prefix, "trusted_signers"), i)
		if s.Key != "" && !vkeyRE.MatchString(s.Key) {
			d.at(field+".key", quote(s.Key), "a note verifier key, name+hash+base64, as keys new signing prints")
		}
		if d.given(field+".may") && len(s.May) == 0 {
			d.at(field+".may", "an empty list", "snapshot, wal, tombstone, ledger")
		}
		for j, name := range s.Clusters {
			at := fmt.Sprintf("%s.clusters[%d]", field, j)
			if clusters != nil && !slices.Contains(clusters, name) {
				d.at(at, quote(name), "one of clusters[].name: "+listed(clusters))
			}
		}
	}
	d.unique(join(prefix, "trusted_signers"), len(r.TrustedSigners), func(i int) string { return r.TrustedSigners[i].Key })
}

func (d *decoder) checkWitnesses(r *Repository) {
	for i, w := range r.Witnesses {
		field := fmt.Sprintf("repository.witnesses[%d]", i)
		if w.Key != "" && !vkeyRE.MatchString(w.Key) {
			d.at(field+".key", quote(w.Key), "a verifier key, name+hash+base64, as holdfast witness prints")
		}
		if w.URL != "" {
			d.checkURL(field+".url", w.URL)
		}
	}
	d.unique("repository.witnesses", len(r.Witnesses), func(i int) string { return r.Witnesses[i].URL })
}

func (d *decoder) checkSecret(field string, s *Secret) {
	if s == nil || !d.given(field) || d.bad[field] {
		return
	}
	ways := 0
	for _, v := range []string{s.File, s.Env, s.Credential} {
		if v != "" {
			ways++
		}
	}
	const meant = "exactly one of {file: …}, {env: …} and {credential: …}"
	switch {
	case ways > 1:
		d.at(field, "several places for one secret", meant)
	case ways == 0:
		d.at(field, "no place for the secret", meant)
	case s.File != "":
		d.absolute(field+".file", s.File)
	case s.Credential != "" && filepath.Base(s.Credential) != s.Credential:
		d.at(field+".credential", quote(s.Credential), "the name of a credential, without slashes")
	}
}

func (d *decoder) checkCredentials(field string, c *Credentials) {
	if c == nil || c.Kind != "" || !d.given(field) || d.bad[field] {
		return
	}
	if (c.File == "") == (c.Credential == "") {
		d.at(field, d.found[field]+" with none or several of file and credential", credentialsMeant)
		return
	}
	d.checkSecret(field, &Secret{File: c.File, Credential: c.Credential})
}

func (d *decoder) absolute(field, path string) {
	if d.given(field) && !d.bad[field] && (!filepath.IsAbs(path) || strings.ContainsRune(path, 0)) {
		d.at(field, quote(path), "an absolute path")
	}
}

// unique reports every name that stands in the list before.
func (d *decoder) unique(list string, n int, name func(i int) string) {
	first := map[string]int{}
	for i := range n {
		field := fmt.Sprintf("%s[%d]", list, i)
		if before, ok := first[name(i)]; ok && name(i) != "" {
			d.at(field, "the same as "+fmt.Sprintf("%s[%d]", list, before)+": "+quote(name(i)), "each once")
			continue
		}
		first[name(i)] = i
	}
}

func listed(names []string) string {
	if len(names) == 0 {
		return "there is none"
	}
	return strings.Join(names, ", ")
}

package configs

import (
	"cmp"
	"os"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxDocument bounds a configuration file.
const maxDocument = 4 << 20

// Load reads the configuration at path. Its error is [Faults] for all that is
// wrong with the document, or says why the file cannot be read.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, Faults{{File: path, Found: "an unreadable file: " + err.Error(), Meant: "a configuration; `holdfast config example` prints one"}}
	}
	return Parse(data, path)
}

// Parse reads a configuration; path is for messages.
func Parse(data []byte, path string) (*Config, error) {
	c := &Config{}
	d := decodeDocument(data, path, c)
	deriveRepository(&c.Repository)
	for i := range c.Clusters {
		deriveCluster(&c.Clusters[i])
	}
	d.checkConfig(c)
	if err := d.err(); err != nil {
		return nil, err
	}
	c.Path = path
	return c, nil
}

// repositoryDocument is what --repository takes: enough to find and to trust
// what the zones hold when no configuration is left.
type repositoryDocument struct {
	Format         int             `yaml:"format" required:"yes" enum:"1" doc:"Version of this document."`
	Zones          []Zone          `yaml:"zones" required:"yes" doc:"As repository.zones of a configuration."`
	WriteQuorum    int             `yaml:"write_quorum" min:"1" doc:"As repository.write_quorum of a configuration."`
	TrustedSigners []TrustedSigner `yaml:"trusted_signers" doc:"As repository.trusted_signers of a configuration."`
}

// LoadRepository reads the file of --repository: zones and trusted signers alone.
func LoadRepository(path string) (*Repository, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, Faults{{File: path, Found: "an unreadable file: " + err.Error(), Meant: "zones and trusted_signers"}}
	}
	return ParseRepository(data, path)
}

// ParseRepository is [LoadRepository] of bytes; path is for messages.
func ParseRepository(data []byte, path string) (*Repository, error) {
	doc := repositoryDocument{}
	d := decodeDocument(data, path, &doc)
	r := &Repository{
		Zones: doc.Zones, WriteQuorum: doc.WriteQuorum, TrustedSigners: doc.TrustedSigners,
		ObjectLock: ObjectLock{Mode: "none"}, AcceptStopOnZoneLoss: true,
	}
	deriveRepository(r)
	d.checkZones(r, "")
	d.checkSigners(r, "", nil)
	if err := d.err(); err != nil {
		return nil, err
	}
	return r, nil
}

func decodeDocument(data []byte, path string, into any) *decoder {
	d := newDecoder(path)
	if len(data) > maxDocument {
		d.add(Fault{Found: "a file larger than " + Size(maxDocument).String(), Meant: "a configuration"})
		return d
	}
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntax(err)
		return d
	}
	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.CommentType {
			bodies = append(bodies, doc.Body)
		}
	}
	if len(bodies) != 1 {
		found := "no document"
		if len(bodies) > 1 {
			found = "more than one document"
		}
		d.add(Fault{Line: 1, Column: 1, Found: found, Meant: "one; `holdfast config example` prints one"})
		return d
	}
	d.document(bodies[0], into)
	return d
}

// deriveRepository fills what follows from other fields. More than half of the
// zones and at most all but one: the loss of any one zone stops nothing.
func deriveRepository(r *Repository) {
	if n := len(r.Zones); r.WriteQuorum == 0 && n > 0 {
		r.WriteQuorum = max(1, min(n/2+1, n-1))
	}
	for i := range r.Zones {
		z := &r.Zones[i]
		if z.ObjectLock == "" && z.S3 != nil {
			z.ObjectLock = r.ObjectLock.Mode
		}
		z.ObjectLock = cmp.Or(z.ObjectLock, "none")
	}
}

func deriveCluster(c *Cluster) {
	if c.Snapshots.Source == "" {
		c.Snapshots.Source = "stream"
		if c.DataDirectory != "" {
			c.Snapshots.Source = "files"
		}
	}
	c.WAL.Slot = cmp.Or(c.WAL.Slot, "holdfast_"+strings.ReplaceAll(c.Name, "-", "_"))
	r := &c.Retention
	r.KeepAtLeast = cmp.Or(r.KeepAtLeast, r.Window)
	r.RenewAfter = cmp.Or(r.RenewAfter, min(r.KeepAtMost/4, Duration(30*24*time.Hour)))
	if c.Projects != nil {
		p := &c.Projects.Purge
		p.Within = cmp.Or(p.Within, r.KeepAtMost+r.RemovalGrace+Duration(7*24*time.Hour))
	}
}

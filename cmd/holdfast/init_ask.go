package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

// answers are what a new configuration is made of.
type answers struct {
	zones                                      []string // NAME=DIR
	cluster, connection, dataDirectory, outDir string
}

// given says that at least one flag was used, so that nothing is asked.
func (a *answers) given() bool {
	return len(a.zones) > 0 || a.cluster != "" || a.connection != "" || a.dataDirectory != ""
}

// configPath is where the configuration is, or will be.
func (a *answers) configPath(config string) string {
	if a.outDir != "" {
		return filepath.Join(a.outDir, "holdfast.yaml")
	}
	return config
}

const (
	defaultCluster    = "main"
	defaultConnection = "host=/var/run/postgresql dbname=postgres user=holdfast"
)

// begin writes a configuration with its keys and returns where the data identity is.
func (e *env) begin(ctx context.Context, a *answers, path string) (identity string, err error) {
	if !a.given() {
		if err := e.ask(a, path); err != nil {
			return "", err
		}
	}
	draft, err := a.draft(path)
	if err != nil {
		return "", err
	}
	if err := draft.lookFirst(ctx); err != nil {
		return "", err
	}
	text, err := draft.render()
	if err != nil {
		return "", err
	}
	if _, err := configs.Parse(text, path); err != nil { // before anything is written
		return "", &fault{exit: exitUsage, err: fmt.Errorf("the answers make no configuration: %w", err)}
	}
	return draft.DataFile, e.write(draft, path)
}

// ask fills a from questions.
func (e *env) ask(a *answers, path string) error {
	in := bufio.NewReader(e.in)
	e.say("There is no configuration at %s yet: a few questions make one.\nAn empty answer takes what stands in brackets.\n", path)
	e.say("Where shall the backups be? Name directories that exist, each on storage of its own: mounts of\nthree different places are best. (Buckets are added to the configuration afterwards.)")
	for i := 1; ; i++ {
		dir, err := e.question(in, fmt.Sprintf("directory of zone %d (empty: no more)", i), "")
		if err != nil {
			return err
		}
		if dir == "" && len(a.zones) > 0 {
			break
		}
		if info, err := os.Stat(dir); err != nil || !info.IsDir() || !filepath.IsAbs(dir) {
			e.say("  %q is not an absolute path of a directory that exists; at least one is needed", dir)
			i--
			continue
		}
		a.zones = append(a.zones, fmt.Sprintf("zone%d=%s", i, dir))
	}
	for _, q := range []struct {
		into         *string
		text, preset string
	}{
		{&a.cluster, "name for the PostgreSQL cluster", defaultCluster},
		{&a.connection, "how to connect to it (libpq, no password)", defaultConnection},
		{&a.dataDirectory, "its data directory, if it is on this host and readable (empty: over the network)", ""},
	} {
		answer, err := e.question(in, q.text, q.preset)
		if err != nil {
			return err
		}
		*q.into = answer
	}
	return nil
}

func (e *env) question(in *bufio.Reader, text, preset string) (string, error) {
	if preset != "" {
		text += " [" + preset + "]"
	}
	fmt.Fprintf(e.progressTo(), "%s: ", text)
	line, err := in.ReadString('\n')
	if errors.Is(err, io.EOF) && strings.TrimSpace(line) == "" {
		e.say("")
		return "", usage("no answer to %q: give --zone NAME=DIR, --cluster, --connection (`holdfast init --help`), or write a configuration: `holdfast config example`", text)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	return cmp.Or(strings.TrimSpace(line), preset), nil
}

// draft is a configuration to be written, and the keys beside it.
type draft struct {
	Node, State, Socket                string
	Zones                              []draftZone
	Recipient, Signer                  string // public halves; stand-ins until the keys are made
	IndexFile, SigningFile, DataFile   string
	Cluster, Connection, DataDirectory string
	Single                             bool
	keysDir                            string
}

type draftZone struct{ Name, Directory string }

// standIns have the shape of keys, for trying a configuration before keys are made.
const (
	standInRecipient = "age1pq1standin"
	standInSigner    = "standin+00000000+AAAA"
)

func (a *answers) draft(path string) (draft, error) {
	dir := filepath.Dir(path)
	d := draft{
		Node: nodeName(), State: "/var/lib/holdfast", Socket: "/run/holdfast/holdfast.sock", Recipient: standInRecipient, Signer: standInSigner,
		Cluster: cmp.Or(a.cluster, defaultCluster), Connection: cmp.Or(a.connection, defaultConnection), DataDirectory: a.dataDirectory,
		keysDir: filepath.Join(dir, "keys"),
	}
	if a.outDir != "" {
		d.State, d.Socket = filepath.Join(dir, "state"), filepath.Join(dir, "holdfast.sock")
	}
	d.IndexFile, d.SigningFile = filepath.Join(d.keysDir, "index.key"), filepath.Join(d.keysDir, "signing.key")
	d.DataFile = filepath.Join(dir, "data-identity.key")
	for _, z := range a.zones {
		name, place, ok := strings.Cut(z, "=")
		if !ok || name == "" || place == "" {
			return d, usage("--zone %s: want NAME=DIR", z)
		}
		place, err := filepath.Abs(place)
		if err != nil {
			return d, usage("--zone %s: %w", z, err)
		}
		if info, err := os.Stat(place); err != nil || !info.IsDir() {
			return d, failed("make it with `mkdir -p "+place+"`, or mount what belongs there: Holdfast makes no zone's directory, since a missing one may be a missing mount",
				"looking at zone %s: %s is not a directory that exists", name, place)
		}
		d.Zones = append(d.Zones, draftZone{name, place})
	}
	if len(d.Zones) == 0 {
		return d, usage("no zone given: --zone NAME=DIR, once for each")
	}
	d.Single = len(d.Zones) == 1
	return d, nil
}

// lookFirst refuses zones that hold anything: new keys are for a new repository.
func (d draft) lookFirst(ctx context.Context) error {
	for _, z := range d.Zones {
		driver, err := dirzone.New(z.Directory)
		if err != nil {
			return usage("zone %s: %w", z.Name, err)
		}
		l := lookAtZone(ctx, z.Name, driver)
		if err := driver.Close(); err != nil {
			return fmt.Errorf("looking at zone %s: %w", z.Name, err)
		}
		const remedy = "name empty directories; to reach a repository that exists, write a configuration with its zones and keys (`holdfast config example`). Nothing was written"
		switch {
		case errors.Is(l.err, zone.ErrOccupied):
			return refused(remedy, "zone %s cannot be used: %w", z.Name, l.err)
		case l.err != nil:
			return failed("see that the directory can be read and written", "looking at zone %s: %w", z.Name, l.err)
		case !l.empty:
			return refused(remedy, "zone %s cannot be used: %s belongs to repository %s already", z.Name, z.Directory, l.id.Repository)
		}
	}
	return nil
}

// nodeName is the host's name as a name of the repository.
func nodeName() string {
	host, err := os.Hostname()
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	if err != nil || catalog.CheckName(host) != nil {
		return "db1"
	}
	return host
}

func (d draft) render() ([]byte, error) {
	var b strings.Builder
	if err := draftTemplate.Execute(&b, d); err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return []byte(b.String()), nil
}

// write makes the keys and the configuration, which comes last: while it is
// missing, init begins again.
func (e *env) write(d draft, path string) error {
	if err := durable.MkdirAll(d.keysDir, 0o700); err != nil {
		return failed("run as a user who may write there, or give --out-dir", "making the directory of keys: %w", err)
	}
	var err error
	for _, k := range []struct {
		kind, file string
		into       *string
	}{{"data", d.DataFile, &d.Recipient}, {"index", d.IndexFile, new(string)}, {"signing", d.SigningFile, &d.Signer}} {
		if *k.into, err = keptKey(k.kind, d.Node, k.file); err != nil {
			return err
		}
		e.say("key       %-28s %s", k.kind, k.file)
	}
	text, err := d.render()
	if err != nil {
		return err
	}
	switch err := durable.Create(path, text, 0o644); {
	case errors.Is(err, fs.ErrExist):
		return refused("run init again without flags", "writing the configuration: %s has appeared meanwhile", path)
	case err != nil:
		return fmt.Errorf("writing the configuration: %w", err)
	}
	e.say("config    %s\n          (every field: `holdfast config example`)", path)
	return nil
}

// keptKey makes a key, or takes up one that an interrupted init made.
func keptKey(kind, name, file string) (public string, err error) {
	public, err = newKey(kind, name, file, false)
	if err == nil || codeOf(err) != exitRefused {
		return public, err
	}
	s := configs.Secret{File: file}
	if kind == "signing" {
		doc := listKeys(configs.Repository{SigningKey: &s})
		if doc.Signing.Error != "" {
			return "", failed("move it away", "taking up the signing key of an earlier init: %s", doc.Signing.Error)
		}
		return doc.Signing.Key, nil
	}
	own, err := recipientsOf(s)
	if err != nil {
		return "", failed("move it away", "taking up the %s key of an earlier init: %w", kind, err)
	}
	return own[0], nil
}

var draftTemplate = template.Must(template.New("configuration").Funcs(template.FuncMap{"q": yamlQuote}).Parse(`# Written by holdfast init. Every field with its default: holdfast config example
format: 1

node:
  name: {{.Node}}
  state: {{q .State}}
  socket: {{q .Socket}}

repository:
  zones:
{{- range .Zones}}
    - {name: {{.Name}}, directory: {{q .Directory}}}
{{- end}}
{{- if .Single}}
  accept_stop_on_zone_loss: true # one zone alone: its loss stops backups, and may lose them; add another
{{- end}}
  recipients: # who can open data; the secret half belongs off this host
    - {{.Recipient}}
  index_identity: {file: {{q .IndexFile}}}
  signing_key: {file: {{q .SigningFile}}}
  trusted_signers:
    - {key: {{q .Signer}}, may: [snapshot, wal, tombstone, ledger]}

clusters:
  - name: {{.Cluster}}
    connection: {{q .Connection}}
{{- if .DataDirectory}}
    data_directory: {{q .DataDirectory}}
{{- end}}
    snapshots: {schedule: "15 */6 * * *"} # cron, UTC
    wal: {mode: stream}
    retention: {window: 7d, daily: 7, monthly: 12}
    objectives: {rpo: 30s, rto: 1h}
`))

// yamlQuote is a YAML scalar in single quotes.
func yamlQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

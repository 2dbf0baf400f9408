package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	_ "embed" // the instructions

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/docs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// kitFile is one file of an escrow kit.
type kitFile struct {
	name string
	mode int64
	body []byte
}

// kitDoc is the document of `keys kit`.
type kitDoc struct {
	File     string   `json:"file"`
	SHA256   string   `json:"sha256"`
	Age      string   `json:"age"` // its version
	Identity bool     `json:"identity"`
	Files    []string `json:"files"`
}

func (e *env) keysKitCommand() *cobra.Command {
	var out, ageProgram, identity, passphrase string
	cmd := &cobra.Command{
		Use: "kit --out FILE", Short: "Make the escrow kit: all that a restore needs on the day when nothing else is left", Args: cobra.NoArgs,
		Long: "The kit is a tar with this program, a static age, the break-glass script, the format, where the zones\nare and whose signatures count. The data identity is in it only with --identity, sealed by a passphrase;\nelse keep that elsewhere, and both away from the database host. No credentials of the zones are in it.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := e.load()
			if err != nil {
				return err
			}
			doc, err := makeKit(c.Context(), cfg.Repository, out, ageProgram, identity, passphrase)
			if err != nil {
				return err
			}
			return e.print(doc, func(w io.Writer) {
				for _, name := range doc.Files {
					fmt.Fprintln(w, " ", name)
				}
				fmt.Fprintf(w, "%s: sha256 %s\n", doc.File, doc.SHA256)
				if !doc.Identity {
					fmt.Fprintln(w, "the data identity is NOT in it: keep it in escrow as well, or make the kit with --identity FILE --passphrase FILE")
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "`FILE` to write; one that exists is never replaced")
	f.StringVar(&ageProgram, "age", "", "static age `PROGRAM`, 1.3 or newer (default age beside this program)")
	f.StringVar(&identity, "identity", "", "data identity in `FILE`, to be put in under the passphrase")
	f.StringVar(&passphrase, "passphrase", "", "`FILE` whose first line seals the identity; at least 16 characters")
	cmd.MarkFlagsRequiredTogether("identity", "passphrase")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err)
	}
	return cmd
}

func makeKit(ctx context.Context, repo configs.Repository, out, ageProgram, identity, passphrase string) (doc kitDoc, err error) {
	self, err := os.Executable()
	if err != nil {
		return doc, fmt.Errorf("finding this program: %w", err)
	}
	ageProgram = cmp.Or(ageProgram, filepath.Join(filepath.Dir(self), "age"))
	if doc.Age, err = staticAge(ctx, ageProgram); err != nil {
		return doc, err
	}
	files := []kitFile{}
	for _, p := range []struct{ name, path string }{{"holdfast", self}, {"age", ageProgram}} {
		body, err := os.ReadFile(p.path)
		if err != nil {
			return doc, fmt.Errorf("putting %s into the kit: %w", p.name, err)
		}
		files = append(files, kitFile{p.name, 0o755, body})
	}
	for _, name := range []string{"break-glass.py", "break-glass.md", "format.md"} {
		body, err := docs.Escrow.ReadFile(name)
		if err != nil {
			return doc, err
		}
		files = append(files, kitFile{name, 0o644, body})
	}
	files = append(files, kitFile{"repository.yaml", 0o644, kitRepository(repo)}, kitFile{"README.txt", 0o644, kitReadme(repo, identity != "")})
	if identity != "" {
		body, err := sealIdentity(repo, identity, passphrase)
		if err != nil {
			return doc, err
		}
		files, doc.Identity = append(files, kitFile{"data.key.age", 0o600, body}), true
	}
	return doc, doc.write(out, files)
}

// write packs the kit, with the sum of each file in it.
func (d *kitDoc) write(out string, files []kitFile) error {
	var sums, body bytes.Buffer
	for _, f := range files {
		sum := sha256.Sum256(f.body)
		fmt.Fprintf(&sums, "%x  %s\n", sum, f.name)
	}
	w := tar.NewWriter(&body)
	for _, f := range append(files, kitFile{"SHA256SUMS", 0o644, sums.Bytes()}) {
		d.Files = append(d.Files, f.name)
		err := w.WriteHeader(&tar.Header{Name: "holdfast-kit/" + f.name, Mode: f.mode, Size: int64(len(f.body)), ModTime: time.Now(), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = w.Write(f.body)
		}
		if err != nil {
			return fmt.Errorf("packing the kit: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("packing the kit: %w", err)
	}
	sum := sha256.Sum256(body.Bytes())
	d.File, d.SHA256 = out, hex.EncodeToString(sum[:])
	err := durable.Create(out, body.Bytes(), 0o600)
	if errors.Is(err, fs.ErrExist) {
		return refused("name another --out", "%s exists, and a kit never replaces a file", out)
	}
	if err != nil {
		return fmt.Errorf("writing the kit to %s: %w", out, err)
	}
	return nil
}

var ageVersion = regexp.MustCompile(`v?(\d+)\.(\d+)`)

// staticAge wants a program that runs on a machine with nothing installed, and that
// opens post-quantum identities (age 1.3).
func staticAge(ctx context.Context, path string) (version string, err error) {
	remedy := "`CGO_ENABLED=0 go install filippo.io/age/cmd/age@latest` makes one; name it with --age PROGRAM"
	f, err := elf.Open(path)
	if err != nil {
		return "", failed(remedy, "the kit needs a static age program, and %s is none: %w", path, err)
	}
	dynamic := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if err := f.Close(); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	if dynamic {
		return "", failed(remedy, "the kit needs a static age program, and %s is linked dynamically", path)
	}
	said, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	version = strings.TrimSpace(string(said))
	found := ageVersion.FindStringSubmatch(version)
	if err != nil || found == nil {
		return "", failed(remedy, "%s does not tell its version: %q: %w", path, version, err)
	}
	major, _ := strconv.Atoi(found[1])
	if minor, _ := strconv.Atoi(found[2]); major < 1 || major == 1 && minor < 3 {
		return "", failed(remedy, "%s is age %s, and post-quantum identities need 1.3", path, version)
	}
	return version, nil
}

// sealIdentity seals the data identity by a passphrase, after it was seen to open
// what the repository is sealed to.
func sealIdentity(repo configs.Repository, identity, passphrase string) ([]byte, error) {
	public, err := recipientsOf(configs.Secret{File: identity})
	if err != nil {
		return nil, usage("--identity: %w", err)
	}
	if !slices.ContainsFunc(public, func(r string) bool { return slices.Contains(repo.Recipients, r) }) {
		return nil, refused("give the identity whose recipient stands in repository.recipients", "the identity in %s opens nothing of this repository: its recipient is %s", identity, shorten(public[0]))
	}
	words, err := os.ReadFile(passphrase)
	if err != nil {
		return nil, usage("--passphrase: %w", err)
	}
	line, _, _ := strings.Cut(string(words), "\n")
	if line = strings.TrimRight(line, "\r"); len(line) < 16 {
		return nil, usage("--passphrase: %s: its first line has fewer than 16 characters", passphrase)
	}
	secret, err := os.ReadFile(identity)
	if err != nil {
		return nil, usage("--identity: %w", err)
	}
	to, err := age.NewScryptRecipient(line)
	if err != nil {
		return nil, fmt.Errorf("sealing the identity: %w", err)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err == nil {
		if _, err = w.Write(secret); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("sealing the identity: %w", err)
	}
	return out.Bytes(), nil
}

//go:embed kit_readme.txt.tmpl
var kitReadmeText string

//go:embed kit_repository.yaml.tmpl
var kitRepositoryText string

var kitTemplates = template.Must(template.Must(template.New("readme").Parse(kitReadmeText)).New("repository").Funcs(template.FuncMap{
	"quote": strconv.Quote,
}).Parse(kitRepositoryText))

// kitRepository is what --repository reads. Credentials are asked for as files, and
// so are certificates: their secrets stay where they are.
func kitRepository(repo configs.Repository) []byte { return kitText("repository", repo) }

func kitReadme(repo configs.Repository, identity bool) []byte {
	var prints []string
	for _, r := range repo.Recipients {
		prints = append(prints, seal.Fingerprint(r)+"  "+shorten(r))
	}
	var trust []string // the script believes a key in all that it says
	for _, s := range repo.TrustedSigners {
		if slices.Contains(s.May, string(catalog.DutySnapshot)) && slices.Contains(s.May, string(catalog.DutyWAL)) {
			trust = append(trust, s.Key)
		}
	}
	return kitText("readme", map[string]any{"Repo": repo, "Trust": trust, "Identity": identity, "Recipients": prints, "Version": version, "Made": stampOf(time.Now())})
}

func kitText(name string, about any) []byte {
	var out bytes.Buffer
	if err := kitTemplates.ExecuteTemplate(&out, name, about); err != nil {
		panic(err) // the templates are ours, and a test makes both
	}
	return out.Bytes()
}

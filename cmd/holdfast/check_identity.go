package main

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Bounds of the search for identities that lie about.
const (
	maxIdentityFile = 64 << 10
	maxIdentityLook = 20000 // files and directories
)

// heldIdentity is an identity that this node can reach.
type heldIdentity struct {
	where   string
	path    string // "" where it is no file
	ids     []age.Identity
	isIndex bool
}

// heldIdentities finds what this node can open with: configured identities, and
// those in files beside the configuration, its secrets and the state.
func heldIdentities(c *configs.Config) []heldIdentity {
	var out []heldIdentity
	known := map[string]bool{}
	add := func(where, path string, data []byte, isIndex bool) {
		if ids, err := seal.ParseIdentities(data); err == nil && len(ids) > 0 {
			out = append(out, heldIdentity{where, path, ids, isIndex})
		}
	}
	configured := func(field string, s *configs.Secret, isIndex bool) {
		if s == nil {
			return
		}
		if s.File != "" {
			known[real(s.File)] = true
		}
		if data, err := s.Load(); err == nil {
			add(field+" ("+s.String()+")", s.File, data, isIndex)
		}
	}
	configured("repository.index_identity", c.Repository.IndexIdentity, true)
	for _, e := range c.Environments {
		configured("environments["+e.Name+"].identity", e.Identity, false)
	}
	for _, path := range identityFiles(c) {
		if known[real(path)] {
			continue
		}
		known[real(path)] = true
		if data, err := os.ReadFile(path); err == nil {
			add(path, path, data, false)
		}
	}
	return out
}

// real is the one path of a file, whatever way leads to it.
func real(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if r, err := filepath.EvalSymlinks(path); err == nil {
		return r
	}
	return path
}

// identityFiles lists the small files that hold the words of an age identity: in the
// directories of the configuration and of its secrets, and anywhere in the state.
func identityFiles(c *configs.Config) []string {
	dirs := []string{c.Node.State, os.Getenv("CREDENTIALS_DIRECTORY")}
	if c.Path != "" {
		dirs = append(dirs, filepath.Dir(c.Path))
	}
	for _, s := range secretsOf(c) {
		if s.secret.File != "" {
			dirs = append(dirs, filepath.Dir(s.secret.File))
		}
	}
	var skip []string // zones hold sealed objects, and may be large
	for _, z := range c.Repository.Zones {
		if z.Directory != "" {
			skip = append(skip, real(z.Directory))
		}
	}
	slices.Sort(dirs)
	var out []string
	left := maxIdentityLook
	for _, dir := range slices.Compact(dirs) {
		if dir == "" || dir == string(filepath.Separator) {
			continue
		}
		_ = filepath.WalkDir(real(dir), func(path string, e fs.DirEntry, err error) error {
			if left--; left < 0 {
				return fs.SkipAll
			}
			if err != nil {
				return nil //nolint:nilerr // what this user cannot read it cannot open data with
			}
			if e.IsDir() && path != real(dir) && (real(dir) != real(c.Node.State) || slices.Contains(skip, path)) {
				return fs.SkipDir
			}
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && holdsIdentity(path) { // a link leads to one, too
				out = append(out, path)
			}
			return nil
		})
	}
	return out
}

func holdsIdentity(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > maxIdentityFile {
		return false
	}
	data, err := io.ReadAll(io.LimitReader(f, maxIdentityFile))
	return err == nil && (bytes.Contains(data, []byte("AGE-SECRET-KEY-")) || bytes.Contains(data, []byte("AGE-PLUGIN-")))
}

// opens says which of held really opens what is sealed to the recipients.
func opens(recipients []string, held []heldIdentity) ([]heldIdentity, error) {
	var out []heldIdentity
	const probe = "sealed by holdfast check"
	for _, text := range recipients {
		to, err := seal.ParseRecipients([]string{text})
		if err != nil {
			return nil, err
		}
		sealed, err := seal.SealBlob([]byte(probe), to)
		if err != nil {
			return nil, err
		}
		for _, h := range held {
			plain, err := seal.OpenBlob(sealed, h.ids, 1<<10)
			if err == nil && string(plain) == probe && !slices.ContainsFunc(out, func(o heldIdentity) bool { return o.where == h.where }) {
				out = append(out, h)
			}
		}
	}
	return out, nil
}

// checkIdentity holds that a node which reaches a live cluster opens no data.
func checkIdentity(c *configs.Config, pending string) []finding {
	live := slices.ContainsFunc(c.Clusters, func(c configs.Cluster) bool { return c.Connection != "" })
	if len(c.Repository.Recipients) == 0 {
		return nil
	}
	found, err := opens(c.Repository.Recipients, heldIdentities(c))
	if err != nil {
		return []finding{bad("recipients", "correct repository.recipients; `holdfast keys new data --out FILE` makes one", "%v", err)}
	}
	var out []finding
	for _, h := range found {
		switch {
		case h.isIndex:
			out = append(out, bad("data identity", "make an index identity of its own (`holdfast keys new index --out FILE`) and take this one's recipient out of repository.recipients, or the identity off this host",
				"%s opens data: it is one of repository.recipients", h.where))
		case !live || c.Node.AllowIdentity:
		case pending != "" && real(h.path) == real(pending):
			out = append(out, warn("data identity", "move it off this host now: from the next `holdfast check` on it is a failure", "%s opens every backup, and was made here", h.where))
		default:
			out = append(out, bad("data identity", "move it to the node that restores, and away from here; node.allow_identity: true accepts it (demos, tests, a single machine)",
				"%s opens data, and this node reaches a live cluster: whoever takes this host has every backup too", h.where))
		}
	}
	if len(out) > 0 {
		return out
	}
	switch {
	case !live:
		return []finding{good("data identity", "this node reaches no live cluster, and may open data")}
	case len(found) > 0:
		return []finding{good("data identity", "%s opens data here, which node.allow_identity accepts", found[0].where)}
	}
	return []finding{good("data identity", "nothing on this node opens data")}
}

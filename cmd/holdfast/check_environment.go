package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"sort"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// maxManifest bounds what a manifest may be when it is opened as a trial.
const maxManifest = 4 << 30

// environmentIdentities are those that open data here.
func (w *world) environmentIdentities() ([]age.Identity, error) {
	var out []age.Identity
	for _, e := range w.cfg.Environments {
		if e.Identity == nil {
			continue
		}
		ids, err := loadIdentities(*e.Identity)
		if err != nil {
			return nil, fmt.Errorf("environments[%s].identity: %w", e.Name, err)
		}
		out = append(out, ids...)
	}
	return out, nil
}

// retained is what environments must be able to restore.
type retained struct {
	majors  map[int]string    // of each kept snapshot: one cluster that has it
	newest  *catalog.Snapshot // of all clusters
	unknown error             // why it could not be read
}

// retainedIn reads the snapshots of the clusters that this node knows.
func (w *world) retainedIn(ctx context.Context) (r retained) {
	r.majors = map[int]string{}
	for _, c := range w.cfg.Clusters {
		list, err := w.catalog.Snapshots(ctx, c.Name)
		if err != nil {
			r.unknown = err
			return r
		}
		for _, n := range catalog.OfKind(list.List, catalog.Physical) {
			s := n.Body
			r.majors[s.Major] = c.Name
			if r.newest == nil || s.FinishedAt.After(r.newest.FinishedAt) {
				r.newest = &s
			}
		}
	}
	return r
}

// checkEnvironments sees that restores could land where they are to.
func checkEnvironments(ctx context.Context, w *world, r retained) []finding {
	var out []finding
	for _, e := range w.cfg.Environments {
		name := "environment " + e.Name
		list := checkEnvironmentDirectory(name, e)
		list = append(list, checkPrograms(name, e, r)...)
		if e.Identity != nil {
			list = append(list, checkOpens(ctx, w, name, e, r)...)
		}
		out = append(out, list...)
	}
	return out
}

func checkEnvironmentDirectory(name string, e configs.Environment) []finding {
	info, err := os.Stat(e.Directory)
	if err != nil || !info.IsDir() {
		return []finding{bad(name, "mkdir -p "+e.Directory+", on a file system with room for a restored cluster", "%s is not a directory that exists", e.Directory)}
	}
	if err := unix.Access(e.Directory, unix.W_OK|unix.X_OK); err != nil {
		return []finding{bad(name, "give the directory to the user that runs holdfast", "%s cannot be written: %v", e.Directory, err)}
	}
	list := []finding{judgeRoom(name, e.Directory, "restores can land here")}
	runAs := e.User
	if runAs == "" && os.Geteuid() == 0 {
		runAs = "postgres"
	}
	if runAs == "" {
		return list
	}
	if _, err := user.Lookup(runAs); err != nil {
		return append(list, bad(name+" user", "install PostgreSQL's server package, which makes the user, or set environments["+e.Name+"].user", "restored servers are to run as %s: %v", runAs, err))
	}
	if me, err := user.Current(); err == nil && os.Geteuid() != 0 && me.Username != runAs {
		return append(list, bad(name+" user", "run holdfast as root or as "+runAs+", or leave environments["+e.Name+"].user out", "restored servers are to run as %s, and this user (%s) cannot become it", runAs, me.Username))
	}
	return list
}

// checkPrograms sees that there are programs of every major that a kept snapshot has.
func checkPrograms(name string, e configs.Environment, r retained) []finding {
	name += " programs"
	if r.unknown != nil {
		return []finding{warn(name, "", "which versions are needed cannot be told: %v", r.unknown)}
	}
	if len(r.majors) == 0 {
		return []finding{good(name, "no snapshot is kept yet, so none is needed")}
	}
	var majors []int
	for m := range r.majors {
		majors = append(majors, m)
	}
	sort.Ints(majors)
	var out []finding
	for _, m := range majors {
		if _, err := sandbox.FindPrograms(m, e.Binaries); err != nil {
			out = append(out, bad(name, fmt.Sprintf("install PostgreSQL %d's server (Debian: postgresql-%d), or correct environments[%s].binaries", m, m, e.Name), "snapshots of %s need PostgreSQL %d: %v", r.majors[m], m, err))
		}
	}
	if len(out) == 0 {
		out = append(out, good(name, "there are programs for every kept snapshot: PostgreSQL %v", majors))
	}
	return out
}

// checkOpens opens the newest snapshot's manifest with what the environment has.
func checkOpens(ctx context.Context, w *world, name string, e configs.Environment, r retained) []finding {
	name += " identity"
	ids, err := loadIdentities(*e.Identity)
	if err != nil {
		return nil // told as a secret that cannot be read
	}
	if r.newest == nil {
		return []finding{good(name, "no snapshot is kept yet to try it on")}
	}
	s := r.newest
	remedy := "give the identity of one of the recipients that the snapshot was sealed to"
	if !slices.ContainsFunc(ids, func(id age.Identity) bool {
		text, err := seal.RecipientOf(id)
		return err == nil && slices.Contains(s.Recipients, seal.Fingerprint(text))
	}) {
		return []finding{bad(name, remedy, "it is none of those that open snapshot %s of %s (%v)", s.ID, s.Cluster, s.Recipients)}
	}
	body, err := w.vault.Reader().Get(ctx, s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	if err == nil {
		_, err = seal.OpenBlob(body, ids, maxManifest)
	}
	if err != nil {
		return []finding{bad(name, remedy, "opening the manifest of snapshot %s of %s: %v", s.ID, s.Cluster, err)}
	}
	return []finding{good(name, "it opens snapshot %s of %s, the newest", s.ID, s.Cluster)}
}

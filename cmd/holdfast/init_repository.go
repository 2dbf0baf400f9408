package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// progressTo is where a person reads how it goes; documents stay alone on
// standard output.
func (e *env) progressTo() io.Writer {
	if e.output == "json" {
		return e.err
	}
	return e.out
}

// createRepository makes the configuration's zones one repository, with its
// digest keys, or finds that they are one already.
func (e *env) createRepository(ctx context.Context, cfg *configs.Config) (err error) {
	w := &world{cfg: cfg, log: e.logger(), now: time.Now, drivers: map[string]zone.Driver{}}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.hold(); err != nil {
		return err
	}
	if err := w.requireConfirmed(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{w.openKeys, w.openDrivers} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	looks := w.lookAtZones(ctx)
	pin, err := w.pinned()
	if err != nil {
		return err
	}
	plan, err := planRepository(pin, looks)
	if err != nil {
		return err
	}
	if err := e.claimZones(ctx, w, plan); err != nil {
		return err
	}
	if err := w.openVault(ctx); err != nil {
		return err
	}
	made, err := e.ensureDigestKeys(ctx, w, plan)
	if err != nil {
		return err
	}
	return e.recordRepository(ctx, w, plan, made)
}

// zoneLook is what a zone was found to be before anything was changed.
type zoneLook struct {
	name  string
	id    zone.Identity
	empty bool
	err   error // it could not be looked at, or holds something else
}

func (w *world) lookAtZones(ctx context.Context) []zoneLook {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	looks := make([]zoneLook, len(w.cfg.Repository.Zones))
	done := make(chan struct{})
	for i, z := range w.cfg.Repository.Zones {
		go func() {
			looks[i] = lookAtZone(ctx, z.Name, w.drivers[z.Name])
			done <- struct{}{}
		}()
	}
	for range looks {
		<-done
	}
	return looks
}

func lookAtZone(ctx context.Context, name string, d zone.Driver) zoneLook {
	l := zoneLook{name: name}
	l.id, l.err = zone.ReadIdentity(ctx, d)
	if !errors.Is(l.err, fs.ErrNotExist) {
		return l
	}
	l.err = d.ListVersions(ctx, "", func(o zone.Object) error {
		if o.Marker || strings.HasPrefix(o.Name, zone.ProbePrefix) {
			return nil
		}
		return fmt.Errorf("%w: %s; choose an empty directory, bucket or prefix", zone.ErrOccupied, o.Name)
	})
	l.empty = l.err == nil
	return l
}

// pinned is the repository that this node knows already, "" for none.
func (w *world) pinned() (string, error) {
	data, err := os.ReadFile(w.state("repository.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	var pin struct {
		Repository string `json:"repository"`
	}
	if err == nil {
		err = json.Unmarshal(data, &pin)
	}
	if err != nil {
		return "", fmt.Errorf("reading which repository this node knows: %w", err)
	}
	return pin.Repository, nil
}

// repositoryPlan is what init will do to the zones.
type repositoryPlan struct {
	id     string // "" for one that is to be made
	empty  []string
	member []string // show this repository already
	away   []zoneLook
}

// planRepository decides from what the zones showed, and refuses whatever would
// mix two repositories or take a zone that is in use.
func planRepository(pin string, looks []zoneLook) (repositoryPlan, error) {
	p := repositoryPlan{id: pin}
	const mend = "give each zone a directory, bucket or prefix of its own that is empty or belongs to this repository; nothing was changed"
	for _, l := range looks {
		switch {
		case errors.Is(l.err, zone.ErrOccupied):
			return p, refused(mend, "zone %s cannot be used: %w", l.name, l.err)
		case l.err != nil:
			p.away = append(p.away, l)
		case l.empty:
			p.empty = append(p.empty, l.name)
		case l.id.Zone != l.name:
			return p, refused(mend, "zone %s cannot be used: it is zone %s of repository %s", l.name, l.id.Zone, l.id.Repository)
		case p.id == "":
			p.id = l.id.Repository
			p.member = append(p.member, l.name)
		case l.id.Repository != p.id:
			return p, refused(mend, "zone %s cannot be used: it belongs to repository %s, and this is %s", l.name, l.id.Repository, p.id)
		case l.id.Format > zone.Format:
			return p, refused("use a newer holdfast", "zone %s is of format %d, and this holdfast knows format %d", l.name, l.id.Format, zone.Format)
		default:
			p.member = append(p.member, l.name)
		}
	}
	if len(p.member) == 0 && len(p.away) > 0 {
		return p, failed("mount or reach every zone: a new repository is made in all of them at once; nothing was changed", "zone %s cannot be looked at: %w", p.away[0].name, p.away[0].err)
	}
	return p, nil
}

// claimZones makes the empty zones the repository's. An empty zone beside ones in
// use may be an emptied or unmounted one: only `zone add` takes it.
func (e *env) claimZones(ctx context.Context, w *world, p repositoryPlan) error {
	if len(p.empty) > 0 && len(p.member) > 0 {
		inUse, err := w.holdsKeys(ctx, p.member)
		if err != nil {
			return err
		}
		if inUse {
			return refused("see that the right place is mounted there; if the zone is new, or its storage was lost for good, `holdfast zone add "+p.empty[0]+"` takes it in and it is back-filled",
				"zone %s is empty, and repository %s exists already", p.empty[0], p.id)
		}
	}
	fresh := p.id == ""
	if fresh {
		if len(w.indexTo) == 0 || w.signer == nil {
			return failed("run `holdfast init` on the database host first: its configuration has the recipients, the index identity and the signing key that a new repository needs", "the zones hold no repository yet, and this configuration cannot create one")
		}
		var b [16]byte
		if _, err := rand.Read(b[:]); err != nil {
			return fmt.Errorf("making the repository's id: %w", err)
		}
		p.id = hex.EncodeToString(b[:])
	}
	// The pin comes first, so that an interrupted init goes on with the same id.
	if err := w.pin(p.id); err != nil {
		return err
	}
	for _, z := range w.cfg.Repository.Zones {
		switch {
		case slices.Contains(p.empty, z.Name):
			if err := zone.Initialise(ctx, w.drivers[z.Name], zone.Identity{Format: zone.Format, Repository: p.id, Zone: z.Name}); err != nil {
				return initialiseFault(z.Name, err)
			}
			if err := w.lockNew(ctx, z); err != nil {
				return err
			}
			e.say("zone      %-16s made a zone of repository %s", z.Name, p.id)
		case slices.Contains(p.member, z.Name):
			e.say("zone      %-16s belongs to repository %s already", z.Name, p.id)
		}
	}
	for _, l := range p.away {
		e.say("zone      %-16s cannot be looked at now: %v", l.name, l.err)
	}
	return nil
}

func initialiseFault(name string, err error) error {
	if errors.Is(err, zone.ErrOccupied) {
		return refused("choose an empty directory, bucket or prefix", "creating zone %s: %w", name, err)
	}
	return failed("see that the zone can be written, then run it again: what is done already stays done", "creating zone %s: %w", name, err)
}

func (w *world) pin(id string) error {
	w.repoID = id
	return durable.WriteFile(w.state("repository.json"), fmt.Appendf(nil, "{\"repository\":%q}\n", id), 0o600)
}

// holdsKeys says whether a zone holds digest keys: the last thing that creating a
// repository makes.
func (w *world) holdsKeys(ctx context.Context, zones []string) (bool, error) {
	found := false
	for _, name := range zones {
		err := w.drivers[name].List(ctx, catalog.DigestKeysDir, func(zone.Object) error {
			found = true
			return nil
		})
		if err != nil {
			return false, fmt.Errorf("looking into zone %s: %w", name, err)
		}
	}
	return found, nil
}

// ensureDigestKeys makes the first digest keys where the repository has none.
func (e *env) ensureDigestKeys(ctx context.Context, w *world, p repositoryPlan) (made bool, err error) {
	absent, err := w.vault.Reader().Absent(ctx, catalog.DigestKeyName(1))
	if err != nil {
		return false, failed("reach the zones and run it again", "looking for the repository's digest keys: %w", err)
	}
	if !absent {
		if len(w.index) == 0 {
			return false, nil // a drill node: its data identity opens them when it restores
		}
		if _, err := w.digestKeys(ctx, 0); err != nil {
			return false, failed("this configuration's repository.index_identity must be the one that the repository was created with, or one that its keys were sealed to", "%w", err)
		}
		e.say("keys      digest keys exist and open")
		return false, nil
	}
	if len(w.indexTo) == 0 {
		return false, failed("run `holdfast init` on the database host first: its configuration has the recipients and the index identity", "the repository has no digest keys yet, and this configuration cannot make them")
	}
	keys, err := seal.NewDigestKeys(1)
	if err != nil {
		return false, fmt.Errorf("making the digest keys: %w", err)
	}
	sealed, err := keys.Seal(w.indexTo)
	if err != nil {
		return false, fmt.Errorf("sealing the digest keys: %w", err)
	}
	if _, err := w.vault.Writer().Put(ctx, catalog.DigestKeyName(1), sealed, vault.PutOptions{}); err != nil {
		return false, failed("reach the zones and run it again", "storing the digest keys: %w", err)
	}
	e.say("keys      digest keys made, sealed to the index identity and %s", count(len(w.data), "data recipient"))
	return true, nil
}

// recordRepository begins this node's ledger, where it may sign one.
func (e *env) recordRepository(ctx context.Context, w *world, p repositoryPlan, made bool) error {
	if w.signer == nil {
		return nil
	}
	n, err := newNode(ctx, w)
	if err != nil {
		return err
	}
	if made {
		var zones []string
		for _, z := range w.cfg.Repository.Zones {
			zones = append(zones, z.Name)
		}
		body := map[string]any{"zones": zones, "write_quorum": w.cfg.Repository.WriteQuorum, "recipients": w.fingerprints(), "digest_epoch": 1}
		if _, err := n.append(ctx, "repository", map[string]string{"repository": w.repoID}, body); err != nil {
			return err
		}
	}
	if _, err := n.ledger.Anchor(ctx); err != nil {
		return failed("see what `holdfast check` says of the zones and of trusted_signers, then run it again", "sending this node's ledger to the zones: %w", err)
	}
	e.say("ledger    %s", n.ledger.Origin())
	if !made {
		e.say("the repository %s existed already: nothing was created anew", w.repoID)
	}
	return nil
}

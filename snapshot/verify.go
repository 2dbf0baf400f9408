package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Healer repairs wrong and missing copies of an object from a good one.
type Healer interface {
	Heal(ctx context.Context, name string, size int64, sha256 string) (healed []string, err error)
}

// VerifyConfig says what to verify, and how deeply.
type VerifyConfig struct {
	Cluster, ID string
	Reader      vault.Reader
	Trust       catalog.Truster
	// Identities open the data; without any, objects are compared with their
	// digests and not opened.
	Identities []age.Identity
	// Digests opens the keys of the blocks' digests; nil: blocks are not held against them.
	Digests func(ctx context.Context, epoch int) (seal.DigestKeys, error)
	Heal    Healer // nil: what is wrong is told and left
	Workers int    // objects at a time (2); each may take 35 MiB, twice that when opened
	// Scratch is where the page maps lie, opened, while they are read: a thousandth
	// of the cluster, and no data. "" is the system's directory for such files.
	Scratch string
}

// VerifyReport is what [Verify] saw.
type VerifyReport struct {
	Snapshot catalog.Snapshot `json:"snapshot"`
	Objects  int              `json:"objects"` // that the snapshot needs, its list and note included
	Zones    []ZoneReport     `json:"zones"`
	Deep     *DeepReport      `json:"deep,omitempty"` // with identities only
}

// OK says that every zone holds every object as it should be (after healing) and
// that nothing was found inside that the snapshot's note did not tell.
func (r VerifyReport) OK() bool {
	for _, z := range r.Zones {
		if z.Unreachable != "" || len(z.Faults) > len(z.Healed) {
			return false
		}
	}
	return r.Deep == nil || len(r.Deep.Faults) == 0
}

// ZoneReport is one zone's part in it.
type ZoneReport struct {
	Name        string        `json:"name"`
	Good        int           `json:"good"` // copies with the right bytes
	Missing     int           `json:"missing"`
	Wrong       int           `json:"wrong"`
	Unreachable string        `json:"unreachable,omitempty"` // why its word could not be had
	Faults      []ObjectFault `json:"faults,omitempty"`      // the first thousand
	Healed      []string      `json:"healed,omitempty"`
}

// ObjectFault is a copy that is missing or wrong.
type ObjectFault struct {
	Name  string `json:"name"`
	Fault string `json:"fault"`
}

const maxFaults = 1000

// Verify reads every copy of every object that a snapshot needs, in every zone,
// and compares it with the digest that the snapshot's note binds; with identities
// it also opens the packs and checks frames and pages. The error tells that it
// could not be done, never that something was wrong: see [VerifyReport.OK].
func Verify(ctx context.Context, cfg VerifyConfig) (VerifyReport, error) {
	v := &verification{cfg: cfg, zones: map[string]*ZoneReport{}}
	if err := v.run(ctx); err != nil {
		return v.report, fmt.Errorf("verify snapshot %s of %s: %w", cfg.ID, cfg.Cluster, err)
	}
	for _, name := range cfg.Reader.Zones() {
		z := v.zones[name]
		slices.SortFunc(z.Faults, func(a, b ObjectFault) int { return strings.Compare(a.Name, b.Name) })
		v.report.Zones = append(v.report.Zones, *z)
	}
	return v.report, nil
}

type verification struct {
	cfg    VerifyConfig
	report VerifyReport

	mu    sync.Mutex
	zones map[string]*ZoneReport
}

func (v *verification) run(ctx context.Context) error {
	for _, name := range v.cfg.Reader.Zones() {
		v.zones[name] = &ZoneReport{Name: name}
	}
	snap, _, err := openSnapshot(ctx, v.cfg.Reader, v.cfg.Trust, catalog.SnapshotName(v.cfg.Cluster, v.cfg.ID), v.cfg.Cluster)
	if err != nil {
		return err
	}
	v.report.Snapshot = snap
	refs, err := v.objects(ctx, snap)
	if err != nil {
		return err
	}
	v.report.Objects = len(refs) + 2
	refs = append(refs, snap.Objects)
	switch {
	case len(v.cfg.Identities) == 0:
		err = v.each(ctx, refs, nil)
	case catalog.Exported(snap.Kind):
		err = v.openedLogical(ctx, snap, refs)
	default:
		err = v.opened(ctx, snap, refs)
	}
	if err != nil {
		return err
	}
	return v.notes(ctx, snap)
}

// opened looks at all objects, and into the maps and packs among them.
func (v *verification) opened(ctx context.Context, snap catalog.Snapshot, refs []catalog.Ref) (err error) {
	d, err := openDeep(ctx, v.cfg, snap, refs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	v.report.Deep = &d.report
	others := slices.DeleteFunc(refs, func(r catalog.Ref) bool { _, is := d.places[r.Name]; return is })
	if err := v.each(ctx, others, nil); err != nil {
		return err
	}
	return d.each(func(packs []catalog.Ref, said map[string][]fragment) error {
		return v.each(ctx, packs, func(r catalog.Ref, body []byte) { d.pack(r, body, said[r.Name]) })
	})
}

// objects reads the list that the note binds.
func (v *verification) objects(ctx context.Context, s catalog.Snapshot) ([]catalog.Ref, error) {
	list, err := v.cfg.Reader.Get(ctx, s.Objects.Name, s.Objects.Size, s.Objects.SHA256)
	if err != nil {
		return nil, err
	}
	return catalog.DecodeObjects(strings.NewReader(string(list)))
}

// each compares all copies of refs, and shows a good one of each to look.
func (v *verification) each(ctx context.Context, refs []catalog.Ref, look func(r catalog.Ref, body []byte)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(cmp.Or(max(v.cfg.Workers, 0), 2))
	for _, ref := range refs {
		group.Go(func() error {
			body, bad := v.object(ctx, ref)
			if bad && v.cfg.Heal != nil {
				v.heal(ctx, ref)
			}
			if look != nil {
				look(ref, body)
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// object compares each zone's copy and returns a good one.
func (v *verification) object(ctx context.Context, ref catalog.Ref) (good []byte, bad bool) {
	for _, name := range v.cfg.Reader.Zones() {
		body, err := v.cfg.Reader.Only(name).Get(ctx, ref.Name, ref.Size, ref.SHA256)
		if err == nil {
			good = body
		}
		bad = v.count(name, ref.Name, err) || bad
	}
	return good, bad
}

// count notes how one copy was found and says whether healing may help.
func (v *verification) count(zoneName, object string, err error) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	z := v.zones[zoneName]
	switch {
	case err == nil:
		z.Good++
		return false
	case errors.Is(err, context.Canceled):
		return false
	case errors.Is(err, fs.ErrNotExist):
		z.Missing++
	case errors.Is(err, zone.ErrDigest), errors.Is(err, vault.ErrNoGoodCopy):
		z.Wrong++
	default:
		z.Unreachable = err.Error()
		return false
	}
	if len(z.Faults) < maxFaults {
		z.Faults = append(z.Faults, ObjectFault{object, err.Error()})
	}
	return true
}

func (v *verification) heal(ctx context.Context, ref catalog.Ref) {
	healed, err := v.cfg.Heal.Heal(ctx, ref.Name, ref.Size, ref.SHA256)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, name := range healed {
		if z := v.zones[name]; z != nil {
			z.Healed = append(z.Healed, ref.Name)
		}
	}
	if err != nil {
		for _, z := range v.zones {
			for i := range z.Faults {
				if z.Faults[i].Name == ref.Name {
					z.Faults[i].Fault += "; healing: " + err.Error()
				}
			}
		}
	}
}

// notes asks each zone for its own copy of the commit.
func (v *verification) notes(ctx context.Context, s catalog.Snapshot) error {
	name := catalog.SnapshotName(s.Cluster, s.ID)
	for _, z := range v.cfg.Reader.Zones() {
		_, _, err := openSnapshot(ctx, v.cfg.Reader.Only(z), v.cfg.Trust, name, s.Cluster)
		v.count(z, name, err)
	}
	return ctx.Err()
}

package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Heal looks at every zone's copy of an object whose size and SHA-256 (hex) are
// known from a signed note, and repairs what is wrong or missing from a good
// one. It returns the zones that it healed; zones that could not be looked at
// are in the error, and owe the object.
func (w Writer) Heal(ctx context.Context, name string, size int64, sha256 string) (healed []string, err error) {
	v, want := w.v, Need{Name: name, Size: size, SHA256: sha256}
	if v.cfg.State == "" {
		return nil, fmt.Errorf("healing %s: %w", name, ErrReadOnly)
	}
	if v.barred(name) {
		return nil, fmt.Errorf("healing %s: %w", name, ErrRemoved)
	}
	s := v.placed(name)
	faults := make([]error, len(s.members))
	done := make([]bool, len(s.members))
	var wg sync.WaitGroup
	for i, m := range s.members {
		wg.Go(func() { done[i], faults[i] = v.healOne(ctx, m, want) })
	}
	wg.Wait()
	for i, m := range s.members {
		if done[i] {
			healed = append(healed, m.name)
		}
		if faults[i] != nil {
			faults[i] = fmt.Errorf("zone %s: %w", m.name, faults[i])
		}
	}
	if err := errors.Join(faults...); err != nil {
		return healed, fmt.Errorf("healing %s: %w", name, err)
	}
	return healed, nil
}

func (c *core) healOne(ctx context.Context, m *member, want Need) (healed bool, err error) {
	err = m.holds(ctx, want)
	if err == nil {
		m.settle(want.Name, debt{SHA256: want.SHA256})
		return false, nil
	}
	if errors.Is(err, zone.ErrDigest) || (errors.Is(err, fs.ErrNotExist) && !m.owes(want.Name)) {
		c.bad(m.name, want.Name, err)
	}
	owed := debt{Size: want.Size, SHA256: want.SHA256}
	if !sick(err) {
		err = c.copyTo(ctx, m, want.Name, owed, true)
	}
	if err == nil {
		m.settle(want.Name, owed)
		return true, nil
	}
	if !errors.Is(err, ErrRemoved) {
		err = errors.Join(err, m.debts.owe(want.Name, owed))
	}
	return false, err
}

func (m *member) owes(name string) bool {
	_, owed := m.debts.get(name)
	return owed || m.debts.held(name)
}

// holds reads the zone's own latest copy and compares it.
func (m *member) holds(ctx context.Context, want Need) (err error) {
	defer func() { m.saw(err, 0) }()
	body, err := m.body(ctx, want.Name, "", want.Size)
	if err != nil {
		return err
	}
	return matches(body, want)
}

// copyTo makes the zone hold the object: from the other zones, verified, with
// the lock that is owed. It repairs what is there and wrong.
func (c *core) copyTo(ctx context.Context, m *member, name string, owed debt, bulk bool) error {
	if c.barred(name) {
		return fmt.Errorf("copying %s: %w", name, ErrRemoved)
	}
	ctx, end, err := c.begin(ctx, name)
	if err != nil {
		return err
	}
	defer end()
	size := min(max(owed.Size, 1), c.cfg.Outstanding)
	if err := c.copying.Acquire(ctx, size); err != nil {
		return fmt.Errorf("copying %s: %w", name, err)
	}
	defer c.copying.Release(size)
	if owed.SHA256 != "" {
		err := m.holds(ctx, Need{Name: name, Size: owed.Size, SHA256: owed.SHA256})
		if err == nil || sick(err) {
			return err
		}
	}
	body, err := c.source(ctx, m, name, owed)
	if err != nil {
		return err
	}
	lock := c.lockFor(ctx, m, name, owed.LockUntil)
	if c.barred(name) { // it may have been forgotten while we read
		return fmt.Errorf("copying %s: %w", name, ErrRemoved)
	}
	mode := Repair
	if owed.SHA256 == "" {
		mode = Refuse // agreement of others is not knowledge enough to overwrite
	}
	return m.place(ctx, c.newJob(name, body, PutOptions{LockUntil: lock, Conflict: mode}, debt{}, bulk))
}

// source gets the right bytes from the other zones where the name belongs.
func (c *core) source(ctx context.Context, m *member, name string, owed debt) ([]byte, error) {
	others := c.root().placed(name)
	others.members = slices.DeleteFunc(slices.Clone(others.members), func(o *member) bool { return o == m })
	others.n--
	others.quorum = 1 // it was acknowledged: only all of them can say that it is gone
	if owed.SHA256 == "" {
		owed.SHA256 = digestIn(name)
	}
	if owed.SHA256 == "" {
		return agreed(ctx, others, name)
	}
	return c.root().get(ctx, Need{Name: name, Size: owed.Size, SHA256: owed.SHA256}, others)
}

func (c *core) root() *Vault { return &Vault{core: c, members: c.all, asked: len(c.all)} }

var digestRE = regexp.MustCompile(`-([0-9a-f]{64})\.age$`)

// digestIn is the SHA-256 that a name carries, as packs' names do.
func digestIn(name string) string {
	if m := digestRE.FindStringSubmatch(path.Base(name)); m != nil {
		return m[1]
	}
	return ""
}

// agreed reads an object whose digest nobody noted from all the zones that have
// it, which must agree: with two different copies, nobody can tell which is good.
func agreed(ctx context.Context, s set, name string) ([]byte, error) {
	var body []byte
	var holder string
	faults := map[string]error{}
	for _, m := range s.members {
		other, err := m.body(ctx, name, "", maxObject)
		if m.saw(err, 0); err != nil {
			faults[m.name] = err
			continue
		}
		if holder == "" {
			body, holder = other, m.name
		} else if sha256.Sum256(body) != sha256.Sum256(other) {
			return nil, fmt.Errorf("copying %s: zones %s and %s differ: %w", name, holder, m.name, ErrConflict)
		}
	}
	if holder == "" {
		return nil, &Faults{Act: "copying " + name, Kind: kindOf(faults, s), Zones: faults}
	}
	return body, nil
}

// supply makes the zone hold all that a note needs, locked for as long as the note.
// bulk: the note is none that somebody waits for.
func (c *core) supply(ctx context.Context, m *member, note string, owed debt, bulk bool) error {
	if len(owed.Needs) == 0 {
		return nil
	}
	if err := c.bringAll(ctx, m, owed.Needs, bulk); err != nil {
		return err
	}
	if err := m.extendOlder(ctx, note, owed); err != nil {
		return fmt.Errorf("locking what the note names: %w", err)
	}
	return nil
}

// extending is how many locks of one zone are looked at a time.
const extending = 8

// extendOlder lengthens the locks of what a note refers to and was not made for it:
// what lies beside the note got its lock when it was created.
func (m *member) extendOlder(ctx context.Context, note string, owed debt) error {
	if owed.LockUntil.IsZero() {
		return nil
	}
	own := path.Dir(note) + "/"
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(extending)
	for _, n := range owed.Needs {
		if strings.HasPrefix(n.Name, own) {
			continue
		}
		g.Go(func() error {
			return m.extend(ctx, n, owed.LockUntil)
		})
	}
	return g.Wait()
}

// extend lengthens the lock of every version that can be the object: readers take
// the oldest whose bytes are right, and somebody may have laid others over it.
func (m *member) extend(ctx context.Context, n Need, until time.Time) error {
	if until.IsZero() {
		return nil
	}
	var versions []string
	err := m.eachVersion(ctx, n.Name, func(o zone.Object) error {
		if o.Size == n.Size && !o.Marker {
			versions = append(versions, o.Version)
		}
		return nil
	})
	for _, v := range versions {
		err = errors.Join(err, m.ExtendLock(ctx, n.Name, v, until))
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return nil // as a creation in this zone would have done
	}
	return err
}

// bringAll copies what the zone lacks of needs.
func (c *core) bringAll(ctx context.Context, m *member, needs []Need, bulk bool) error {
	lacking, err := m.lacking(ctx, needs)
	if m.saw(err, 0); err != nil {
		return fmt.Errorf("looking for what the note names: %w", err)
	}
	for _, need := range lacking {
		owed, known := m.debts.get(need.Name)
		if !known || owed.SHA256 == "" {
			owed = debt{Size: need.Size, SHA256: need.SHA256}
		}
		if err := c.copyTo(ctx, m, need.Name, owed, bulk || mayWait(need.Name)); err != nil {
			return fmt.Errorf("the note names %s, which the zone lacks: %w", need.Name, err)
		}
		m.settle(need.Name, owed)
	}
	return nil
}

// fewNames are asked for one by one; more are looked up in their folder's list.
const fewNames = 16

// lacking is what the zone does not show in the right size.
func (m *member) lacking(ctx context.Context, needs []Need) ([]Need, error) {
	folders := map[string][]Need{}
	for _, n := range needs {
		folders[path.Dir(n.Name)] = append(folders[path.Dir(n.Name)], n)
	}
	var out []Need
	for folder, group := range folders {
		look := m.lackingOneByOne
		if len(group) > fewNames {
			look = func(ctx context.Context, group []Need) ([]Need, error) { return m.lackingIn(ctx, folder+"/", group) }
		}
		missing, err := look(ctx, group)
		if err != nil {
			return nil, err
		}
		out = append(out, missing...)
	}
	return out, nil
}

func (m *member) lackingOneByOne(ctx context.Context, needs []Need) ([]Need, error) {
	var out []Need
	for _, n := range needs {
		o, err := m.Stat(ctx, n.Name, "")
		switch {
		case errors.Is(err, fs.ErrNotExist):
			out = append(out, n)
		case err != nil:
			return nil, err
		case !claims(o, n):
			out = append(out, n)
		}
	}
	return out, nil
}

func (m *member) lackingIn(ctx context.Context, prefix string, needs []Need) ([]Need, error) {
	missing := make(map[string]Need, len(needs))
	for _, n := range needs {
		missing[n.Name] = n
	}
	err := m.List(ctx, prefix, func(o zone.Object) error {
		if n, ok := missing[o.Name]; ok && claims(o, n) {
			delete(missing, o.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]Need, 0, len(missing))
	for _, n := range missing {
		out = append(out, n)
	}
	return out, nil
}

// claims says whether what the zone tells of a copy fits; readers check the bytes.
func claims(o zone.Object, n Need) bool {
	return o.Size == n.Size && (o.SHA256 == "" || o.SHA256 == hexLower(n.SHA256))
}

func hexLower(s string) string {
	if b, err := hex.DecodeString(s); err == nil {
		return hex.EncodeToString(b)
	}
	return s
}

// lockFor is the lock that a copy gets: the one that is owed, else that of the
// copies there are; none where it has run out, since a store refuses such.
func (c *core) lockFor(ctx context.Context, m *member, name string, owed time.Time) time.Time {
	if owed.IsZero() {
		for _, o := range c.root().placed(name).members {
			if o == m {
				continue
			}
			if shown, err := o.Stat(ctx, name, ""); err == nil && shown.LockedUntil.After(owed) {
				owed = shown.LockedUntil
				break
			}
		}
	}
	if time.Until(owed) < time.Minute {
		return time.Time{}
	}
	return owed
}

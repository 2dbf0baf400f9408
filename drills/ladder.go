package drills

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// check asks one question and notes the answer; an error is a fault of asking,
// for which blame decides whose it is.
func (r *run) check(ctx context.Context, id, expected string, ask func(context.Context) (verdict, observed string, err error)) string {
	began := time.Now()
	verdict, observed, err := ask(ctx)
	c := Check{ID: id, Verdict: verdict, Expected: words("%s", expected), Observed: words("%s", observed), Seconds: time.Since(began).Seconds()}
	if verdict == failed {
		c.Class = ClassBackup
		if id == "purge" {
			c.Class = ClassPolicy
		}
	}
	if err != nil {
		outcome, class := blame(ctx, r.def.Zone != "", err)
		c.Verdict, c.Class, c.Observed = failed, class, words("%v", err)
		if outcome != Fail {
			c.Verdict, c.Class = gap, ""
			if ctx.Err() != nil {
				r.fail(ctx, id, err)
			}
		}
	}
	r.rec.Checks = append(r.rec.Checks, c)
	return c.Verdict
}

// climb goes up the ladder as far as the drill wants. After a restore that failed
// the lowest levels say why.
func (r *run) climb(ctx context.Context) {
	if r.rec.Failure != nil && (ctx.Err() != nil || r.choice.Snapshot == "" && r.rec.Snapshot == "") {
		return
	}
	began := time.Now()
	if err := r.look(ctx); err != nil {
		r.fail(ctx, "snapshot", err)
		return
	}
	r.check(ctx, "L0", "every object of the snapshot is listed by a zone with its size", r.listed)
	if r.wants("L1") {
		r.check(ctx, "L1", "every object of the snapshot has the bytes that its signed note binds", r.digests)
	}
	if r.wants("L2") {
		r.check(ctx, "L2", "the environment's identity opens the manifest, the packs and the WAL", r.opens)
	}
	r.rec.Phases = append(r.rec.Phases, Phase{Name: "objects", Seconds: time.Since(began).Seconds(), Bytes: r.bytes(), Outcome: "done"})
	r.explain()
	if r.room != nil {
		r.inRoom(ctx)
	}
}

// explain lets what the lowest levels saw correct the class of a restore's failure.
func (r *run) explain() {
	f := r.rec.Failure
	if f == nil || f.Outcome != Fail {
		return
	}
	for _, c := range r.rec.Checks {
		if c.Verdict == failed && (c.ID == "L0" || c.ID == "L1") && f.Class != c.Class && f.Class != ClassKey {
			f.Class = c.Class
			return
		}
	}
}

func (r *run) bytes() (n int64) {
	for _, o := range r.refs {
		n += o.Size
	}
	return n
}

// reader reads from the drill's zone, or from the best.
func (r *run) reader() vault.Reader {
	if r.def.Zone != "" {
		return r.deps.Repo.Reader.Only(r.def.Zone)
	}
	return r.deps.Repo.Reader
}

// listed compares the zones' listings with the signed list of objects.
func (r *run) listed(ctx context.Context) (string, string, error) {
	o := r.snap.Objects
	data, err := r.reader().Get(ctx, o.Name, o.Size, o.SHA256)
	if err != nil {
		return "", "", err
	}
	refs, err := catalog.DecodeObjects(strings.NewReader(string(data)))
	if err != nil {
		return "", "", fmt.Errorf("%w: %w", seal.ErrDamaged, err)
	}
	r.refs = append(refs, o)
	held := map[string]int{}
	answered := 0
	for _, z := range r.reader().Zones() {
		sizes, err := r.listing(ctx, z)
		if err != nil {
			r.note("L0:"+z, "the zone answers", err.Error())
			continue
		}
		answered++
		r.compare(z, sizes, held)
	}
	var missing []string
	for _, ref := range r.refs {
		if held[ref.Name] == 0 {
			missing = append(missing, ref.Name)
		}
	}
	switch {
	case answered == 0:
		return "", "", fmt.Errorf("%w: no zone listed its objects", vault.ErrDoubt)
	case len(missing) > 0:
		return failed, fmt.Sprintf("%d of %d objects are in no zone's listing, as %s", len(missing), len(r.refs), missing[0]), nil
	}
	return passed, fmt.Sprintf("%d objects of %d bytes in the listings of %d zones", len(r.refs), r.bytes(), answered), nil
}

// listing gives the sizes of all objects in the snapshot's directories in a zone.
func (r *run) listing(ctx context.Context, zone string) (map[string]int64, error) {
	var dirs []string
	for _, ref := range r.refs {
		dirs = append(dirs, path.Dir(ref.Name)+"/")
	}
	slices.Sort(dirs)
	sizes := map[string]int64{}
	for _, dir := range slices.Compact(dirs) {
		l, err := r.deps.Repo.Reader.Only(zone).List(ctx, dir)
		if err != nil {
			return nil, err
		}
		for _, o := range l.Objects {
			sizes[o.Name] = o.Size
		}
	}
	return sizes, nil
}

// compare notes what one zone lacks.
func (r *run) compare(zone string, sizes map[string]int64, held map[string]int) {
	lacks := 0
	for _, ref := range r.refs {
		if size, ok := sizes[ref.Name]; ok && size == ref.Size {
			held[ref.Name]++
			continue
		}
		lacks++
		fault := "not listed"
		if size, ok := sizes[ref.Name]; ok {
			fault = fmt.Sprintf("listed with %d bytes where %d were written", size, ref.Size)
		}
		r.badCopy(zone, ref.Name, fault)
	}
	if lacks > 0 {
		r.note("L0:"+zone, "the zone lists every object of the snapshot", fmt.Sprintf("%d of %d are missing or have another size", lacks, len(r.refs)))
	}
}

// note adds a gap.
func (r *run) note(id, expected, observed string) {
	r.rec.Checks = append(r.rec.Checks, Check{ID: id, Verdict: gap, Expected: words("%s", expected), Observed: words("%s", observed)})
}

func (r *run) badCopy(zone, object, fault string) {
	b := BadCopy{zone, object, cut(fault, 200)}
	for _, known := range r.rec.BadCopies {
		if known.Zone == zone && known.Object == object {
			return
		}
	}
	if len(r.rec.BadCopies) < maxCopies {
		r.rec.BadCopies = append(r.rec.BadCopies, b)
	}
}

// digests reads one copy of every object, each from another zone first, and the
// next zone's where one is wrong.
func (r *run) digests(ctx context.Context) (string, string, error) {
	zones := r.reader().Zones()
	bad := map[string]int{}
	var lost []string
	for i, ref := range r.refs {
		if err := ctx.Err(); err != nil {
			return "", "", err
		}
		good, doubt := false, error(nil)
		for j := range zones {
			z := zones[(i+j)%len(zones)]
			_, err := r.deps.Repo.Reader.Only(z).Get(ctx, ref.Name, ref.Size, ref.SHA256)
			if good = err == nil; good {
				r.rec.Cost.BytesRead += ref.Size
				break
			}
			if outcome, class := blame(ctx, true, err); outcome != Fail || class == ClassZone {
				doubt = err
				continue
			}
			bad[z]++
			r.badCopy(z, ref.Name, err.Error())
		}
		switch {
		case good:
		case doubt != nil:
			return "", "", fmt.Errorf("reading %s: %w", ref.Name, doubt)
		default:
			lost = append(lost, ref.Name)
		}
	}
	for _, z := range zones {
		if bad[z] > 0 {
			r.note("L1:"+z, "every copy that is read is whole", fmt.Sprintf("%d copies are missing or wrong; another zone's served", bad[z]))
		}
	}
	if len(lost) > 0 {
		return failed, fmt.Sprintf("%d of %d objects have no good copy, as %s", len(lost), len(r.refs), lost[0]), nil
	}
	return passed, fmt.Sprintf("%d objects read and compared", len(r.refs)), nil
}

// opens says that the identity opens what the restore opened; without a restore
// it opens the manifest and every map, pack and WAL object.
func (r *run) opens(ctx context.Context) (string, string, error) {
	if r.room != nil {
		each := "frame and each block"
		if r.deps.Digests == nil || r.room.Result.Unchecked != "" {
			each = "frame"
		}
		return passed, fmt.Sprintf("the restore opened the manifest and %d packs, each %s with its digest", r.room.Packs, each), nil
	}
	n := 0
	for _, ref := range r.refs {
		if !strings.HasSuffix(ref.Name, ".age") || strings.HasSuffix(ref.Name, ".idx.age") {
			continue
		}
		body, err := r.reader().Get(ctx, ref.Name, ref.Size, ref.SHA256)
		if err != nil {
			return "", "", err
		}
		r.rec.Cost.BytesRead += ref.Size
		switch {
		case ref.Name == r.snap.Manifest.Name:
			err = r.openManifest(body)
		case path.Base(path.Dir(ref.Name)) == "maps":
			_, err = seal.OpenBlob(body, r.deps.Repo.Data, 2*catalog.MapTarget)
		default:
			err = seal.DecodePack(body, r.deps.Repo.Data, nil, func(int, []byte) error { return ctx.Err() })
		}
		if err != nil {
			return "", "", fmt.Errorf("opening %s: %w", ref.Name, err)
		}
		n++
	}
	return passed, fmt.Sprintf("%d objects opened, each frame with its digest", n), nil
}

// openManifest reads a manifest to its end, line by line.
func (r *run) openManifest(body []byte) error {
	plain, err := seal.NewBlobReader(bytes.NewReader(body), r.deps.Repo.Data, maxManifest)
	if err != nil {
		return err
	}
	defer plain.Close()
	m, err := catalog.NewManifestReader(plain)
	if err != nil {
		return err
	}
	if m.Header.Snapshot != r.snap.ID || m.Header.Cluster != r.snap.Cluster {
		return fmt.Errorf("%w: it says that it is of %s of %s", seal.ErrDamaged, m.Header.Snapshot, m.Header.Cluster)
	}
	for err == nil {
		_, err = m.Next()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// maxManifest bounds a manifest, opened.
const maxManifest = 8 << 30

package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

var walName = regexp.MustCompile(`^[0-9A-F]{8}(\.history|[0-9A-F]{16}(\.partial|\.[0-9A-F]{8}\.backup)?)$`)

// FetchByName is `wal fetch NAME DEST` without a plan: restore_command of a
// standby, or of a recovery by hand. It returns an exit code of C-62: absent only
// where a fresh listing of enough zones proves it, and nothing that it lists was
// unreadable; a hole in the archive is a doubt, not an absence. A segment that
// the archive holds in part is given with zeros behind: there the log ends.
func FetchByName(ctx context.Context, r Repo, cluster, name, dest string) (code int, err error) {
	defer func() {
		if p := recover(); p != nil {
			code, err = ExitDoubt, fmt.Errorf("panic: %v", p)
		}
		if err != nil {
			err = fmt.Errorf("fetching %s of %s: %w", name, cluster, err)
		}
	}()
	if !walName.MatchString(name) {
		return ExitDoubt, errors.New("want the name of a WAL segment or a .history, .partial or .backup file")
	}
	a, err := openArchive(ctx, r, cluster, name)
	if err != nil {
		return ExitDoubt, err
	}
	file, err := a.find(ctx, name)
	if errors.Is(err, errAbsent) {
		return ExitAbsent, nil
	}
	if err != nil {
		return ExitDoubt, err
	}
	tmp := dest + ".holdfast"
	if err := writeWAL(ctx, r, file, tmp); err != nil {
		return ExitDoubt, errors.Join(err, remove(tmp))
	}
	// PostgreSQL makes sure of what it keeps, and asks again after a crash.
	if err := os.Rename(tmp, dest); err != nil {
		return ExitDoubt, errors.Join(err, remove(tmp))
	}
	return ExitFetched, nil
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// errAbsent means that a name is proven to be absent.
var errAbsent = errors.New("proven absent")

// archive is a fresh listing of a cluster's WAL, for files of one timeline.
type archive struct {
	*gatherer
	wal catalog.WALEntries
}

func openArchive(ctx context.Context, r Repo, cluster, name string) (archive, error) {
	// A reader that remembers nothing: the listing must be of now.
	r.Catalog = catalog.NewReader(r.Reader, r.Trust)
	wal, err := r.Catalog.WALEntries(ctx, cluster, "")
	if err != nil {
		return archive{}, err
	}
	timeline, err := strconv.ParseUint(name[:8], 16, 32)
	if err != nil {
		return archive{}, err
	}
	g := &gatherer{Repo: r, cluster: cluster}
	g.in.Timeline = uint32(timeline)
	return archive{g, wal}, nil
}

func (a archive) find(ctx context.Context, name string) (file File, err error) {
	if len(name) == 24 {
		file, err = a.segment(ctx, a.wal.List, name)
	} else {
		file, err = a.small(ctx, a.wal.List, name)
	}
	if errors.Is(err, errAbsent) && !a.wal.Complete {
		return File{}, fmt.Errorf("%w, and no zone that answered has it", catalog.ErrIncomplete)
	}
	return file, err
}

// small finds a file that is not a whole segment.
func (g *gatherer) small(ctx context.Context, entries []catalog.WALEntry, name string) (File, error) {
	own := slices.DeleteFunc(slices.Clone(entries), func(e catalog.WALEntry) bool { return e.Timeline != g.in.Timeline })
	notes, bad, err := g.Catalog.WALNotes(ctx, g.cluster, own)
	if err != nil {
		return File{}, err
	}
	for _, n := range slices.Backward(notes) {
		if n.Body.File == name && !n.Body.Slice {
			return File{Name: name, Size: n.Body.RawSize, Parts: []Part{wholePart(n.Body)}}, nil
		}
	}
	return File{}, proven(bad)
}

// proven is errAbsent unless something that was listed could not be read.
func proven(bad []catalog.Fault) error {
	if len(bad) > 0 {
		return fmt.Errorf("notes of the archive cannot be read: %w", joined(bad))
	}
	return errAbsent
}

// segment makes a segment of what the archive has of it.
func (g *gatherer) segment(ctx context.Context, entries []catalog.WALEntry, name string) (File, error) {
	segSize, err := g.segSize(ctx, entries)
	if err != nil {
		return File{}, err
	}
	_, from, err := lsn.ParseSegmentName(name, segSize)
	if err != nil {
		return File{}, err
	}
	to := from + lsn.LSN(segSize)
	near, before, behind := around(entries, g.in.Timeline, from, to)
	if !near && before && behind {
		return File{}, fmt.Errorf("the archive has WAL of timeline %d on both sides of it: there is a gap, not an end", g.in.Timeline)
	}
	if !near {
		return File{}, errAbsent
	}
	history, err := g.histories(ctx, entries)
	if err != nil {
		return File{}, err
	}
	return g.partly(ctx, entries, path(g.in.Timeline, history), segSize, from, to, behind)
}

// segSize is the size of the cluster's segments: a snapshot tells, or else a
// segment that is archived whole.
func (g *gatherer) segSize(ctx context.Context, entries []catalog.WALEntry) (int64, error) {
	snaps, err := g.Catalog.Snapshots(ctx, g.cluster)
	if err != nil {
		return 0, err
	}
	if n := len(snaps.All); n > 0 {
		return snaps.All[n-1].Body.SegSize, nil
	}
	for _, e := range entries {
		if size := int64(e.To - e.From); size < 1<<20 || size&(size-1) != 0 {
			continue // a slice, or no WAL
		}
		notes, _, err := g.Catalog.WALNotes(ctx, g.cluster, []catalog.WALEntry{e})
		if err != nil {
			return 0, err
		}
		if len(notes) == 1 && !notes[0].Body.Slice {
			return notes[0].Body.RawSize, nil
		}
	}
	return 0, errors.New("the repository shows neither a snapshot of the cluster nor a whole segment, so its segments' size is not known")
}

// around says whether a timeline's WAL is archived in, before and behind a stretch.
func around(entries []catalog.WALEntry, timeline uint32, from, to lsn.LSN) (near, before, behind bool) {
	for _, e := range entries {
		if e.Timeline == timeline && e.To > e.From {
			near = near || e.From < to && e.To > from
			before = before || e.From < from
			behind = behind || e.To > to
		}
	}
	return near, before, behind
}

// partly gives the segment up to where its bytes reach; short of its end only
// where nothing is archived behind.
func (g *gatherer) partly(ctx context.Context, entries []catalog.WALEntry, legs []leg, segSize int64, from, to lsn.LSN, behind bool) (File, error) {
	var span []catalog.WALEntry
	for _, e := range entries {
		if e.To > from && e.From < to {
			span = append(span, e)
		}
	}
	notes, bad, err := g.Catalog.WALNotes(ctx, g.cluster, span)
	if err != nil {
		return File{}, err
	}
	by := pieces(legs, notes)
	end := to
	for _, l := range legs {
		if l.From > from && l.From < to && l.Timeline == g.in.Timeline {
			end = l.From // the parent's share must be whole in any case
		}
	}
	if file, err := files(legs, by, segSize, from, to); err == nil {
		return file[0], nil
	}
	if end == to {
		end = from
	}
	_, _, end = cover(by[g.in.Timeline], end, to)
	if behind || end == from || len(bad) > 0 {
		return File{}, fmt.Errorf("the archive has only a part of it, up to %s%s", end, faults(bad))
	}
	whole, err := files(legs, by, segSize, from, end)
	if err != nil {
		return File{}, err
	}
	return whole[0], nil
}

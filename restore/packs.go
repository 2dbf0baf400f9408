package restore

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// job is one pack, and what of it is wanted.
type job struct {
	pack   catalog.ManifestPack
	list   []record // sorted
	source *source
}

// fetch brings what the records name, pack by pack. One goroutine asks the zones
// ahead of the workers that unpack, as far as window bytes of memory allow, and
// others write what was unpacked. It says how much it read.
func (t *tree) fetch(ctx context.Context, r Repo, workers int, rs *records, progress func(done, total int64)) (read int64, err error) {
	hands := workers + 2 // that write
	w, err := newWriters(t, workers+2*hands)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	g, ctx := errgroup.WithContext(ctx)
	jobs := make(chan *job, workers)
	g.Go(func() (err error) {
		defer close(jobs)
		read, err = t.ask(ctx, r, workers, rs, jobs)
		return err
	})
	var unpacking sync.WaitGroup
	for range workers {
		unpacking.Add(1)
		g.Go(func() error {
			defer unpacking.Done()
			var d seal.FrameDecoder
			for j := range jobs {
				if err := t.unpack(ctx, r, j, &d, w); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(w.work)
		unpacking.Wait()
		return nil
	})
	for range hands {
		g.Go(func() error {
			return w.run(func(n int64) {
				if done := t.done.Add(n); progress != nil {
					progress(done, rs.total)
				}
			})
		})
	}
	err = g.Wait()
	return read, err
}

// ask has the zones give what is wanted of each pack, in the order of jobs.
func (t *tree) ask(ctx context.Context, r Repo, workers int, rs *records, jobs chan<- *job) (read int64, err error) {
	window := newWindow(workers)
	err = rs.byPack(func(list []record) error {
		j := &job{pack: t.packs[list[0].frame.Pack], list: list}
		j.source = newSource(ctx, r.Reader, j.pack.Ref, window, j.spans())
		for _, p := range j.source.spans {
			read += p.to - p.from
		}
		select {
		case jobs <- j:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return j.source.run()
	})
	return read, err
}

// unpack has what is wanted of one pack written. Where a zone's bytes are not what
// they should be, the pack is read again as a whole, checked, from another.
func (t *tree) unpack(ctx context.Context, r Repo, j *job, d *seal.FrameDecoder, w *writers) error {
	left, err := t.decode(ctx, r, j.source, j, d, w)
	j.source.close()
	// A damaged header looks like one for other identities.
	if errors.Is(err, seal.ErrDamaged) || errors.Is(err, seal.ErrIdentity) {
		var body []byte
		if body, err = j.source.whole(); err == nil {
			_, err = t.decode(ctx, r, bytes.NewReader(body), &job{pack: j.pack, list: left}, d, w)
		}
	}
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", j.pack.Ref.Name, err)
	}
	return nil
}

// decode checks each wanted frame of a sealed pack and hands what it holds to the
// writers; left is what was not handed over before an error.
func (t *tree) decode(ctx context.Context, r Repo, sealed io.ReaderAt, j *job, d *seal.FrameDecoder, w *writers) (left []record, err error) {
	pr, err := seal.OpenPack(sealed, j.pack.Ref.Size, r.Data)
	if err != nil {
		return j.list, err
	}
	left = j.list
	err = frames(j.list, func(same []record) error {
		memory, err := w.memory(ctx)
		if err != nil {
			return err
		}
		f := same[0].frame
		raw, err := d.Frame(pr, seal.Frame{Off: f.Off, Len: int64(f.Len), Raw: f.Raw, SHA256: hex.EncodeToString(f.SHA256[:])}, memory)
		if err != nil {
			w.free <- memory
			return err
		}
		for _, x := range same {
			if int64(x.from)+int64(x.n) > int64(len(raw)) {
				return fmt.Errorf("%s: a frame of %d bytes has none at %d", t.path(int(x.file)), len(raw), x.from+x.n)
			}
			if t.digester != nil && t.digester.SumAll(raw[x.from:x.from+x.n]) != x.digests {
				return fmt.Errorf("%s: the %d bytes at %d are not those whose digests the page map tells: what was taken is not what would come back; restore another snapshot (--snapshot ID) and report this", t.path(int(x.file)), x.n, x.at)
			}
		}
		left = left[len(same):]
		return w.put(ctx, opened{same, raw})
	})
	return left, err
}

package restore

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

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
// ahead of the workers that unpack, as far as window bytes of memory allow. It
// says how much it read.
func (t *tree) fetch(ctx context.Context, r Repo, workers int, rs *records, progress func(done, total int64)) (read int64, err error) {
	t.settler = newSettler()
	defer func() { err = errors.Join(err, t.settler.end()) }()
	g, ctx := errgroup.WithContext(ctx)
	jobs := make(chan *job, workers)
	g.Go(func() error {
		defer close(jobs)
		window := semaphore.NewWeighted(int64(workers) * windowEach)
		return rs.byPack(func(list []record) error {
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
	})
	for range workers {
		g.Go(func() error {
			for j := range jobs {
				if err := t.unpack(ctx, r, j); err != nil {
					return err
				}
				done := int64(0)
				for _, x := range j.list {
					done += int64(x.n)
				}
				if done = t.done.Add(done); progress != nil {
					progress(done, rs.total)
				}
			}
			return nil
		})
	}
	err = g.Wait()
	return read, err
}

// unpack writes what is wanted of one pack. Where a zone's bytes are not what
// they should be, the pack is read again as a whole, checked, from another.
func (t *tree) unpack(ctx context.Context, r Repo, j *job) error {
	left, err := t.decode(ctx, r, j.source, j)
	j.source.close()
	// A damaged header looks like one for other identities.
	if errors.Is(err, seal.ErrDamaged) || errors.Is(err, seal.ErrIdentity) {
		var body []byte
		if body, err = j.source.whole(); err == nil {
			_, err = t.decode(ctx, r, bytes.NewReader(body), &job{pack: j.pack, list: left})
		}
	}
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", j.pack.Ref.Name, err)
	}
	return nil
}

// decode checks each wanted frame of a sealed pack and writes what it holds; left
// is what was not written before an error.
func (t *tree) decode(ctx context.Context, r Repo, sealed io.ReaderAt, j *job) (left []record, err error) {
	pr, err := seal.OpenPack(sealed, j.pack.Ref.Size, r.Data)
	if err != nil {
		return j.list, err
	}
	w := &writer{t: t, file: -1, to: t.settler}
	defer w.close()
	left = j.list
	d := pr.Decoder()
	err = frames(j.list, func(same []record) error {
		f := same[0].frame
		raw, err := d.Frame(seal.Frame{Off: f.Off, Len: int64(f.Len), Raw: f.Raw, SHA256: hex.EncodeToString(f.SHA256[:])})
		if err != nil {
			return err
		}
		for _, x := range same {
			if int64(x.from)+int64(x.n) > int64(len(raw)) {
				return fmt.Errorf("%s: a frame of %d bytes has none at %d", t.path(int(x.file)), len(raw), x.from+x.n)
			}
			if err := w.write(x, raw[x.from:x.from+x.n]); err != nil {
				return err
			}
		}
		left = left[len(same):]
		return ctx.Err()
	})
	return left, err
}

// settler has what was written go to disk while the rest is fetched, so that
// little is left to do when all is made durable at the end.
type settler struct {
	files chan *os.File
	done  sync.WaitGroup
	mu    sync.Mutex
	err   error
}

func newSettler() *settler {
	s := &settler{files: make(chan *os.File, 256)}
	for range 2 {
		s.done.Go(func() {
			for f := range s.files {
				// Advice: what the kernel does not take is written at the end.
				_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
				if err := f.Close(); err != nil {
					s.mu.Lock()
					s.err = errors.Join(s.err, err)
					s.mu.Unlock()
				}
			}
		})
	}
	return s
}

func (s *settler) end() error {
	close(s.files)
	s.done.Wait()
	return s.err
}

// writer keeps the file it wrote last open: pieces of a file come together.
type writer struct {
	t    *tree
	file int
	f    *os.File
	to   *settler
}

func (w *writer) write(x record, data []byte) error {
	i := int(x.file)
	e := &w.t.files[i]
	if e.kind == held {
		w.t.hold(i, x.at, data)
		return nil
	}
	if w.file != i {
		w.close()
		path, err := w.t.place(w.t.path(i))
		if err != nil {
			return err
		}
		if w.f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			return err
		}
		w.file = i
	}
	addSum(&e.sum, data, x.at, e.size)
	_, err := w.f.WriteAt(data, x.at)
	return err
}

func (w *writer) close() {
	if w.f == nil {
		return
	}
	w.to.files <- w.f
	w.f, w.file = nil, -1
}

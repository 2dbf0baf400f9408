package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// The WAL record of a tablespace's creation has its absolute path, and replay
// would make a link to that: on the source's host into production's own
// directories (C-65). So recovery gets such a record without the path, which
// makes it one of a tablespace in place: replay then takes pg_tblspc/OID as it
// finds it (create_tablespace_directories in tablespace.c, 14.5 and later; older
// servers end with an error). There Holdfast has put a link to a directory beside
// the restored cluster.

// newSpaces makes the places of tablespaces that replay creates.
type newSpaces struct {
	root string // the data directory
	own  func(paths ...string) error

	mu   sync.Mutex
	made map[uint32]string // directories by OID

	// defused: a path was taken out of a record that recovery replays.
	defused atomic.Bool
}

// changed notes that a record at a position was changed.
func (s *fetchServer) changed(at lsn.LSN) {
	if at >= s.plan.WAL.From {
		s.spaces.defused.Store(true)
	}
}

// place makes a tablespace's directory and the link to it, unless the data
// directory has it: then it is one of the snapshot's, and goes where those go.
func (n *newSpaces) place(oid uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	link := filepath.Join(n.root, "pg_tblspc", strconv.Itoa(int(oid)))
	if _, err := os.Lstat(link); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := n.root + ".tablespaces"
	dir := filepath.Join(parent, filepath.Base(link))
	for _, d := range []string{parent, dir} {
		if err := durable.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("making a place for tablespace %d: %w", oid, err)
		}
		if err := n.own(d); err != nil {
			return err
		}
	}
	// A restore that was here before may have left more there than replay writes over.
	if err := empty(dir); err != nil {
		return fmt.Errorf("making a place for tablespace %d: %w", oid, err)
	}
	if err := os.Symlink(dir, link); err != nil {
		return fmt.Errorf("making a place for tablespace %d: %w", oid, err)
	}
	n.made[oid] = dir
	return n.own(link)
}

// settleSpaces takes away the places of tablespaces that were created in the WAL
// and are none of the restored cluster's: dropped again, or created after the target.
func (room *Room) settleSpaces(ctx context.Context) error {
	n := room.fetch.spaces
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.made) == 0 {
		return nil
	}
	conn, err := room.Server.Conn(ctx, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT oid FROM pg_tablespace")
	if err != nil {
		return fmt.Errorf("asking for the tablespaces: %w", err)
	}
	live, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("asking for the tablespaces: %w", err)
	}
	for oid, dir := range n.made {
		if slices.Contains(live, oid) {
			room.tree.spaces[oid] = dir
			continue
		}
		link := filepath.Join(n.root, "pg_tblspc", filepath.Base(dir))
		if to, err := os.Readlink(link); err == nil && to == dir {
			if err := os.Remove(link); err != nil {
				return fmt.Errorf("removing the place of tablespace %d: %w", oid, err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("removing the place of tablespace %d: %w", oid, err)
		}
	}
	return nil
}

// edges are what the neighbours of a WAL file need to know of it.
type edges struct {
	creates     []uint32 // tablespaces that the file creates
	joins       bool     // it begins within a record that may create another
	first, last []byte   // pages; last only if the file ends within such a record
}

// defuse takes the paths of tablespaces out of a WAL file. What cannot be read as
// WAL is not given to recovery: behind the expected end it is made zeros, which
// end the log, and before that it is an error.
func (s *fetchServer) defuse(file File, data []byte) (e edges, err error) {
	cfg, ok := s.segment(file)
	if !ok || len(data) < walrec.PageSize {
		return e, nil
	}
	found, err := walrec.ScanTablespaces(cfg, data)
	if err != nil {
		if found.Read < s.plan.ExpectedEnd.LSN || found.Read < file.From {
			return e, err
		}
		clear(data[found.Read-file.From:])
	}
	e.joins = found.Joins
	e.first = slices.Clone(data[:walrec.PageSize])
	if found.Open {
		e.last = slices.Clone(data[len(data)-walrec.PageSize:])
	}
	for _, t := range found.Found {
		walrec.Apply(data, file.From, t.Edits)
		s.changed(t.Edits[0].At)
		e.creates = append(e.creates, t.OID)
	}
	return e, nil
}

// segment says how to read a file of the plan, if it is a WAL segment.
func (s *fetchServer) segment(file File) (walrec.Config, bool) {
	_, from, err := lsn.ParseSegmentName(file.Name, s.plan.SegSize)
	return walrec.Config{SegSize: s.plan.SegSize, Major: s.plan.Major, Start: from, Padded: true}, err == nil && from == file.From
}

// settle makes file i ready to be replayed: the records that its neighbours share
// with it are defused, and every tablespace that it creates has its place.
func (s *fetchServer) settle(ctx context.Context, i int, f *fetched) error {
	file, creates := s.plan.Files[i], f.creates
	if f.joins && i > 0 {
		last, err := s.lastPage(ctx, i-1)
		if err != nil {
			return err
		}
		more, err := s.seam(f.path, file, file.From, last, f.first)
		if err != nil {
			return err
		}
		creates = append(creates, more...)
	}
	if f.last != nil && i+1 < len(s.plan.Files) {
		next := s.begin(ctx, i+1)
		if err := next.wait(ctx); err != nil {
			return err
		}
		more, err := s.seam(f.path, file, file.From+lsn.LSN(file.Size), f.last, next.first)
		if err != nil {
			return err
		}
		creates = append(creates, more...)
	}
	for _, oid := range creates {
		if err := s.spaces.place(oid); err != nil {
			return err
		}
	}
	return nil
}

// lastPage is that of file i if it ends within a record of interest; a file that
// was not seen yet, as where recovery begins in the middle, is fetched for it.
func (s *fetchServer) lastPage(ctx context.Context, i int) ([]byte, error) {
	s.mu.Lock()
	page, known := s.last[i]
	s.mu.Unlock()
	if known {
		return page, nil
	}
	f := s.begin(ctx, i)
	if err := f.wait(ctx); err != nil {
		return nil, err
	}
	return f.last, nil
}

// seam defuses the record that crosses position at, between two pages, in file,
// which lies at path, and says what it creates.
func (s *fetchServer) seam(path string, file File, at lsn.LSN, last, first []byte) (creates []uint32, err error) {
	cfg, ok := s.segment(file)
	if !ok || last == nil || first == nil {
		return nil, nil
	}
	cfg.Start = at - walrec.PageSize
	both := append(slices.Clone(last), first...)
	found, err := walrec.ScanTablespaces(cfg, both)
	if err != nil && found.Read < at {
		return nil, err
	}
	for _, t := range found.Found {
		if t.Edits[0].At >= at || t.Edits[len(t.Edits)-1].At < at {
			continue
		}
		if err := rewrite(path, file.From, file.Size, t.Edits); err != nil {
			return nil, err
		}
		s.changed(t.Edits[0].At)
		creates = append(creates, t.OID)
	}
	return creates, nil
}

// rewrite puts edits into the file at path, which holds size bytes from position from on.
func rewrite(path string, from lsn.LSN, size int64, list []walrec.Edit) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.At >= from && e.At < from+lsn.LSN(size) {
			_, werr := f.WriteAt(e.Bytes, int64(e.At-from))
			err = errors.Join(err, werr)
		}
	}
	return errors.Join(err, f.Close())
}

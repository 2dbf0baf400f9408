package restore

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// fetchServer answers restore_command for one plan: the programs of the room ask
// by a socket and get the name of a file in the spool, to be moved into place. A
// name outside the plan is absent without asking anyone; one inside never is.
type fetchServer struct {
	repo  Repo
	plan  Plan
	spool string
	own   func(paths ...string) error
	ahead int           // files fetched before they are asked for
	retry time.Duration // how long a file that was asked for is tried

	listener net.Listener
	spaces   *newSpaces
	files    map[string]int // place in plan.Files
	slots    chan struct{}  // bounds the files in memory
	work     sync.WaitGroup

	mu     sync.Mutex
	ready  map[string]*fetched
	last   map[int][]byte // pages of files that were fetched: see edges
	bytes  int64          // fetched, as stored
	served int            // how far into plan.Files recovery came
	unsure error          // the last doubt
}

type fetched struct {
	done chan struct{}
	path string
	err  error
	edges
}

func (f *fetched) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fetched) failed() bool {
	select {
	case <-f.done:
		return f.err != nil
	default:
		return false
	}
}

// newFetchServer answers at socket for a restore into the data directory root.
func newFetchServer(ctx context.Context, r Repo, p Plan, root, socket, spool string, own func(...string) error) (*fetchServer, error) {
	s := &fetchServer{
		repo: r, plan: p, spool: spool, own: own, ahead: 4, retry: 30 * time.Second,
		files: map[string]int{}, ready: map[string]*fetched{}, slots: make(chan struct{}, 2), served: -1,
		last: map[int][]byte{}, spaces: &newSpaces{root: root, own: own, made: map[uint32]string{}},
	}
	for i, f := range p.Files {
		s.files[f.Name] = i
	}
	if err := os.Mkdir(spool, 0o700); err != nil {
		return nil, fmt.Errorf("making the WAL spool of the restore: %w", err)
	}
	if err := own(spool); err != nil {
		return nil, fmt.Errorf("making the WAL spool of the restore: %w", err)
	}
	var lc net.ListenConfig
	var err error
	if s.listener, err = lc.Listen(ctx, "unix", socket); err != nil {
		return nil, fmt.Errorf("listening for restore_command: %w", err)
	}
	return s, errors.Join(os.Chmod(socket, 0o600), own(socket))
}

// Run answers until ctx ends.
func (s *fetchServer) Run(ctx context.Context) error {
	defer s.work.Wait()
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("answering restore_command: %w", err)
		}
		s.work.Go(func() {
			defer conn.Close()
			s.answer(ctx, conn)
		})
	}
}

// answer reads one name and says "file PATH", "absent" or "doubt REASON".
func (s *fetchServer) answer(ctx context.Context, conn net.Conn) {
	line, err := bufio.NewReaderSize(conn, 512).ReadString('\n')
	if err != nil {
		return
	}
	name := strings.TrimSuffix(line, "\n")
	i, known := s.files[name]
	if !known {
		fmt.Fprintln(conn, "absent")
		return
	}
	path, err := s.take(ctx, i)
	s.note(i, err)
	if err != nil {
		fmt.Fprintln(conn, "doubt", strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	fmt.Fprintln(conn, "file", path)
}

func (s *fetchServer) note(i int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.unsure = err
		return
	}
	s.served = max(s.served, i)
}

// progress says how far into the plan's files recovery came.
func (s *fetchServer) progress() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served
}

// doubt takes the last reason why a file was not given.
func (s *fetchServer) doubt() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.unsure
	s.unsure = nil
	return err
}

// take waits for file i and sees to it that the next ones are under way. What
// failed before it was asked for is tried again.
func (s *fetchServer) take(ctx context.Context, i int) (string, error) {
	f := s.begin(ctx, i)
	for k := i + 1; k <= i+s.ahead && k < len(s.plan.Files); k++ {
		s.begin(ctx, k)
	}
	err := f.wait(ctx)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err == nil {
		err = s.settle(ctx, i, f)
	}
	s.mu.Lock()
	delete(s.ready, s.plan.Files[i].Name) // asked again, it is fetched again
	s.mu.Unlock()
	return f.path, err
}

// begin starts fetching file i unless that is under way or done.
func (s *fetchServer) begin(ctx context.Context, i int) *fetched {
	name := s.plan.Files[i].Name
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.ready[name]; ok && !f.failed() {
		return f
	}
	f := &fetched{done: make(chan struct{})}
	s.ready[name] = f
	s.work.Go(func() {
		defer close(f.done)
		f.path, f.edges, f.err = s.fetch(ctx, i)
	})
	return f
}

// fetch makes one file in the spool, trying for a bounded time.
func (s *fetchServer) fetch(ctx context.Context, i int) (string, edges, error) {
	until := time.Now().Add(s.retry)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		path, e, err := s.fetchOnce(ctx, i)
		if err == nil || time.Now().Add(wait).After(until) {
			return path, e, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return "", e, ctx.Err()
		}
	}
}

func (s *fetchServer) fetchOnce(ctx context.Context, i int) (_ string, e edges, err error) {
	file := s.plan.Files[i]
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return "", e, ctx.Err()
	}
	data, n, err := assemble(ctx, s.repo, file)
	if err == nil {
		e, err = s.defuse(file, data)
	}
	s.mu.Lock()
	s.bytes += n
	if err == nil {
		s.last[i] = e.last
	}
	s.mu.Unlock()
	if err != nil {
		return "", e, fmt.Errorf("fetching %s: %w", file.Name, err)
	}
	path, err := s.store(file.Name, data)
	return path, e, err
}

func (s *fetchServer) store(name string, data []byte) (string, error) {
	path := filepath.Join(s.spool, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", fmt.Errorf("spooling %s: %w", name, err)
	}
	return path, s.own(path)
}

// assemble fetches, checks and opens the parts of a file; n is what was fetched.
func assemble(ctx context.Context, r Repo, file File) (data []byte, n int64, err error) {
	for _, p := range file.Parts {
		sealed, err := r.Reader.Get(ctx, p.Object.Name, p.Object.Size, p.Object.SHA256)
		if err != nil {
			return nil, n, err
		}
		n += int64(len(sealed))
		raw, err := seal.OpenFile(sealed, r.identities(), p.RawSize)
		if err != nil {
			return nil, n, fmt.Errorf("opening %s: %w", p.Object.Name, err)
		}
		if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != p.Raw || p.Off < 0 || p.Len < 0 || p.Off+p.Len > int64(len(raw)) {
			return nil, n, fmt.Errorf("%s: its %d bytes have SHA-256 %x, its note says %s", p.Object.Name, len(raw), sum, p.Raw)
		}
		if p.Len == file.Size && data == nil {
			data = raw[p.Off : p.Off+p.Len] // all of it: nothing to put together
			continue
		}
		if data == nil {
			data = make([]byte, 0, file.Size)
		}
		data = append(data, raw[p.Off:p.Off+p.Len]...)
	}
	if int64(len(data)) > file.Size {
		return nil, n, fmt.Errorf("%s: its parts have %d bytes, want %d", file.Name, len(data), file.Size)
	}
	if rest := file.Size - int64(len(data)); rest > 0 {
		data = append(data, make([]byte, rest)...)
	}
	return data, n, nil
}

// Package incident holds conditions that open, are told, and close.
//
// An incident is known by its key (what kind of fault, of what): opening it again
// while it is open only counts; it is closed by the one who sees the opposite, with
// a reason, never by time. The files are the node's own and can be lost: what
// happened stands in the ledger. It never decides what is a fault, and a store that
// cannot be written is an error to its caller.
package incident

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

// Incident is one condition.
type Incident struct {
	ID       string    `json:"id"`
	Key      string    `json:"key"` // kind and subject, as "drill-failed/weekly-cms"
	Cluster  string    `json:"cluster,omitempty"`
	Severity string    `json:"severity"` // critical | warning
	Title    string    `json:"title"`
	Detail   string    `json:"detail"`
	Remedy   string    `json:"remedy,omitempty"`
	OpenedAt time.Time `json:"opened_at"`
	LastSeen time.Time `json:"last_seen"`
	Times    int       `json:"times"`
	ClosedAt time.Time `json:"closed_at,omitzero"`
	Closed   string    `json:"closed_by,omitempty"` // what showed that it is over
	Notes    []Note    `json:"notes,omitempty"`     // what people wrote about it, in order
}

// Note is what a person did about an incident, or found.
type Note struct {
	At   time.Time `json:"at"`
	By   string    `json:"by,omitempty"` // a role, never a name: the ledger keeps it for good
	Text string    `json:"text"`
}

// ErrUnknown means that there is no incident of that id or key.
var ErrUnknown = errors.New("no such incident on this node")

// Open says whether it is not closed.
func (i Incident) Open() bool { return i.ClosedAt.IsZero() }

// Store keeps incidents in a directory. It is safe for concurrent use.
type Store struct {
	dir string
	mu  sync.Mutex
}

// New keeps incidents in dir, which it makes.
func New(dir string) (*Store, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the incidents' directory: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Raise opens i, or counts it once more if one with its key is open. opened says
// that it is new, and so to be told.
func (s *Store) Raise(i Incident, now time.Time) (out Incident, opened bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.read()
	if err != nil {
		return Incident{}, false, err
	}
	for _, known := range all {
		if known.Key == i.Key && known.Open() {
			known.LastSeen, known.Detail, known.Times = now, i.Detail, known.Times+1
			return known, false, s.write(known)
		}
	}
	i.ID = now.UTC().Format("20060102T150405.000000") + "-" + strings.ReplaceAll(i.Key, "/", "-")
	i.OpenedAt, i.LastSeen, i.Times = now, now, 1
	return i, true, s.write(i)
}

// Close closes the open incident with key, if there is one, because of what was seen.
func (s *Store) Close(key, seen string, now time.Time) (closed *Incident, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.read()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Key == key && i.Open() {
			i.ClosedAt, i.Closed = now, seen
			return &i, s.write(i)
		}
	}
	return nil, nil
}

// Note adds a note to the incident with an id, or to the newest with a key; a
// closed one takes notes as well.
func (s *Store) Note(which string, n Note) (Incident, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.read()
	if err != nil {
		return Incident{}, err
	}
	for _, i := range all {
		if i.ID == which || i.Key == which {
			i.Notes = append(i.Notes, n)
			return i, s.write(i)
		}
	}
	return Incident{}, fmt.Errorf("incident %q: %w", which, ErrUnknown)
}

// List gives all incidents, the newest first.
func (s *Store) List() ([]Incident, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read()
}

func (s *Store) read() ([]Incident, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing incidents: %w", err)
	}
	var out []Incident
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading an incident: %w", err)
		}
		var i Incident
		if err := json.Unmarshal(data, &i); err != nil {
			return nil, fmt.Errorf("reading incident %s: %w; move the file away to go on without it", e.Name(), err)
		}
		out = append(out, i)
	}
	sort.Slice(out, func(a, b int) bool { return out[a].ID > out[b].ID })
	return out, nil
}

func (s *Store) write(i Incident) error {
	data, err := json.MarshalIndent(i, "", " ")
	if err != nil {
		return fmt.Errorf("writing incident %s: %w", i.ID, err)
	}
	if err := durable.WriteFile(filepath.Join(s.dir, i.ID+".json"), data, 0o600); err != nil {
		return fmt.Errorf("writing incident %s: %w", i.ID, err)
	}
	return nil
}

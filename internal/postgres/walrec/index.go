package walrec

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Carry is what is known at the end of a piece of WAL, so that the next piece can
// be read as if both were one: the place, and a record that the end cut (up to
// [KeepBytes]). Its JSON may be kept across a restart. The zero Carry knows nothing.
type Carry struct{ s state }

// Next is where the next piece must begin; 0 of the zero Carry.
func (c Carry) Next() lsn.LSN { return c.s.Pos }

// Start is where a reader that knows nothing must begin to see all that the next
// piece completes: at or before Next.
func (c Carry) Start() lsn.LSN {
	if c.s.Got > 0 {
		return c.s.RecStart
	}
	return c.s.Pos
}

// IsZero says whether the Carry knows nothing.
func (c Carry) IsZero() bool { return c.s.Pos == 0 }

// MarshalJSON implements json.Marshaler.
func (c Carry) MarshalJSON() ([]byte, error) { return json.Marshal(c.s) }

// UnmarshalJSON implements json.Unmarshaler; what no Reader can have left is refused.
func (c *Carry) UnmarshalJSON(b []byte) error {
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("WAL reader's carry: %w", err)
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("WAL reader's carry at %s: %w", s.Pos, err)
	}
	c.s = s
	return nil
}

func (s *state) check() error {
	kept := min(int(s.Got), KeepBytes)
	switch {
	case s.Mode > afterSwitch || len(s.Header) >= longHeader || len(s.Record) != kept:
	case s.Got > 0 && s.Mode != inRecords || (s.Skip > 0) != (s.Mode == skipping) || s.Skip > maxRecord:
	case len(s.Header) > int(s.Pos%PageSize):
	case s.Got >= 4 && (&Reader{s: *s}).length() <= s.Got:
	default:
		return nil
	}
	return fmt.Errorf("contradicts itself")
}

// Carry returns what the Reader knows. It shares nothing with the Reader.
func (r *Reader) Carry() Carry {
	c := Carry{r.s}
	c.s.Header = append([]byte(nil), r.s.Header...)
	c.s.Record = nil
	if r.s.Got > 0 {
		c.s.Record = append([]byte(nil), r.s.Record...)
	}
	return c
}

// Resume goes on where another Reader of the same WAL stopped; cfg.Start must be
// its position. A zero Carry makes it NewReader.
func Resume(cfg Config, c Carry) (*Reader, error) {
	if c.IsZero() {
		return NewReader(cfg)
	}
	if cfg.Start != c.s.Pos {
		return nil, fmt.Errorf("reading WAL from %s: what was read before ends at %s", cfg.Start, c.s.Pos)
	}
	cfg.Start = cfg.Start / PageSize * PageSize
	r, err := NewReader(cfg)
	if err != nil {
		return nil, err
	}
	off, size := int(c.s.Pos%PageSize), headerSize(c.s.Pos, cfg.SegSize)
	if want := min(off, size) % size; len(c.s.Header) != want {
		return nil, fmt.Errorf("reading WAL from %s: the carry holds %d bytes of a page header, want %d", c.s.Pos, len(c.s.Header), want)
	}
	r.s = c.s
	r.s.Header = append([]byte(nil), c.s.Header...)
	r.s.Record = append([]byte(nil), c.s.Record...)
	return r, nil
}

// Index says what recovery can aim at in a piece of WAL: what ends in it, even
// when it began in the piece before.
type Index struct {
	Format int `json:"format"` // 1
	// Timeline is the last that a page named.
	Timeline uint32  `json:"timeline"`
	From     lsn.LSN `json:"from"`
	To       lsn.LSN `json:"to"` // exclusive
	Records  int     `json:"records"`
	// FirstRecord is the start of the first and LastRecord of the last record that ends here.
	FirstRecord lsn.LSN `json:"first_record,omitzero"`
	LastRecord  lsn.LSN `json:"last_record,omitzero"`
	// LastRecordEnd is the end of the last whole record up to To, in this piece or
	// an earlier one: how far replay can come with WAL up to To.
	LastRecordEnd lsn.LSN `json:"last_record_end,omitzero"`
	// Ended says that zeros follow the last record: the log stopped here.
	Ended         bool           `json:"ended,omitempty"`
	FirstTime     time.Time      `json:"first_time,omitzero"` // least and greatest time of commits and aborts
	LastTime      time.Time      `json:"last_time,omitzero"`
	Commits       Commits        `json:"commits"` // and aborts, in order
	RestorePoints []RestorePoint `json:"restore_points,omitempty"`
	Marks         []Mark         `json:"marks,omitempty"` // all other kinds, in order
	// Changes names the blocks that changed; nil when that is not known, and then
	// Unknown may say why.
	Changes *Changes `json:"changes,omitempty"`
	Unknown string   `json:"changes_unknown,omitempty"`

	seen *collector
}

// Commit is a commit or abort record.
type Commit struct {
	Start, End lsn.LSN
	Xid        uint32
	Time       time.Time
	Abort      bool
}

// RestorePoint is what pg_create_restore_point left.
type RestorePoint struct {
	Start lsn.LSN   `json:"start"`
	End   lsn.LSN   `json:"end"`
	Name  string    `json:"name"`
	Time  time.Time `json:"time"`
}

// Mark is a record of another kind that matters to recovery.
type Mark struct {
	Start lsn.LSN `json:"start"`
	End   lsn.LSN `json:"end"`
	Decoded
}

// BuildIndex reads a piece of WAL that begins at cfg.Start and lies behind what
// carry has seen; carry is zero when that is unknown, and then a record that
// began before cfg.Start is not in the index.
func BuildIndex(cfg Config, carry Carry, data []byte) (Index, Carry, error) {
	r, err := Resume(cfg, carry)
	if err != nil {
		return Index{}, Carry{}, err
	}
	ix := Index{Format: 1, From: cfg.Start, Commits: Commits{}, seen: newCollector(cfg.Start)}
	if carry.s.Got > 0 {
		ix.seen.from = carry.s.RecStart
	}
	if err := r.Feed(data, ix.Add); err != nil {
		return Index{}, Carry{}, fmt.Errorf("indexing WAL from %s: %w", cfg.Start, err)
	}
	ix.Finish(r)
	return ix, r.Carry(), nil
}

// Add enters one record: a visit function for [Reader.Feed].
func (ix *Index) Add(r *Record) error {
	if ix.Records == 0 {
		ix.FirstRecord = r.Start
	}
	ix.Records++
	ix.LastRecord = r.Start
	if ix.seen != nil {
		ix.seen.add(r)
	}
	if r.Rmgr > rmgrXact {
		return nil
	}
	d, err := r.Decode()
	if err != nil {
		return err
	}
	switch d.Kind {
	case Other:
	case CommitKind, AbortKind:
		ix.Commits = append(ix.Commits, Commit{r.Start, r.End, d.Xid, d.Time, d.Kind == AbortKind})
		if ix.FirstTime.IsZero() || d.Time.Before(ix.FirstTime) {
			ix.FirstTime = d.Time
		}
		if d.Time.After(ix.LastTime) {
			ix.LastTime = d.Time
		}
	case RestorePointKind:
		ix.RestorePoints = append(ix.RestorePoints, RestorePoint{r.Start, r.End, d.Name, d.Time})
	default:
		ix.Marks = append(ix.Marks, Mark{r.Start, r.End, d})
	}
	return nil
}

// Finish completes the index of what r has read.
func (ix *Index) Finish(r *Reader) {
	ix.Format, ix.To, ix.Timeline = 1, r.Pos(), r.s.Timeline
	ix.LastRecordEnd, ix.Ended = r.LastRecordEnd(), r.Ended()
	if ix.seen == nil {
		return
	}
	changes, err := ix.seen.finish(r)
	if ix.Changes, ix.seen = changes, nil; err != nil {
		ix.Unknown = err.Error()
	}
}

// Commits has a compact JSON, for a segment can hold a hundred thousand: one
// array of integers, five a commit: the start less the start before, the length
// (end less start), the xid, the microseconds since 1970 less those before, and
// 1 for an abort.
type Commits []Commit

// MarshalJSON implements json.Marshaler.
func (cs Commits) MarshalJSON() ([]byte, error) {
	out := make([]int64, 0, 5*len(cs))
	var at lsn.LSN
	var t int64
	for _, c := range cs {
		abort := int64(0)
		if c.Abort {
			abort = 1
		}
		out = append(out, int64(c.Start-at), int64(c.End-c.Start), int64(c.Xid), c.Time.UnixMicro()-t, abort)
		at, t = c.Start, c.Time.UnixMicro()
	}
	return json.Marshal(out)
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (cs *Commits) UnmarshalJSON(b []byte) error {
	var in []int64
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("WAL index: commits: %w", err)
	}
	if len(in)%5 != 0 {
		return fmt.Errorf("WAL index: commits: %d numbers, want five a commit", len(in))
	}
	*cs = make(Commits, 0, len(in)/5)
	var at lsn.LSN
	var t int64
	for ; len(in) > 0; in = in[5:] {
		at += lsn.LSN(in[0])
		t += in[3]
		*cs = append(*cs, Commit{at, at + lsn.LSN(in[1]), uint32(in[2]), time.UnixMicro(t).UTC(), in[4] != 0})
	}
	return nil
}

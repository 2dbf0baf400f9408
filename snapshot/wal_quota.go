package snapshot

import (
	"errors"
	"fmt"
	"sync"
)

// ErrSpoolFull means that a part has no room in the spool now: what is there has to
// leave first, or the disk needs room. Nothing is lost: the server keeps its WAL.
var ErrSpoolFull = errors.New("the WAL spool is full")

// Disk is what a spool asks for room on its file system, beside its quota: a
// durable.Reserve. alone says that nothing else waits in the spool.
type Disk interface {
	Room(bytes int64, alone bool) error
}

// The sizes of a file system's block and of what the spool keeps beside parts: the
// end of the chain, twice while it is replaced.
const (
	spoolBlock  = 4 << 10
	spoolBeside = 64 << 10
)

// quota is what the files of a spool may take, and do.
type quota struct {
	mu       sync.Mutex
	most     int64            // 0: no limit
	sizes    map[string]int64 // of files, by object
	used     int64            // their sum
	promised int64            // to parts that are not written yet
	disk     Disk             // nil: not asked
	refused  error            // why the last part had no room; nil: it had
}

func newQuota(most int64, disk Disk) *quota {
	return &quota{most: most, disk: disk, sizes: map[string]int64{}}
}

// room is a promise of bytes in a spool.
type room struct {
	q     *quota
	bytes int64
}

// admit promises room for a part of at most n bytes. Where nothing else is in the
// spool it has room whatever the quota: a segment may be larger.
func (q *quota) admit(n int64) (*room, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = blocks(n)
	alone := q.used+q.promised == 0
	switch {
	case q.most > 0 && !alone && q.used+q.promised+n+spoolBeside > q.most:
		q.refused = fmt.Errorf("%w: %d bytes of its %d wait for the zones, and %d more do not fit; they leave when the write quorum answers", ErrSpoolFull, q.used+q.promised, q.most, n)
	case q.disk != nil:
		q.refused = nil
		if err := q.disk.Room(q.promised+n, alone); err != nil {
			q.refused = fmt.Errorf("%w: %w", ErrSpoolFull, err)
		}
	default:
		q.refused = nil
	}
	if q.refused != nil {
		return nil, q.refused
	}
	q.promised += n
	return &room{q, n}, nil
}

func blocks(n int64) int64 { return (n + spoolBlock - 1) / spoolBlock * spoolBlock }

// release gives back what was not used; a second call does nothing.
func (r *room) release() {
	if r == nil {
		return
	}
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	r.q.promised -= r.bytes
	r.bytes = 0
}

// written says that the file of an object is there, of so many bytes, in the room that
// was promised for it; r may be nil.
func (q *quota) written(object string, n int64, r *room) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r != nil {
		q.promised -= r.bytes
		r.bytes = 0
	}
	q.used += blocks(n) - q.sizes[object]
	q.sizes[object] = blocks(n)
}

// gone says that an object's file is there no more.
func (q *quota) gone(object string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used -= q.sizes[object]
	delete(q.sizes, object)
}

// SpoolState is how full a spool is.
type SpoolState struct {
	Bytes int64 // on disk, or promised to what is being sealed
	Quota int64 // 0: none
	Parts int
	// Full is why nothing more is taken now; nil when there is room.
	Full error
}

func (q *quota) state() SpoolState {
	q.mu.Lock()
	defer q.mu.Unlock()
	return SpoolState{Bytes: q.used + q.promised, Quota: q.most, Parts: len(q.sizes), Full: q.refused}
}

// most is how many bytes p takes in the spool at most: what zstd cannot compress, age's
// tags, and a first line with the headers of both objects.
func (p part) most() int64 {
	n := int64(len(p.data)) + int64(len(p.marks.index))
	return n + n/128 + 64<<10
}

package vault

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

func pathIn(dir, file string) string { return filepath.Join(dir, file) }

// journal is a durable map from object names to values, in the order in which
// they were first put. Those who put at the same time share one fsync; a
// deletion may wait for the next put, since all that it saves is a second look.
type journal[T any] struct {
	mu    sync.Mutex
	idle  *sync.Cond // the writer has stopped
	path  string     // "" for memory only
	log   *durable.Log
	live  map[string]entry[T]
	seq   uint64
	lines int      // records in the file
	lazy  [][]byte // deletions not yet on disk
	next  *batch
	busy  bool
}

type entry[T any] struct {
	seq   uint64
	value T
}

type batch struct {
	records [][]byte
	bytes   int
	err     error
	done    chan struct{}
}

// line is one record: a value put, or without one a name deleted.
type line[T any] struct {
	Key   string `json:"k"`
	Value *T     `json:"v,omitempty"`
}

// A record has to fit into one append with room to spare.
const (
	maxRecord = 24 << 20
	maxLazy   = 4096
)

func newJournal[T any]() *journal[T] {
	j := &journal[T]{live: map[string]entry[T]{}}
	j.idle = sync.NewCond(&j.mu)
	return j
}

// open replays the file; a record that cannot be read is an error: it was
// acknowledged.
func (j *journal[T]) open(path string) error {
	log, err := durable.OpenLog(path, j.replay)
	if err != nil {
		return fmt.Errorf("replaying the vault's journal: %w", err)
	}
	j.path, j.log = path, log
	return nil
}

func (j *journal[T]) replay(record []byte) error {
	var l line[T]
	if err := json.Unmarshal(record, &l); err != nil || l.Key == "" {
		return fmt.Errorf("record %d of the journal is not one of ours: %w", j.lines+1, err)
	}
	j.lines++
	if l.Value == nil {
		delete(j.live, l.Key)
	} else {
		j.set(l.Key, *l.Value)
	}
	return nil
}

func (j *journal[T]) set(key string, v T) {
	e, known := j.live[key]
	if !known {
		j.seq++
		e.seq = j.seq
	}
	e.value = v
	j.live[key] = e
}

// update changes the value of a key durably: change gets the value there is and
// returns the one to keep, or keep=false to leave things as they are. Memory
// shows the change at once, the disk when update returns nil.
func (j *journal[T]) update(key string, change func(old T, known bool) (value T, keep bool)) error {
	j.mu.Lock()
	old, known := j.live[key]
	v, keep := change(old.value, known)
	if !keep {
		j.mu.Unlock()
		return nil
	}
	record, err := encodeLine(key, &v)
	if err != nil {
		j.mu.Unlock()
		return err
	}
	j.set(key, v)
	if j.path == "" {
		j.mu.Unlock()
		return nil
	}
	b := j.enqueue(record)
	j.mu.Unlock()
	<-b.done
	return b.err
}

func encodeLine[T any](key string, v *T) ([]byte, error) {
	record, err := json.Marshal(line[T]{Key: key, Value: v})
	if err == nil && len(record) > maxRecord {
		err = fmt.Errorf("record of %d bytes is larger than %d", len(record), maxRecord)
	}
	if err != nil {
		return nil, fmt.Errorf("journalling %s: %w", key, err)
	}
	return record, nil
}

// delete takes a key out: in memory at once, on disk with the next put.
func (j *journal[T]) delete(key string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, known := j.live[key]; !known {
		return
	}
	delete(j.live, key)
	if j.path == "" {
		return
	}
	record, err := encodeLine[T](key, nil)
	if err != nil {
		return // the name was encoded when it was put
	}
	j.lazy = append(j.lazy, record)
	if len(j.lazy) >= maxLazy && !j.busy {
		j.busy = true
		go j.write()
	}
}

// enqueue adds a record to the next batch and starts the writer. The caller
// holds the lock.
func (j *journal[T]) enqueue(record []byte) *batch {
	if j.next == nil {
		j.next = &batch{done: make(chan struct{})}
	}
	b := j.next
	b.records = append(b.records, record)
	b.bytes += len(record)
	if !j.busy {
		j.busy = true
		go j.write()
	}
	return b
}

// write carries batches to the disk until there are none.
func (j *journal[T]) write() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.next != nil || len(j.lazy) >= maxLazy {
		b := j.next
		if b == nil {
			b = &batch{done: make(chan struct{})}
		}
		j.next = nil
		lazy := j.lazy
		j.lazy = nil
		j.mu.Unlock()
		err := j.append(lazy, b)
		j.mu.Lock()
		if err != nil {
			j.lazy = append(lazy, j.lazy...)[:min(len(lazy)+len(j.lazy), maxLazy-1)]
		}
		b.err = err
		close(b.done)
	}
	j.busy = false
	j.idle.Broadcast()
}

// append writes what was deleted, then what was put. Only the writer calls it.
func (j *journal[T]) append(lazy [][]byte, b *batch) error {
	if j.log == nil {
		return j.reopen()
	}
	err := j.log.Append(lazy...)
	for rest := b.records; err == nil && len(rest) > 0; {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size+len(rest[n]) < maxRecord) {
			size += len(rest[n])
			n++
		}
		err = j.log.Append(rest[:n]...)
		rest = rest[n:]
	}
	if err != nil {
		// A log that failed takes no more: the next write opens it anew.
		err = errors.Join(err, j.log.Close())
		j.log = nil
		return fmt.Errorf("journalling what a zone misses: %w", err)
	}
	j.lines += len(lazy) + len(b.records)
	return j.compact()
}

// reopen begins anew with what memory knows, which is at least what the disk did
// and includes what is being put.
func (j *journal[T]) reopen() error {
	log, err := durable.OpenLog(j.path, func([]byte) error { return nil })
	if err != nil {
		return fmt.Errorf("opening the vault's journal again after a fault: %w", err)
	}
	j.log = log
	return j.rewrite()
}

func (j *journal[T]) compact() error {
	j.mu.Lock()
	live := len(j.live)
	j.mu.Unlock()
	if j.lines < 2*live+1024 {
		return nil
	}
	return j.rewrite()
}

func (j *journal[T]) rewrite() error {
	var records [][]byte
	for _, l := range j.all() {
		record, err := encodeLine(l.Key, l.Value)
		if err != nil {
			return err
		}
		records = append(records, record)
	}
	if err := j.log.Rewrite(records); err != nil {
		err = errors.Join(err, j.log.Close())
		j.log = nil
		return fmt.Errorf("compacting the vault's journal: %w", err)
	}
	j.lines = len(records)
	return nil
}

// all is what is there, oldest first.
func (j *journal[T]) all() []line[T] {
	j.mu.Lock()
	defer j.mu.Unlock()
	type item struct {
		seq uint64
		line[T]
	}
	items := make([]item, 0, len(j.live))
	for key, e := range j.live {
		items = append(items, item{e.seq, line[T]{Key: key, Value: &e.value}})
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Compare(a.seq, b.seq) })
	out := make([]line[T], len(items))
	for i, it := range items {
		out[i] = it.line
	}
	return out
}

// each gives f all that is there, in no order. f must not call the journal.
func (j *journal[T]) each(f func(key string, value T)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for key, e := range j.live {
		f(key, e.value)
	}
}

func (j *journal[T]) get(key string) (T, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.live[key]
	return e.value, ok
}

func (j *journal[T]) len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.live)
}

// close writes the deletions that waited. Nobody may put any more.
func (j *journal[T]) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.busy {
		j.idle.Wait()
	}
	if j.log == nil {
		return nil
	}
	err := errors.Join(j.log.Append(j.lazy...), j.log.Close())
	j.log, j.lazy = nil, nil
	return err
}

// forget is a deletion that is on disk when it returns nil.
func (j *journal[T]) forget(key string) error {
	record, err := encodeLine[T](key, nil)
	if err != nil {
		return err
	}
	j.mu.Lock()
	delete(j.live, key)
	if j.path == "" {
		j.mu.Unlock()
		return nil
	}
	b := j.enqueue(record)
	j.mu.Unlock()
	<-b.done
	return b.err
}

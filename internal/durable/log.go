package durable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// ErrCorrupt means that a log is damaged before its end: records that were
// acknowledged cannot be read. Nothing is cut then.
var ErrCorrupt = errors.New("log is damaged before its end")

// MaxBatch is the size in bytes that one Append may write.
const MaxBatch = 64 << 20

// A batch is what one Append writes: this header, then its body, which is each
// record behind its length as a varint. The header vouches for itself, so that
// damage to a length does not hide what stands behind it.
const headerSize = 12 // body length, CRC32C of the body, CRC32C of those eight bytes; little-endian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Log is a file of records that are only ever added, held by one process. Its
// methods are not for concurrent use.
type Log struct {
	path string
	f    *os.File
	end  int64
	err  error // after a failed write or fsync nobody knows what the disk holds
}

// OpenLog opens or creates (0600) the log and gives fn each record, oldest
// first; the slice is fn's to keep. A tail that an interrupted Append left is
// cut: it was not acknowledged. Damage before the end is ErrCorrupt, a log that
// is open elsewhere ErrHeld; an error of fn is returned as it is.
func OpenLog(path string, fn func(record []byte) error) (*Log, error) {
	f, err := openHeld(path)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	l := &Log{path: path, f: f}
	if err := l.replay(fn); err != nil {
		f.Close()
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	return l, nil
}

func openHeld(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(f)
	if err == nil {
		err = sameFile(f, path)
	}
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sameFile refuses a lock on a file that a Rewrite has just replaced.
func sameFile(f *os.File, path string) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(mine, named) {
		return ErrHeld
	}
	return nil
}

func (l *Log) replay(fn func([]byte) error) error {
	info, err := l.f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	for l.end < size {
		body, err := readBatch(l.f, l.end, size)
		if errors.Is(err, errTorn) {
			return l.cut(size)
		}
		if err != nil {
			return err
		}
		if err := eachRecord(body, fn); err != nil {
			return err
		}
		l.end += headerSize + int64(len(body))
	}
	return nil
}

var errTorn = errors.New("torn")

// readBatch returns the body of the batch at off, or errTorn.
func readBatch(r io.ReaderAt, off, size int64) ([]byte, error) {
	if size-off < headerSize {
		return nil, errTorn
	}
	var h [headerSize]byte
	if _, err := r.ReadAt(h[:], off); err != nil {
		return nil, err
	}
	n, ok := parseHeader(h[:])
	if !ok || n > size-off-headerSize {
		return nil, errTorn
	}
	body := make([]byte, n)
	if _, err := r.ReadAt(body, off+headerSize); err != nil {
		return nil, err
	}
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(h[4:]) {
		return nil, errTorn
	}
	return body, nil
}

func parseHeader(h []byte) (length int64, ok bool) {
	length = int64(binary.LittleEndian.Uint32(h))
	sum := crc32.Checksum(h[:8], castagnoli)
	return length, length > 0 && length <= MaxBatch && sum == binary.LittleEndian.Uint32(h[8:])
}

func eachRecord(body []byte, fn func([]byte) error) error {
	for len(body) > 0 {
		n, w := binary.Uvarint(body)
		if w <= 0 || n > uint64(len(body)-w) {
			return fmt.Errorf("%w: a batch whose checksum holds has no whole records", ErrCorrupt)
		}
		if err := fn(body[w : w+int(n) : w+int(n)]); err != nil {
			return err
		}
		body = body[w+int(n):]
	}
	return nil
}

// cut ends the log where the last whole batch does, unless a whole batch stands
// behind the damage: an Append begins after the one before was fsynced, so that
// is no torn tail.
func (l *Log) cut(size int64) error {
	at, err := findBatch(l.f, l.end+1, size)
	if err != nil {
		return err
	}
	if at >= 0 {
		return fmt.Errorf("%w: byte %d is not the start of a batch but byte %d is; keep the file and look at its disk", ErrCorrupt, l.end, at)
	}
	if err := l.f.Truncate(l.end); err != nil {
		return err
	}
	return l.f.Sync()
}

// findBatch returns the offset of the first whole batch at or after off, or -1.
func findBatch(r io.ReaderAt, off, size int64) (int64, error) {
	const window = 1 << 20
	buf := make([]byte, window+headerSize)
	for ; size-off >= headerSize; off += window {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return -1, err
		}
		for i := 0; i+headerSize <= n && i < window; i++ {
			if _, ok := parseHeader(buf[i:]); !ok {
				continue
			}
			_, err := readBatch(r, off+int64(i), size)
			if err == nil {
				return off + int64(i), nil
			}
			if !errors.Is(err, errTorn) {
				return -1, err
			}
		}
	}
	return -1, nil
}

// Append adds records, all or none of which a later OpenLog shows; nil when
// they are on disk. After an error the log takes no more: open it again. A disk without
// room is the exception: what was written of the records is cut off again, and once
// there is room a later Append succeeds.
func (l *Log) Append(records ...[]byte) error {
	if l.err != nil {
		return l.err
	}
	batch, err := encodeBatch(records)
	if err != nil || len(batch) == 0 {
		return err
	}
	if err := l.write(batch); err != nil {
		err = fmt.Errorf("append to log %s: %w", l.path, err)
		if l.err == nil {
			return err
		}
		l.err = fmt.Errorf("%w; open it again to see what it holds", err)
		return l.err
	}
	l.end += int64(len(batch))
	return nil
}

// write sets l.err where nobody knows what the disk holds.
func (l *Log) write(batch []byte) error {
	_, err := l.f.WriteAt(batch, l.end)
	if NoRoom(err) && l.f.Truncate(l.end) == nil && l.f.Sync() == nil {
		return err
	}
	if err == nil {
		err = l.f.Sync()
	}
	l.err = err
	return err
}

func encodeBatch(records [][]byte) ([]byte, error) {
	if len(records) == 0 {
		return nil, nil
	}
	batch := make([]byte, headerSize)
	for _, r := range records {
		batch = binary.AppendUvarint(batch, uint64(len(r)))
		batch = append(batch, r...)
	}
	body := batch[headerSize:]
	if len(body) > MaxBatch {
		return nil, fmt.Errorf("append %d records: %d bytes are more than the %d that one call may write", len(records), len(body), MaxBatch)
	}
	binary.LittleEndian.PutUint32(batch, uint32(len(body)))
	binary.LittleEndian.PutUint32(batch[4:], crc32.Checksum(body, castagnoli))
	binary.LittleEndian.PutUint32(batch[8:], crc32.Checksum(batch[:8], castagnoli))
	return batch, nil
}

// Rewrite makes records the log's only ones in one step: a crash leaves the old
// log or the new.
func (l *Log) Rewrite(records [][]byte) error {
	if l.err != nil {
		return l.err
	}
	var all []byte
	for _, r := range records {
		batch, err := encodeBatch([][]byte{r})
		if err != nil {
			return fmt.Errorf("rewrite log %s: %w", l.path, err)
		}
		all = append(all, batch...)
	}
	f, err := l.replace(all)
	if err != nil {
		l.err = fmt.Errorf("rewrite log %s: %w; open it again to see what it holds", l.path, err)
		return l.err
	}
	l.f.Close()
	l.f, l.end = f, int64(len(all))
	return nil
}

// replace locks the new file before it bears the name, so that nobody can come
// between.
func (l *Log) replace(data []byte) (_ *os.File, err error) {
	dir := filepath.Dir(l.path)
	tmp, err := writeTemp(dir, data, 0o600)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR, 0)
	if err != nil {
		os.Remove(tmp)
		return nil, err
	}
	if err = flock(f); err == nil {
		err = os.Rename(tmp, l.path)
	}
	if err != nil {
		os.Remove(tmp)
		f.Close()
		return nil, err
	}
	if err := SyncDir(dir); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close closes the file and gives its lock back. What was appended is on disk
// already.
func (l *Log) Close() error { return l.f.Close() }

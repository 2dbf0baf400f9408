package seal

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"filippo.io/age"
)

// PackTarget is the size at which a pack is full.
const PackTarget = 32 << 20

// PackWriter seals frames as they come, so that a pack in the making is in memory
// once. It is for one goroutine at a time.
type PackWriter struct {
	body   *bytes.Buffer
	sum    hash.Hash // of body
	sealer io.WriteCloser
	frames []entry
	size   int64
}

// Sealed is a pack as it is stored.
type Sealed struct {
	Body   []byte
	SHA256 [32]byte // of Body
	Frames []Frame
}

// NewPackWriter begins a pack to all recipients. It reserves memory for expect
// bytes of frames: [PackTarget] for a pack that will be filled until it is full.
func NewPackWriter(recipients []age.Recipient, expect int64) (*PackWriter, error) {
	// The last frame may run past the target; age adds 16 bytes to each 64 KiB,
	// and to its header at most 2 KiB for each recipient.
	room := expect + min(expect, maxCompressed)
	// Made here and not by Grow, which would touch all of it for a pack of any size.
	body := bytes.NewBuffer(make([]byte, 0, int(room+room>>12)+4096+2048*len(recipients)))
	sum := sha256.New()
	sealer, err := age.Encrypt(io.MultiWriter(body, sum), recipients...)
	if err != nil {
		return nil, fmt.Errorf("begin pack: %w", err)
	}
	return &PackWriter{body: body, sum: sum, sealer: sealer}, nil
}

// Add seals one frame, which is not kept, and returns its index.
func (w *PackWriter) Add(f CompressedFrame) (int, error) {
	if len(w.frames) == MaxFrames {
		return 0, fmt.Errorf("add to pack: it has %d frames already, which is the most", MaxFrames)
	}
	if _, err := w.sealer.Write(f.data); err != nil {
		return 0, fmt.Errorf("add to pack: %w", err)
	}
	w.frames = append(w.frames, f.entry())
	w.size += int64(len(f.data))
	return len(w.frames) - 1, nil
}

// Size is the number of bytes that the plaintext will have, index included.
func (w *PackWriter) Size() int64 { return w.size + int64(indexSize(len(w.frames))) }

// Full says that the pack should be sealed now.
func (w *PackWriter) Full() bool { return w.Size() >= PackTarget || len(w.frames) >= MaxFrames/4 }

// Seal ends the pack. One without frames is valid: it is what an empty file
// becomes. The writer is of no use afterwards.
func (w *PackWriter) Seal() (Sealed, error) {
	if err := finish(w.sealer, appendIndex(nil, w.frames)); err != nil {
		return Sealed{}, fmt.Errorf("seal pack: %w", err)
	}
	s := Sealed{Body: w.body.Bytes(), Frames: make([]Frame, len(w.frames))}
	w.sum.Sum(s.SHA256[:0])
	var off int64
	for i, e := range w.frames {
		s.Frames[i] = Frame{Off: off, Len: int64(e.len), Raw: int(e.raw), SHA256: fmt.Sprintf("%x", e.sum)}
		off += int64(e.len)
	}
	return s, nil
}

func finish(w io.WriteCloser, last []byte) error {
	if _, err := w.Write(last); err != nil {
		return err
	}
	return w.Close()
}

// SealFile makes a pack of one whole file (a WAL segment, a history file), so
// that `age -d | zstd -d` gives the file.
func SealFile(plain []byte, c *Compressor, recipients []age.Recipient) (Sealed, error) {
	w, err := NewPackWriter(recipients, int64(len(plain)/8))
	if err != nil {
		return Sealed{}, err
	}
	for len(plain) > 0 {
		n := min(len(plain), MaxFrame)
		if _, err := w.Add(c.Compress(plain[:n])); err != nil {
			return Sealed{}, err
		}
		plain = plain[n:]
	}
	return w.Seal()
}

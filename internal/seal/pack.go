package seal

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"filippo.io/age"
)

// PackTarget is the size at which a pack is full.
const PackTarget = 32 << 20

// Pack gathers frames until they are sealed. It is for one goroutine.
type Pack struct {
	frames []CompressedFrame
	size   int64
}

// Sealed is a pack as it is stored.
type Sealed struct {
	Body   []byte
	SHA256 [32]byte // of Body
	Frames []Frame
}

// NewPack returns an empty pack.
func NewPack() *Pack { return &Pack{} }

// Add takes one frame and returns its index.
func (p *Pack) Add(f CompressedFrame) int {
	p.frames = append(p.frames, f)
	p.size += int64(len(f.data))
	return len(p.frames) - 1
}

// Size is the number of bytes that the plaintext will have, index included.
func (p *Pack) Size() int64 { return p.size + int64(indexSize(len(p.frames))) }

// Full says that the pack should be sealed now.
func (p *Pack) Full() bool { return p.Size() >= PackTarget || len(p.frames) >= MaxFrames/4 }

// Seal encrypts the pack to all recipients and empties it. A pack without frames
// is valid: it is what an empty file becomes.
func (p *Pack) Seal(recipients []age.Recipient) (Sealed, error) {
	if len(p.frames) > MaxFrames {
		return Sealed{}, fmt.Errorf("seal pack: %d frames, want at most %d", len(p.frames), MaxFrames)
	}
	var body bytes.Buffer
	body.Grow(int(p.Size()) + int(p.Size()>>12) + 4096 + 2048*len(recipients))
	w, err := age.Encrypt(&body, recipients...)
	if err != nil {
		return Sealed{}, fmt.Errorf("seal pack: %w", err)
	}
	index := appendIndex(nil, p.frames)
	frames := make([]Frame, 0, len(p.frames))
	var off int64
	for i, f := range p.frames {
		if _, err := w.Write(f.data); err != nil {
			return Sealed{}, fmt.Errorf("seal pack: %w", err)
		}
		frames = append(frames, Frame{Off: off, Len: int64(len(f.data)), Raw: f.raw, SHA256: fmt.Sprintf("%x", f.sum)})
		off += int64(len(f.data))
		p.frames[i].data = nil // its memory is wanted for the sealed bytes
	}
	if err := finish(w, index); err != nil {
		return Sealed{}, fmt.Errorf("seal pack: %w", err)
	}
	p.frames, p.size = p.frames[:0], 0
	return Sealed{Body: body.Bytes(), SHA256: sha256.Sum256(body.Bytes()), Frames: frames}, nil
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
	p := NewPack()
	for len(plain) > 0 {
		n := min(len(plain), MaxFrame)
		p.Add(c.Compress(plain[:n]))
		plain = plain[n:]
	}
	return p.Seal(recipients)
}

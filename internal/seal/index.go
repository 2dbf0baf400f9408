package seal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// The index of a pack is a zstd skippable frame (RFC 8878, section 3.1.2): every
// decompressor passes over it. Its content is an entry for each frame and a
// footer, so that it is found from the end of the pack.
const (
	indexMagic  = 0x184D2A5D
	indexFooter = "HOLDFPK1" // after the number of frames
	entrySize   = 4 + 4 + 32
	footerSize  = 4 + len(indexFooter)
	headerSize  = 4 + 4
	// MaxFrames bounds a pack's frames, and so what its index costs a reader.
	MaxFrames = 1 << 18
)

// Frame is where a frame lies and what it holds.
type Frame struct {
	Off    int64  `json:"off"` // in the pack's plaintext, which is compressed
	Len    int64  `json:"len"`
	Raw    int    `json:"raw"`    // bytes after decompression
	SHA256 string `json:"sha256"` // of the compressed frame, lower-case hex
}

// check bounds a frame that was read from somewhere, in a plaintext of size.
func (f Frame) check(size int64) error {
	switch {
	case f.Raw <= 0 || f.Raw > MaxFrame:
		return fmt.Errorf("frame at %d: %w: %d raw bytes, want 1 to %d", f.Off, ErrDamaged, f.Raw, MaxFrame)
	case f.Len <= 0 || f.Len > maxCompressed:
		return fmt.Errorf("frame at %d: %w: %d compressed bytes, want 1 to %d", f.Off, ErrDamaged, f.Len, maxCompressed)
	case f.Off < 0 || f.Off > size-f.Len:
		return fmt.Errorf("frame at %d: %w: %d bytes run past the pack's end at %d", f.Off, ErrDamaged, f.Len, size)
	}
	return nil
}

// entry is a frame in the index.
type entry struct {
	len, raw uint32
	sum      [32]byte
}

func (f CompressedFrame) entry() entry { return entry{uint32(len(f.data)), uint32(f.raw), f.sum} }

func indexSize(frames int) int { return headerSize + frames*entrySize + footerSize }

// appendIndex appends the skippable frame for frames, which lie end to end from 0.
func appendIndex(b []byte, frames []entry) []byte {
	b = binary.LittleEndian.AppendUint32(b, indexMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(indexSize(len(frames))-headerSize))
	for _, f := range frames {
		b = binary.LittleEndian.AppendUint32(b, f.len)
		b = binary.LittleEndian.AppendUint32(b, f.raw)
		b = append(b, f.sum[:]...)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frames)))
	return append(b, indexFooter...)
}

// indexLength reads the last footerSize bytes of a pack's plaintext and says how
// long the index frame is that they end.
func indexLength(footer []byte) (int, error) {
	if len(footer) != footerSize || string(footer[4:]) != indexFooter {
		return 0, fmt.Errorf("pack index: %w: no index at the end", ErrDamaged)
	}
	n := binary.LittleEndian.Uint32(footer)
	if n > MaxFrames {
		return 0, fmt.Errorf("pack index: %w: %d frames, want at most %d", ErrDamaged, n, MaxFrames)
	}
	return indexSize(int(n)), nil
}

// ParseIndex reads a whole index frame that begins at start of a pack's
// plaintext: its frames must fill all that comes before it.
func ParseIndex(b []byte, start int64) ([]Frame, error) {
	if len(b) < indexSize(0) {
		return nil, fmt.Errorf("pack index: %w: %d bytes", ErrDamaged, len(b))
	}
	size, err := indexLength(b[len(b)-footerSize:])
	if err != nil {
		return nil, err
	}
	head := binary.LittleEndian.AppendUint32(nil, indexMagic)
	head = binary.LittleEndian.AppendUint32(head, uint32(size-headerSize))
	if len(b) != size || !bytes.Equal(b[:headerSize], head) {
		return nil, fmt.Errorf("pack index: %w: not an index frame", ErrDamaged)
	}
	entries := b[headerSize : len(b)-footerSize]
	frames := make([]Frame, 0, len(entries)/entrySize)
	var off int64
	for ; len(entries) > 0; entries = entries[entrySize:] {
		f := Frame{
			Off:    off,
			Len:    int64(binary.LittleEndian.Uint32(entries)),
			Raw:    int(binary.LittleEndian.Uint32(entries[4:])),
			SHA256: hex.EncodeToString(entries[8:entrySize]),
		}
		if err := f.check(start); err != nil {
			return nil, fmt.Errorf("pack index: %w", err)
		}
		frames, off = append(frames, f), off+f.Len
	}
	if off != start {
		return nil, fmt.Errorf("pack index: %w: its frames end at %d, the index begins at %d", ErrDamaged, off, start)
	}
	return frames, nil
}

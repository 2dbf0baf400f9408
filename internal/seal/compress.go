package seal

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// MaxFrame bounds the raw bytes of a frame: what must be read and decompressed
// to get one page.
const MaxFrame = 1 << 20

// maxCompressed bounds a frame's compressed bytes: what does not compress grows
// by 3 bytes per 128 KiB block and a header (RFC 8878, section 3.1.1).
const maxCompressed = MaxFrame + 4096

// DefaultLevel loses 2 to 6 % of size to "default" in frames of 1 MiB and is
// half again as fast (BenchmarkCompress).
const DefaultLevel = "fastest"

var levels = map[string]zstd.EncoderLevel{
	"":        zstd.SpeedFastest,
	"fastest": zstd.SpeedFastest,
	"default": zstd.SpeedDefault,
	"better":  zstd.SpeedBetterCompression,
}

// CheckLevel says whether level is one that [NewCompressor] knows.
func CheckLevel(level string) error {
	if _, ok := levels[level]; !ok {
		return fmt.Errorf("compression level %q: want fastest, default or better", level)
	}
	return nil
}

// Compressor makes frames, one at a time: one for each worker. It keeps 9 to 21
// MiB, by level, for as long as it lives.
type Compressor struct {
	enc     *zstd.Encoder
	scratch []byte
}

// NewCompressor returns a compressor of a level that [CheckLevel] accepts ("" is
// [DefaultLevel]); any other panics.
func NewCompressor(level string) *Compressor {
	l, ok := levels[level]
	if !ok {
		panic("seal: unchecked compression level " + level)
	}
	return &Compressor{enc: newEncoder(l)}
}

// newEncoder limits the window to one frame, so that the decoder's memory is.
func newEncoder(l zstd.EncoderLevel) *zstd.Encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(MaxFrame), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true))
	if err != nil {
		panic("seal: zstd refuses constant options: " + err.Error())
	}
	return enc
}

// CompressedFrame is one frame, ready for a pack. It keeps its own bytes.
type CompressedFrame struct {
	data []byte
	raw  int
	sum  [32]byte
}

// Raw is the number of bytes before compression, Len the number after.
func (f CompressedFrame) Raw() int { return f.raw }

// Len is the number of compressed bytes.
func (f CompressedFrame) Len() int { return len(f.data) }

// SHA256 is the digest of the raw bytes.
func (f CompressedFrame) SHA256() [32]byte { return f.sum }

// Compress makes a frame of 1 to [MaxFrame] bytes; any other length panics. raw
// is not kept.
func (c *Compressor) Compress(raw []byte) CompressedFrame {
	if len(raw) == 0 || len(raw) > MaxFrame {
		panic(fmt.Sprintf("seal: frame of %d bytes", len(raw)))
	}
	c.scratch = c.enc.EncodeAll(raw, c.scratch[:0])
	return CompressedFrame{data: bytes.Clone(c.scratch), raw: len(raw), sum: sha256.Sum256(raw)}
}

// decoders are reused: each keeps about a frame of memory and needs no Close
// with a concurrency of 1.
var decoders = sync.Pool{New: func() any {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxFrame), zstd.WithDecoderMaxWindow(MaxFrame))
	if err != nil {
		panic("seal: zstd refuses constant options: " + err.Error())
	}
	return dec
}}

// decode returns the raw bytes of f, appended to dst, after checking their
// number and digest.
func decode(f Frame, compressed, dst []byte) ([]byte, error) {
	dec := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(dec)
	raw, err := dec.DecodeAll(compressed, dst[:0])
	if err != nil {
		return nil, fmt.Errorf("decompress frame at %d: %w: %w", f.Off, ErrDamaged, err)
	}
	if sum := sha256.Sum256(raw); len(raw) != f.Raw || fmt.Sprintf("%x", sum) != f.SHA256 {
		return nil, fmt.Errorf("frame at %d: %w: %d bytes with SHA-256 %x, want %d with %s",
			f.Off, ErrDamaged, len(raw), sum, f.Raw, f.SHA256)
	}
	return raw, nil
}

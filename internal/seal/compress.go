package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
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

// DefaultLevel is zstd's own level 1, which costs 7 % of size against level 3 on
// database pages and half of its time: see docs/decisions/0015.
const DefaultLevel = "fastest"

// level is how hard zstd tries: in pure Go, and as a number of libzstd.
type level struct {
	pure zstd.EncoderLevel
	lib  int
}

var levels = map[string]level{
	"":        {zstd.SpeedFastest, 1},
	"fastest": {zstd.SpeedFastest, 1},
	"default": {zstd.SpeedDefault, 3},
	"better":  {zstd.SpeedBetterCompression, 7},
}

// CheckLevel says whether level is one that [NewCompressor] knows.
func CheckLevel(level string) error {
	if _, ok := levels[level]; !ok {
		return fmt.Errorf("compression level %q: want fastest, default or better", level)
	}
	return nil
}

// encoder makes zstd frames of at most [MaxFrame] raw bytes, each with its content
// size and checksum. Which one there is, and its name [Encoder], is the build's:
// pure Go, or libzstd under the tag libzstd. Either's frames are read alike.
type encoder interface {
	// encode puts one frame of raw into dst, whose bytes and length do not matter.
	encode(dst, raw []byte) []byte
}

// Compressor makes frames, one at a time: one for each worker. By level, it keeps
// 9 to 21 MiB in pure Go and 2 to 6 MiB with libzstd, for as long as it lives.
type Compressor struct {
	enc     encoder
	scratch []byte
}

// NewCompressor returns a compressor of a level that [CheckLevel] accepts ("" is
// [DefaultLevel]); any other panics.
func NewCompressor(name string) *Compressor {
	l, ok := levels[name]
	if !ok {
		panic("seal: unchecked compression level " + name)
	}
	return &Compressor{enc: newFrameEncoder(l)}
}

// newEncoder limits the window to one frame, so that the decoder's memory is.
func newEncoder(l zstd.EncoderLevel) *zstd.Encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(MaxFrame), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true), zstd.WithSingleSegment(true))
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

// SHA256 is the digest of the compressed bytes: it is checked before they are
// decompressed, and the frame's own checksum covers the rest.
func (f CompressedFrame) SHA256() [32]byte { return f.sum }

// Compress makes a frame of 1 to [MaxFrame] bytes; any other length panics. raw
// is not kept.
func (c *Compressor) Compress(raw []byte) CompressedFrame {
	if len(raw) == 0 || len(raw) > MaxFrame {
		panic(fmt.Sprintf("seal: frame of %d bytes", len(raw)))
	}
	c.scratch = c.enc.encode(c.scratch, raw)
	return CompressedFrame{data: bytes.Clone(c.scratch), raw: len(raw), sum: sha256.Sum256(c.scratch)}
}

// decoder reads the frames of either encoder; which one there is, is the build's.
type decoder interface {
	// decode puts a frame's content into dst, which has room for no more than it
	// should be, and says how long it is.
	decode(dst, compressed []byte) (int, error)
}

// decoders are reused: each keeps memory of its own.
var decoders = sync.Pool{New: func() any { return newFrameDecoder() }}

// decode returns the raw bytes of f in dst's memory, after checking the compressed
// bytes by their digest, and the raw ones by their number and the frame's checksum.
func decode(f Frame, compressed, dst []byte) ([]byte, error) {
	if sum := sha256.Sum256(compressed); hex.EncodeToString(sum[:]) != f.SHA256 {
		return nil, fmt.Errorf("frame at %d: %w: its SHA-256 is %x, want %s", f.Off, ErrDamaged, sum, f.SHA256)
	}
	var head zstd.Header
	if err := head.Decode(compressed); err != nil || !head.HasCheckSum || head.FrameContentSize != uint64(f.Raw) {
		return nil, fmt.Errorf("frame at %d: %w: not one zstd frame of %d bytes with a checksum", f.Off, ErrDamaged, f.Raw)
	}
	dec := decoders.Get().(decoder)
	defer decoders.Put(dec)
	raw := grow(dst, f.Raw)
	n, err := dec.decode(raw, compressed)
	if err != nil {
		return nil, fmt.Errorf("decompress frame at %d: %w: %w", f.Off, ErrDamaged, err)
	}
	if n != f.Raw {
		return nil, fmt.Errorf("frame at %d: %w: %d raw bytes, want %d", f.Off, ErrDamaged, n, f.Raw)
	}
	return raw, nil
}

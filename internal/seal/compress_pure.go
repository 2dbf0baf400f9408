//go:build !libzstd || !cgo

package seal

import "github.com/klauspost/compress/zstd"

// Encoder names what compresses frames in this build.
const Encoder = "zstd in pure Go"

type pureEncoder struct{ enc *zstd.Encoder }

func newFrameEncoder(l level) encoder { return pureEncoder{newEncoder(l.pure)} }

type pureDecoder struct{ dec *zstd.Decoder }

// newFrameDecoder makes one that keeps about a frame of memory and needs no Close
// with a concurrency of 1.
func newFrameDecoder() decoder {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxFrame), zstd.WithDecoderMaxWindow(MaxFrame))
	if err != nil {
		panic("seal: zstd refuses constant options: " + err.Error())
	}
	return pureDecoder{dec}
}

func (d pureDecoder) decode(dst, compressed []byte) (int, error) {
	raw, err := d.dec.DecodeAll(compressed, dst[:0:len(dst)])
	return len(raw), err
}

func (e pureEncoder) encode(dst, raw []byte) []byte { return e.enc.EncodeAll(raw, dst[:0]) }

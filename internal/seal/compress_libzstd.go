//go:build libzstd && cgo

package seal

/*
#cgo LDFLAGS: -lzstd
#include <zstd.h>
*/
import "C"

import (
	"errors"
	"runtime"
	"unsafe"
)

// Encoder names what compresses frames in this build.
const Encoder = "libzstd " + C.ZSTD_VERSION_STRING

// libEncoder compresses by a context of libzstd, whose memory is not Go's.
type libEncoder struct{ ctx *C.ZSTD_CCtx }

func newFrameEncoder(l level) encoder {
	ctx := C.ZSTD_createCCtx()
	if ctx == nil {
		panic("seal: libzstd has no memory for a compressor")
	}
	must(C.ZSTD_CCtx_setParameter(ctx, C.ZSTD_c_compressionLevel, C.int(l.lib)))
	must(C.ZSTD_CCtx_setParameter(ctx, C.ZSTD_c_checksumFlag, 1))
	e := &libEncoder{ctx}
	runtime.AddCleanup(e, func(ctx *C.ZSTD_CCtx) { C.ZSTD_freeCCtx(ctx) }, ctx)
	return e
}

func (e *libEncoder) encode(dst, raw []byte) []byte {
	dst = grow(dst, int(C.ZSTD_compressBound(C.size_t(len(raw)))))
	n := C.ZSTD_compress2(e.ctx, unsafe.Pointer(unsafe.SliceData(dst)), C.size_t(len(dst)),
		unsafe.Pointer(unsafe.SliceData(raw)), C.size_t(len(raw)))
	must(n)
	runtime.KeepAlive(e)
	return dst[:n]
}

// libDecoder decompresses by a context of libzstd.
type libDecoder struct{ ctx *C.ZSTD_DCtx }

func newFrameDecoder() decoder {
	ctx := C.ZSTD_createDCtx()
	if ctx == nil {
		panic("seal: libzstd has no memory for a decompressor")
	}
	d := &libDecoder{ctx}
	runtime.AddCleanup(d, func(ctx *C.ZSTD_DCtx) { C.ZSTD_freeDCtx(ctx) }, ctx)
	return d
}

func (d *libDecoder) decode(dst, compressed []byte) (int, error) {
	n := C.ZSTD_decompressDCtx(d.ctx, unsafe.Pointer(unsafe.SliceData(dst)), C.size_t(len(dst)),
		unsafe.Pointer(unsafe.SliceData(compressed)), C.size_t(len(compressed)))
	runtime.KeepAlive(d)
	if C.ZSTD_isError(n) != 0 {
		return 0, errors.New("libzstd: " + C.GoString(C.ZSTD_getErrorName(n)))
	}
	return int(n), nil
}

// must panics on what cannot happen: constant parameters refused, or a frame that
// is longer than the bound that libzstd itself gave.
func must(result C.size_t) {
	if C.ZSTD_isError(result) != 0 {
		panic("seal: libzstd: " + C.GoString(C.ZSTD_getErrorName(result)))
	}
}

package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

var blobEncoders = sync.Pool{New: func() any { return newEncoder(zstd.SpeedDefault) }}

// SealBlob compresses and encrypts plain: a manifest, a map, a key.
func SealBlob(plain []byte, recipients []age.Recipient) ([]byte, error) {
	var body bytes.Buffer
	w, err := NewBlobWriter(&body, recipients)
	if err != nil {
		return nil, err
	}
	if err := finish(w, plain); err != nil {
		return nil, fmt.Errorf("seal blob: %w", err)
	}
	return body.Bytes(), nil
}

// OpenBlob is the inverse of [SealBlob] for at most limit bytes of plaintext; all
// of it was authenticated when it returns.
func OpenBlob(sealed []byte, ids []age.Identity, limit int64) ([]byte, error) {
	r, err := NewBlobReader(bytes.NewReader(sealed), ids, limit)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// NewBlobWriter seals what is written to it. Only a Close that returns nil makes
// a whole blob.
func NewBlobWriter(w io.Writer, recipients []age.Recipient) (io.WriteCloser, error) {
	sealer, err := age.Encrypt(w, recipients...)
	if err != nil {
		return nil, fmt.Errorf("seal blob: %w", err)
	}
	enc := blobEncoders.Get().(*zstd.Encoder)
	enc.Reset(sealer)
	return &blobWriter{enc: enc, sealer: sealer}, nil
}

type blobWriter struct {
	enc    *zstd.Encoder
	sealer io.WriteCloser
}

func (b *blobWriter) Write(p []byte) (int, error) { return b.enc.Write(p) }

func (b *blobWriter) Close() error {
	if err := b.enc.Close(); err != nil {
		return fmt.Errorf("seal blob: %w", err)
	}
	b.enc.Reset(nil)
	blobEncoders.Put(b.enc)
	return b.sealer.Close()
}

// NewBlobReader opens a blob of at most limit bytes of plaintext as it is read.
// age authenticates each 64 KiB before handing it out, and that nothing was cut
// off only at io.EOF: do not act on what was read before that, unless the sealed
// bytes were checked against a digest already.
func NewBlobReader(r io.Reader, ids []age.Identity, limit int64) (io.ReadCloser, error) {
	plain, err := age.Decrypt(source{r}, ids...)
	if err != nil {
		return nil, opening("blob", err)
	}
	src := &ending{r: plain}
	dec, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(blobWindow), zstd.WithDecoderMaxWindow(blobWindow))
	if err != nil {
		return nil, opening("blob", err)
	}
	return &blobReader{dec: dec, src: src, limit: limit, left: limit}, nil
}

// blobWindow bounds the decoder's memory, with room for other writers' windows.
const blobWindow = 8 << 20

// ending remembers how a stream ended: between frames the decoder takes a cut
// (io.ErrUnexpectedEOF) for the end.
type ending struct {
	r   io.Reader
	err error
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil {
		e.err = err
	}
	return n, err
}

type blobReader struct {
	dec         *zstd.Decoder
	src         *ending
	limit, left int64
}

func (b *blobReader) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.dec.Read(p)
	b.left -= int64(n)
	switch {
	case b.left < 0:
		return 0, fmt.Errorf("open blob: %w: more than %d bytes", ErrDamaged, b.limit)
	case errors.Is(err, io.EOF):
		return n, b.end()
	case err != nil:
		return 0, opening("blob", err)
	}
	return n, nil
}

// end is io.EOF only where age has authenticated its last chunk.
func (b *blobReader) end() error {
	for b.src.err == nil {
		if _, err := io.Copy(io.Discard, b.src); err != nil {
			break
		}
	}
	if !errors.Is(b.src.err, io.EOF) {
		return opening("blob", b.src.err)
	}
	return io.EOF
}

func (b *blobReader) Close() error {
	b.dec.Close()
	return nil
}

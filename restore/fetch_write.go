package restore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// writeWAL fetches a file's parts and writes them to path as they are decoded, frame
// by frame. After an error path may hold anything: digests are compared when all of a
// part was read.
func writeWAL(ctx context.Context, r Repo, file File, path string) (err error) {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := &wholeFile{out: out}
	for _, p := range file.Parts {
		sealed, err := r.Reader.Get(ctx, p.Object.Name, p.Object.Size, p.Object.SHA256)
		if err != nil {
			return err
		}
		if err := w.part(p, sealed, r); err != nil {
			return fmt.Errorf("opening %s: %w", p.Object.Name, err)
		}
	}
	if w.size > file.Size {
		return fmt.Errorf("%s: its parts have %d bytes, want %d", file.Name, w.size, file.Size)
	}
	return w.write(make([]byte, file.Size-w.size))
}

// wholeFile is a file in the making.
type wholeFile struct {
	out  io.Writer
	size int64
}

func (w *wholeFile) write(b []byte) error {
	n, err := w.out.Write(b)
	w.size += int64(n)
	return err
}

// part writes what of an object the file takes.
func (w *wholeFile) part(p Part, sealed []byte, r Repo) error {
	raw, at := sha256.New(), int64(0)
	err := seal.DecodePack(sealed, r.identities(), nil, func(_ int, b []byte) error {
		from, to := max(p.Off-at, 0), min(p.Off+p.Len-at, int64(len(b)))
		at += int64(len(b))
		if at > p.RawSize {
			return fmt.Errorf("%w: more than the %d bytes of its note", seal.ErrDamaged, p.RawSize)
		}
		raw.Write(b)
		if from >= to {
			return nil
		}
		return w.write(b[from:to])
	})
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(raw.Sum(nil)); got != p.Raw || p.Off < 0 || p.Len < 0 || p.Off+p.Len > at {
		return fmt.Errorf("its %d bytes have SHA-256 %s, its note says %s", at, got, p.Raw)
	}
	return nil
}

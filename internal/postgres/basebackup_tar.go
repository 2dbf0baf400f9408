package postgres

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
)

// maxSmall bounds what of an archive is kept in memory: the label.
const maxSmall = 1 << 20

// archive takes one tar apart: the data directory's for oid 0, else a tablespace's.
func (r *backupReader) archive(in io.Reader, oid uint32) error {
	prefix := ""
	if oid != 0 {
		prefix = fmt.Sprintf("pg_tblspc/%d", oid)
	}
	t := tar.NewReader(in)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive of %s: %w", cmp.Or(prefix, "the data directory"), err)
		}
		if err := r.member(h, t, prefix); err != nil {
			return err
		}
	}
	// Before 18 the server ends an archive without the two blocks of zeros, and
	// tar itself stops at them: what is left must be none but zeros.
	return onlyZeros(in)
}

func onlyZeros(in io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return errors.New("bytes after the end of an archive")
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// memberPath makes the path of a member safe: below the data directory, in one
// form, whatever the server says (C-73).
func memberPath(name, prefix string) (string, error) {
	clean := path.Clean(strings.TrimSuffix(name, "/"))
	if name == "" || strings.ContainsAny(name, "\x00\\") || !filepath.IsLocal(clean) || path.IsAbs(name) ||
		clean != strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/") && clean != "." {
		return "", fmt.Errorf("the server sent a file named %q, which is not a path inside the data directory", name)
	}
	return path.Join(prefix, clean), nil
}

func (r *backupReader) member(h *tar.Header, in io.Reader, prefix string) error {
	name, err := memberPath(h.Name, prefix)
	if err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	switch h.Typeflag {
	case tar.TypeDir:
		if name != "." {
			r.out.Dirs = append(r.out.Dirs, BackupDir{Path: name, Mode: mode, ModTime: h.ModTime})
		}
		return nil
	case tar.TypeReg:
	case tar.TypeSymlink:
		// A link to a tablespace, which the list of tablespaces has as well.
		if path.Dir(name) == "pg_tblspc" {
			return nil
		}
		fallthrough
	default:
		return fmt.Errorf("the server sent %q, which is of the kind %q: want files and directories", name, h.Typeflag)
	}
	if r.arrived.has(name) {
		return fmt.Errorf("the server sent %q twice", name)
	}
	summed := &sumReader{in: in}
	switch {
	case name == "backup_label":
		r.out.Label, err = small(summed, name, h.Size)
		r.out.Label = wholeLabel(r.out.Label)
	case r.opt.Since != nil && strings.HasPrefix(path.Base(name), incrementalPrefix):
		err = r.changed(FileHeader{Path: name, Size: h.Size, Mode: mode, ModTime: h.ModTime}, summed)
	default:
		err = r.file(FileHeader{Path: name, Size: h.Size, Mode: mode, ModTime: h.ModTime}, summed)
	}
	r.arrived.add(name, summed.crc)
	return err
}

func small(in io.Reader, name string, size int64) ([]byte, error) {
	if size > maxSmall {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", name, size, maxSmall)
	}
	data, err := io.ReadAll(in)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// file hands one file to the sink and sees that it was taken whole.
func (r *backupReader) file(h FileHeader, in *sumReader) error {
	return r.taken(h, in, r.sink.File(r.ctx, h, in))
}

func (r *backupReader) taken(h FileHeader, in *sumReader, err error) error {
	if err != nil {
		return fmt.Errorf("take %s of the base backup: %w", h.Path, err)
	}
	if in.n != h.Size {
		return fmt.Errorf("take %s of the base backup: %d of its %d bytes were read", h.Path, in.n, h.Size)
	}
	r.out.Files++
	r.out.Bytes += h.Size
	r.progress()
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumReader counts and sums what passes, for the manifest that comes last.
type sumReader struct {
	in  io.Reader
	n   int64
	crc uint32
}

func (c *sumReader) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.n += int64(n)
	c.crc = crc32.Update(c.crc, castagnoli, p[:n])
	return n, err
}

// arrivals are the files that came and their sums, a few bytes each: paths stand as
// hashes, for a cluster may have millions of files.
type arrivals struct {
	seed maphash.Seed
	sums map[uint64]uint32
}

func newArrivals() arrivals { return arrivals{maphash.MakeSeed(), map[uint64]uint32{}} }

func (a arrivals) has(name string) bool {
	_, ok := a.sums[maphash.String(a.seed, name)]
	return ok
}

func (a arrivals) add(name string, crc uint32) { a.sums[maphash.String(a.seed, name)] = crc }

// check holds an entry of the manifest against what came (C-26).
func (a arrivals) check(m ManifestFile) error {
	crc, ok := a.sums[maphash.String(a.seed, m.Path)]
	if !ok {
		return fmt.Errorf("the manifest names %q and the server did not send it", m.Path)
	}
	var got ManifestFile
	got.CRC32C(crc)
	if m.Algorithm == got.Algorithm && !strings.EqualFold(m.Checksum, got.Checksum) {
		return fmt.Errorf("%s did not arrive as the server sent it: CRC32C %s, the server's manifest says %s; look at the network and the memory of both machines", m.Path, got.Checksum, m.Checksum)
	}
	return nil
}

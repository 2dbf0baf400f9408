package postgres

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"unicode/utf8"
)

// ManifestWriter writes a backup_manifest as the files become known, in memory of
// one file (C-26). Make it with [NewManifestWriter]; [ManifestWriter.Close] ends it.
type ManifestWriter struct {
	out *bufio.Writer // into the sum and the file
	end *bufio.Writer // into the file alone: the sum does not cover itself
	sum hash.Hash
	sep string
	buf bytes.Buffer
}

// NewManifestWriter begins a manifest of the version that a server of the major
// version writes and reads: 1 from 13 to 16, 2 with the system identifier since 17.
func NewManifestWriter(w io.Writer, major int, systemID uint64) *ManifestWriter {
	m := &ManifestWriter{sum: sha256.New(), end: bufio.NewWriter(w)}
	m.out = bufio.NewWriter(io.MultiWriter(m.sum, m.end))
	version, id := 1, ""
	if major >= 17 {
		version, id = 2, fmt.Sprintf("\"System-Identifier\": %d,\n", systemID)
	}
	fmt.Fprintf(m.out, "{ \"PostgreSQL-Backup-Manifest-Version\": %d,\n%s\"Files\": [", version, id)
	return m
}

// File adds a file. Its path is as in [ManifestFile]; with an empty Algorithm it has
// no checksum, and only its presence and size can be verified.
func (m *ManifestWriter) File(f ManifestFile) error {
	m.buf.Reset()
	m.buf.WriteString(m.sep + "\n{ ")
	if utf8.ValidString(f.Path) {
		// A path ends up in JSON as it is: no reader of a manifest is a browser.
		e := json.NewEncoder(&m.buf)
		e.SetEscapeHTML(false)
		m.buf.WriteString("\"Path\": ")
		if err := e.Encode(f.Path); err != nil {
			return fmt.Errorf("backup manifest, file %q: %w", f.Path, err)
		}
		m.buf.Truncate(m.buf.Len() - 1) // the newline of Encode
	} else {
		fmt.Fprintf(&m.buf, "\"Encoded-Path\": \"%x\"", f.Path)
	}
	fmt.Fprintf(&m.buf, ", \"Size\": %d, \"Last-Modified\": %q", f.Size, f.Modified.UTC().Format("2006-01-02 15:04:05 GMT"))
	if f.Algorithm != "" {
		fmt.Fprintf(&m.buf, ", \"Checksum-Algorithm\": %q, \"Checksum\": %q", f.Algorithm, f.Checksum)
	}
	m.buf.WriteString(" }")
	m.sep = ","
	_, err := m.out.Write(m.buf.Bytes())
	return err
}

// Close writes the WAL that the backup needs and the manifest's own checksum. It
// does not close the writer beneath.
func (m *ManifestWriter) Close(ranges []WALRange) error {
	if len(ranges) == 0 {
		return errors.New("backup manifest: a backup needs WAL, and no range of it is named")
	}
	fmt.Fprint(m.out, "\n],\n\"WAL-Ranges\": [")
	for n, r := range ranges {
		if n > 0 {
			fmt.Fprint(m.out, ",")
		}
		fmt.Fprintf(m.out, "\n{ \"Timeline\": %d, \"Start-LSN\": %q, \"End-LSN\": %q }", r.Timeline, r.Start, r.End)
	}
	fmt.Fprint(m.out, "\n],\n")
	if err := m.out.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(m.end, "\"Manifest-Checksum\": \"%x\"}\n", m.sum.Sum(nil))
	return m.end.Flush()
}

// CRC32C fills in the checksum that a manifest calls CRC32C: the sum's bytes as the
// server has them in memory, lowest first.
func (f *ManifestFile) CRC32C(sum uint32) {
	f.Algorithm, f.Checksum = "CRC32C", hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, sum))
}

// SHA256 fills in the checksum that a manifest calls SHA256.
func (f *ManifestFile) SHA256(sum [sha256.Size]byte) {
	f.Algorithm, f.Checksum = "SHA256", hex.EncodeToString(sum[:])
}

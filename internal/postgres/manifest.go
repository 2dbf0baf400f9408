package postgres

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Manifest is a backup_manifest (doc/src/sgml/backup-manifest.sgml; C-26).
type Manifest struct {
	Version   int    // 1 up to 16, 2 since
	SystemID  uint64 // 0 in version 1
	Files     []ManifestFile
	WALRanges []WALRange
}

// ManifestFile is a file of a backup. In version 1 and 2 files of a tablespace are
// under pg_tblspc/<oid>/.
type ManifestFile struct {
	Path      string // raw bytes, not necessarily UTF-8
	Size      int64
	Modified  time.Time
	Algorithm string // "SHA256", "CRC32C", …; "" when there is no checksum
	Checksum  string // hexadecimal; a CRC32C has its bytes little-endian
}

// WALRange is WAL that the backup needs, End included.
type WALRange struct {
	Timeline   uint32
	Start, End lsn.LSN
}

// manifestFileJSON is one entry of "Files".
type manifestFileJSON struct {
	Path      *string `json:"Path"`
	Encoded   *string `json:"Encoded-Path"`
	Size      int64   `json:"Size"`
	Modified  string  `json:"Last-Modified"`
	Algorithm string  `json:"Checksum-Algorithm"`
	Checksum  string  `json:"Checksum"`
}

type walRangeJSON struct {
	Timeline  uint32 `json:"Timeline"`
	StartText string `json:"Start-LSN"`
	EndText   string `json:"End-LSN"`
}

// ParseManifest reads a backup_manifest and verifies the SHA-256 that it has of itself.
func ParseManifest(data []byte) (Manifest, error) {
	var files []ManifestFile
	m, err := ReadManifest(bytes.NewReader(data), func(f ManifestFile) error {
		files = append(files, f)
		return nil
	})
	if err != nil {
		return Manifest{}, err
	}
	m.Files = files
	return m, nil
}

// ReadManifest is [ParseManifest] with memory for one file at a time: each goes to
// fn, and Files of the result is nil. What fn was told counts only when ReadManifest
// returns no error, for the sum over all of it comes last.
func ReadManifest(in io.Reader, fn func(ManifestFile) error) (Manifest, error) {
	lines := &lineSum{in: in, sum: sha256.New()}
	d := manifestDecoder{json: json.NewDecoder(lines), file: fn}
	if err := d.object(); err != nil {
		return Manifest{}, fmt.Errorf("backup manifest: %w", err)
	}
	if got := hex.EncodeToString(lines.sum.Sum(nil)); !bytes.HasPrefix(lines.last, []byte(`"Manifest-Checksum"`)) || got != strings.ToLower(d.checksum) {
		return Manifest{}, fmt.Errorf("backup manifest: its SHA-256 is %s and its last line says %q", got, d.checksum)
	}
	if v := d.out.Version; v != 1 && v != 2 {
		return Manifest{}, fmt.Errorf("backup manifest: version %d, want 1 or 2", v)
	}
	return d.out, nil
}

// lineSum sums all lines but the last, which holds the sum.
type lineSum struct {
	in   io.Reader
	sum  hash.Hash
	last []byte // the line that is not summed yet, its newline included
}

// maxLine bounds a line: the server writes a file in each.
const maxLine = 1 << 20

func (l *lineSum) Read(p []byte) (int, error) {
	n, err := l.in.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if k := len(l.last); k > 0 && l.last[k-1] == '\n' {
			l.sum.Write(l.last)
			l.last = l.last[:0]
		}
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			end = len(rest)
		}
		l.last = append(l.last, rest[:end]...)
		rest = rest[end:]
		if len(l.last) > maxLine {
			return 0, fmt.Errorf("a line of more than %d bytes", maxLine)
		}
	}
	return n, err
}

// manifestDecoder walks the one object of a manifest.
type manifestDecoder struct {
	json     *json.Decoder
	file     func(ManifestFile) error
	out      Manifest
	checksum string
}

func (d *manifestDecoder) object() error {
	if err := d.delim('{'); err != nil {
		return err
	}
	for d.json.More() {
		key, err := d.json.Token()
		if err == nil {
			err = d.member(fmt.Sprint(key))
		}
		if err != nil {
			return err
		}
	}
	if err := d.delim('}'); err != nil {
		return err
	}
	if _, err := d.json.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}

func (d *manifestDecoder) delim(want json.Delim) error {
	got, err := d.json.Token()
	switch {
	case err != nil:
		return fmt.Errorf("it is cut short or none: %w", err)
	case got != want:
		return fmt.Errorf("%v where %v should stand", got, want)
	}
	return nil
}

func (d *manifestDecoder) member(key string) error {
	switch key {
	case "PostgreSQL-Backup-Manifest-Version":
		return d.json.Decode(&d.out.Version)
	case "System-Identifier":
		return d.json.Decode(&d.out.SystemID)
	case "Files":
		return d.list(d.oneFile)
	case "WAL-Ranges":
		return d.list(d.oneRange)
	case "Manifest-Checksum":
		return d.json.Decode(&d.checksum)
	}
	return fmt.Errorf("a member %q that no version has", key)
}

func (d *manifestDecoder) list(one func() error) error {
	if err := d.delim('['); err != nil {
		return err
	}
	for n := 0; d.json.More(); n++ {
		if err := one(); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
	}
	return d.delim(']')
}

func (d *manifestDecoder) oneFile() error {
	var f manifestFileJSON
	if err := d.json.Decode(&f); err != nil {
		return err
	}
	out := ManifestFile{Size: f.Size, Algorithm: f.Algorithm, Checksum: f.Checksum}
	switch {
	case f.Path != nil && f.Encoded == nil:
		out.Path = *f.Path
	case f.Encoded != nil && f.Path == nil:
		raw, err := hex.DecodeString(*f.Encoded)
		if err != nil {
			return fmt.Errorf("Encoded-Path: %w", err)
		}
		out.Path = string(raw)
	default:
		return errors.New("want Path or Encoded-Path")
	}
	if out.Size < 0 {
		return fmt.Errorf("file %q: size %d", out.Path, out.Size)
	}
	// The server writes "2026-01-02 03:04:05 GMT".
	t, err := time.Parse("2006-01-02 15:04:05 MST", f.Modified)
	if err != nil {
		return fmt.Errorf("file %q: %w", out.Path, err)
	}
	out.Modified = t.UTC()
	return d.file(out)
}

func (d *manifestDecoder) oneRange() error {
	var w walRangeJSON
	if err := d.json.Decode(&w); err != nil {
		return err
	}
	start, err1 := lsn.Parse(w.StartText)
	end, err2 := lsn.Parse(w.EndText)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if end < start || w.Timeline == 0 || len(d.out.WALRanges) == maxRanges {
		return fmt.Errorf("timeline %d from %s to %s", w.Timeline, start, end)
	}
	d.out.WALRanges = append(d.out.WALRanges, WALRange{w.Timeline, start, end})
	return nil
}

// maxRanges bounds the ranges of a manifest: one for each timeline of a backup.
const maxRanges = 1 << 16

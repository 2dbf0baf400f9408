package postgres

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
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

type manifestJSON struct {
	Version  int     `json:"PostgreSQL-Backup-Manifest-Version"`
	SystemID *uint64 `json:"System-Identifier"`
	Files    []struct {
		Path      *string `json:"Path"`
		Encoded   *string `json:"Encoded-Path"`
		Size      int64   `json:"Size"`
		Modified  string  `json:"Last-Modified"`
		Algorithm string  `json:"Checksum-Algorithm"`
		Checksum  string  `json:"Checksum"`
	} `json:"Files"`
	WAL []struct {
		Timeline  uint32 `json:"Timeline"`
		StartText string `json:"Start-LSN"`
		EndText   string `json:"End-LSN"`
	} `json:"WAL-Ranges"`
	Checksum string `json:"Manifest-Checksum"`
}

// manifestTail is how the last line begins; its checksum covers all before the line.
var manifestTail = []byte("\n\"Manifest-Checksum\"")

// ParseManifest reads a backup_manifest and verifies the SHA-256 that it has of itself.
func ParseManifest(data []byte) (Manifest, error) {
	var j manifestJSON
	at := bytes.LastIndex(data, manifestTail)
	if at < 0 {
		return Manifest{}, errors.New("backup manifest: it does not end with its checksum: it is cut short or none")
	}
	if err := json.Unmarshal(data, &j); err != nil {
		return Manifest{}, fmt.Errorf("backup manifest: %w", err)
	}
	sum := sha256.Sum256(data[:at+1])
	if hex.EncodeToString(sum[:]) != strings.ToLower(j.Checksum) {
		return Manifest{}, fmt.Errorf("backup manifest: its SHA-256 is %x and its last line says %s", sum, j.Checksum)
	}
	if j.Version != 1 && j.Version != 2 {
		return Manifest{}, fmt.Errorf("backup manifest: version %d, want 1 or 2", j.Version)
	}
	m := Manifest{Version: j.Version}
	if j.SystemID != nil {
		m.SystemID = *j.SystemID
	}
	if err := errors.Join(m.files(j), m.ranges(j)); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

func (m *Manifest) files(j manifestJSON) error {
	for n, f := range j.Files {
		out := ManifestFile{Size: f.Size, Algorithm: f.Algorithm, Checksum: f.Checksum}
		switch {
		case f.Path != nil && f.Encoded == nil:
			out.Path = *f.Path
		case f.Encoded != nil && f.Path == nil:
			raw, err := hex.DecodeString(*f.Encoded)
			if err != nil {
				return fmt.Errorf("backup manifest, file %d: Encoded-Path: %w", n, err)
			}
			out.Path = string(raw)
		default:
			return fmt.Errorf("backup manifest, file %d: want Path or Encoded-Path", n)
		}
		if out.Size < 0 {
			return fmt.Errorf("backup manifest, file %q: size %d", out.Path, out.Size)
		}
		// The server writes "2026-01-02 03:04:05 GMT".
		t, err := time.Parse("2006-01-02 15:04:05 MST", f.Modified)
		if err != nil {
			return fmt.Errorf("backup manifest, file %q: %w", out.Path, err)
		}
		out.Modified = t.UTC()
		m.Files = append(m.Files, out)
	}
	return nil
}

func (m *Manifest) ranges(j manifestJSON) error {
	for n, w := range j.WAL {
		start, err1 := lsn.Parse(w.StartText)
		end, err2 := lsn.Parse(w.EndText)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("backup manifest, WAL range %d: %w", n, err)
		}
		if end < start || w.Timeline == 0 {
			return fmt.Errorf("backup manifest, WAL range %d: timeline %d from %s to %s", n, w.Timeline, start, end)
		}
		m.WALRanges = append(m.WALRanges, WALRange{w.Timeline, start, end})
	}
	return nil
}

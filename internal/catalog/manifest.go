package catalog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// ManifestFormat is the major version of the manifests written here; a reader
// refuses a newer one.
const ManifestFormat = 1

// Bounds of one manifest, so that a reader of hostile bytes stays small.
const (
	maxManifestLine = 32 << 20 // bytes; a file of terabytes has a line of a few
	maxFrameRaw     = 1 << 20  // raw bytes in one frame
)

// The kinds of files in a manifest.
const (
	FileRelation = "relation" // pages of a relation's fork
	FileOther    = "other"
	FileControl  = "control" // global/pg_control: written last by a restore
)

// Manifest says which files a snapshot holds and where their page maps are. Its
// plaintext is JSON lines: the header, the packs, the maps, the files by path, an
// end line that counts them; it is stored as age(zstd(lines)).
type Manifest struct {
	Header ManifestHeader
	Packs  []ManifestPack
	Maps   []ManifestMap
	Files  []ManifestFile
}

// ManifestHeader is what a restore must know before the first file.
type ManifestHeader struct {
	Format   int    `json:"format"`
	Cluster  string `json:"cluster"`
	Snapshot string `json:"snapshot"`
	// Base is the snapshot that this one was compared with; "" when every page was
	// new. Nothing is needed of it but the packs and maps that are named here.
	Base string `json:"base,omitempty"`
	// DigestEpoch says whose keys made the digests of the page maps.
	DigestEpoch int `json:"digest_epoch,omitempty"`
	// Label and TablespaceMap are written byte for byte as backup_label and,
	// unless empty, tablespace_map (C-3).
	Label         []byte       `json:"label"`
	TablespaceMap []byte       `json:"tablespace_map,omitempty"`
	Tablespaces   []Tablespace `json:"tablespaces,omitempty"`
	Dirs          []Dir        `json:"dirs"`
	Facts         ServerFacts  `json:"facts"`
	Inventory     Inventory    `json:"inventory"`
}

// Tablespace is an entry of pg_tblspc. The files below it have paths that begin
// with pg_tblspc/<oid>/ in both cases.
type Tablespace struct {
	OID     uint32 `json:"oid"`
	Name    string `json:"name,omitempty"` // as the server called it
	Path    string `json:"path,omitempty"` // where its link pointed; "" for one in place
	InPlace bool   `json:"in_place,omitempty"`
}

// Dir is a directory below the data directory, empty ones included.
type Dir struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"` // permission bits
}

// ServerFacts describe the server that the snapshot was taken from (C-9).
type ServerFacts struct {
	SystemID       string            `json:"system_id"`
	ServerNum      int               `json:"server_version_num"`
	Major          int               `json:"major"`
	Timeline       uint32            `json:"timeline"`
	ControlVersion int               `json:"control_version"`
	CatalogVersion int               `json:"catalog_version"`
	BlockSize      int               `json:"block_size"`
	RelSegBlocks   int               `json:"relation_segment_blocks"` // blocks of one file of a relation
	WALSegSize     int64             `json:"wal_segment_size"`
	StartLSN       lsn.LSN           `json:"start_lsn"`
	StopLSN        lsn.LSN           `json:"stop_lsn"`
	CheckpointLSN  lsn.LSN           `json:"checkpoint_lsn"`
	MinRecoveryEnd lsn.LSN           `json:"min_recovery_end,omitzero"`
	StartedAt      time.Time         `json:"started_at"`  // the server's clock
	FinishedAt     time.Time         `json:"finished_at"` // the server's clock
	FromStandby    bool              `json:"from_standby"`
	ChecksumsStart int               `json:"data_checksums_start"` // pg_control's data_checksum_version
	ChecksumsStop  int               `json:"data_checksums_stop"`
	WALLevel       string            `json:"wal_level"`
	FullPageWrites bool              `json:"full_page_writes"`
	Architecture   string            `json:"architecture,omitempty"` // that the server is built for, as x86_64
	WordBits       int               `json:"word_bits,omitempty"`
	ByteOrder      string            `json:"byte_order,omitempty"` // little | big
	OS             string            `json:"os,omitempty"`         // as linux-gnu
	Encoding       string            `json:"encoding,omitempty"`
	Collation      string            `json:"collation,omitempty"`
	DataDirectory  string            `json:"data_directory"`
	HotStandby     map[string]string `json:"hot_standby_settings,omitempty"` // what a standby must not have less of
	ConfigFiles    []string          `json:"config_files,omitempty"`         // as the server names them
}

// Inventory is what the server held when the snapshot began; drills compare a
// restored copy with it.
type Inventory struct {
	Databases   []Database `json:"databases,omitempty"`
	Roles       []string   `json:"roles,omitempty"`
	Tablespaces []string   `json:"tablespaces,omitempty"`
	// NotAssessed says which parts could not be read, and why.
	NotAssessed []string `json:"not_assessed,omitempty"`
}

// Database is one database of an inventory.
type Database struct {
	OID       uint32 `json:"oid"`
	Name      string `json:"name"`
	AllowConn bool   `json:"allow_connections"`
	// CollationVersion is what the server has recorded of it: 15 and later, "" for C.
	CollationVersion string      `json:"collation_version,omitempty"`
	Extensions       []Extension `json:"extensions,omitempty"`
	Relations        []Relation  `json:"relations,omitempty"`
	// Truncated says that there were more relations than the inventory takes.
	Truncated bool `json:"truncated,omitempty"`
}

// Extension is an installed extension.
type Extension struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Relation is a user's relation; Kind and Persistence are pg_class's letters.
type Relation struct {
	Schema      string `json:"schema"`
	Name        string `json:"name"`
	Kind        string `json:"relkind"`
	Persistence string `json:"relpersistence"`
}

// ManifestPack is a pack that page maps refer to, of this snapshot or an older one.
type ManifestPack struct {
	N    int   `json:"n"` // its place in Packs
	Ref  Ref   `json:"ref"`
	Raw  int64 `json:"raw"`  // raw bytes of all its frames
	Live int64 `json:"live"` // of these, what this snapshot refers to
}

// ManifestMap is a map object, of this snapshot or an older one.
type ManifestMap struct {
	N    int   `json:"n"` // its place in Maps
	Ref  Ref   `json:"ref"`
	Raw  int64 `json:"raw"`  // bytes of all its leaves
	Live int64 `json:"live"` // of these, what this snapshot refers to
}

// LeafRef is a stretch of leaves that lie end to end in a map object: in JSON
// [map, offset, length, count], the offset from the object's first leaf.
type LeafRef struct {
	Map      int
	Off, Len int64
	Count    int
}

// MarshalJSON implements json.Marshaler.
func (r LeafRef) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "[%d,%d,%d,%d]", r.Map, r.Off, r.Len, r.Count), nil
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (r *LeafRef) UnmarshalJSON(b []byte) error {
	var in [4]int64
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("leaves: %w", err)
	}
	*r = LeafRef{Map: int(in[0]), Off: in[1], Len: in[2], Count: int(in[3])}
	return nil
}

// ManifestFile is one file of the snapshot. Its leaves in order describe its Size bytes.
type ManifestFile struct {
	// Path is relative to the data directory, with slashes. With Outside it is
	// the absolute path of a configuration file that lies elsewhere (C-15): a
	// restore must never write it there unasked.
	Path    string    `json:"path"`
	Size    int64     `json:"size"`
	Mode    uint32    `json:"mode"` // permission bits
	MTime   time.Time `json:"mtime"`
	Kind    string    `json:"kind"`
	Leaves  []LeafRef `json:"leaves,omitempty"` // its page map, in order
	Outside bool      `json:"outside,omitempty"`
	// Bad lists blocks (counted from the file's start) whose checksum failed: the first ones.
	Bad []int64 `json:"bad,omitempty"`
}

type manifestEnd struct {
	Packs int `json:"packs"`
	Maps  int `json:"maps"`
	Files int `json:"files"`
}

type manifestLine struct {
	Pack *ManifestPack `json:"pack,omitempty"`
	Map  *ManifestMap  `json:"map,omitempty"`
	File *ManifestFile `json:"file,omitempty"`
	End  *manifestEnd  `json:"end,omitempty"`
}

// ManifestWriter writes a manifest line by line: all packs, all maps, all files.
type ManifestWriter struct {
	w     *bufio.Writer
	check manifestCheck
}

// NewManifestWriter writes the header.
func NewManifestWriter(w io.Writer, h ManifestHeader) (*ManifestWriter, error) {
	h.Format = ManifestFormat
	m := &ManifestWriter{w: bufio.NewWriterSize(w, 64<<10)}
	return m, m.line(h)
}

// Pack writes the next pack.
func (m *ManifestWriter) Pack(p ManifestPack) error {
	if err := m.check.pack(p); err != nil {
		return err
	}
	return m.line(manifestLine{Pack: &p})
}

// Map writes the next map.
func (m *ManifestWriter) Map(p ManifestMap) error {
	if err := m.check.mapObject(p); err != nil {
		return err
	}
	return m.line(manifestLine{Map: &p})
}

// File writes the next file.
func (m *ManifestWriter) File(f ManifestFile) error {
	if err := m.check.file(f); err != nil {
		return err
	}
	return m.line(manifestLine{File: &f})
}

// Close writes the end line; it does not close what is beneath.
func (m *ManifestWriter) Close() error {
	if err := m.line(manifestLine{End: &m.check.seen}); err != nil {
		return err
	}
	return m.w.Flush()
}

func (m *ManifestWriter) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if len(b) >= maxManifestLine {
		return fmt.Errorf("write manifest: a line of %d bytes is over the format's %d", len(b), maxManifestLine)
	}
	_, err = m.w.Write(append(b, '\n'))
	return err
}

// ManifestReader reads what ManifestWriter wrote, and believes nothing: paths
// stay inside, leaves lie in maps that were told before and are as many as due.
type ManifestReader struct {
	Header ManifestHeader
	s      *bufio.Scanner
	n      int
	check  manifestCheck
}

// NewManifestReader reads the header of a decrypted, decompressed manifest.
func NewManifestReader(r io.Reader) (*ManifestReader, error) {
	m := &ManifestReader{s: bufio.NewScanner(r)}
	m.s.Buffer(make([]byte, 64<<10), maxManifestLine)
	line, err := m.next()
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(line, &m.Header); err != nil {
		return nil, fmt.Errorf("manifest header: %w", err)
	}
	if m.Header.Format < 1 || m.Header.Format > ManifestFormat {
		return nil, fmt.Errorf("manifest is of format %d, this program reads up to %d: use a newer holdfast", m.Header.Format, ManifestFormat)
	}
	return m, m.checkHeader()
}

func (m *ManifestReader) checkHeader() error {
	for _, d := range m.Header.Dirs {
		if err := checkRelPath(d.Path); err != nil {
			return fmt.Errorf("manifest header: directory: %w", err)
		}
	}
	for _, t := range m.Header.Tablespaces {
		if t.InPlace == (t.Path != "") || t.Path != "" && !cleanAbs(t.Path) {
			return fmt.Errorf("manifest header: tablespace %d: a path that is absolute and clean or in_place must be there, found %q", t.OID, t.Path)
		}
	}
	return nil
}

func (m *ManifestReader) next() ([]byte, error) {
	m.n++
	if m.s.Scan() {
		return m.s.Bytes(), nil
	}
	if err := m.s.Err(); err != nil {
		return nil, fmt.Errorf("manifest line %d: %w", m.n, err)
	}
	return nil, fmt.Errorf("manifest line %d: %w: no end line", m.n, io.ErrUnexpectedEOF)
}

// Entry is one line of a manifest: one of the three is set.
type Entry struct {
	Pack *ManifestPack
	Map  *ManifestMap
	File *ManifestFile
}

// Next returns the next pack, map or file; io.EOF after the end line.
func (m *ManifestReader) Next() (Entry, error) {
	raw, err := m.next()
	if err != nil {
		return Entry{}, err
	}
	var l manifestLine
	if err := json.Unmarshal(raw, &l); err != nil {
		return Entry{}, fmt.Errorf("manifest line %d: %w", m.n, err)
	}
	if err := m.line(l); err != nil {
		if errors.Is(err, io.EOF) {
			return Entry{}, io.EOF
		}
		return Entry{}, fmt.Errorf("manifest line %d: %w", m.n, err)
	}
	return Entry{Pack: l.Pack, Map: l.Map, File: l.File}, nil
}

// one says whether exactly one is so.
func one(of ...bool) bool {
	n := 0
	for _, is := range of {
		if is {
			n++
		}
	}
	return n == 1
}

// line checks one line; io.EOF for the last.
func (m *ManifestReader) line(l manifestLine) error {
	switch {
	case !one(l.Pack != nil, l.Map != nil, l.File != nil, l.End != nil):
		return errors.New("want exactly one of pack, map, file and end")
	case l.Pack != nil:
		return m.check.pack(*l.Pack)
	case l.Map != nil:
		return m.check.mapObject(*l.Map)
	case l.File != nil:
		return m.check.file(*l.File)
	}
	if err := m.end(*l.End); err != nil {
		return err
	}
	return io.EOF
}

func (m *ManifestReader) end(e manifestEnd) error {
	if e != m.check.seen {
		return fmt.Errorf("the end line counts %+v, there were %+v", e, m.check.seen)
	}
	if m.s.Scan() {
		return errors.New("there is more after the end line")
	}
	return m.s.Err()
}

// EncodeManifest writes the whole of m.
func EncodeManifest(w io.Writer, m Manifest) error {
	out, err := NewManifestWriter(w, m.Header)
	if err != nil {
		return err
	}
	for _, p := range m.Packs {
		if err := out.Pack(p); err != nil {
			return err
		}
	}
	for _, p := range m.Maps {
		if err := out.Map(p); err != nil {
			return err
		}
	}
	for _, f := range m.Files {
		if err := out.File(f); err != nil {
			return err
		}
	}
	return out.Close()
}

// DecodeManifest reads the whole of a manifest into memory.
func DecodeManifest(r io.Reader) (Manifest, error) {
	in, err := NewManifestReader(r)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Header: in.Header}
	for {
		e, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return m, nil
		case err != nil:
			return Manifest{}, err
		case e.Pack != nil:
			m.Packs = append(m.Packs, *e.Pack)
		case e.Map != nil:
			m.Maps = append(m.Maps, *e.Map)
		default:
			m.Files = append(m.Files, *e.File)
		}
	}
}

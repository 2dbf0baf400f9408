package catalog

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// The kinds of snapshots.
const (
	Physical = "physical" // the files of the cluster, with the WAL that makes them one moment
	Logical  = "logical"  // its databases, each in one moment
	Project  = "project"  // one project of it, in one moment
)

// Exported says whether a snapshot of a kind holds files that were exported: rows and
// DDL. It needs no WAL, is the base of nothing, and restores no cluster.
func Exported(kind string) bool { return kind == Logical || kind == Project }

// OfKind are the notes of snapshots of one kind, in their order.
func OfKind(list []Noted[Snapshot], kind string) (out []Noted[Snapshot]) {
	for _, n := range list {
		if n.Body.Kind == kind {
			out = append(out, n)
		}
	}
	return out
}

// Bounds of a logical manifest.
const (
	maxLogicalLine   = 1 << 20
	maxLogicalFrames = 4096 // named in one line
)

// LogicalManifest says which files a logical snapshot holds, and which frames of which
// packs they are: numbers, sizes and digests. Whose they are, and how tables and
// projects are called, stands in the files alone, which the data recipients open.
type LogicalManifest struct {
	Header LogicalHeader
	Packs  []ManifestPack
	Files  []LogicalFile // by path
}

// LogicalHeader is the manifest's first line.
type LogicalHeader struct {
	Format   int    `json:"format"`
	Kind     string `json:"kind"` // logical | project
	Cluster  string `json:"cluster"`
	Snapshot string `json:"snapshot"`
}

// LogicalFile is one file: its frames end to end are its bytes.
type LogicalFile struct {
	Path   string      `json:"path"`
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256"` // of its bytes
	Frames []PackFrame `json:"-"`
}

// PackFrame is a frame of a pack of the manifest: in JSON [pack, off, len, raw, sha256].
type PackFrame struct {
	Pack   int
	Off    int64 // in the pack's plaintext
	Len    int64
	Raw    int
	SHA256 string // of the compressed bytes, lower-case hex
}

// MarshalJSON implements json.Marshaler.
func (f PackFrame) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{f.Pack, f.Off, f.Len, f.Raw, f.SHA256})
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (f *PackFrame) UnmarshalJSON(b []byte) error {
	var in []json.RawMessage
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("frame: %w", err)
	}
	if len(in) != 5 {
		return fmt.Errorf("frame: %d fields, want [pack, off, len, raw, sha256]", len(in))
	}
	for i, to := range []any{&f.Pack, &f.Off, &f.Len, &f.Raw, &f.SHA256} {
		if err := json.Unmarshal(in[i], to); err != nil {
			return fmt.Errorf("frame: %w", err)
		}
	}
	return nil
}

// FrameOf is a frame as a logical manifest names it.
func FrameOf(f LeafFrame) PackFrame {
	return PackFrame{Pack: int(f.Pack), Off: f.Off, Len: int64(f.Len), Raw: f.Raw, SHA256: hex.EncodeToString(f.SHA256[:])}
}

// logicalLine is a line behind the header: one of its fields is set.
type logicalLine struct {
	Pack   *ManifestPack `json:"pack,omitempty"`
	File   *LogicalFile  `json:"file,omitempty"`
	Frames []PackFrame   `json:"frames,omitempty"` // more of the file before
	End    *logicalEnd   `json:"end,omitempty"`
}

type logicalEnd struct {
	Packs  int `json:"packs"`
	Files  int `json:"files"`
	Frames int `json:"frames"`
}

// EncodeLogical writes a manifest: its header, the packs, each file and its frames, and
// a line that counts them.
func EncodeLogical(w io.Writer, m LogicalManifest) error {
	out := bufio.NewWriterSize(w, 64<<10)
	m.Header.Format = ManifestFormat
	lines := []any{m.Header}
	end := logicalEnd{Packs: len(m.Packs), Files: len(m.Files)}
	for _, p := range m.Packs {
		lines = append(lines, logicalLine{Pack: &p})
	}
	for _, f := range m.Files {
		lines = append(lines, logicalLine{File: &f})
		end.Frames += len(f.Frames)
		for some := range slices.Chunk(f.Frames, maxLogicalFrames) {
			lines = append(lines, logicalLine{Frames: some})
		}
	}
	for _, line := range append(lines, logicalLine{End: &end}) {
		text, err := json.Marshal(line)
		if err != nil {
			return fmt.Errorf("write manifest: %w", err)
		}
		if _, err := out.Write(append(text, '\n')); err != nil {
			return err
		}
	}
	return out.Flush()
}

// DecodeLogical reads what EncodeLogical wrote, and believes nothing: paths stay below
// a directory, frames lie in packs that were told before and are as many bytes as the
// files have.
func DecodeLogical(r io.Reader) (LogicalManifest, error) {
	d := &logicalDecoder{s: bufio.NewScanner(r)}
	d.s.Buffer(make([]byte, 64<<10), maxLogicalLine)
	for n := 1; ; n++ {
		if !d.s.Scan() {
			err := d.s.Err()
			if err == nil {
				err = fmt.Errorf("%w: no end line", io.ErrUnexpectedEOF)
			}
			return LogicalManifest{}, fmt.Errorf("manifest line %d: %w", n, err)
		}
		done, err := d.line(n, d.s.Bytes())
		if err != nil {
			return LogicalManifest{}, fmt.Errorf("manifest line %d: %w", n, err)
		}
		if done {
			return d.m, nil
		}
	}
}

// maxLogical bounds a manifest's plaintext: 30 million frames, 30 TB of rows.
const maxLogical = 4 << 30

// OpenLogical opens a sealed manifest, whose digest was checked.
func OpenLogical(sealed []byte, ids []age.Identity) (m LogicalManifest, err error) {
	r, err := seal.NewBlobReader(bytes.NewReader(sealed), ids, maxLogical)
	if err != nil {
		return m, fmt.Errorf("open the manifest: %w", err)
	}
	defer r.Close()
	return DecodeLogical(r)
}

// logicalDecoder holds what the lines so far allow the next one to say.
type logicalDecoder struct {
	s      *bufio.Scanner
	m      LogicalManifest
	left   int64 // bytes of the last file that no frame has given yet
	frames int
}

func (d *logicalDecoder) line(n int, text []byte) (done bool, err error) {
	if n == 1 {
		return false, d.header(text)
	}
	var l logicalLine
	if err := json.Unmarshal(text, &l); err != nil {
		return false, err
	}
	switch {
	case !one(l.Pack != nil, l.File != nil, l.Frames != nil, l.End != nil):
		return false, errors.New("want exactly one of pack, file, frames and end")
	case l.Frames != nil:
		return false, d.more(l.Frames)
	case d.left > 0:
		return false, fmt.Errorf("the frames of file %q lack %d bytes", d.m.Files[len(d.m.Files)-1].Path, d.left)
	case l.Pack != nil:
		return false, d.pack(*l.Pack)
	case l.File != nil:
		return false, d.file(*l.File)
	}
	return true, d.end(*l.End)
}

func (d *logicalDecoder) header(text []byte) error {
	h := &d.m.Header
	if err := json.Unmarshal(text, h); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if h.Format < 1 || h.Format > ManifestFormat {
		return fmt.Errorf("it is of format %d, this program reads up to %d: use a newer holdfast", h.Format, ManifestFormat)
	}
	if !Exported(h.Kind) {
		return fmt.Errorf("it is of kind %q, want %s or %s", h.Kind, Logical, Project)
	}
	return nil
}

func (d *logicalDecoder) pack(p ManifestPack) error {
	if len(d.m.Files) > 0 || p.N != len(d.m.Packs) || p.Raw < 0 || p.Live < 0 || p.Live > p.Raw {
		return fmt.Errorf("pack %d behind %d packs and %d files cannot be", p.N, len(d.m.Packs), len(d.m.Files))
	}
	d.m.Packs = append(d.m.Packs, p)
	return checkRef(p.Ref)
}

func (d *logicalDecoder) file(f LogicalFile) error {
	if n := len(d.m.Files); n > 0 && f.Path <= d.m.Files[n-1].Path {
		return fmt.Errorf("file %q after %q: want them sorted by path, each once", f.Path, d.m.Files[n-1].Path)
	}
	if f.Size < 0 || !hex64.MatchString(f.SHA256) {
		return fmt.Errorf("file %q: size %d or digest %.80q cannot be", f.Path, f.Size, f.SHA256)
	}
	f.Frames = nil
	d.left = f.Size
	d.m.Files = append(d.m.Files, f)
	return checkRelPath(f.Path)
}

func (d *logicalDecoder) more(list []PackFrame) error {
	if len(d.m.Files) == 0 {
		return errors.New("frames before the first file")
	}
	f := &d.m.Files[len(d.m.Files)-1]
	for _, x := range list {
		if x.Pack < 0 || x.Pack >= len(d.m.Packs) || x.Off < 0 || x.Len < 1 || x.Raw < 1 || x.Raw > maxFrameRaw || !hex64.MatchString(x.SHA256) {
			return fmt.Errorf("file %q: a frame of %d bytes at %d of pack %d cannot be", f.Path, x.Raw, x.Off, x.Pack)
		}
		if d.left -= int64(x.Raw); d.left < 0 {
			return fmt.Errorf("file %q of %d bytes: its frames have more", f.Path, f.Size)
		}
	}
	d.frames += len(list)
	f.Frames = append(f.Frames, list...)
	return nil
}

func (d *logicalDecoder) end(e logicalEnd) error {
	if e.Packs != len(d.m.Packs) || e.Files != len(d.m.Files) || e.Frames != d.frames {
		return fmt.Errorf("the end line counts %+v, there were %d packs, %d files and %d frames", e, len(d.m.Packs), len(d.m.Files), d.frames)
	}
	if d.s.Scan() {
		return errors.New("there is more after the end line")
	}
	return d.s.Err()
}

package evidence

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed" // the second verifier and the instructions
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// Format is the format of a bundle. A reader refuses others.
const Format = "holdfast-evidence/1"

// Names in a bundle beside those of the ledgers' objects.
const (
	headName  = "bundle.json"
	proofsDir = "proofs/"
	logsDir   = "ledger/"
)

//go:embed verify.py
var script []byte

//go:embed README.txt
var readme []byte

// Script is verify.py.
func Script() []byte { return slices.Clone(script) }

// Head is bundle.json. Nothing in it is believed: checkpoints bind the
// repository, and the reader is told the period.
type Head struct {
	Format     string `json:"format"`
	Repository string `json:"repository"`
	Period
	MadeAt   time.Time       `json:"made_at"`
	Software ledger.Software `json:"software"`
	LeftOut  []string        `json:"left_out,omitempty"` // logs that nothing proves
	Keys     []string        `json:"keys"`               // the verifier keys that whoever made it trusts: to compare, not to trust
}

// limits of what is read.
const (
	maxBundle  = 2 << 30
	maxObject  = 64 << 20
	maxObjects = 1 << 20
)

// writer writes a bundle: a tar of plain files in the order given, with neither
// owners nor times of its own, so that equal evidence is an equal file.
type writer struct {
	tar *tar.Writer
	at  time.Time
}

func (w writer) put(name string, body []byte) error {
	err := w.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: w.at.Truncate(time.Second), Typeflag: tar.TypeReg, Format: tar.FormatPAX})
	if err == nil {
		_, err = w.tar.Write(body)
	}
	if err != nil {
		return fmt.Errorf("write %s into the bundle: %w", name, err)
	}
	return nil
}

// Log is one log to export: its newest checkpoint, and the entry from which on
// its entries are delivered.
type Log struct {
	Checkpoint ledger.Checkpoint
	From       int64
	Prove      []int64 // entries that get a detached proof
}

// Write writes the bundle of the logs that src has.
func Write(ctx context.Context, out io.Writer, src ledger.Source, head Head, logs []Log) error {
	head.Format = Format
	text, err := json.MarshalIndent(head, "", "  ")
	if err != nil {
		return fmt.Errorf("write a bundle: %w", err)
	}
	w := writer{tar.NewWriter(out), head.MadeAt}
	for _, f := range []struct {
		name string
		body []byte
	}{{headName, append(text, '\n')}, {"README.txt", readme}, {"verify.py", script}} {
		if err := w.put(f.name, f.body); err != nil {
			return err
		}
	}
	for _, l := range logs {
		if err := ledger.WriteExcerpt(ctx, src, l.Checkpoint, l.From, w.put); err != nil {
			return err
		}
		for _, index := range l.Prove {
			proof, err := ledger.Prove(ctx, src, l.Checkpoint, index)
			if err == nil {
				err = w.put(proofName(l.Checkpoint.Origin, index), proof)
			}
			if err != nil {
				return err
			}
		}
	}
	if err := w.tar.Close(); err != nil {
		return fmt.Errorf("write a bundle: %w", err)
	}
	return nil
}

func proofName(origin string, index int64) string {
	return fmt.Sprintf("%s%s/%d.tlog-proof", proofsDir, origin, index)
}

// files are a bundle's files by name: a ledger.Source.
type files map[string][]byte

// Fetch implements [ledger.Source].
func (f files) Fetch(_ context.Context, name string, accept func(string, []byte) error) ([]byte, error) {
	body, ok := f[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w in the bundle", name, fs.ErrNotExist)
	}
	return body, accept("the bundle", body)
}

// List implements [ledger.Source].
func (f files) List(_ context.Context, prefix string) ([]string, error) {
	var names []string
	for name := range f {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// errBundle means that the file is no bundle: there is nothing to verify in it.
var errBundle = errors.New("not a bundle of evidence")

// open reads all of a bundle into memory.
func open(in io.Reader) (files, Head, error) {
	got, head := files{}, Head{}
	limited := &io.LimitedReader{R: in, N: maxBundle}
	r := tar.NewReader(limited)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, head, fmt.Errorf("%w: reading the tar: %w", errBundle, err)
		}
		if err := got.take(h, r); err != nil {
			return nil, head, fmt.Errorf("%w: %w", errBundle, err)
		}
	}
	text, ok := got[headName]
	if !ok {
		return nil, head, fmt.Errorf("%w: it has no %s", errBundle, headName)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&head); err != nil {
		return nil, head, fmt.Errorf("%w: %s: %w", errBundle, headName, err)
	}
	if head.Format != Format || head.Repository == "" || !head.From.Before(head.To) {
		return nil, head, fmt.Errorf("%w: %s says format %q, repository %q, from %s to %s; this program reads %s", errBundle, headName, head.Format, head.Repository, stamp(head.From), stamp(head.To), Format)
	}
	return got, head, nil
}

// take reads one file; what a bundle never holds is refused before it is read.
func (f files) take(h *tar.Header, r io.Reader) error {
	known := h.Name == headName || h.Name == "README.txt" || h.Name == "verify.py" || strings.HasPrefix(h.Name, logsDir) || strings.HasPrefix(h.Name, proofsDir)
	switch _, twice := f[h.Name]; {
	case twice:
		return fmt.Errorf("it holds %q twice", h.Name)
	case h.Typeflag != tar.TypeReg || !known || path.Clean(h.Name) != h.Name:
		return fmt.Errorf("it holds %q, which no bundle does", h.Name)
	case h.Size > maxObject || len(f) >= maxObjects:
		return fmt.Errorf("%q: %d bytes, in a bundle of at most %d files of %d", h.Name, h.Size, maxObjects, maxObject)
	}
	body, err := io.ReadAll(io.LimitReader(r, maxObject))
	if err != nil {
		return fmt.Errorf("%q: %w", h.Name, err)
	}
	f[h.Name] = body
	return nil
}

// Known reads the checkpoints that a reader kept: one, or those of an earlier
// bundle. Their signatures are not looked at: whoever kept them believed them.
func Known(data []byte) ([]ledger.Checkpoint, error) {
	got, _, err := open(bytes.NewReader(data))
	if err != nil {
		c, err := ledger.ParseCheckpoint(data)
		return []ledger.Checkpoint{c}, err
	}
	names, _ := got.List(context.Background(), logsDir) // never fails
	var out []ledger.Checkpoint
	for _, name := range names {
		if !strings.Contains(name, "/checkpoint/") {
			continue
		}
		c, err := ledger.ParseCheckpoint(got[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, c)
	}
	return out, nil
}

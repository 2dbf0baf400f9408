package catalog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Bounds of an objects.list: 32 MiB packs make 4 million of them 128 TiB.
const (
	maxObjects     = 4 << 20
	maxObjectsLine = 1200
)

// EncodeObjects writes an objects.list: for each object a line
// "<sha256> <size> <name>", sorted by name, each name once. It is plaintext, so
// that anyone can check a zone without an identity.
func EncodeObjects(refs []Ref) ([]byte, error) {
	refs = slices.Clone(refs)
	slices.SortFunc(refs, func(a, b Ref) int { return strings.Compare(a.Name, b.Name) })
	refs = slices.Compact(refs)
	var b bytes.Buffer
	for i, r := range refs {
		if err := checkRef(r); err != nil {
			return nil, fmt.Errorf("objects.list: %w", err)
		}
		if i > 0 && refs[i-1].Name == r.Name {
			return nil, fmt.Errorf("objects.list: %s is named twice with different bytes", r.Name)
		}
		fmt.Fprintf(&b, "%s %d %s\n", r.SHA256, r.Size, r.Name)
	}
	return b.Bytes(), nil
}

// DecodeObjects is the inverse of [EncodeObjects].
func DecodeObjects(r io.Reader) ([]Ref, error) {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 4<<10), maxObjectsLine)
	var refs []Ref
	for s.Scan() {
		ref, err := parseRef(s.Text())
		if err == nil && len(refs) > 0 && ref.Name <= refs[len(refs)-1].Name {
			err = errors.New("names must rise")
		}
		if err == nil && len(refs) == maxObjects {
			err = fmt.Errorf("more than %d objects", maxObjects)
		}
		if err != nil {
			return nil, fmt.Errorf("objects.list, line %d: %w", len(refs)+1, err)
		}
		refs = append(refs, ref)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("objects.list, line %d: %w", len(refs)+1, err)
	}
	if len(refs) == 0 {
		return nil, errors.New("objects.list is empty: every snapshot needs its manifest")
	}
	return refs, nil
}

func parseRef(line string) (Ref, error) {
	sum, rest, _ := strings.Cut(line, " ")
	size, name, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != size {
		return Ref{}, fmt.Errorf("want \"<sha256> <size> <name>\", found %.120q", line)
	}
	ref := Ref{Name: name, Size: n, SHA256: sum}
	return ref, checkRef(ref)
}

// checkRef wants a name that can be an object's in every zone and a whole digest.
func checkRef(r Ref) error {
	if err := checkRelPath(r.Name); err != nil || len(r.Name) > 1024 || strings.ContainsAny(r.Name, "\r\n ") {
		return fmt.Errorf("object name %.80q cannot be", r.Name)
	}
	if r.Size < 0 || !hex64.MatchString(r.SHA256) {
		return fmt.Errorf("object %s: size %d or digest %.80q cannot be", r.Name, r.Size, r.SHA256)
	}
	return nil
}

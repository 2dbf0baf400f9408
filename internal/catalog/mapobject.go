package catalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// MapTarget is the size of a map object's plaintext at which it is full, and
// maxMap what a reader takes at most.
const (
	MapTarget = 16 << 20
	maxMap    = 32 << 20
)

const mapMagic = "HOLDFMP1"

// MapBuilder gathers leaves and the names of the packs that they refer to until
// they make a map object. It is for one goroutine.
type MapBuilder struct {
	names  []string
	places map[string]uint32
	table  int // bytes of the names, encoded
	leaves []byte
}

// NewMapBuilder returns an empty builder.
func NewMapBuilder() *MapBuilder { return &MapBuilder{places: map[string]uint32{}} }

// Size is the number of bytes that the plaintext will have.
func (b *MapBuilder) Size() int { return len(mapMagic) + 4 + b.table + len(b.leaves) }

// Full says that the object should be written now.
func (b *MapBuilder) Full() bool { return b.Size() >= MapTarget }

// Add encodes a leaf whose frames' packs are named by name, and returns where it
// begins among the leaves and its length. [LeafRef.Off] counts from the first leaf.
func (b *MapBuilder) Add(l Leaf, name func(pack uint32) string) (off, n int, err error) {
	frames := make([]LeafFrame, len(l.Frames))
	for i, f := range l.Frames {
		f.Pack = b.place(name(f.Pack))
		frames[i] = f
	}
	l.Frames = frames
	off = len(b.leaves)
	b.leaves, err = AppendLeaf(b.leaves, l)
	return off, len(b.leaves) - off, err
}

func (b *MapBuilder) place(name string) uint32 {
	at, ok := b.places[name]
	if !ok {
		at = uint32(len(b.names))
		b.places[name] = at
		b.names = append(b.names, name)
		b.table += 2 + len(name)
	}
	return at
}

// Bytes is the plaintext of the map object.
func (b *MapBuilder) Bytes() []byte {
	out := make([]byte, 0, b.Size())
	out = append(out, mapMagic...)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(b.names)))
	for _, n := range b.names {
		out = binary.LittleEndian.AppendUint16(out, uint16(len(n)))
		out = append(out, n...)
	}
	return append(out, b.leaves...)
}

// Reset empties the builder.
func (b *MapBuilder) Reset() {
	clear(b.places)
	b.names, b.table, b.leaves = b.names[:0], 0, b.leaves[:0]
}

// parseMapTable reads what stands before the leaves of a map object's plaintext.
func parseMapTable(plain []byte) (names []string, leaves []byte, err error) {
	rest, ok := bytes.CutPrefix(plain, []byte(mapMagic))
	if !ok || len(rest) < 4 || len(plain) > maxMap {
		return nil, nil, errors.New("page map: this is no map object of format 1")
	}
	n := binary.LittleEndian.Uint32(rest)
	rest = rest[4:]
	if int64(n) > int64(len(rest)/2) {
		return nil, nil, errors.New("page map: the table of packs is cut off")
	}
	names = make([]string, 0, n)
	for range n {
		if len(rest) < 2 || len(rest)-2 < int(binary.LittleEndian.Uint16(rest)) {
			return nil, nil, errors.New("page map: the table of packs is cut off")
		}
		end := 2 + int(binary.LittleEndian.Uint16(rest))
		names = append(names, string(rest[2:end]))
		rest = rest[end:]
	}
	for _, name := range names {
		if err := checkRelPath(name); err != nil {
			return nil, nil, fmt.Errorf("page map: pack: %w", err)
		}
	}
	return names, rest, nil
}

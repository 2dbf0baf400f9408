package walrec

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

const (
	rmgrTablespace   = 5
	tablespaceCreate = 0x00 // XLOG_TBLSPC_CREATE

	// maxTablespaceRecord is longer than any record of a tablespace's creation: its
	// headers and a path of MAXPGPATH bytes.
	maxTablespaceRecord = 2048
)

// Edit puts Bytes in place of those at At.
type Edit struct {
	At    lsn.LSN
	Bytes []byte
}

// NewTablespace is a record that creates a tablespace (xl_tblspc_create_rec).
type NewTablespace struct {
	OID  uint32
	Path string // on the host that wrote the record; "" is in place
	// Edits make the record one of a tablespace in place, which replay puts at
	// pg_tblspc/OID itself, or where a link of that name leads.
	Edits []Edit
}

// TablespaceScan is what a piece of WAL creates tablespaces by.
type TablespaceScan struct {
	Found []NewTablespace // wholly in the piece
	// Joins: the piece begins within a record that may be another one; Open: it ends
	// within one.
	Joins, Open bool
	// Read is how far the piece could be read.
	Read lsn.LSN
}

// ScanTablespaces looks for the creation of tablespaces in data, WAL that begins
// with a page. What cannot be read is an error; what was found before it is given.
func ScanTablespaces(cfg Config, data []byte) (s TablespaceScan, err error) {
	r, err := NewReader(cfg)
	if err != nil {
		return s, err
	}
	if len(data) >= shortHeader {
		p := parsePage(data)
		s.Joins = p.info&flagContinues != 0 && p.remaining < maxTablespaceRecord
	}
	err = r.Feed(data, func(rec *Record) error {
		if !rec.is(rmgrTablespace, tablespaceCreate) {
			return nil
		}
		n, err := rec.newTablespace(cfg.SegSize)
		s.Found = append(s.Found, n)
		return err
	})
	s.Open, s.Read = r.mayCreate(), r.LastRecordEnd()
	return s, err
}

// mayCreate says whether the record in progress may be a tablespace's creation.
func (r *Reader) mayCreate() bool {
	switch got := r.s.Got; {
	case got == 0 || got >= 4 && r.length() > maxTablespaceRecord:
		return false
	case got < 18:
		return true
	}
	return r.s.Record[17] == rmgrTablespace && r.s.Record[16]&0xf0 == tablespaceCreate
}

func (r *Record) newTablespace(segSize int64) (n NewTablespace, err error) {
	main, err := r.mainData()
	if err != nil {
		return n, err
	}
	c := cursor{b: main}
	n.OID = c.u32()
	if c.bad {
		return n, c.err()
	}
	path, _, _ := bytes.Cut(c.b, []byte{0})
	n.Path = string(path)
	data := slices.Clone(r.Data)
	clear(data[len(data)-len(c.b):])
	crc := crc32.Update(0, castagnoli, data[recordHeader:])
	binary.LittleEndian.PutUint32(data[20:], crc32.Update(crc, castagnoli, data[:20]))
	n.Edits = edits(r.Start, data, segSize)
	return n, nil
}

// edits lays a record's bytes out from at on, around the headers of pages.
func edits(at lsn.LSN, b []byte, segSize int64) (out []Edit) {
	for len(b) > 0 {
		if at%PageSize == 0 {
			at += lsn.LSN(headerSize(at, segSize))
		}
		n := min(int(PageSize-at%PageSize), len(b))
		out = append(out, Edit{at, b[:n]})
		at, b = at+lsn.LSN(n), b[n:]
	}
	return out
}

// Apply puts the edits that lie there into data, which begins at from.
func Apply(data []byte, from lsn.LSN, list []Edit) {
	end := from + lsn.LSN(len(data))
	for _, e := range list {
		if e.At >= from && e.At < end { // an edit lies within one page
			copy(data[e.At-from:], e.Bytes)
		}
	}
}

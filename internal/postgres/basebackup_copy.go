package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5/pgproto3"
)

// untyped reads the answer of 13 and 14: a copy for each tablespace in the order
// in which they were told, the data directory among them, then the manifest.
func (r *backupReader) untyped() error {
	for n := range len(r.out.Tablespaces) + 1 {
		oid := uint32(0)
		if n < len(r.out.Tablespaces) {
			oid = r.out.Tablespaces[n].OID
		}
		in, err := r.openCopy()
		if err != nil {
			return err
		}
		if err := r.archive(in, oid); err != nil {
			return err
		}
	}
	in, err := r.openCopy()
	if err != nil {
		return err
	}
	return r.manifest(in)
}

func (r *backupReader) openCopy() (io.Reader, error) {
	m, err := r.receive()
	if err != nil {
		return nil, err
	}
	if _, ok := m.(*pgproto3.CopyOutResponse); !ok {
		return nil, fmt.Errorf("the server sent %T, want the beginning of a copy", m)
	}
	return &plainCopy{r: r}, nil
}

// plainCopy is the bytes of one copy of the old form.
type plainCopy struct {
	r    *backupReader
	rest []byte
	done bool
}

func (c *plainCopy) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.done {
			return 0, io.EOF
		}
		m, err := c.r.receive()
		if err != nil {
			return 0, err
		}
		switch m := m.(type) {
		case *pgproto3.CopyData:
			c.rest = m.Data
		case *pgproto3.CopyDone:
			c.done = true
		default:
			return 0, fmt.Errorf("the server sent %T in the midst of a copy", m)
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// manifest holds the files that came against the manifest (C-26).
func (r *backupReader) manifest(in io.Reader) (err error) {
	if r.summed {
		return errors.New("the server sent two manifests")
	}
	r.summed = true
	if r.opt.Manifest != nil {
		in = io.TeeReader(in, r.opt.Manifest)
	}
	if r.out.ParsedManifest, err = ReadManifest(in, r.arrived.check); err != nil {
		return err
	}
	return onlyZeros(in)
}

// Kinds of message in the copy of 15 and later (bbsink_copystream in
// src/backend/backup/basebackup_copy.c).
const (
	msgArchive  = 'n'
	msgManifest = 'm'
	msgData     = 'd'
	msgProgress = 'p'
)

// typedCopy reads the one copy of 15 and later.
func (r *backupReader) typedCopy() error {
	m, err := r.receive()
	if err != nil {
		return err
	}
	if _, ok := m.(*pgproto3.CopyOutResponse); !ok {
		return fmt.Errorf("the server sent %T, want the beginning of a copy", m)
	}
	c := &typedCopy{r: r}
	for {
		if err := c.next(); err != nil {
			return err
		}
		switch c.kind {
		case 0:
			return nil
		case msgManifest:
			err = r.manifest(c)
		case msgArchive:
			var oid uint32
			if oid, err = archiveOID(c.name); err == nil {
				err = r.archive(c, oid)
			}
		}
		if err != nil {
			return err
		}
	}
}

// archiveOID reads the name of an archive: base.tar or <oid>.tar.
func archiveOID(name string) (uint32, error) {
	if name == "base.tar" {
		return 0, nil
	}
	base, ext, _ := bytes.Cut([]byte(name), []byte("."))
	oid, err := strconv.ParseUint(string(base), 10, 32)
	if err != nil || oid == 0 || string(ext) != "tar" {
		return 0, fmt.Errorf("an archive named %q, want base.tar or <oid>.tar", name)
	}
	return uint32(oid), nil
}

// typedCopy is a reader of the part that next found, to its end.
type typedCopy struct {
	r    *backupReader
	rest []byte
	kind byte // of the part that begins; 0 at the end of the copy
	name string
	over bool // the message that begins the next part was read already
}

// next goes to the beginning of the next part. What is left of this one must be none.
func (c *typedCopy) next() error {
	if c.over {
		c.over = false
		return nil
	}
	n, err := c.Read(make([]byte, 1))
	switch {
	case n > 0:
		return errors.New("the server sent data that belong to no archive")
	case !errors.Is(err, io.EOF):
		return err
	}
	c.over = false
	return nil
}

func (c *typedCopy) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.over {
			return 0, io.EOF
		}
		m, err := c.r.receive()
		if err != nil {
			return 0, err
		}
		if err := c.take(m); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *typedCopy) take(m pgproto3.BackendMessage) error {
	switch m := m.(type) {
	case *pgproto3.CopyDone:
		c.kind, c.over = 0, true
		return nil
	case *pgproto3.CopyData:
		return c.message(m.Data)
	default:
		return fmt.Errorf("the server sent %T in the midst of a copy", m)
	}
}

func (c *typedCopy) message(data []byte) error {
	if len(data) == 0 {
		return errors.New("an empty message in the midst of a copy")
	}
	body := data[1:]
	switch data[0] {
	case msgData:
		c.rest = body
	case msgArchive:
		name, rest, ok1 := bytes.Cut(body, []byte{0})
		_, rest, ok2 := bytes.Cut(rest, []byte{0})
		if !ok1 || !ok2 || len(rest) != 0 {
			return fmt.Errorf("a malformed beginning of an archive: %q", body)
		}
		c.kind, c.name, c.over = msgArchive, string(name), true
	case msgManifest:
		c.kind, c.over = msgManifest, true
	case msgProgress:
		if len(body) != 8 {
			return fmt.Errorf("a progress message of %d bytes, want 8", len(body))
		}
		if done := int64(binary.BigEndian.Uint64(body)); c.r.opt.Progress != nil {
			c.r.opt.Progress(done, c.r.total)
		}
	default:
		return fmt.Errorf("a message of the unknown kind %q in the midst of a copy", data[0])
	}
	return nil
}

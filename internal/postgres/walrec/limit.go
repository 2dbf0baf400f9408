package walrec

import (
	"errors"
	"fmt"
)

const (
	rmgrStorage  = 2
	rmgrDatabase = 4

	smgrCreate   = 0x10 // src/include/catalog/storage_xlog.h
	smgrTruncate = 0x20
	truncateHeap = 0x01
)

// ErrMinimal says that WAL of wal_level minimal follows, which leaves out changes.
var ErrMinimal = errors.New("wal_level is minimal from here on: WAL no longer names every change")

// limit says that a fork's blocks from Block on are others than before, whether or
// not records name them. Node 0 stands for every relation of the database in the
// tablespace.
type limit struct {
	Relation
	Fork  Fork
	Block uint32
}

// limits calls visit for what the record does to whole files, as the summarizer of
// PostgreSQL 17 reads it (src/backend/postmaster/walsummarizer.c). An error says
// that it cannot be told; then nothing is known of what changed.
func (r *Record) limits(visit func(limit)) error {
	switch r.Rmgr {
	case rmgrStorage:
		return r.storage(visit)
	case rmgrDatabase:
		return r.database(visit)
	case rmgrXact:
		return r.dropped(visit)
	case rmgrXLOG:
		if !r.is(rmgrXLOG, xlogParameterChange) {
			break
		}
		if d, err := r.Decode(); err != nil || d.Params.WALLevel == 0 {
			return errors.Join(err, ErrMinimal)
		}
	}
	if r.Info&specialUpdate != 0 {
		return fmt.Errorf("changes files in a way that it alone knows")
	}
	return nil
}

// storage reads xl_smgr_create and xl_smgr_truncate.
func (r *Record) storage(visit func(limit)) error {
	data, err := r.mainData()
	if err != nil {
		return err
	}
	c := cursor{b: data}
	switch r.Info & 0xf0 {
	case smgrCreate:
		relation, fork := c.relation(), c.u32()
		if err := c.err(); err != nil {
			return err
		}
		if fork >= uint32(len(forkNames)) {
			return fmt.Errorf("makes an unknown fork, %d", fork)
		}
		visit(limit{Relation: relation, Fork: Fork(fork)})
	case smgrTruncate:
		l := limit{Block: c.u32(), Relation: c.relation()}
		if flags := c.u32(); flags&truncateHeap != 0 && !c.bad {
			visit(l)
		}
	default:
		return fmt.Errorf("is of an unknown kind")
	}
	return c.err()
}

// database reads the records of a database's directory (src/include/commands/
// dbcommands_xlog.h): since 15 a database can be made page by page, too. That one
// is treated as the others, for an OID may come a second time.
func (r *Record) database(visit func(limit)) error {
	const copied = 0x00
	logged, drop := uint8(0x10), uint8(0x20)
	if r.major <= 14 {
		logged, drop = copied, 0x10
	}
	data, err := r.mainData()
	if err != nil {
		return err
	}
	c := cursor{b: data}
	database, spaces := c.u32(), uint32(1)
	switch r.Info & 0xf0 {
	case copied, logged:
	case drop:
		spaces = c.u32()
	default:
		return fmt.Errorf("is of an unknown kind")
	}
	for ; spaces > 0 && !c.bad; spaces-- {
		if l := (limit{Relation: Relation{Tablespace: c.u32(), Database: database}}); !c.bad {
			visit(l)
		}
	}
	return c.err()
}

// dropped reads from a commit or abort which relations it removes.
func (r *Record) dropped(visit func(limit)) error {
	switch r.Info & xactOpMask {
	case xactCommit, xactAbort, xactCommitPrepared, xactAbortPrepared:
	default:
		return nil
	}
	if r.Info&xactHasInfo == 0 {
		return nil
	}
	data, err := r.mainData()
	if err != nil {
		return err
	}
	c := cursor{b: data}
	c.skip(8)
	info := c.u32()
	if c.bad || info&hasRelations == 0 {
		return c.err()
	}
	if info&hasDatabase != 0 {
		c.skip(8)
	}
	if info&hasSubxacts != 0 {
		c.skip(int64(c.i32()) * 4)
	}
	for n := c.u32(); n > 0 && !c.bad; n-- {
		if rel := c.relation(); !c.bad {
			visit(limit{Relation: rel})
			visit(limit{Relation: rel, Fork: InitFork})
		}
	}
	return c.err()
}

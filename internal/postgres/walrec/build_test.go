package walrec

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// builder writes WAL as a server would, to make what no server can be asked for.
type builder struct {
	cfg   Config
	magic uint16
	buf   []byte
	prev  lsn.LSN
}

func newBuilder(cfg Config) *builder {
	b := &builder{cfg: cfg}
	for magic, major := range magics {
		if major == cfg.Major {
			b.magic = magic
		}
	}
	return b
}

func (b *builder) pos() lsn.LSN { return b.cfg.Start + lsn.LSN(len(b.buf)) }

// page begins a page if one begins here.
func (b *builder) page(flags uint16, remaining int) {
	at := b.pos()
	if at%PageSize != 0 {
		return
	}
	size := headerSize(at, b.cfg.SegSize)
	h := make([]byte, size)
	if size == longHeader {
		flags |= flagLong
		binary.LittleEndian.PutUint64(h[24:], b.cfg.SystemID)
		binary.LittleEndian.PutUint32(h[32:], uint32(b.cfg.SegSize))
		binary.LittleEndian.PutUint32(h[36:], PageSize)
	}
	binary.LittleEndian.PutUint16(h, b.magic)
	binary.LittleEndian.PutUint16(h[2:], flags)
	binary.LittleEndian.PutUint32(h[4:], 1)
	binary.LittleEndian.PutUint64(h[8:], uint64(at))
	binary.LittleEndian.PutUint32(h[16:], uint32(remaining))
	b.buf = append(b.buf, h...)
}

// put adds bytes of a record, with the page headers between them.
func (b *builder) put(rec []byte) {
	for len(rec) > 0 {
		if len(b.buf) > 0 {
			b.page(flagContinues, len(rec))
		}
		n := min(len(rec), int(PageSize-b.pos()%PageSize))
		b.buf = append(b.buf, rec[:n]...)
		rec = rec[n:]
	}
}

// record adds a record with the given data and returns its start.
func (b *builder) record(rmgr, info uint8, xid uint32, data []byte) lsn.LSN {
	b.page(0, 0)
	at := b.pos()
	b.put(frame(b.prev, rmgr, info, xid, data))
	b.pad()
	b.prev = at
	return at
}

func (b *builder) pad() {
	for b.pos()%8 != 0 {
		b.buf = append(b.buf, 0)
	}
}

func frame(prev lsn.LSN, rmgr, info uint8, xid uint32, data []byte) []byte {
	rec := make([]byte, recordHeader, recordHeader+len(data)+5)
	if len(data) < 256 {
		rec = append(rec, 255, byte(len(data)))
	} else {
		rec = binary.LittleEndian.AppendUint32(append(rec, 254), uint32(len(data)))
	}
	rec = append(rec, data...)
	binary.LittleEndian.PutUint32(rec, uint32(len(rec)))
	binary.LittleEndian.PutUint32(rec[4:], xid)
	binary.LittleEndian.PutUint64(rec[8:], uint64(prev))
	rec[16], rec[17] = info, rmgr
	crc := crc32.Update(crc32.Checksum(rec[recordHeader:], castagnoli), castagnoli, rec[:20])
	binary.LittleEndian.PutUint32(rec[20:], crc)
	return rec
}

// commit is the data of a commit at a time in PostgreSQL's microseconds.
func commit(micros uint64) []byte { return binary.LittleEndian.AppendUint64(nil, micros) }

package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// part is a piece of WAL, or a small file of the archive, to be made durable.
type part struct {
	file     string // the name PostgreSQL knows; of a slice, its segment's
	timeline uint32
	from, to lsn.LSN // to exclusive; equal for a file that is no WAL
	slice    bool
	segSize  int64
	data     []byte
	marks    marks
	mac      string // of its names, where it was computed before
	// known says that the part may have been archived before: look first.
	known bool
	// shelved says that the spool has it, and that data and index are let go of.
	shelved bool
	// serverTime is the server's clock as its last message told it.
	serverTime time.Time
}

// marks is what a part's index tells the note and the reader of positions.
type marks struct {
	index       []byte // walrec.Index as JSON; nil for a file that is no WAL
	first, last time.Time
	recordEnd   lsn.LSN
}

// names are the objects of one part.
type names struct{ object, index, note, mac string }

// macDomain keeps the MACs in WAL names apart from other uses of the digest key.
const macDomain = "wal"

// names computes where a part lies: the MAC binds system, epoch, timeline, name
// and bytes, so that the same bytes are one name and two contents are two.
func (p part) names(l catalog.Lineage, k seal.DigestKeys) names {
	called := p.file
	off := func(at lsn.LSN) uint32 { return uint32(at - p.from.SegmentStart(p.segSize)) }
	if p.slice {
		called = fmt.Sprintf("%s.%08X-%08X", p.file, off(p.from), off(p.to))
	}
	mac := p.mac
	if mac == "" {
		mac = p.macOf(l, k, called)
	}
	n := names{mac: mac, note: catalog.WALNoteName(l.Cluster, l.Epoch, p.timeline, uint64(p.from), uint64(p.to), mac[:8])}
	if p.slice {
		n.object = catalog.SliceName(l.Cluster, l.Epoch, p.timeline, p.file, off(p.from), off(p.to), mac)
	} else {
		n.object = catalog.WALName(l.Cluster, l.Epoch, p.timeline, p.file, mac)
	}
	if p.marks.index != nil {
		n.index = catalog.WALIndexName(n.object)
	}
	return n
}

func (p part) macOf(l catalog.Lineage, k seal.DigestKeys, called string) string {
	return k.MAC(macDomain, []byte(l.SystemID), []byte(strconv.Itoa(l.Epoch)), fmt.Appendf(nil, "%08X", p.timeline), []byte(called), p.data)
}

// record is the note's body but for its Link and ArchivedAt.
func (p part) record(l catalog.Lineage, n names, object catalog.Ref, index []byte) catalog.WAL {
	raw := sha256.Sum256(p.data)
	w := catalog.WAL{
		Cluster: l.Cluster, Epoch: l.Epoch, Timeline: p.timeline, SystemID: l.SystemID, File: p.file,
		From: p.from, To: p.to, Slice: p.slice, Object: object,
		Raw: hex.EncodeToString(raw[:]), RawSize: int64(len(p.data)),
		LastRecordEnd: p.marks.recordEnd, FirstTime: p.marks.first, LastTime: p.marks.last, ServerTime: p.serverTime,
	}
	if n.index != "" {
		w.Index = refOf(n.index, index)
	}
	return w
}

func refOf(name string, body []byte) catalog.Ref {
	sum := sha256.Sum256(body)
	return catalog.Ref{Name: name, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])}
}

// walEpochDir holds all timelines of one epoch.
func walEpochDir(cluster string, epoch int) string {
	return fmt.Sprintf("%s%08d/", catalog.WALRoot(cluster), epoch)
}

package walrec

// Kinds and flags of transaction records (src/include/access/xact.h).
const (
	xactCommit         = 0x00
	xactPrepare        = 0x10
	xactAbort          = 0x20
	xactCommitPrepared = 0x30
	xactAbortPrepared  = 0x40
	xactOpMask         = 0x70
	xactHasInfo        = 0x80

	hasDatabase      = 1 << 0
	hasSubxacts      = 1 << 1
	hasRelations     = 1 << 2
	hasInvalidations = 1 << 3
	hasTwophase      = 1 << 4
	hasDroppedStats  = 1 << 8 // 15 and later
)

// Awaited says whether a client may wait until the record is on a synchronous
// standby (SyncRepWaitForLSN in src/backend/access/transam: commits, and the two
// phases of those that are prepared).
func (r *Record) Awaited() bool {
	if r.Rmgr != rmgrXact {
		return false
	}
	switch r.Info & xactOpMask {
	case xactCommit, xactPrepare, xactCommitPrepared, xactAbortPrepared:
		return true
	}
	return false
}

// xact decodes commits and aborts (ParseCommitRecord, ParseAbortRecord in
// src/backend/access/rmgrdesc/xactdesc.c).
func (r *Record) xact() (Decoded, error) {
	op := r.Info & xactOpMask
	d := Decoded{Xid: r.Xid, Kind: CommitKind}
	switch op {
	case xactCommit, xactCommitPrepared:
	case xactAbort, xactAbortPrepared:
		d.Kind = AbortKind
	default:
		return Decoded{}, nil
	}
	d.Prepared = op == xactCommitPrepared || op == xactAbortPrepared
	data, err := r.mainData()
	if err != nil {
		return d, err
	}
	c := cursor{b: data}
	d.Time = c.timestamp()
	if r.Info&xactHasInfo == 0 {
		return d, c.err()
	}
	info := c.u32()
	if info&hasDatabase != 0 {
		d.Database = c.u32()
		c.skip(4)
	}
	if info&hasSubxacts != 0 {
		n := c.i32()
		d.Subxacts = int(n)
		c.skip(int64(n) * 4)
	}
	if info&hasTwophase != 0 && !c.bad {
		r.beforeTwophase(&c, info)
		d.Xid = c.u32()
	}
	if len(r.Data) < int(r.Length) {
		// What is wanted may lie behind the part that was kept.
		return d, nil
	}
	return d, c.err()
}

// beforeTwophase skips what precedes the prepared transaction's xid.
func (r *Record) beforeTwophase(c *cursor, info uint32) {
	if info&hasRelations != 0 {
		c.skip(int64(c.i32()) * 12) // RelFileLocator
	}
	if info&hasDroppedStats != 0 {
		size := int64(12) // xl_xact_stats_item
		if r.major >= 18 {
			size = 16
		}
		c.skip(int64(c.i32()) * size)
	}
	if info&hasInvalidations != 0 {
		c.skip(int64(c.i32()) * 16) // SharedInvalidationMessage
	}
}

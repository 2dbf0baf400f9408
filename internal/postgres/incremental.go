package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/postgres/changemap"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// ErrNoIncremental means that the server cannot or will not send what changed since
// the prior backup; the error says why. A whole backup, over a new connection, is
// the way on.
var ErrNoIncremental = errors.New("no incremental base backup can be had")

// Prior is the backup that an incremental one builds on: any that this cluster once
// had, for the server learns of it from us (C-28).
type Prior struct {
	SystemID   uint64
	Timeline   uint32 // at its start and its end
	Start, End lsn.LSN
	// Files are all files of it, in any order; Path, Size and Modified count.
	Files iter.Seq2[ManifestFile, error]
	// AnyMinor believes servers that are known to leave changes out (C-33). It is
	// for tests of what does not depend on those.
	AnyMinor bool
}

// BlockSink takes the files of an incremental base backup: those that come whole by
// File, those of which blocks come by Blocks.
type BlockSink interface {
	Sink
	Blocks(ctx context.Context, c ChangedFile, pages io.Reader) error
}

// ChangedFile is a segment file of a relation of which the server sends the blocks
// that may have changed since the prior backup; pages are those of Blocks in their
// order, [page.Size] bytes each.
//
// To restore block n of the file: if it is in Blocks, take its page; else if it is
// below Keep and the prior backup's file has it, take that; else it is all zeros.
type ChangedFile struct {
	FileHeader          // Path is the relation's own, Size that of the whole file
	Keep       uint32   // truncation_block_length: from here on the prior's blocks are no more
	Blocks     []uint32 // ascending, counted in the segment file; valid until Blocks returns
}

// The format of INCREMENTAL files (C-29): src/include/backup/basebackup_incremental.h
// and sendFile in src/backend/backup/basebackup.c.
const (
	incrementalPrefix = "INCREMENTAL."
	incrementalMagic  = 0xd3ae1f0d
)

// changed hands the changed blocks of one file to the sink.
func (r *backupReader) changed(h FileHeader, in *sumReader) error {
	dir, name := path.Split(h.Path)
	c := ChangedFile{FileHeader: h}
	c.Path = dir + strings.TrimPrefix(name, incrementalPrefix)
	err := c.header(in, r.arrived)
	if err == nil {
		err = r.sink.(BlockSink).Blocks(r.ctx, c, in)
	}
	return r.taken(h, in, err)
}

// header reads what stands before the pages and believes nothing of it that the
// file's size contradicts.
func (c *ChangedFile) header(in io.Reader, arrived arrivals) error {
	if rel, ok := datadir.ParseRelation(c.Path); !ok || rel.Fork == datadir.FSM || arrived.has(c.Path) {
		return errors.New("blocks of what is no relation's file, or came whole already")
	}
	var head [12]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	word := func(n int) uint32 { return binary.LittleEndian.Uint32(head[4*n:]) }
	count := word(1)
	c.Keep = word(2)
	size := int64(len(head)) + 4*int64(count)
	padding := int64(0)
	if count > 0 {
		padding = (page.Size - size%page.Size) % page.Size
	}
	if word(0) != incrementalMagic || count > page.SegmentBlocks || c.Keep > page.SegmentBlocks ||
		c.Size != size+padding+int64(count)*page.Size {
		return fmt.Errorf("a header %x of %d blocks, keeping %d, in a file of %d bytes: not the format of 17 and 18, or a server of another byte order",
			word(0), count, c.Keep, c.Size)
	}
	return c.numbers(in, count, padding)
}

func (c *ChangedFile) numbers(in io.Reader, count uint32, padding int64) error {
	raw := make([]byte, 4*int(count)+int(padding))
	if _, err := io.ReadFull(in, raw); err != nil {
		return fmt.Errorf("read the numbers of the blocks: %w", err)
	}
	if !page.IsZero(raw[4*count:]) {
		return errors.New("the padding after the numbers of the blocks is not zero")
	}
	blocks := c.Keep
	c.Blocks = make([]uint32, count)
	for n := range c.Blocks {
		b := binary.LittleEndian.Uint32(raw[4*n:])
		if b >= page.SegmentBlocks || n > 0 && b <= c.Blocks[n-1] {
			return fmt.Errorf("block %d out of order or beyond the segment", b)
		}
		c.Blocks[n] = b
		blocks = max(blocks, b+1)
	}
	c.Size = int64(blocks) * page.Size
	return nil
}

const summarizeOff = "summarize_wal is off: set it on, and the backup after the next can be incremental"

// wholeLabel leaves out of a backup_label the lines by which a server knows that a
// directory is an incremental backup, and refuses to start: what stands beside the
// label is made whole here, as pg_combinebackup does it (C-32).
func wholeLabel(label []byte) []byte {
	var out []byte
	for line := range bytes.Lines(label) {
		if !bytes.HasPrefix(line, []byte("INCREMENTAL FROM ")) {
			out = append(out, line...)
		}
	}
	return out
}

// announce tells the server of the prior backup.
func (c *Conn) announce(ctx context.Context, p Prior, sink Sink) error {
	if _, ok := sink.(BlockSink); !ok {
		return errors.New("take an incremental base backup: its sink takes whole files only")
	}
	if err := summarizes(c.num, p.AnyMinor); err != nil {
		return err
	}
	rows, err := c.simple(ctx, "SHOW summarize_wal")
	if err != nil {
		return fmt.Errorf("ask whether the server summarizes WAL: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) != 1 || string(rows[0][0]) != "on" {
		return fmt.Errorf("%w: %s", ErrNoIncremental, summarizeOff)
	}
	return c.upload(ctx, p)
}

func (c *Conn) upload(ctx context.Context, p Prior) error {
	in, out := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := p.manifest(out, c.num/10000)
		out.CloseWithError(err)
		written <- err
	}()
	_, err := c.pgx.PgConn().CopyFrom(ctx, in, "UPLOAD_MANIFEST")
	in.CloseWithError(io.ErrClosedPipe) // ends the writer when the server listens no longer
	ours := <-written
	switch {
	case ours != nil && !errors.Is(ours, io.ErrClosedPipe):
		return fmt.Errorf("write the manifest of the prior backup: %w", ours)
	case code(err) != "":
		return fmt.Errorf("%w: the server refused the manifest of the prior backup: %w", ErrNoIncremental, err)
	case err != nil:
		return fmt.Errorf("send the manifest of the prior backup: %w", err)
	}
	return nil
}

func (p Prior) manifest(w io.Writer, major int) error {
	m := NewManifestWriter(w, major, p.SystemID)
	for f, err := range p.Files {
		if err == nil {
			err = m.File(f)
		}
		if err != nil {
			return err
		}
	}
	return m.Close([]WALRange{{Timeline: p.Timeline, Start: p.Start, End: p.End}})
}

// summarizes says whether the version has summaries that can be believed (C-33).
func summarizes(num int, anyMinor bool) error {
	if num < 170000 {
		return fmt.Errorf("%w: PostgreSQL %d does not summarize WAL, 17 and later do", ErrNoIncremental, num/10000)
	}
	if err := changemap.TrustSummaries(num); err != nil && !anyMinor {
		return fmt.Errorf("%w: %w", ErrNoIncremental, err)
	}
	return nil
}

// summaries are what the server has of a timeline around an LSN: a summary that
// holds it, and how far its summarizer is.
const summaries = `SELECT EXISTS (SELECT FROM pg_available_wal_summaries() WHERE tli = $1 AND start_lsn <= $2::text::pg_lsn AND end_lsn > $2::text::pg_lsn),
       summarized_tli = $1 AND summarized_lsn <= $2::text::pg_lsn FROM pg_get_wal_summarizer_state()`

// CheckSummaries asks, over an ordinary connection, whether an incremental base
// backup since p has a chance: BASE_BACKUP itself would find out after a checkpoint
// only, and wait a minute for a summarizer that is stuck (C-27). Of the summaries
// since then only the oldest can be missing, for the server removes them by age.
func CheckSummaries(ctx context.Context, c *Conn, p Prior) error {
	if err := summarizes(c.num, p.AnyMinor); err != nil {
		return err
	}
	var on string
	if err := c.pgx.QueryRow(ctx, "SHOW summarize_wal").Scan(&on); err != nil {
		return fmt.Errorf("ask whether the server summarizes WAL: %w", err)
	}
	if on != "on" {
		return fmt.Errorf("%w: %s", ErrNoIncremental, summarizeOff)
	}
	var has, comes bool
	err := c.pgx.QueryRow(ctx, summaries, p.Timeline, p.Start.String()).Scan(&has, &comes)
	switch {
	case code(err) == "42501": // not ours to look at: the server itself will say
		return nil
	case err != nil:
		return fmt.Errorf("ask which WAL summaries the server has: %w", err)
	case !has && !comes:
		return fmt.Errorf("%w: the server has no WAL summary of timeline %d at %s, where the prior backup starts: raise wal_summary_keep_time above the time between snapshots",
			ErrNoIncremental, p.Timeline, p.Start)
	}
	return nil
}

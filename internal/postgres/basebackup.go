package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// BaseBackupOptions are those of BASE_BACKUP that Holdfast uses (C-23). The zero
// value asks for a spread checkpoint, verified checksums and a manifest.
type BaseBackupOptions struct {
	Label string
	Fast  bool // checkpoint at once (C-5)
	// MaxRate limits the server, in bytes a second; 0 is no limit. The server
	// takes 32 KiB to 1 GiB; what lies outside is moved to the nearest.
	MaxRate int64
	// NoVerify tells the server not to check page checksums as it reads.
	NoVerify bool
	// Progress is told the bytes received so far and the server's estimate of
	// all, 0 while unknown. It must be quick.
	Progress func(done, estimate int64)
	// Started is told where the backup starts, before its first file. It must be quick.
	Started func(at lsn.LSN, timeline uint32)
	// Manifest gets the server's backup_manifest byte for byte; it may be nil.
	Manifest io.Writer
	// Since asks for what changed since another backup, of a server of 17 or
	// later; the sink must be a [BlockSink] then.
	Since *Prior
}

// FileHeader describes a file of a base backup.
type FileHeader struct {
	Path    string // relative to the data directory, with slashes; of a tablespace: pg_tblspc/<oid>/…
	Size    int64
	Mode    fs.FileMode // permission bits
	ModTime time.Time
}

// Sink takes the files of a base backup one after the other. It must read r to its
// end or return an error, which ends the backup. backup_label does not come here: it
// is in the result.
type Sink interface {
	File(ctx context.Context, h FileHeader, r io.Reader) error
}

// BackupDir is a directory of a base backup; Path as in [FileHeader].
type BackupDir struct {
	Path    string
	Mode    fs.FileMode
	ModTime time.Time
}

// BackupTablespace is a tablespace in a base backup.
type BackupTablespace struct {
	OID      uint32
	Location string // as the server has it; relative for one in place
	Size     int64  // the server's estimate in bytes, 0 if it made none
	InPlace  bool
}

// BaseBackupResult is what came beside the files.
type BaseBackupResult struct {
	Start, End                 lsn.LSN
	StartTimeline, EndTimeline uint32
	Tablespaces                []BackupTablespace
	Dirs                       []BackupDir
	Label                      []byte   // backup_label, byte for byte (C-3), as of a whole backup
	TablespaceMap              []byte   // to be written as tablespace_map; nil when no tablespace is linked
	ParsedManifest             Manifest // its Files were held against what came, and are not kept
	Files                      int64
	Bytes                      int64    // of files
	Warnings                   []string // what the server remarked, the first hundred
}

// ChecksumError means that the server found pages with wrong checksums. It comes
// after all data: the result beside it is whole, and says what the server has (C-24).
type ChecksumError struct {
	Failures int64    // pages
	Details  []string // the server's words, file and block, the first hundred
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("the server found %d pages with wrong checksums while it sent the base backup: %s; the backup is complete and holds the damage; keep older snapshots and look at the server's disk",
		e.Failures, strings.Join(e.Details[:min(3, len(e.Details))], "; "))
}

// baseBackupSQL builds the command in the syntax of the version: a list in
// parentheses since 15, keywords before (C-23). TABLESPACE_MAP is not asked for:
// with it a server of 15 leaves out, without a word, all that lies in tablespaces
// in place (C-14), because sendDir in src/backend/replication/basebackup.c then
// passes over pg_tblspc. The map is made from the list of tablespaces instead.
func baseBackupSQL(num int, o BaseBackupOptions) string {
	rate := min(max(o.MaxRate/1024, 32), 1<<20)
	if num < 150000 {
		words := []string{"BASE_BACKUP LABEL " + quote(o.Label), "PROGRESS"}
		if o.Fast {
			words = append(words, "FAST")
		}
		words = append(words, "NOWAIT")
		if o.MaxRate > 0 {
			words = append(words, fmt.Sprint("MAX_RATE ", rate))
		}
		if o.NoVerify {
			words = append(words, "NOVERIFY_CHECKSUMS")
		}
		return strings.Join(append(words, "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'"), " ")
	}
	checkpoint := "spread"
	if o.Fast {
		checkpoint = "fast"
	}
	list := []string{
		"LABEL " + quote(o.Label), "PROGRESS true", "CHECKPOINT '" + checkpoint + "'", "WAIT false",
		fmt.Sprint("VERIFY_CHECKSUMS ", !o.NoVerify), "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'",
	}
	if o.MaxRate > 0 {
		list = append(list, fmt.Sprint("MAX_RATE ", rate))
	}
	if o.Since != nil {
		list = append(list, "INCREMENTAL true")
	}
	return "BASE_BACKUP (" + strings.Join(list, ", ") + ")"
}

// tablespaceMap writes what the server's own tablespace_map would say, escapes
// included (do_pg_backup_start in src/backend/access/transam/xlog.c).
func tablespaceMap(spaces []BackupTablespace) (out []byte) {
	escape := strings.NewReplacer("\n", "\\\n", "\r", "\\\r", "\\", "\\\\")
	for _, s := range spaces {
		if !s.InPlace {
			out = fmt.Appendf(out, "%d %s\n", s.OID, escape.Replace(s.Location))
		}
	}
	return out
}

// quote makes a string constant of the replication grammar, which knows no
// escapes but the doubled quote.
func quote(s string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, "\x00", ""), "'", "''") + "'"
}

// BaseBackup has the server send a base backup and gives its files to the sink as
// they come. The server does not wait for its archiver: the caller must see to the
// WAL from Start to End (C-8). The connection must be one for replication. With a
// [*ChecksumError] the result is whole; with any other error it is not.
func BaseBackup(ctx context.Context, c *Conn, o BaseBackupOptions, sink Sink) (BaseBackupResult, error) {
	if !c.repl {
		return BaseBackupResult{}, errors.New("take a base backup: the connection is not one for replication")
	}
	var heard notices
	defer c.hear(heard.add)()
	if o.Since != nil {
		if err := c.announce(ctx, *o.Since, sink); err != nil {
			return BaseBackupResult{}, err
		}
	}
	if err := c.send(baseBackupSQL(c.num, o)); err != nil {
		return BaseBackupResult{}, fmt.Errorf("ask for a base backup: %w", err)
	}
	r := newBackupReader(ctx, c.pgx.PgConn(), c.num, o, sink)
	err := r.run()
	r.out.Warnings = heard.said
	if err == nil {
		return r.out, nil
	}
	if code(err) == "XX001" && r.whole {
		return r.out, &ChecksumError{Failures: heard.failures(), Details: heard.said}
	}
	if o.Since != nil && r.out.Start == 0 && code(err) != "" {
		err = fmt.Errorf("%w: %w", ErrNoIncremental, err)
	}
	// The server may be in the midst of sending: nobody can use this again.
	return r.out, fmt.Errorf("take a base backup: %w", errors.Join(err, c.abandon()))
}

// send starts a command whose answer is read message by message.
func (c *Conn) send(sql string) error {
	f := c.pgx.PgConn().Frontend()
	f.SendQuery(&pgproto3.Query{String: sql})
	return f.Flush()
}

// notices keeps what the server remarks during a backup.
type notices struct {
	said  []string
	count int64
	total int64 // from the summary that perform_base_backup makes
}

func (n *notices) add(p *pgconn.Notice) {
	switch {
	case p.Routine == "perform_base_backup":
		n.total = max(n.total, firstNumber(p.Message))
	case p.Severity == "WARNING" || p.SeverityUnlocalized == "WARNING":
		n.count++
	}
	if len(n.said) < 100 {
		n.said = append(n.said, p.Message)
	}
}

// failures are the pages: the server's own sum, which older ones leave out for one page;
// among the warnings may be one more for each file.
func (n *notices) failures() int64 {
	if n.total > 0 {
		return n.total
	}
	return max(n.count, 1)
}

// firstNumber reads the first number in a sentence of whatever language, 0 if there is none.
func firstNumber(s string) int64 {
	for _, word := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.ParseInt(word, 10, 64)
		if err == nil {
			return n
		}
	}
	return 0
}

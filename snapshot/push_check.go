package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// Why a pushed file is refused.
var (
	// ErrForeignWAL means that the file belongs to another PostgreSQL cluster.
	ErrForeignWAL = errors.New("the file belongs to another PostgreSQL cluster")
	// ErrForeignDir means that the push comes from another data directory than
	// the one that is configured: a copied server, most likely.
	ErrForeignDir = errors.New("the push comes from another data directory than the configured one")
	// ErrOtherContent means that the archive has a file of this name with other bytes.
	ErrOtherContent = errors.New("a file of this name with other content is archived")
	// ErrBeyondFork means that the timeline ended before this WAL.
	ErrBeyondFork = errors.New("the WAL lies behind the end of its timeline")
	// ErrNotWAL means that the name or the content is not what PostgreSQL archives.
	ErrNotWAL = errors.New("not a file that PostgreSQL archives")
)

// walKind is one of the four kinds of file that archive_command hands over (C-39).
type walKind int

const (
	segmentFile walKind = iota
	partialFile
	historyFile
	backupFile
)

var (
	segmentRE = regexp.MustCompile(`^[0-9A-F]{24}$`)
	partialRE = regexp.MustCompile(`^[0-9A-F]{24}\.partial$`)
	historyRE = regexp.MustCompile(`^[0-9A-F]{8}\.history$`)
	backupRE  = regexp.MustCompile(`^[0-9A-F]{24}\.[0-9A-F]{8}\.backup$`)
)

func kindOfFile(name string) (walKind, error) {
	for kind, re := range map[walKind]*regexp.Regexp{segmentFile: segmentRE, partialFile: partialRE, historyFile: historyRE, backupFile: backupRE} {
		if re.MatchString(name) {
			return kind, nil
		}
	}
	return 0, fmt.Errorf("%q: %w: want a segment (24 hexadecimal digits), .partial, .history or .backup", name, ErrNotWAL)
}

// maxSmallFile bounds .history and .backup files; real ones have a few hundred bytes.
const maxSmallFile = 1 << 20

// wanted is the cluster that pushed WAL must belong to.
type wanted struct {
	systemID uint64
	major    int
	segSize  int64
}

// checkFile reads a pushed file's name and bytes into a part, without marks, or
// says why it cannot be of the cluster (C-39, C-41).
func checkFile(name string, data []byte, want wanted) (part, error) {
	kind, err := kindOfFile(name)
	if err != nil {
		return part{}, err
	}
	p := part{file: name, segSize: want.segSize, data: data, known: true}
	switch kind {
	case segmentFile, partialFile:
		return checkSegment(p, kind, want)
	case historyFile:
		return checkHistory(p)
	default:
		return checkBackup(p, want)
	}
}

func checkSegment(p part, kind walKind, want wanted) (part, error) {
	if int64(len(p.data)) != want.segSize {
		return part{}, fmt.Errorf("%s: %w: %d bytes, a segment of this cluster has %d", p.file, ErrNotWAL, len(p.data), want.segSize)
	}
	timeline, start, err := lsn.ParseSegmentName(p.file[:24], want.segSize)
	if err != nil {
		return part{}, fmt.Errorf("%w: %w", ErrNotWAL, err)
	}
	err = walrec.CheckSegmentHeader(p.data, walrec.Header{
		Major: want.major, Timeline: timeline, Page: start, SystemID: want.systemID, SegSize: want.segSize,
	})
	switch {
	case errors.Is(err, walrec.ErrForeign):
		return part{}, fmt.Errorf("%s: %w: %w; give each cluster a name, a configuration and a socket of its own", p.file, ErrForeignWAL, err)
	case err != nil:
		return part{}, fmt.Errorf("%s: %w: %w", p.file, ErrNotWAL, err)
	}
	p.timeline, p.from, p.to = timeline, start, start+lsn.LSN(want.segSize)
	if kind == partialFile {
		p.to = p.from // its end is not in its name, and no restore takes it for a segment (C-40)
	}
	return p, nil
}

func checkHistory(p part) (part, error) {
	timeline, err := strconv.ParseUint(p.file[:8], 16, 32)
	if err != nil {
		return part{}, fmt.Errorf("%s: %w: %w", p.file, ErrNotWAL, err)
	}
	forks, err := lsn.ParseHistory(p.data)
	if err != nil || len(forks) == 0 {
		return part{}, fmt.Errorf("%s: %w: no ancestor in it: %w", p.file, ErrNotWAL, errors.Join(err))
	}
	last := forks[len(forks)-1]
	if uint64(last.Timeline) >= timeline {
		return part{}, fmt.Errorf("%s: %w: names timeline %d as its ancestor", p.file, ErrNotWAL, last.Timeline)
	}
	p.timeline, p.from, p.to = uint32(timeline), last.LSN, last.LSN
	return p, nil
}

func checkBackup(p part, want wanted) (part, error) {
	timeline, start, err := lsn.ParseSegmentName(p.file[:24], want.segSize)
	if err != nil {
		return part{}, fmt.Errorf("%w: %w", ErrNotWAL, err)
	}
	first, _, _ := bytes.Cut(p.data, []byte("\n"))
	if !strings.HasPrefix(string(first), "START WAL LOCATION: ") || !bytes.Contains(first, []byte("(file "+p.file[:24]+")")) {
		return part{}, fmt.Errorf("%s: %w: a backup history file begins with START WAL LOCATION and names its segment", p.file, ErrNotWAL)
	}
	p.timeline, p.from, p.to = timeline, start, start
	return p, nil
}

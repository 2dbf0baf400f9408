package page

import (
	"bytes"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// maxListed bounds the blocks that a [Report] names; it counts all of them.
const maxListed = 100

// Report counts the verdicts of the pages of one or more files (C-21). Pages =
// Good + New + Recent + Changed + Bad.
type Report struct {
	Pages, Good, New, Recent int64
	Changed                  int64    // torn when first read, other bytes when read again
	Bad                      int64    // the same wrong bytes twice
	BadBlocks                []uint32 // the first hundred, counted over the relation
	Short                    int64    // files that end inside a page; their rest was not checked
	// Latest is the highest LSN by which a page passed as Recent: one beyond the
	// backup's stop is damage, for no WAL of the backup repairs it.
	Latest lsn.LSN
}

// Add counts another report's pages into r.
func (r *Report) Add(o Report) {
	r.Pages += o.Pages
	r.Good += o.Good
	r.New += o.New
	r.Recent += o.Recent
	r.Changed += o.Changed
	r.Bad += o.Bad
	r.Short += o.Short
	r.Latest = max(r.Latest, o.Latest)
	r.BadBlocks = append(r.BadBlocks, o.BadBlocks[:min(len(o.BadBlocks), maxListed-min(maxListed, len(r.BadBlocks)))]...)
}

// Clean says that nothing was found that a restore would inherit.
func (r Report) Clean() bool { return r.Bad == 0 && r.Short == 0 }

// Reread reads page number index of the file again into page.
type Reread func(page []byte, index int64) error

// looks are the pauses before a page that mismatches is read again. A writer that
// was preempted in the middle of a page leaves it torn for as long as it waits for a
// processor, so the same wrong bytes at once prove nothing on a busy machine.
var looks = [...]time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond}

// maxPatient is how many pages of a file are looked at with pauses: a file that is
// damaged throughout is judged by reading again at once.
const maxPatient = 4

// Verifier checks one segment file of a relation as its bytes pass by, in order.
// Make it with [NewVerifier].
type Verifier struct {
	start  lsn.LSN
	first  uint32
	reread Reread
	next   int64
	ended  bool
	report Report
}

// NewVerifier checks segment number segment of a relation in a backup that began
// at start. reread may be nil where the source can be read once only (a stream of
// BASE_BACKUP): then a mismatch is bad at once.
func NewVerifier(start lsn.LSN, segment uint32, reread Reread) *Verifier {
	return &Verifier{start: start, first: segment * SegmentBlocks, reread: reread}
}

// Check judges the next pages of the file, where data is a whole number of pages
// except at the end of the file. A page that mismatches is read again, for up to half a
// second: other bytes mean that the server was writing it, and its WAL repairs it, so
// the newer bytes take the place of the old ones in data; the same bytes are bad
// (C-19). An error is that of reading again. After a part of a page nothing is checked.
func (v *Verifier) Check(data []byte) error {
	for ; len(data) > 0 && !v.ended; data = data[min(Size, len(data)):] {
		if _, err := v.Page(data[:min(Size, len(data))], v.next); err != nil {
			return err
		}
		v.next++
	}
	return nil
}

// Page judges page number index of the file, in any order, by the rule of
// [Verifier.Check]. What a second look replaced is Recent: its WAL repairs it.
func (v *Verifier) Page(data []byte, index int64) (Verdict, error) {
	if len(data) < Size {
		v.ended = true
		v.report.Short++
		return Bad, nil
	}
	block := v.first + uint32(index)
	v.report.Pages++
	verdict := Judge(data, block, v.start)
	if verdict == Bad && v.reread != nil {
		changed, err := v.lookAgain(data, index)
		if err != nil {
			return verdict, fmt.Errorf("read block %d again, its checksum was wrong: %w", block, err)
		}
		if changed {
			v.report.Changed++
			return Recent, nil
		}
	}
	if verdict == Recent {
		v.report.Latest = max(v.report.Latest, LSN(data))
	}
	v.count(verdict, block)
	return verdict, nil
}

// lookAgain puts other bytes in the place of data where there are some.
func (v *Verifier) lookAgain(data []byte, index int64) (changed bool, err error) {
	again := make([]byte, Size)
	for _, pause := range looks {
		if pause > 0 && v.report.Bad >= maxPatient {
			break
		}
		time.Sleep(pause) // the writer is another program's, and nothing tells when it goes on
		if err := v.reread(again, index); err != nil {
			return false, err
		}
		if !bytes.Equal(again, data) {
			copy(data, again)
			return true, nil
		}
	}
	return false, nil
}

func (v *Verifier) count(verdict Verdict, block uint32) {
	switch verdict {
	case Good:
		v.report.Good++
	case New:
		v.report.New++
	case Recent:
		v.report.Recent++
	case Bad:
		v.report.Bad++
		if len(v.report.BadBlocks) < maxListed {
			v.report.BadBlocks = append(v.report.BadBlocks, block)
		}
	}
}

// Report is what was found so far.
func (v *Verifier) Report() Report { return v.report }

// Package lsn names positions in the write-ahead log: LSNs, segments and
// timelines. It computes and never reads; what does not parse is an error.
package lsn

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in the WAL, in bytes. Its text is PostgreSQL's: two
// hexadecimal halves with a slash (pg_lsn).
type LSN uint64

// Parse reads PostgreSQL's text form.
func Parse(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("LSN %q: want two hexadecimal numbers with a slash, as 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// MarshalText makes JSON hold PostgreSQL's text.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (l *LSN) UnmarshalText(b []byte) (err error) {
	*l, err = Parse(string(b))
	return err
}

// Segment is the number of the segment of size bytes that holds l.
func (l LSN) Segment(size int64) uint64 { return uint64(l) / uint64(size) }

// Offset is l's place inside its segment.
func (l LSN) Offset(size int64) int64 { return int64(uint64(l) % uint64(size)) }

// SegmentStart is the first position of l's segment.
func (l LSN) SegmentStart(size int64) LSN { return l - LSN(l.Offset(size)) }

// SegmentName is the 24-digit file name of a segment (XLogFileName in
// src/include/access/xlog_internal.h).
func SegmentName(timeline uint32, segment uint64, size int64) string {
	per := uint64(0x100000000) / uint64(size)
	return fmt.Sprintf("%08X%08X%08X", timeline, segment/per, segment%per)
}

// ParseSegmentName is the inverse of [SegmentName]; start is the segment's first
// position.
func ParseSegmentName(name string, size int64) (timeline uint32, start LSN, err error) {
	if len(name) == 24 && strings.ToUpper(name) == name {
		t, e1 := strconv.ParseUint(name[:8], 16, 32)
		h, e2 := strconv.ParseUint(name[8:16], 16, 32)
		l, e3 := strconv.ParseUint(name[16:], 16, 32)
		per := uint64(0x100000000) / uint64(size)
		if e1 == nil && e2 == nil && e3 == nil && l < per {
			return uint32(t), LSN((h*per + l) * uint64(size)), nil
		}
	}
	return 0, 0, fmt.Errorf("WAL segment name %q: want 24 hexadecimal digits of a cluster with %d-byte segments", name, size)
}

// HistoryName is the file name of a timeline's history.
func HistoryName(timeline uint32) string { return fmt.Sprintf("%08X.history", timeline) }

// Switch says that History's timeline ended at LSN, where the next began.
type Switch struct {
	Timeline uint32
	LSN      LSN
}

// ParseHistory reads a timeline history file: the ancestors of the timeline, the
// oldest first (src/backend/access/transam/timeline.c, readTimeLineHistory).
func ParseHistory(data []byte) ([]Switch, error) {
	var out []Switch
	for n, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			return nil, fmt.Errorf("timeline history, line %d: want a timeline and an LSN, found %q", n+1, line)
		}
		t, err := strconv.ParseUint(f[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("timeline history, line %d: timeline %q is not a number", n+1, f[0])
		}
		l, err := Parse(f[1])
		if err != nil {
			return nil, fmt.Errorf("timeline history, line %d: %w", n+1, err)
		}
		if len(out) > 0 && (uint32(t) <= out[len(out)-1].Timeline || l < out[len(out)-1].LSN) {
			return nil, fmt.Errorf("timeline history, line %d: timelines and LSNs must rise", n+1)
		}
		out = append(out, Switch{uint32(t), l})
	}
	return out, nil
}

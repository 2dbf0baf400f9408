package lsn

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

func TestTextIsPostgreSQLs(t *testing.T) {
	for text, want := range map[string]LSN{"0/0": 0, "16/B374D848": 0x16B374D848, "FFFFFFFF/FFFFFFFF": ^LSN(0)} {
		got, err := Parse(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: %x, %v, back as %s", text, got, err, got)
		}
	}
	for _, bad := range []string{"", "0", "/", "0/", "1/100000000", "x/1", "1/1/1", " 1/1", "-1/1"} {
		if l, err := Parse(bad); err == nil {
			t.Errorf("%q was read as %s", bad, l)
		}
	}
}

// Property: each form gives back what was written.
func TestFormsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := LSN(rapid.Uint64().Draw(t, "lsn"))
		data, err := json.Marshal(l)
		var back LSN
		if err != nil || json.Unmarshal(data, &back) != nil || back != l {
			t.Fatalf("JSON %s of %d gave %d", data, l, back)
		}
		size := int64(1) << rapid.IntRange(20, 30).Draw(t, "log2 of the segment size")
		timeline := rapid.Uint32Min(1).Draw(t, "timeline")
		name := SegmentName(timeline, l.Segment(size), size)
		tl, start, err := ParseSegmentName(name, size)
		if err != nil || tl != timeline || start != l.SegmentStart(size) || start+LSN(l.Offset(size)) != l {
			t.Fatalf("%s: timeline %d, start %s, %v", name, tl, start, err)
		}
	})
}

func TestSegmentNamesOfAnotherSizeAreRefused(t *testing.T) {
	for _, name := range []string{"", "00000001000000000000000", "0000000100000000000000FG", "000000010000000000000100", "00000001000000000000000a"} {
		if _, _, err := ParseSegmentName(name, 16<<20); err == nil {
			t.Errorf("%q was read", name)
		}
	}
}

func TestHistories(t *testing.T) {
	got, err := ParseHistory([]byte("1\t0/3000098\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore 2026-01-01\n"))
	if err != nil || len(got) != 2 || got[0] != (Switch{1, 0x3000098}) || got[1] != (Switch{2, 0x5000000}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"1", "x 0/1", "1 x", "2 0/1\n1 0/2", "1 0/2\n2 0/1"} {
		if got, err := ParseHistory([]byte(bad)); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add([]byte("1\t0/3000098\tno recovery target specified\n2\t0/5000000\tx\n"))
	f.Add([]byte("# nothing\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := ParseHistory(data)
		if err != nil {
			return
		}
		for i := 1; i < len(list); i++ {
			if list[i].Timeline <= list[i-1].Timeline || list[i].LSN < list[i-1].LSN {
				t.Fatalf("%v does not rise", list)
			}
		}
	})
}

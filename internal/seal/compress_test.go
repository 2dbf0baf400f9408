package seal

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
)

var levelNames = []string{"fastest", "default", "better"}

func TestEveryLevelMakesFramesThatSayTheirSizeAndCarryAChecksum(t *testing.T) {
	for _, name := range levelNames {
		c := NewCompressor(name)
		for i, raw := range contents {
			f := c.Compress(raw)
			var h zstd.Header
			if err := h.Decode(f.data); err != nil {
				t.Fatalf("%s, content %d: %v", name, i, err)
			}
			if !h.HasFCS || h.FrameContentSize != uint64(len(raw)) || !h.HasCheckSum || h.WindowSize > MaxFrame {
				t.Errorf("%s, content %d of %d bytes: header %+v", name, i, len(raw), h)
			}
			if f.Len() > maxCompressed {
				t.Errorf("%s, content %d: %d compressed bytes, a reader takes at most %d", name, i, f.Len(), maxCompressed)
			}
			want := Frame{Len: int64(f.Len()), Raw: f.Raw(), SHA256: fmt.Sprintf("%x", f.SHA256())}
			if got, err := decode(want, f.data, nil); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%s, content %d: came back as %d bytes, %v", name, i, len(got), err)
			}
		}
	}
}

func TestAFrameOutlivesTheNextAndItsCompressor(t *testing.T) {
	c := NewCompressor(DefaultLevel)
	first := c.Compress(contents[2])
	kept := bytes.Clone(first.data)
	c.Compress(contents[3])
	c = nil
	runtime.GC()
	if !bytes.Equal(first.data, kept) {
		t.Error("a frame changed after it was made")
	}
	_ = c
}

func TestCompressorsOfDifferentGoroutinesDoNotDisturbEachOther(t *testing.T) {
	want := NewCompressor(DefaultLevel).Compress(contents[2])
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c := NewCompressor(DefaultLevel)
			for range 8 {
				c.Compress(contents[3])
				if got := c.Compress(contents[2]); !bytes.Equal(got.data, want.data) {
					t.Error("the same bytes became two frames")
				}
			}
		})
	}
	wg.Wait()
}

func TestWhatDoesNotCompressGrowsByLessThanAThousandth(t *testing.T) {
	for _, name := range levelNames {
		raw := noise(MaxFrame)
		if n := NewCompressor(name).Compress(raw).Len(); n > MaxFrame+MaxFrame/1000 {
			t.Errorf("%s: %d bytes of noise became %d", name, MaxFrame, n)
		}
	}
}

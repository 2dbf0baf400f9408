package restore

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// What is compared is what the file holds, whether it lies in the page cache, on the
// disk, or in both, and wherever the file ends.
func TestWhatIsComparedIsReadFromTheCacheOrPastIt(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const leaf = catalog.LeafBlocks * catalog.BlockSize
	want := make([]byte, leaf+5*catalog.BlockSize+1234)
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	k := newLikeness(nil, false)
	o := k.of("f", &entry{size: int64(len(want))}, f)
	defer o.release()
	emptied := false
	for _, cold := range []bool{false, true, false} {
		if cold {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
			emptied = o.cold(leaf, 0) // not where files live in memory
		}
		for at := int64(0); at < int64(len(want)); at += leaf {
			n := min(leaf, len(want)-int(at))
			clear(*o.buf)
			if err := o.read(n, at); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal((*o.buf)[:n], want[at:int(at)+n]) {
				t.Errorf("cold %t: what was read at %d is not what is there", cold, at)
			}
		}
	}
	if emptied && !o.plain.Load() && o.disk == nil {
		t.Error("nothing was read past the cache, and nobody said that it cannot be")
	}
	if err := os.Truncate(path, leaf); err != nil {
		t.Fatal(err)
	}
	if err := o.read(catalog.BlockSize, leaf); err == nil {
		t.Error("what a file has no more was read")
	}
}

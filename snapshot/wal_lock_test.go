package snapshot

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// lockBook is a vault that writes down until when each object is to be locked.
type lockBook struct {
	vault.Writer
	mu    sync.Mutex
	until map[string]time.Time
}

func (b *lockBook) note(name string, opt vault.PutOptions) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until[name] = opt.LockUntil
}

func (b *lockBook) Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error) {
	b.note(name, opt)
	return b.Writer.Put(ctx, name, body, vault.PutOptions{Conflict: opt.Conflict})
}

func (b *lockBook) PutNote(ctx context.Context, name string, body []byte, needs []vault.Need, opt vault.PutOptions) (vault.Stored, error) {
	b.note(name, opt)
	return b.Writer.PutNote(ctx, name, body, needs, vault.PutOptions{Conflict: opt.Conflict})
}

func TestASliceIsLockedForADayAtMostAndASegmentForTheFloor(t *testing.T) {
	r := newWALRepo(t)
	v := r.vault()
	book := &lockBook{Writer: v.Writer(), until: map[string]time.Time{}}
	now := time.Now()
	c := r.writerConfig(v, catalog.Lineage{Cluster: "cms", Epoch: 1, SystemID: "7"}, t.TempDir())
	c.Store, c.Now = book, func() time.Time { return now }
	c.LockUntil = func(now time.Time) time.Time { return now.Add(7 * 24 * time.Hour) }
	w, err := OpenWriter(c)
	okay(t, err)
	p := part{file: "000000010000000000000003", timeline: 1, from: 3 * walSeg, to: 3*walSeg + 4, segSize: walSeg, slice: true, data: []byte("abcd")}
	okay(t, w.store(t.Context(), p))
	slices := len(book.until)
	for name, until := range book.until {
		if !until.Equal(now.Add(24 * time.Hour)) {
			t.Errorf("the slice's %s is locked until %s", name, until)
		}
	}
	p.slice, p.to, p.data = false, 4*walSeg, make([]byte, walSeg)
	okay(t, w.store(t.Context(), p))
	week := 0
	for _, until := range book.until {
		if until.Equal(now.Add(7 * 24 * time.Hour)) {
			week++
		}
	}
	if slices != 2 || week != 2 {
		t.Errorf("%d objects of the slice, %d of the segment with the floor's lock, want 2 and 2", slices, week)
	}
}

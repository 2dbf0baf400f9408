package ledger

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestRunAnchorsSoonAfterAppendsAndProvesSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.conf.Now = time.Now
		l := b.open()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()

		time.Sleep(time.Second)
		synctest.Wait()
		if c := l.Status().Anchored; c.Size != 1 { // the origin entry
			t.Errorf("after the start: %d anchored", c.Size)
		}
		b.append(l, 3)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if st := l.Status(); st.Anchored.Size != 4 {
			t.Errorf("3 s after appends: %d of %d anchored", st.Anchored.Size, st.Size)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		r, err := l.Entries(t.Context(), 4, -1)
		if err != nil || len(r) != 6 || r[0].Type != TypeHeartbeat {
			t.Errorf("an hour of silence: %d entries, %v", len(r), err)
		}
		b.zones.set(true, 0, 1)
		b.append(l, 1)
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if st := l.Status(); st.Anchored.Size != 10 || st.Failing.IsZero() {
			t.Errorf("without zones: %+v", st)
		}
		b.zones.set(false, 0, 1)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if st := l.Status(); st.Anchored.Size != st.Size || !st.Failing.IsZero() {
			t.Errorf("two minutes after zones returned: %+v", st)
		}
		b.append(l, 1)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if st := l.Status(); st.Anchored.Size != st.Size {
			t.Errorf("the end left %d of %d unsent", st.Size-st.Anchored.Size, st.Size)
		}
		b.sound(b.zones)
	})
}

func TestRunEndsWhenItsStateIsAnOldCopy(t *testing.T) {
	b := newBench(t)
	l := b.open()
	b.append(l, 2)
	b.anchor(l)
	l.Close()
	old := copyTree(t, b.conf.Dir)
	l = b.open()
	b.append(l, 2)
	b.anchor(l)
	l.Close()
	b.conf.Dir = old
	if err := b.open().Run(t.Context()); !errors.Is(err, ErrRolledBack) {
		t.Errorf("Run: %v", err)
	}
}

package vault

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

func openDebts(t *testing.T, path string) *debts {
	t.Helper()
	d := newDebts()
	if err := d.open(path); err != nil {
		t.Fatal(err)
	}
	return d
}

func keys(d *debts) []string {
	var out []string
	for _, l := range d.all() {
		out = append(out, l.Key)
	}
	return out
}

// Those who journal at the same time share writes, and each is durable when it
// returns: a copy of the file made then shows it.
func TestWhatIsOwedIsOnDiskWhenOweReturns(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "zone.log")
	d := openDebts(t, path)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			name := fmt.Sprintf("clusters/x/%d", i)
			if err := d.owe(name, debt{Size: 1, SHA256: "00"}); err != nil {
				t.Error(err)
				return
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
				return
			}
			crash := filepath.Join(dir, fmt.Sprintf("crash-%d.log", i))
			if err := os.WriteFile(crash, data, 0o600); err != nil {
				t.Error(err)
				return
			}
			after := newDebts()
			if err := after.open(crash); err != nil {
				t.Error(err)
				return
			}
			defer after.close()
			if _, ok := after.get(name); !ok {
				t.Errorf("%s is not on disk", name)
			}
		})
	}
	wg.Wait()
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
}

func TestTheJournalKeepsOrderAndDoesNotGrowForEver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone.log")
	d := openDebts(t, path)
	for i := range 800 {
		name := fmt.Sprintf("n%d", i)
		if err := d.owe(name, debt{SHA256: "00"}); err != nil {
			t.Fatal(err)
		}
		if i != 7 && i != 790 {
			d.delete(name)
		}
	}
	if d.lines > 1100 {
		t.Errorf("%d records for two debts", d.lines)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	d = openDebts(t, path)
	defer d.close()
	if got := keys(d); !slices.Equal(got, []string{"n7", "n790"}) {
		t.Errorf("replayed %q", got)
	}
}

func TestADebtOnlyGetsMoreExact(t *testing.T) {
	d := newDebts()
	needs := []Need{{Name: "p"}}
	for _, owed := range []debt{{Size: 5}, {Size: 5, SHA256: "aa", Needs: needs}, {Size: 5}, {Size: 5, SHA256: "aa"}} {
		if err := d.owe("n", owed); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := d.get("n"); got.SHA256 != "aa" || len(got.Needs) != 1 {
		t.Errorf("owed %+v", got)
	}
}

// Promise 11: what does not fit is left to the listing, never to memory.
func TestDebtsAreBounded(t *testing.T) {
	d := newDebts()
	for i := range maxDebts {
		d.set(fmt.Sprint(i), debt{})
	}
	err := d.owe("one more", debt{})
	if !errors.Is(err, errTooManyDebts) || d.len() != maxDebts || !d.overflowed() || d.overflowed() {
		t.Errorf("%d debts, %v", d.len(), err)
	}
	if err := d.owe("5", debt{SHA256: "aa"}); err != nil {
		t.Errorf("a known debt is refused: %v", err)
	}
}

// After a failed write nobody knows what the disk holds: the journal opens its
// file again and writes all that it knows.
func TestTheJournalRecoversFromAFailedWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone.log")
	d := openDebts(t, path)
	if err := d.owe("one", debt{}); err != nil {
		t.Fatal(err)
	}
	if err := d.log.Close(); err != nil { // as a disk that went away would
		t.Fatal(err)
	}
	if err := d.owe("two", debt{}); err == nil {
		t.Fatal("a write to a closed file was acknowledged")
	}
	if err := d.owe("three", debt{}); err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	d = openDebts(t, path)
	defer d.close()
	if got := keys(d); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("replayed %q", got)
	}
}

func TestARemovalThatEndedStaysEndedAfterACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "removals.log")
	r := newRemovals()
	if err := r.open(path); err != nil {
		t.Fatal(err)
	}
	if err := r.intend("n", []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	for _, z := range []string{"a", "b"} {
		if err := r.ended("n", z, nil); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".crash", data, 0o600); err != nil {
		t.Fatal(err)
	}
	after := newRemovals()
	if err := after.open(path + ".crash"); err != nil {
		t.Fatal(err)
	}
	if r.has("n") || after.has("n") {
		t.Error("the removal would come back")
	}
	if err := errors.Join(r.close(), after.close()); err != nil {
		t.Fatal(err)
	}
}

func FuzzReplay(f *testing.F) {
	for _, seed := range []string{`{"k":"n","v":{"size":1,"sha256":"aa","needs":[{"name":"p","size":1}]}}`, `{"k":"n"}`, `{}`, `[]`, `{"k":1}`, `null`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		path := filepath.Join(t.TempDir(), "zone.log")
		log, err := durable.OpenLog(path, func([]byte) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(log.Append(record), log.Close()); err != nil {
			t.Fatal(err)
		}
		d := newDebts()
		if err := d.open(path); err != nil {
			return // refused
		}
		before := keys(d)
		if err := errors.Join(d.rewrite(), d.close()); err != nil {
			t.Fatal(err)
		}
		d = newDebts()
		if err := d.open(path); err != nil {
			t.Fatal(err)
		}
		defer d.close()
		if got := keys(d); !slices.Equal(got, before) {
			t.Fatalf("%q became %q", before, got)
		}
	})
}

package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// witnessed is a bench whose ledger shows its checkpoints to a real witness.
type witnessed struct {
	*bench
	witness *Witness
	url     string
	key     seal.CosignVerifier
	vkey    string
	down    atomic.Bool
	told    []error
	lie     func(Answer, []byte) Answer // what a hostile witness makes of an honest answer
}

func newWitnessed(t *testing.T) *witnessed {
	w := &witnessed{bench: newBench(t)}
	skey, _, err := seal.NewSigningKey("auditor")
	if err != nil {
		t.Fatal(err)
	}
	signer, vkey, err := seal.LoadCosigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	if w.key, err = seal.NewCosignVerifier(vkey); err != nil {
		t.Fatal(err)
	}
	w.vkey = vkey
	w.witness = &Witness{Dir: t.TempDir(), Repository: "repo1", Trust: w.trust, Signer: signer, Now: w.conf.Now}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		origin, latest := strings.CutPrefix(q.URL.Path, LatestPath)
		if err != nil || w.down.Load() || !latest && q.URL.Path != "/add-checkpoint" {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		a := w.witness.Latest(origin)
		if !latest {
			a = w.witness.AddCheckpoint(body)
		}
		if w.lie != nil {
			a = w.lie(a, body)
		}
		rw.WriteHeader(a.Status)
		_, _ = rw.Write(a.Body)
	}))
	t.Cleanup(server.Close)
	w.url = server.URL
	w.fresh()
	return w
}

// fresh is a node that knows nothing of the witness yet, as after a restart.
func (w *witnessed) fresh() {
	w.t.Helper()
	c, err := NewCosigners(map[string]string{w.url: w.vkey})
	if err != nil {
		w.t.Fatal(err)
	}
	c.Told = func(_ string, err error) { w.told = append(w.told, err) }
	w.conf.Witnesses = c
}

func (w *witnessed) cosigned(c Checkpoint, want bool) {
	w.t.Helper()
	if at, err := w.key.Cosigned(c.Signed); (err == nil) != want || want && at.Before(start) {
		w.t.Errorf("checkpoint of size %d: cosigned %s (%v), want %v", c.Size, at, err, want)
	}
}

func TestAWitnessCosignsWhatGoesOn(t *testing.T) {
	w := newWitnessed(t)
	l := w.open()
	for _, n := range []int{1, 3, 300, 1, 520} {
		w.append(l, n)
		w.cosigned(w.anchor(l), true)
	}
	w.sound(w.zones)

	w.down.Store(true) // and away, it holds nothing up
	w.append(l, 1)
	w.cosigned(w.anchor(l), false)
	if len(w.told) == 0 || w.told[len(w.told)-1] == nil {
		t.Errorf("nobody was told that the witness is away: %v", w.told)
	}
	w.down.Store(false)
	w.append(l, 1)
	w.cosigned(w.anchor(l), false) // left alone for a minute
	w.fresh()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = w.open()
	w.append(l, 1)
	w.cosigned(w.anchor(l), true)
	w.sound(w.zones)
}

// What no zone can show: the state and every zone together are of an hour ago.
func TestAWitnessRevealsAStateThatWentBackWithItsZones(t *testing.T) {
	w := newWitnessed(t)
	l := w.open()
	w.append(l, 5)
	w.anchor(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old := map[string]string{w.conf.Dir: t.TempDir()}
	for _, d := range w.zones.dirs {
		old[d] = t.TempDir()
	}
	replace := func(from, to string) {
		if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
			t.Fatal(err)
		}
	}
	for live, copied := range old {
		replace(live, copied)
	}
	l = w.open()
	w.append(l, 4)
	w.anchor(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for live, copied := range old {
		replace(copied, live)
	}
	for _, more := range []int{1, 4, 9} { // less than it had, as much, and more
		t.Run(fmt.Sprintf("%d entries more", more), func(t *testing.T) {
			b := *w.bench
			b.t, b.conf.Dir = t, t.TempDir()
			if err := os.CopyFS(b.conf.Dir, os.DirFS(old[w.conf.Dir])); err != nil {
				t.Fatal(err)
			}
			w.fresh()
			b.conf.Witnesses = w.conf.Witnesses
			l := b.open()
			b.append(l, more)
			_, err := l.Anchor(t.Context())
			if !errors.Is(err, ErrRolledBack) && !errors.Is(err, ErrForked) || more == 1 && !errors.Is(err, ErrRolledBack) {
				t.Errorf("anchoring an old state with %d entries more: %v", more, err)
			}
			for live, copied := range old {
				if live != w.conf.Dir {
					replace(copied, live)
				}
			}
		})
	}
}

// A witness that lies spoils no checkpoint and stops no ledger.
func TestAHostileWitnessHoldsNothingUp(t *testing.T) {
	other := func(s string) func(Answer, []byte) Answer {
		return func(a Answer, _ []byte) Answer { return Answer{Status: a.Status, Body: []byte(s)} }
	}
	status := func(n int, s string) func(Answer, []byte) Answer {
		return func(Answer, []byte) Answer { return Answer{Status: n, Body: []byte(s)} }
	}
	for name, lie := range map[string]func(Answer, []byte) Answer{
		"an empty line before":  func(a Answer, _ []byte) Answer { a.Body = append([]byte("\n"), a.Body...); return a },
		"a line more":           func(a Answer, _ []byte) Answer { a.Body = append(a.Body, "— evil AAAAAAAA\n"...); return a },
		"its line twice":        func(a Answer, _ []byte) Answer { a.Body = append(a.Body, a.Body...); return a },
		"no signature":          other("— auditor AAAAAAAA\n"),
		"nothing":               other(""),
		"a great size":          status(409, "999999\n"),
		"a size that is none":   status(409, "many"),
		"a proof that is wrong": status(422, "no"),
		"a redirect":            status(302, ""),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWitnessed(t)
			w.lie = lie
			l := w.open()
			w.append(l, 3)
			w.cosigned(w.anchor(l), false)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = w.open() // and it starts again
			w.append(l, 2)
			w.anchor(l)
			w.sound(w.zones)
			if len(w.told) == 0 || w.told[0] == nil {
				t.Error("nobody was told")
			}
		})
	}
}

func TestAWitnessRefuses(t *testing.T) {
	w := newWitnessed(t)
	l := w.open()
	w.append(l, 3)
	first := w.anchor(l)
	w.append(l, 4)
	second := w.anchor(l)
	proof, err := tlog.ProveTree(second.Size, first.Size, provenBy(t.Context(), w.zones, second))
	if err != nil {
		t.Fatal(err)
	}
	stranger := newBench(t)
	other := stranger.open()
	stranger.append(other, 9)
	strange := stranger.anchor(other)
	elsewhere := bytes.Replace(second.Signed, []byte("holdfast/repo1/"), []byte("holdfast/repo2/"), 1)
	tests := []struct {
		name string
		body []byte
		want int
		says string
	}{
		{"what it has already", formatAdd(second.Size, nil, second.Signed), 200, "— auditor "},
		{"an older one", formatAdd(first.Size, nil, first.Signed), 409, fmt.Sprint(second.Size)},
		{"an old size that it does not have", formatAdd(first.Size, proof, second.Signed), 409, fmt.Sprint(second.Size)},
		{"an old size beyond the checkpoint", formatAdd(second.Size+1, nil, second.Signed), 400, "larger"},
		{"a proof where none is needed", formatAdd(second.Size, proof, second.Signed), 400, "none is needed"},
		{"another repository's", formatAdd(0, nil, elsewhere), 404, "none of repository"},
		{"a stranger's", formatAdd(0, nil, strange.Signed), 403, "no trusted signer"},
		{"a signature that is wrong", formatAdd(second.Size, nil, bytes.Replace(second.Signed, fmt.Appendf(nil, "\n%d\n", second.Size), []byte("\n9\n"), 1)), 403, ""},
		{"no checkpoint", formatAdd(0, nil, []byte("hello")), 400, ""},
		{"no old size", []byte("new 3\n\n" + string(second.Signed)), 400, "old SIZE"},
		{"a size that is none", []byte("old 03\n\n" + string(second.Signed)), 400, "old SIZE"},
		{"a proof that is none", []byte("old 3\nxyz\n\n" + string(second.Signed)), 400, "no hash"},
		{"nothing", nil, 400, ""},
	}
	for _, tt := range tests {
		if a := w.witness.AddCheckpoint(tt.body); a.Status != tt.want || !strings.Contains(string(a.Body), tt.says) {
			t.Errorf("%s: %d %q, want %d %q", tt.name, a.Status, a.Body, tt.want, tt.says)
		}
	}
	w.append(l, 2)
	third := w.anchor(l)
	proof, err = tlog.ProveTree(third.Size, second.Size, provenBy(t.Context(), w.zones, third))
	if err != nil {
		t.Fatal(err)
	}
	again := &Witness{Dir: t.TempDir(), Repository: "repo1", Trust: w.trust, Signer: w.witness.Signer, Now: w.conf.Now}
	if a := again.AddCheckpoint(formatAdd(0, nil, second.Signed)); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	proof[0][0] ^= 1
	if a := again.AddCheckpoint(formatAdd(second.Size, proof, third.Signed)); a.Status != 422 {
		t.Errorf("a proof that proves nothing: %d %s", a.Status, a.Body)
	}
}

// Two requests at once for the same place: one of two histories gets the line.
func TestAWitnessSignsOneOfTwoHistories(t *testing.T) {
	w := newWitnessed(t)
	w.conf.Witnesses = nil
	l := w.open()
	w.append(l, 1)
	base := w.anchor(l)
	if a := w.witness.AddCheckpoint(formatAdd(0, nil, base.Signed)); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	var bodies [][]byte
	for i := range 2 {
		leaf := tlog.RecordHash(fmt.Appendf(nil, "history %d", i))
		root := tlog.NodeHash(base.Root, leaf)
		c, err := signCheckpoint("repo1", Checkpoint{Origin: l.Origin(), Size: 3, Root: root}, w.conf.Signer)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, formatAdd(2, tlog.TreeProof{leaf}, c.Signed))
	}
	answers := make(chan int, len(bodies))
	for _, b := range bodies {
		go func() { answers <- w.witness.AddCheckpoint(b).Status }()
	}
	if a, b := <-answers, <-answers; a+b != 200+409 {
		t.Errorf("two histories were answered %d and %d, want one 200 and one 409", a, b)
	}
}

func FuzzAddCheckpoint(f *testing.F) {
	f.Add([]byte("old 0\n\nholdfast/repo1/db1-00000000\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— db1 AAAA\n"))
	f.Add([]byte("old 3\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\nx"))
	w := &Witness{Dir: f.TempDir(), Repository: "repo1", Now: time.Now}
	f.Fuzz(func(t *testing.T, body []byte) {
		if a := w.AddCheckpoint(body); a.Status == 200 {
			t.Errorf("a checkpoint that nobody signed was cosigned: %q", body)
		}
	})
}

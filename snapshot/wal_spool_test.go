package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// A1: what the spool gives back is what was sealed, or nothing.
func TestTheSpoolGivesBackTheSealedBytesOrNothing(t *testing.T) {
	dir := t.TempDir()
	s, err := openSpool(dir, 1, newQuota(0, nil))
	okay(t, err)
	e := &entry{object: []byte("sealed"), index: []byte("index")}
	e.WAL = catalog.WAL{Epoch: 1, File: "f", Object: refOf("o", e.object), Index: refOf("i", e.index)}
	okay(t, s.keep(e, nil))
	again, err := openSpool(dir, 1, newQuota(0, nil))
	okay(t, err)
	got, err := again.find("o")
	okay(t, err)
	if string(got.object) != "sealed" || string(got.index) != "index" {
		t.Errorf("got %q and %q", got.object, got.index)
	}
	other, err := openSpool(dir, 2, newQuota(0, nil))
	okay(t, err)
	if len(other.left()) != 0 {
		t.Error("a new epoch sends what the old one left")
	}
}

func FuzzSpoolEntry(f *testing.F) {
	f.Add([]byte(`{"wal":{"object":{"name":"o","size":1,"sha256":""}}}` + "\nx"))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decodeEntry(data)
		if err == nil && e.WAL.Object.Name != "" && refOf(e.WAL.Object.Name, e.object) != e.WAL.Object {
			t.Error("bytes that the entry does not bind were accepted")
		}
	})
}

// A process that dies leaves parts in the spool, and the next one goes on behind the
// last of them: one that was sealed sooner than the part before it must not lie there
// alone.
func TestThePartsOfAStreamComeIntoTheSpoolInTheirOrder(t *testing.T) {
	w := newPushRig(t).p.w
	sealing := make(chan struct{}, 2)
	var first *turn
	first = first.follow(sealing, make(chan struct{}, 1), func() {})
	second := first.follow(sealing, first.sending, func() {})
	keep := func(ctx context.Context, n int, turn *turn) error {
		p := part{file: fmt.Sprintf("%024X", n), timeline: 1, from: lsn.LSN(n), to: lsn.LSN(n), data: []byte{byte(n)}}
		r, err := w.spool.quota.admit(p.most())
		okay(t, err)
		_, err = w.sealed(ctx, &p, p.names(w.c.Lineage, w.c.Keys), r, turn)
		return err
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := keep(stopped, 2, second); !errors.Is(err, context.Canceled) || len(w.spool.left()) > 0 {
		t.Fatalf("the second part lies in the spool alone: %v", err)
	}
	okay(t, keep(t.Context(), 1, first))
	for range 2 { // again where sending it failed
		okay(t, keep(t.Context(), 2, second))
	}
	if left := w.spool.left(); len(left) != 2 {
		t.Errorf("the spool holds %d parts", len(left))
	}
}

// A history is sealed again at each connection, before zones are asked whether they have
// it. Killed there, the process leaves other bytes of what its last note names, and WAL
// before it in the spool: the note must not be sent with bytes that no zone has.
func TestAnotherSealingOfWhatTheLastNoteNamesHoldsNothingUp(t *testing.T) {
	r := newWALRepo(t)
	v := r.vault()
	l := r.claim(v, "one", Server{SystemID: "7000000000000000001", Timeline: 2})
	spool := filepath.Join(r.state, "spool")
	w := r.writer(v, l, spool)
	history := func() part {
		return part{file: "00000002.history", timeline: 2, from: 0x1200000, to: 0x1200000, data: []byte("1\t0/1200000\tno recovery target specified\n"), known: true}
	}
	okay(t, w.store(t.Context(), history()))

	w.c.Index = slices.Concat(r.to, r.to) // of another size: directories know no digests
	slice := part{file: fmt.Sprintf("%024X", 1), timeline: 1, from: 0x1100000, to: 0x1200000, segSize: 1 << 24, slice: true, data: make([]byte, 0x100000)}
	for _, p := range []part{slice, history()} {
		room, err := w.spool.quota.admit(p.most())
		okay(t, err)
		_, err = w.sealed(t.Context(), &p, p.names(l, r.keys), room, &turn{})
		okay(t, err)
	}
	if n := len(w.spool.left()); n != 2 {
		t.Fatalf("the spool holds %d parts", n)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	again := r.writer(r.vault(), l, spool)
	okay(t, again.Recover(ctx))
	if n := len(again.spool.left()); n != 0 || len(r.notes(v)) != 2 {
		t.Errorf("the spool holds %d parts, the zones %d notes", n, len(r.notes(v)))
	}
	r.checkChainOf(v, l.Epoch)
	for _, n := range r.notes(v) {
		r.plain(v, n)
	}
}

// A note that no reader believes archives nothing: a part is not acknowledged by it, and
// goes out once the configuration is right.
func TestAKeyThatIsNotTrustedForWALAcknowledgesNothing(t *testing.T) {
	r := newWALRepo(t)
	v := r.vault()
	l := r.claim(v, "one", Server{SystemID: "7000000000000000001", Timeline: 1})
	skey, vkey, err := seal.NewSigningKey("node2")
	okay(t, err)
	c := r.writerConfig(v, l, filepath.Join(r.state, "spool"))
	c.Signer, _, err = seal.LoadSigner(skey)
	okay(t, err)
	c.Trust, err = seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, Clusters: []string{"cms"}, May: []string{"snapshot"}}})
	okay(t, err)
	w, err := OpenWriter(c)
	okay(t, err)
	slice := part{file: fmt.Sprintf("%024X", 1), timeline: 1, from: 0x1000000, to: 0x1100000, segSize: 1 << 24, slice: true, data: make([]byte, 0x100000)}
	if err := w.store(t.Context(), slice); err == nil || !errors.As(err, new(permanent)) || !strings.Contains(err.Error(), "may: [wal]") {
		t.Errorf("stored with a key that is not trusted: %v", err)
	}
	if len(w.spool.left()) != 1 || w.spool.head.Number != 0 || len(r.notes(v)) != 0 {
		t.Errorf("the spool holds %d parts, %d notes were signed, the zones hold %d", len(w.spool.left()), w.spool.head.Number, len(r.notes(v)))
	}
	again := r.writer(v, l, filepath.Join(r.state, "spool"))
	okay(t, again.Recover(t.Context()))
	if len(again.spool.left()) != 0 || len(r.notes(v)) != 1 {
		t.Error("what was kept did not go out")
	}
	r.checkChainOf(v, l.Epoch)
}

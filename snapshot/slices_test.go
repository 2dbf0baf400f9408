package snapshot

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

func TestAnAssemblerTakesTheSameBytesAgainAndNothingElse(t *testing.T) {
	a := newAssembler(walrec.Config{SegSize: walSeg, Major: 15, Timeline: 1}, 3*walSeg, walrec.Carry{}, func(error) {})
	now := time.Unix(1000, 0)
	data := make([]byte, walSeg+100)
	for i := range data {
		data[i] = byte(i * 7)
	}
	full, err := a.accept(3*walSeg, data, now)
	okay(t, err)
	if len(full) != 1 || full[0].from != 3*walSeg || full[0].to != 4*walSeg || a.pos() != 4*walSeg+100 {
		t.Fatalf("one segment and 100 bytes became %d parts up to %s", len(full), a.pos())
	}
	if due := a.due(time.Second); !due.Equal(now.Add(time.Second)) {
		t.Errorf("due at %s", due)
	}
	p, ok := a.slice()
	if !ok || p.from != 4*walSeg || p.to != 4*walSeg+100 || !p.slice || string(p.data) != string(data[walSeg:]) {
		t.Fatalf("slice %s to %s", p.from, p.to)
	}
	if _, again := a.slice(); again || !a.due(time.Second).IsZero() {
		t.Error("nothing came, and a slice is due")
	}
	if full, err := a.accept(3*walSeg+50, data[50:], now); err != nil || len(full) != 0 || a.pos() != 4*walSeg+100 {
		t.Errorf("the same bytes again: %v, at %s", err, a.pos())
	}
	data[walSeg+3] ^= 1
	_, err = a.accept(4*walSeg, data[walSeg:], now)
	wantErr(t, err, ErrDiverged)
	if _, err := a.accept(a.pos()+1, []byte{1}, now); err == nil {
		t.Error("a hole was accepted")
	}
}

func TestResumeFollowsTheServersOwnHistory(t *testing.T) {
	on := func(tl uint32, from, to lsn.LSN) catalog.WALEntry {
		return catalog.WALEntry{Epoch: 1, Timeline: tl, From: from, To: to}
	}
	promoted := Server{Timeline: 2, History: []lsn.Switch{{Timeline: 1, LSN: 250}}}
	for _, c := range []struct {
		name    string
		entries []catalog.WALEntry
		server  Server
		want    Place
		ok      bool
	}{
		{"nothing archived", nil, primary, Place{}, false},
		{"a history file is no WAL", []catalog.WALEntry{on(2, 250, 250)}, promoted, Place{}, false},
		{"the end", []catalog.WALEntry{on(1, 0, 100), on(1, 100, 230)}, primary, Place{1, 230}, true},
		{"the old timeline is back-filled first (P5)", []catalog.WALEntry{on(1, 0, 200)}, promoted, Place{1, 200}, true},
		{"the old primary went on behind the fork", []catalog.WALEntry{on(1, 0, 200), on(1, 200, 300), on(1, 300, 400)}, promoted, Place{1, 250}, true},
		{"the new timeline has begun", []catalog.WALEntry{on(1, 0, 250), on(2, 200, 260)}, promoted, Place{2, 260}, true},
	} {
		if at, ok := DecideResume(c.entries, c.server); at != c.want || ok != c.ok {
			t.Errorf("%s: %s, %v; want %s", c.name, at, ok, c.want)
		}
	}
}

// C-50, P5: a promoted standby opens a descendant lineage without a hole, and an
// archiver that is connected to the standby follows it over the turn.
func TestAPromotionIsADescendantLineageWithoutAHole(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	d := r.archive(pg, "first")
	standby := pg.Standby(t)
	writeWAL(pg, 2)
	waitFor(t, d, currentLSN(t, pg))
	standby.AwaitReplay(pg.LSN())
	d.stop()
	pg.Stop()
	standby.Promote()
	writeWAL(standby, 2)
	d = r.archive(standby, "second")
	if l := d.w.c.Lineage; l.Epoch != 2 || l.How != "promoted" || l.Parent != 1 {
		t.Errorf("lineage %+v, want a promoted epoch 2", l)
	}
	to := currentLSN(t, standby)
	await(t, "the new timeline is archived", func() bool {
		p := d.Position()
		return p.Timeline == 2 && p.Durable >= to
	})
	sameAsServer(t, r, d.v, standby, filepath.Join(standby.DataDir, "pg_wal"), 2, to)
	history := false
	for _, w := range r.notes(d.v) {
		history = history || w.File == "00000002.history"
	}
	if !history {
		t.Error("the history of timeline 2 is not archived")
	}
}

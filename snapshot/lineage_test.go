package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

var primary = Server{SystemID: "7000", Major: 15, Timeline: 1, LSN: 0x3000000}

// TestDecideClaim: C-42, C-43, P9.
func TestDecideClaim(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	holder := func(state string, timeline uint32, ago time.Duration) *Holder {
		return &Holder{Lineage: catalog.Lineage{Epoch: 4, SystemID: "7000", State: state, Timeline: 1}, Reached: timeline, Seen: now.Add(-ago)}
	}
	promoted := Server{SystemID: "7000", Timeline: 3, History: []lsn.Switch{{Timeline: 1, LSN: 5}, {Timeline: 2, LSN: 9}}}
	for _, c := range []struct {
		name   string
		server Server
		holder *Holder
		change func(*LineageConfig)
		epoch  int // 0: continue
		how    string
		err    error
	}{
		{"nobody holds it", primary, nil, nil, 1, "", nil},
		{"our own, alive or not", primary, holder("mine", 1, time.Second), nil, 0, "", nil},
		{"our own, on the next timeline", promoted, holder("mine", 2, time.Second), nil, 0, "", nil},
		{"another that lives", primary, holder("theirs", 1, 14*time.Minute), nil, 0, "", ErrClaimed},
		{"another that lives, its clock ahead", primary, holder("theirs", 1, -time.Hour), nil, 0, "", ErrClaimed},
		{"another that is dead", primary, holder("theirs", 1, 15*time.Minute), nil, 5, "taken_over", nil},
		{"another that lives, taken over on purpose", primary, holder("theirs", 1, 0), func(c *LineageConfig) { c.TakeOver = true }, 5, "taken_over", nil},
		{"a promoted standby of one that lives", promoted, holder("theirs", 2, 0), nil, 5, "promoted", nil},
		{"a higher timeline that is no descendant", Server{SystemID: "7000", Timeline: 4, History: []lsn.Switch{{Timeline: 1, LSN: 5}}}, holder("theirs", 2, 0), nil, 0, "", ErrClaimed},
		{"an old primary after its successor died", primary, holder("theirs", 2, time.Hour), nil, 0, "", ErrOldTimeline},
		{"an old copy beside our own state", primary, holder("mine", 2, 0), nil, 0, "", ErrOldTimeline},
		{"going back on purpose", primary, holder("mine", 2, 0), func(c *LineageConfig) { c.TakeOver = true }, 5, "taken_over", nil},
		{"taking over from ourselves changes nothing", primary, holder("mine", 1, 0), func(c *LineageConfig) { c.TakeOver = true }, 0, "", nil},
		{"another system", Server{SystemID: "8000"}, holder("mine", 1, time.Hour), nil, 0, "", ErrForeignServer},
		{"another system is no matter of taking over", Server{SystemID: "8000"}, holder("mine", 1, time.Hour), func(c *LineageConfig) { c.TakeOver = true }, 0, "", ErrForeignServer},
		{"upgraded by us", Server{SystemID: "8000", Timeline: 1}, holder("mine", 7, 0), func(c *LineageConfig) { c.Upgrade = true }, 5, "upgraded", nil},
		{"upgraded beside one that lives", Server{SystemID: "8000", Timeline: 1}, holder("theirs", 1, 0), func(c *LineageConfig) { c.Upgrade = true }, 0, "", ErrClaimed},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := LineageConfig{Cluster: "cms", Server: c.server, StateID: "mine"}
			if c.change != nil {
				c.change(&conf)
			}
			v, err := DecideClaim(conf, c.holder, now)
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if c.err == nil && (v.Continue != (c.epoch == 0) || !v.Continue && v.Next.Epoch != c.epoch || v.Next.How != c.how && !v.Continue) {
				t.Errorf("got %+v, want epoch %d %q", v, c.epoch, c.how)
			}
		})
	}
}

func TestOneOfManyClaimsWins(t *testing.T) {
	r := newWALRepo(t)
	const n = 4
	var wg sync.WaitGroup
	won := make(chan catalog.Lineage, n)
	for i := range n {
		store := r.vault().Writer()
		wg.Go(func() {
			l, err := Claim(t.Context(), r.lineageConfig(fmt.Sprintf("s%d", i), primary), store)
			switch {
			case err == nil:
				won <- l
			case !errors.Is(err, ErrClaimed):
				t.Errorf("the loser hears %v, want ErrClaimed", err)
			}
		})
	}
	wg.Wait()
	close(won)
	var winners []catalog.Lineage
	for l := range won {
		winners = append(winners, l)
	}
	if len(winners) > 1 {
		t.Fatalf("%d claims won: %+v", len(winners), winners)
	}
	// Three or four contents in three zones may split a number: then nobody has it
	// yet, and the one who asks again after the window gets the next.
	c := r.lineageConfig("s9", primary)
	c.Now = func() time.Time { return time.Now().Add(time.Hour) }
	l, err := Claim(t.Context(), c, r.vault().Writer())
	okay(t, err)
	if l.Epoch < 2 || l.State != "s9" {
		t.Errorf("after the window got %+v, want a new epoch", l)
	}
}

func TestAClaimIsContinuedByItsOwnStateOnly(t *testing.T) {
	r := newWALRepo(t)
	v := r.vault()
	first := r.claim(v, "mine", primary)
	if again := r.claim(r.vault(), "mine", primary); again.Epoch != first.Epoch || !again.ClaimedAt.Equal(first.ClaimedAt) {
		t.Errorf("claimed again: %+v, want %+v", again, first)
	}
	_, err := Claim(t.Context(), r.lineageConfig("theirs", primary), r.vault().Writer())
	wantErr(t, err, ErrClaimed, "node-mine", "--take-over")
	other := primary
	other.SystemID = "8000"
	_, err = Claim(t.Context(), r.lineageConfig("mine", other), v.Writer())
	wantErr(t, err, ErrForeignServer, "7000", "8000")
	if n := len(r.objects(0, catalog.LineagesDir("cms"))); n != 1 {
		t.Errorf("refused claims left %d objects, want the first one's only", n)
	}
}

func TestAClaimNeedsTheQuorumAndNoDoubt(t *testing.T) {
	r := newWALRepo(t)
	r.zones[0].set(errZoneDown, nil)
	r.zones[1].set(errZoneDown, nil)
	if _, err := Claim(t.Context(), r.lineageConfig("mine", primary), r.vault().Writer()); err == nil {
		t.Fatal("claimed with one zone of three")
	}
	r.zones[0].set(nil, nil)
	l := r.claim(r.vault(), "mine", primary)
	if l.Epoch != 1 {
		t.Errorf("epoch %d, want 1", l.Epoch)
	}
}

// A number whose contents no zone can complete to a quorum is dead: it is passed
// over, never reused.
func TestASplitNumberIsDead(t *testing.T) {
	r := newWALRepo(t)
	old := time.Now().Add(-time.Hour)
	for i := range 3 {
		body, err := seal.SignNote(catalog.KindLineage, catalog.Lineage{
			Cluster: "cms", Epoch: 1, SystemID: "7000", Timeline: 1, State: fmt.Sprint("s", i), ClaimedAt: old,
		}, r.sign)
		okay(t, err)
		name := filepath.Join(r.dirs[i], filepath.FromSlash(catalog.LineageName("cms", 1)))
		okay(t, os.MkdirAll(filepath.Dir(name), 0o700))
		okay(t, os.WriteFile(name, body, 0o600))
	}
	l := r.claim(r.vault(), "mine", primary)
	if l.Epoch != 2 {
		t.Errorf("epoch %d, want 2: 1 is split three ways", l.Epoch)
	}
}

func TestSignsOfLifeAreTheNotesAndTheLedger(t *testing.T) {
	r := newWALRepo(t)
	v := r.vault()
	past := r.lineageConfig("mine", primary)
	past.Now = func() time.Time { return time.Now().Add(-2 * time.Hour) }
	l, err := Claim(t.Context(), past, v.Writer())
	okay(t, err)
	conf := r.lineageConfig("theirs", primary)
	conf.LedgerSign = func(_ context.Context, _ string) (time.Time, error) { return time.Now().Add(-time.Minute), nil }
	_, err = Claim(t.Context(), conf, v.Writer())
	wantErr(t, err, ErrClaimed)

	w := r.writer(v, l, t.TempDir())
	okay(t, w.store(t.Context(), part{file: "00000002.history", timeline: 2, from: 5, to: 5, data: []byte("1\t0/5\tx\n")}))
	conf.LedgerSign = nil
	_, err = Claim(t.Context(), conf, v.Writer())
	wantErr(t, err, ErrOldTimeline) // its newest note lives on timeline 2
	conf.Server.Timeline = 2
	_, err = Claim(t.Context(), conf, v.Writer())
	wantErr(t, err, ErrClaimed)
	conf.TakeOver = true
	next, err := Claim(t.Context(), conf, v.Writer())
	okay(t, err)
	if next.Epoch != 2 || next.Parent != 1 || next.How != "taken_over" {
		t.Errorf("took over as %+v", next)
	}
	wantErr(t, CheckEpoch(t.Context(), l, v.Reader(), r.trust), ErrFenced, "node-theirs")
	okay(t, CheckEpoch(t.Context(), next, v.Reader(), r.trust))
}

package changemap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// C-33: servers below 17.11 and 18.5 wrote summaries that leave changes out.
func TestSummariesAreTrustedFromTheirFixOnly(t *testing.T) {
	for version, want := range map[int]bool{
		140023: false, 160014: false, 170000: false, 170010: false, 170011: true, 170099: true, 180000: false, 180004: false, 180005: true, 190000: true,
	} {
		if err := TrustSummaries(version); (err == nil) != want || err != nil && !errors.Is(err, ErrUnknown) {
			t.Errorf("%d: %v", version, err)
		}
		if want {
			continue
		}
		if _, err := (Summaries{Version: version}).Map(t.Context(), line); !errors.Is(err, ErrUnknown) {
			t.Errorf("%d was asked: %v", version, err)
		}
	}
}

// summarizers are the majors that can be had here; their minors may be below the
// gate, which is why [summariesOf] lifts it for those.
func summarizers(t *testing.T, test func(*testing.T, int)) {
	for _, major := range pgtest.Installed() {
		if major >= 17 {
			t.Run(strconv.Itoa(major), func(t *testing.T) { test(t, major) })
		}
	}
}

// summariesOf is how c's summaries are read, with the gate of C-33 lifted for what is below it.
func summariesOf(c *pgtest.Cluster) Summaries {
	num := c.ServerNum()
	return Summaries{Server: c.Conn("postgres"), Version: num, AnyMinor: TrustSummaries(num) != nil, Patience: pgtest.Patience}
}

// C-31: the server's summaries say what our reader says, limits included. Those of
// a minor below the gate were right of all but the visibility map.
func TestOurReaderAndTheServersSummariesAgree(t *testing.T) {
	summarizers(t, func(t *testing.T, major int) {
		rng := seeded(t)
		c := room(t, major, pgtest.WithSetting("summarize_wal", "on"))
		live(c, rng, 5)
		from := checkpoint(t, c)
		live(c, rng, 25)
		live(c, rng, 5)
		path := []Leg{{1, from, checkpoint(t, c)}}
		theirs, err := summariesOf(c).Map(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		b := New(path, 0)
		exact(t, c, b, path[0])
		ours, err := b.Map()
		if err != nil {
			t.Fatal(err)
		}
		if len(ours.forks) < 20 {
			t.Errorf("%d forks changed: this proves little", len(ours.forks))
		}
		for key, want := range theirs.forks {
			got := ours.forks[key]
			if got == nil {
				t.Errorf("%+v: the server names it, we do not", key)
			} else if got.from != want.from || !slices.Equal(all(got), all(want)) {
				t.Errorf("%+v from %d: %v, the server: from %d: %v", key, got.from, all(got), want.from, all(want))
			}
		}
		for key := range ours.forks {
			if theirs.forks[key] == nil {
				t.Errorf("%+v: we name it, the server does not", key)
			}
		}
	})
}

// exact reads the leg's WAL and nothing beside it, for summaries begin and end at
// a record.
func exact(t *testing.T, c *pgtest.Cluster, b *Builder, leg Leg) {
	t.Helper()
	var wal []byte
	first := leg.From.SegmentStart(segSize)
	for at := first; at < leg.To; at += segSize {
		data, err := os.ReadFile(filepath.Join(c.DataDir, "pg_wal", lsn.SegmentName(1, at.Segment(segSize), segSize)))
		if err != nil {
			t.Fatal(err)
		}
		wal = append(wal, data...)
	}
	ix, _, err := walrec.BuildIndex(walrec.Config{SegSize: segSize, Major: c.Major, Start: leg.From}, walrec.Carry{}, wal[leg.From-first:leg.To-first])
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Add(1, ix); err != nil {
		t.Fatal(err)
	}
}

// all lists a fork's blocks before its limit.
func all(b *blocks) (out []uint32) {
	for first := uint32(0); first < b.from && first < 1<<20; first += SegmentBlocks {
		n := min(uint32(SegmentBlocks), b.from-first)
		for _, block := range b.within(first, n) {
			out = append(out, first+block)
		}
	}
	return out
}

// C-27: a summary that is gone or not yet there makes all unknown, in bounded time.
func TestAHoleInTheSummariesIsNoticed(t *testing.T) {
	summarizers(t, func(t *testing.T, major int) {
		c := room(t, major, pgtest.WithSetting("summarize_wal", "on"))
		var at []lsn.LSN
		for range 4 {
			at = append(at, checkpoint(t, c))
			c.Exec("UPDATE t1 SET v = 'x' WHERE id < 100")
		}
		path := []Leg{{1, at[0], at[3]}}
		s := summariesOf(c)
		m, err := s.Map(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		node := pgtest.Value[uint32](c, "SELECT pg_relation_filenode('t1')")
		db := pgtest.Value[uint32](c, "SELECT oid FROM pg_database WHERE datname = 'postgres'")
		if list, all := m.Changed(1663, db, node, walrec.MainFork, 0); all || len(list) == 0 {
			t.Errorf("the updated table: %v, all %t", list, all)
		}
		s.Patience = time.Second / 4
		for name, path := range map[string][]Leg{
			"WAL that is not yet written": {{1, at[0], at[3] + 1<<30}}, "another timeline": {{2, at[0], at[3]}},
			"before the first summary": {{1, 1, at[3]}}, "a timeline left behind": {{1, at[0], at[1]}, {2, at[1], at[3]}},
		} {
			if _, err := s.Map(t.Context(), path); !errors.Is(err, ErrUnknown) {
				t.Errorf("%s: %v", name, err)
			}
		}
		remove(t, c, at[1])
		if _, err := s.Map(t.Context(), path); !errors.Is(err, ErrUnknown) {
			t.Errorf("a summary that was removed: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Map(ctx, path); err == nil {
			t.Error("a cancelled reading gave a map")
		}
	})
}

// remove deletes the summary that covers a place.
func remove(t *testing.T, c *pgtest.Cluster, at lsn.LSN) {
	t.Helper()
	var from string
	err := c.Conn("postgres").QueryRow(t.Context(), `SELECT start_lsn::text FROM pg_available_wal_summaries()
		WHERE start_lsn <= $1::text::pg_lsn AND end_lsn > $1::text::pg_lsn`, at.String()).Scan(&from)
	if err != nil {
		t.Fatal(err)
	}
	start, _ := lsn.Parse(from)
	names, _ := filepath.Glob(filepath.Join(c.DataDir, "pg_wal/summaries", fmt.Sprintf("00000001%016X*", uint64(start))))
	if len(names) != 1 {
		t.Fatalf("summaries from %s: %v", start, names)
	}
	if err := os.Remove(names[0]); err != nil {
		t.Fatal(err)
	}
}

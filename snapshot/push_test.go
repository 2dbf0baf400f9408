package snapshot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// pushRig is a server whose finished segments a test pushes by hand.
type pushRig struct {
	r  *repo
	p  *Pusher
	pg *pgtest.Cluster
}

func newPushRig(t *testing.T) pushRig {
	t.Helper()
	r := newMoodyRepo(t)
	pg := walServer(t, pgtest.WithSetting("archive_mode", "on"), pgtest.WithSetting("archive_command", "false"))
	v := r.vault()
	s := serverOf(t, pg)
	w := r.writer(v, r.claim(v, "s", s), t.TempDir())
	p, err := NewPusher(PushConfig{Major: s.Major, SegSize: walSeg, DataDir: pg.DataDir, LookAhead: 8}, w)
	okay(t, err)
	return pushRig{r, p, pg}
}

func (g pushRig) push(t *testing.T, name string) error {
	t.Helper()
	return g.p.Push(t.Context(), PushRequest{Path: "pg_wal/" + name, DataDir: g.pg.DataDir})
}

// finish makes the server finish a segment and returns its name.
func (g pushRig) finish() string {
	writeWAL(g.pg, 1)
	name := pgtest.Value[string](g.pg, "SELECT pg_walfile_name(pg_current_wal_lsn())")
	g.pg.SwitchWAL()
	return name
}

// ready waits for the mark that PostgreSQL makes of a finished segment.
func (g pushRig) ready(t *testing.T, name string) {
	t.Helper()
	await(t, name+" is ready", func() bool {
		_, err := os.Stat(filepath.Join(g.pg.DataDir, "pg_wal/archive_status", name+".ready"))
		return err == nil
	})
}

// C-34, C-35, C-45.
func TestASegmentPushedTwiceIsOneAndOtherContentIsRefused(t *testing.T) {
	g := newPushRig(t)
	name := g.finish()
	okay(t, g.push(t, name))
	before := len(g.r.objects(0, "clusters/cms/wal"))
	okay(t, g.push(t, name))
	if after := len(g.r.objects(0, "clusters/cms/wal")); after != before {
		t.Errorf("the second push made %d objects of %d", after, before)
	}
	path := filepath.Join(g.pg.DataDir, "pg_wal", name)
	good, err := os.ReadFile(path)
	okay(t, err)
	bad := append([]byte{}, good...)
	bad[len(bad)-1] ^= 1
	okay(t, os.WriteFile(path, bad, 0o600))
	err = g.push(t, name)
	wantErr(t, err, ErrOtherContent)
	if strings.Count(err.Error(), "digest") != 1 || len(hexRuns(err.Error())) < 2 {
		t.Errorf("%q does not name both digests", err)
	}
	okay(t, os.WriteFile(path, good, 0o600))
}

// hexRuns finds the 32-digit digests in a text.
func hexRuns(s string) (out []string) {
	for _, f := range strings.FieldsFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) {
		if len(f) == 32 {
			out = append(out, f)
		}
	}
	return out
}

// C-41: each fault on its own, in a real segment.
func TestForeignAndDamagedSegmentsAreRefused(t *testing.T) {
	g := newPushRig(t)
	name := g.finish()
	good, err := os.ReadFile(filepath.Join(g.pg.DataDir, "pg_wal", name))
	okay(t, err)
	change := func(at int) []byte {
		b := append([]byte{}, good...)
		b[at] ^= 0x40
		return b
	}
	for _, c := range []struct {
		what, name string
		data       []byte
		want       error
	}{
		{"system identifier", name, change(24), ErrForeignWAL},
		{"magic", name, change(0), ErrNotWAL},
		{"page address", name, change(10), ErrNotWAL},
		{"timeline", name, change(4), ErrNotWAL},
		{"segment size", name, change(34), ErrNotWAL},
		{"length", name, good[:walSeg/2], ErrNotWAL},
		{"name of the next segment", name[:23] + "F", good, ErrNotWAL},
		{"no name of WAL", "postgresql.conf", good, ErrNotWAL},
		{"history without ancestors", "00000002.history", nil, ErrNotWAL},
		{"history that names itself", "00000002.history", []byte("2\t0/5\tx\n"), ErrNotWAL},
		{"backup history of another segment", name + ".00000028.backup", []byte("START WAL LOCATION: 0/2 (file 000000010000000000000099)\n"), ErrNotWAL},
	} {
		_, err := checkFile(c.name, c.data, g.p.want)
		t.Run(c.what, func(t *testing.T) { wantErr(t, err, c.want) })
	}
	_, err = checkFile(name, good, g.p.want)
	okay(t, err)
}

// P9: a copied server pushes into the same socket.
func TestAPushFromAnotherDataDirectoryIsRefused(t *testing.T) {
	g := newPushRig(t)
	name := g.finish()
	other := t.TempDir()
	okay(t, os.Mkdir(filepath.Join(other, "pg_wal"), 0o700))
	data, err := os.ReadFile(filepath.Join(g.pg.DataDir, "pg_wal", name))
	okay(t, err)
	okay(t, os.WriteFile(filepath.Join(other, "pg_wal", name), data, 0o600))
	wantErr(t, g.p.Push(t.Context(), PushRequest{Path: "pg_wal/" + name, DataDir: other}), ErrForeignDir)
	wantErr(t, g.p.Push(t.Context(), PushRequest{Path: filepath.Join(other, "pg_wal", name)}), ErrForeignDir)
}

// C-38: what is ready is sent ahead, PostgreSQL's marks stay as they are.
func TestFollowingSegmentsAreSentAhead(t *testing.T) {
	g := newPushRig(t)
	go g.p.Run(t.Context())
	var names []string
	for range 4 {
		names = append(names, g.finish())
	}
	g.ready(t, names[3])
	okay(t, g.push(t, names[0]))
	_, last, err := lsn.ParseSegmentName(names[3], walSeg)
	okay(t, err)
	okay(t, g.p.WaitDurable(t.Context(), last+walSeg))
	if _, err := os.Stat(filepath.Join(g.pg.DataDir, "pg_wal/archive_status", names[3]+".ready")); err != nil {
		t.Errorf("the mark of a segment that PostgreSQL has not pushed: %v", err)
	}
	for _, n := range names[1:] {
		okay(t, g.push(t, n))
	}
}

// P8: what was chosen to be sent ahead and has not begun holds no push up, and is sent
// once.
func TestAPushDoesNotWaitForWhatHasNotBegun(t *testing.T) {
	g := newPushRig(t)
	first, second := g.finish(), g.finish()
	g.ready(t, second)
	okay(t, g.push(t, first))
	if len(g.p.ahead) != 1 {
		t.Fatalf("%d segments wait to be sent ahead, want one", len(g.p.ahead))
	}
	okay(t, g.push(t, second)) // nobody runs that would send it ahead
	before := len(g.r.objects(0, "clusters/cms/wal"))
	g.p.sendAhead(t.Context(), <-g.p.ahead)
	if after := len(g.r.objects(0, "clusters/cms/wal")); after != before || len(g.p.underway)+len(g.p.done) != 0 {
		t.Errorf("%d objects of %d; %d under way, %d done", after, before, len(g.p.underway), len(g.p.done))
	}
}

// C-42: an old primary that goes on behind the end of its timeline.
func TestWALBehindAForkIsRefused(t *testing.T) {
	g := newPushRig(t)
	name := g.finish()
	hist := filepath.Join(g.pg.DataDir, "pg_wal", "00000002.history")
	okay(t, os.WriteFile(hist, []byte("1\t0/100\ttest\n"), 0o600))
	okay(t, g.push(t, "00000002.history"))
	wantErr(t, g.push(t, name), ErrBeyondFork)
}

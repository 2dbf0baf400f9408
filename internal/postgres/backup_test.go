package postgres_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// C-1, C-3, C-5
func TestABackupGivesItsLabelAndMapByteForByte(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithTablespace())
	odd := c.Mkdir("sp ace\\and\nline")
	c.Exec("CREATE TABLESPACE odd LOCATION '" + odd + "'")
	conn := connect(t, c)
	b, err := postgres.StartBackup(t.Context(), conn, "nächtlich", true)
	if err != nil {
		t.Fatal(err)
	}
	if b.Start == 0 || b.Timeline != 1 || b.InRecovery || b.Started.IsZero() {
		t.Errorf("%+v", b)
	}
	c.Exec("CREATE TABLE during (a int)")
	r, err := b.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.LSN <= b.Start || r.Time.Before(b.Started) {
		t.Errorf("from %s at %s to %s at %s", b.Start, b.Started, r.LSN, r.Time)
	}
	if r.Parsed.Start != b.Start || r.Parsed.Name != "nächtlich" || r.Parsed.Checkpoint < b.Start || r.Parsed.FromStandby {
		t.Errorf("%+v", r.Parsed)
	}
	if !bytes.HasPrefix(r.Label, []byte("START WAL LOCATION: "+b.Start.String())) || !bytes.HasSuffix(r.Label, []byte("\n")) {
		t.Errorf("%q", r.Label)
	}
	if !bytes.Contains(r.TablespaceMap, []byte(" "+c.Tablespace+"\n")) || !bytes.Contains(r.TablespaceMap, []byte("\\\n")) {
		t.Errorf("%q", r.TablespaceMap)
	}
	if !bytes.Contains(r.Label, []byte("BACKUP METHOD: streamed")) {
		t.Errorf("not the non-exclusive API: %q", r.Label)
	}
}

// C-3: no conversion between the database's encoding and ours touches the bytes.
func TestALabelInAnotherEncodingKeepsItsBytes(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
	conn, err := postgres.Connect(t.Context(), c.DSN("latin"), postgres.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, err := postgres.StartBackup(t.Context(), conn, "é", true)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Stop(t.Context())
	if err != nil || !bytes.Contains(r.Label, []byte("LABEL: \xe9\n")) || len(r.TablespaceMap) != 0 {
		t.Errorf("%q %q %v", r.Label, r.TablespaceMap, err)
	}
}

// C-1
func TestTheAPIHasTwoNames(t *testing.T) {
	for num, want := range map[int][2]string{
		130023: {"pg_start_backup($1, $2, false)", "pg_stop_backup(false, false)"},
		149999: {"pg_start_backup($1, $2, false)", "pg_stop_backup(false, false)"},
		150000: {"pg_backup_start($1, $2)", "pg_backup_stop(false)"},
		180004: {"pg_backup_start($1, $2)", "pg_backup_stop(false)"},
	} {
		start, stop := postgres.StartSQL(num), postgres.StopSQL(num)
		if !strings.Contains(start, want[0]) || !strings.HasSuffix(stop, want[1]) {
			t.Errorf("%d: %s; %s", num, start, stop)
		}
	}
}

// C-2: the backup lives as long as its connection.
func TestALostConnectionLosesTheBackup(t *testing.T) {
	c := pgtest.Start(t)
	conn := connect(t, c)
	b, err := postgres.StartBackup(t.Context(), conn, "lost", true)
	if err != nil {
		t.Fatal(err)
	}
	c.Exec("SELECT pg_terminate_backend($1::int, 10000)", int(conn.Pgx().PgConn().PID()))
	if _, err := b.Stop(t.Context()); err == nil {
		t.Fatal("a backup whose connection was cut ended well")
	}
	if !conn.Closed() {
		t.Error("the connection is still open")
	}
}

// C-7
func TestABackupOfAStandbyThatIsPromotedIsRefused(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithSetting("wal_keep_size", "256MB"))
	s := c.Standby(t, "wal_retrieve_retry_interval = '100ms'")
	b, err := postgres.StartBackup(t.Context(), connect(t, s), "standby", true)
	if err != nil {
		t.Fatal(err)
	}
	if !b.InRecovery || b.Check(t.Context()) != nil {
		t.Errorf("%+v", b)
	}
	whole, err := postgres.StartBackup(t.Context(), connect(t, s), "second", true)
	if err != nil {
		t.Fatal(err)
	}
	r, err := whole.Stop(t.Context())
	if err != nil || !r.Parsed.FromStandby || r.LSN < whole.Start {
		t.Errorf("%+v, %v", r, err)
	}
	s.Promote()
	if err := b.Check(t.Context()); !errors.Is(err, postgres.ErrChanged) {
		t.Errorf("%v, want ErrChanged", err)
	}
	if _, err := b.Stop(t.Context()); !errors.Is(err, postgres.ErrChanged) {
		t.Errorf("%v, want ErrChanged", err)
	}
}

// C-6: on a primary full_page_writes may be off, for the server turns it on for
// the time; a standby that replayed WAL without it refuses.
func TestFullPageWritesOffIsRefusedOnAStandbyOnly(t *testing.T) {
	c := pgtest.Start(t, pgtest.WithSetting("wal_keep_size", "256MB"))
	s := c.Standby(t, "wal_retrieve_retry_interval = '100ms'")
	c.Exec("ALTER SYSTEM SET full_page_writes = off")
	c.Exec("SELECT pg_reload_conf()")
	b, err := postgres.StartBackup(t.Context(), connect(t, c), "primary", true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	c.Exec("CHECKPOINT")
	c.Exec("CREATE TABLE after_it (a int)")
	s.AwaitReplay(flushed(t, c).String())
	b, err = postgres.StartBackup(t.Context(), connect(t, s), "standby", true)
	if err == nil {
		_, err = b.Stop(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), "full_page_writes") {
		t.Errorf("%v, want a refusal that names full_page_writes", err)
	}
}

func TestParseLabelRefusesWhatItCannotUse(t *testing.T) {
	const good = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n" +
		"BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-01-02 03:04:05 UTC\nLABEL: a: b\nSTART TIMELINE: 7\n"
	l, err := postgres.ParseLabel([]byte(good))
	if err != nil || l.Start != 0x2000028 || l.Checkpoint != 0x2000060 || l.Timeline != 7 || l.Name != "a: b" {
		t.Errorf("%+v, %v", l, err)
	}
	for _, part := range []string{"START WAL LOCATION", "CHECKPOINT LOCATION", "START TIMELINE", "0/2000028", ": 7"} {
		if _, err := postgres.ParseLabel([]byte(strings.Replace(good, part, "x", 1))); err == nil {
			t.Errorf("without %q it parsed", part)
		}
	}
}

func FuzzParseLabel(f *testing.F) {
	f.Add([]byte("START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\nSTART TIMELINE: 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := postgres.ParseLabel(data); err == nil && l.Timeline == 0 {
			t.Fatal("timeline 0")
		}
	})
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

func find(list []finding, name string) finding {
	for _, f := range list {
		if f.Name == name {
			return f
		}
	}
	return finding{}
}

// want fails unless a finding has the level and its remedy, where it needs one.
func want(t *testing.T, list []finding, name, level, detail string) {
	t.Helper()
	f := find(list, name)
	if f.Level != level || !strings.Contains(f.Detail, detail) {
		t.Errorf("%s: %q %q, want %q with %q; all: %+v", name, f.Level, f.Detail, level, detail, list)
	}
	if level == levelFail && f.Remedy == "" {
		t.Errorf("%s: a failure without a remedy: %q", name, f.Detail)
	}
}

func streaming() configs.Cluster {
	return configs.Cluster{Name: "cms", Connection: "host=/x", Snapshots: configs.Snapshots{Source: "stream"}, WAL: configs.WAL{Mode: "stream", Slot: "holdfast_cms"}}
}

func healthy() serverState {
	limit := int64(1 << 40)
	return serverState{
		facts: postgres.Facts{Major: 15, ServerNum: 150018, SystemID: "7", Timeline: 2, DataChecksums: true},
		role:  "holdfast", repl: true, start: true, stop: true, monitor: true,
		settings: map[string]string{
			"wal_level": "replica", "max_wal_senders": "10", "max_replication_slots": "10", "archive_mode": "off", "archive_command": "(disabled)",
			"full_page_writes": "on", "max_slot_wal_keep_size": "10240", "idle_replication_slot_timeout": "0",
		},
		slot:    &postgres.SlotState{WALStatus: "reserved", SafeBytes: &limit},
		lineage: &catalog.Lineage{SystemID: "7", Timeline: 2, Node: "db1", Epoch: 1},
	}
}

func TestAHealthyServerHasNothingToMend(t *testing.T) {
	for _, f := range judgeServer(streaming(), "db1", healthy()) {
		if f.Level != levelOK {
			t.Errorf("%+v", f)
		}
	}
}

// C-46, C-51 and what else a server can have wrong.
func TestEachFaultOfAServerIsToldWithItsRemedy(t *testing.T) {
	little := int64(1)
	for _, c := range []struct {
		name, finding, level, detail string
		change                       func(*configs.Cluster, *serverState)
	}{
		{"away", "cluster cms", levelFail, "refused", func(_ *configs.Cluster, s *serverState) { s.err = errors.New("connection refused") }},
		{"too old", "cluster cms", levelFail, "14 to 18", func(_ *configs.Cluster, s *serverState) { s.facts.Major = 13 }},
		{"too new", "cluster cms", levelFail, "14 to 18", func(_ *configs.Cluster, s *serverState) { s.facts.Major = 19 }},
		{"clock", "cluster cms clock", levelWarn, "1m", func(_ *configs.Cluster, s *serverState) { s.skew = time.Minute }},
		{"no replication", "cluster cms role", levelFail, "REPLICATION", func(_ *configs.Cluster, s *serverState) { s.repl = false }},
		{"no monitor", "cluster cms role", levelFail, "pg_monitor", func(_ *configs.Cluster, s *serverState) { s.monitor = false }},
		{"no backup functions", "cluster cms role", levelFail, "pg_backup_start", func(c *configs.Cluster, s *serverState) { c.Snapshots.Source, s.start = "files", false }},
		{"hba", "cluster cms replication", levelFail, "no entry", func(_ *configs.Cluster, s *serverState) { s.replErr = errors.New("no entry") }},
		{"minimal", "cluster cms wal_level", levelFail, "minimal", func(_ *configs.Cluster, s *serverState) { s.settings["wal_level"] = "minimal" }},
		{"senders", "cluster cms max_wal_senders", levelFail, "1 of 10", func(_ *configs.Cluster, s *serverState) { s.senders = 9 }},
		{"slots", "cluster cms max_replication_slots", levelFail, "in use", func(_ *configs.Cluster, s *serverState) { s.slot, s.slots = nil, 10 }},
		{"torn pages", "cluster cms full_page_writes", levelFail, "off", func(_ *configs.Cluster, s *serverState) { s.settings["full_page_writes"] = "off" }},
		{"checksums", "cluster cms data_checksums", levelWarn, "off", func(_ *configs.Cluster, s *serverState) { s.facts.DataChecksums = false }},
		{"slot lost", "cluster cms slot", levelFail, "is lost", func(_ *configs.Cluster, s *serverState) { s.slot.WALStatus = "lost" }},
		{"slot invalid", "cluster cms slot", levelFail, "idle_timeout", func(_ *configs.Cluster, s *serverState) { s.slot.Invalidated = "idle_timeout" }},
		{"slot endangered", "cluster cms slot", levelFail, "about to be lost", func(_ *configs.Cluster, s *serverState) { s.slot.WALStatus = "unreserved" }},
		{"slot narrow", "cluster cms slot", levelWarn, "only 1 B more", func(_ *configs.Cluster, s *serverState) { s.slot.SafeBytes, s.slot.Behind = &little, 1<<30 }},
		{"slot unlimited", "cluster cms slot", levelWarn, "fill the server's disk", func(_ *configs.Cluster, s *serverState) { s.settings["max_slot_wal_keep_size"] = "-1" }},
		{"idle timeout", "cluster cms idle_replication_slot_timeout", levelWarn, "3600", func(_ *configs.Cluster, s *serverState) { s.settings["idle_replication_slot_timeout"] = "3600" }},
		{"push to a stream", "cluster cms archive_command", levelWarn, "wal.mode is stream", func(_ *configs.Cluster, s *serverState) {
			s.settings["archive_mode"], s.settings["archive_command"] = "on", "holdfast wal push %p"
		}},
		{"push off", "cluster cms archiving", levelFail, "archive_mode is off", func(c *configs.Cluster, _ *serverState) { c.WAL.Mode = "push" }},
		{"library and command", "cluster cms archiving", levelFail, "both set", func(c *configs.Cluster, s *serverState) {
			c.WAL.Mode, s.settings["archive_mode"], s.settings["archive_library"], s.settings["archive_command"] = "push", "on", "basic_archive", "holdfast wal push %p"
		}},
		{"another's command", "cluster cms archiving", levelFail, "does not call", func(c *configs.Cluster, s *serverState) {
			c.WAL.Mode, s.settings["archive_mode"], s.settings["archive_command"] = "push", "on", "cp %p /x/%f"
		}},
		{"unreadable directory", "cluster cms data_directory", levelFail, "permission", func(c *configs.Cluster, s *serverState) {
			c.DataDirectory, s.dirErr = "/x", errors.New("permission denied")
		}},
		{"another directory", "cluster cms data_directory", levelFail, "system id 8", func(c *configs.Cluster, s *serverState) { c.DataDirectory, s.dirSystem = "/x", "8" }},
		{"foreign server", "cluster cms lineage", levelFail, "system id 9", func(_ *configs.Cluster, s *serverState) { s.lineage.SystemID = "9" }},
		{"old primary", "cluster cms lineage", levelFail, "old primary", func(_ *configs.Cluster, s *serverState) { s.facts.Timeline = 1 }},
		{"another holder", "cluster cms lineage", levelWarn, "node db2", func(_ *configs.Cluster, s *serverState) { s.lineage.Node = "db2" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster, s := streaming(), healthy()
			c.change(&cluster, &s)
			want(t, judgeServer(cluster, "db1", s), c.finding, c.level, c.detail)
		})
	}
}

func TestTheRolesRightsAreThoseThatTheRemedyGives(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("max_slot_wal_keep_size", "1GB"))
	pg.Exec(`CREATE ROLE "hold-fast" LOGIN`)
	c := streaming()
	c.Snapshots.Source = "files"
	dsn := strings.Replace(pg.DSN("postgres"), "user=postgres", "user=hold-fast", 1)
	if dsn == pg.DSN("postgres") {
		t.Fatalf("the connection string %q names no user", dsn)
	}
	c.Connection = dsn
	list := judgeServer(c, "db1", askServer(t.Context(), nil, c, dsn))
	want(t, list, "cluster cms role", levelFail, "lacks REPLICATION, EXECUTE on pg_backup_start and pg_backup_stop, pg_monitor")

	sql, ok := strings.CutPrefix(grants("hold-fast", pg.Major), "as superuser: CREATE")
	if !ok {
		t.Fatal("the remedy does not begin with the role")
	}
	pg.Exec("ALTER" + sql)
	for _, f := range judgeServer(c, "db1", askServer(t.Context(), nil, c, dsn)) {
		if f.Level != levelOK {
			t.Errorf("after the remedy: %+v", f)
		}
	}
}

func TestAServerWithoutWALToArchiveFailsTheCheck(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithoutChecksums(), pgtest.WithSetting("wal_level", "minimal"), pgtest.WithSetting("max_wal_senders", "0"), pgtest.WithSetting("full_page_writes", "off"))
	c := streaming()
	c.DataDirectory = pg.DataDir
	s := askServer(t.Context(), nil, c, pg.DSN("postgres"))
	list := judgeServer(c, "db1", s)
	want(t, list, "cluster cms wal_level", levelFail, "minimal")
	want(t, list, "cluster cms max_wal_senders", levelFail, "of 0")
	want(t, list, "cluster cms full_page_writes", levelFail, "off")
	want(t, list, "cluster cms data_checksums", levelWarn, "off")
	want(t, list, "cluster cms data_directory", levelOK, "the server's")
	pg.Stop()
	s = askServer(t.Context(), nil, c, pg.DSN("postgres"))
	want(t, judgeServer(c, "db1", s), "cluster cms", levelFail, "connect to PostgreSQL")
}

// identityWorld is a database host's configuration whose directories are real.
func identityWorld(t *testing.T) (c *configs.Config, data string) {
	dir := t.TempDir()
	data = filepath.Join(dir, "data.key")
	public, err := newKey("data", "", data, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"etc", "keys", "state/deep/er"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	index := filepath.Join(dir, "keys", "index.key")
	if _, err := newKey("index", "", index, false); err != nil {
		t.Fatal(err)
	}
	return &configs.Config{
		Path: filepath.Join(dir, "etc", "holdfast.yaml"), Node: configs.Node{State: filepath.Join(dir, "state")},
		Repository: configs.Repository{Recipients: []string{public}, IndexIdentity: &configs.Secret{File: index}},
		Clusters:   []configs.Cluster{streaming()},
	}, data
}

func TestADataIdentityOnADatabaseHostFailsWhereverItLies(t *testing.T) {
	c, data := identityWorld(t)
	want(t, checkIdentity(c, ""), "data identity", levelOK, "nothing on this node")
	dir := filepath.Dir(data)
	for _, place := range []string{"etc/backup.txt", "keys/old.key", "state/deep/er/x"} {
		path := filepath.Join(dir, place)
		if err := os.Link(data, path); err != nil {
			t.Fatal(err)
		}
		want(t, checkIdentity(c, ""), "data identity", levelFail, place)
		want(t, checkIdentity(c, path), "data identity", levelWarn, place)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	c.Environments = []configs.Environment{{Name: "here", Identity: &configs.Secret{File: data}}}
	want(t, checkIdentity(c, ""), "data identity", levelFail, "environments[here].identity")
	c.Node.AllowIdentity = true
	want(t, checkIdentity(c, ""), "data identity", levelOK, "allow_identity")
	c.Node.AllowIdentity, c.Clusters[0].Connection = false, ""
	want(t, checkIdentity(c, ""), "data identity", levelOK, "no live cluster")
}

func TestAnIndexIdentityThatOpensDataFailsEvenWhereIdentitiesAreAllowed(t *testing.T) {
	c, _ := identityWorld(t)
	own, err := recipientsOf(*c.Repository.IndexIdentity)
	if err != nil {
		t.Fatal(err)
	}
	c.Repository.Recipients = append(c.Repository.Recipients, own...)
	c.Node.AllowIdentity = true
	want(t, checkIdentity(c, ""), "data identity", levelFail, "one of repository.recipients")
}

func TestASecretThatAnyUserReadsFails(t *testing.T) {
	c, _ := identityWorld(t)
	index := c.Repository.IndexIdentity.File
	if err := os.Chmod(index, 0o644); err != nil {
		t.Fatal(err)
	}
	want(t, checkSecrets(c), "secrets", levelOK, "1 secret") // nobody gets through the directory
	for dir := filepath.Dir(index); dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	want(t, checkSecrets(c), "secret repository.index_identity", levelFail, "every user")
	if err := os.Remove(index); err != nil {
		t.Fatal(err)
	}
	want(t, checkSecrets(c), "secret repository.index_identity", levelFail, "no such file")
}

func TestRoomClocksAndQuorumAreJudgedByWhatTheyStop(t *testing.T) {
	for free, level := range map[int64]string{1 << 20: levelFail, 512 << 20: levelWarn, 100 << 30: levelOK} {
		if f := roomFinding("zone a", "/a", "fine", free, 1<<40); f.Level != level {
			t.Errorf("%d bytes free: %+v, want %s", free, f, level)
		}
	}
	s3 := configs.Zone{S3: &configs.S3{Bucket: "b"}}
	for by, level := range map[time.Duration]string{-time.Hour: levelFail, time.Minute: levelWarn, 2 * time.Second: levelOK} {
		if f := judgeSkew("zone a", s3, skew{by: by}); f.Level != level {
			t.Errorf("%s off: %+v, want %s", by, f, level)
		}
	}
	c := &configs.Config{Repository: configs.Repository{WriteQuorum: 2, Zones: []configs.Zone{{Name: "a"}, {Name: "b"}, {Name: "c"}}}}
	down := errors.New("down")
	for _, q := range []struct {
		errs  map[string]error
		level string
	}{{nil, levelOK}, {map[string]error{"a": down}, levelWarn}, {map[string]error{"a": down, "b": down}, levelFail}} {
		want(t, judgeQuorum(c, q.errs), "write quorum", q.level, "")
	}
}

func TestAProbeIsJudgedByWhatItWouldCost(t *testing.T) {
	whole := zone.ProbeResult{ConditionalCreate: true, ListAfterWrite: true, RangeRead: true, ChecksumRefused: true, Lock: "governance", ShorteningRefused: true}
	locked := configs.Zone{ObjectLock: "governance"}
	if r := newReport(judgeProbe(locked, whole)); !r.OK {
		t.Errorf("%+v", r)
	}
	racy, unlocked := whole, whole
	racy.ConditionalCreate, unlocked.Lock = false, "none"
	want(t, judgeProbe(locked, racy), "conditional create", levelFail, "not exactly one")
	want(t, judgeProbe(locked, unlocked), "object lock", levelFail, "governance is configured")
}

// Two repositories are never mixed, and what could be an emptied zone is seen.
func TestThePlanOfARepositoryRefusesBeforeAnythingIsDone(t *testing.T) {
	member := func(name, repo string) zoneLook {
		return zoneLook{name: name, id: zone.Identity{Format: 1, Repository: repo, Zone: name}}
	}
	for _, c := range []struct {
		name, pin string
		looks     []zoneLook
		exit      int
	}{
		{"all empty", "", []zoneLook{{name: "a", empty: true}, {name: "b", empty: true}}, exitDone},
		{"joins", "", []zoneLook{member("a", "r"), member("b", "r")}, exitDone},
		{"one of a known repository is away", "r", []zoneLook{member("a", "r"), {name: "b", err: errors.New("away")}}, exitDone},
		{"two repositories", "", []zoneLook{member("a", "r"), member("b", "s")}, exitRefused},
		{"another than the pinned", "r", []zoneLook{member("a", "s")}, exitRefused},
		{"swapped zones", "", []zoneLook{{name: "a", id: zone.Identity{Format: 1, Repository: "r", Zone: "b"}}}, exitRefused},
		{"something else", "", []zoneLook{{name: "a", err: fmt.Errorf("%w: x", zone.ErrOccupied)}}, exitRefused},
		{"a newer format", "r", []zoneLook{{name: "a", id: zone.Identity{Format: 2, Repository: "r", Zone: "a"}}}, exitRefused},
		{"a new one needs all zones", "", []zoneLook{{name: "a", empty: true}, {name: "b", err: errors.New("away")}}, exitFailed},
	} {
		if _, err := planRepository(c.pin, c.looks); codeOf(err) != c.exit {
			t.Errorf("%s: %v, exit %d, want %d", c.name, err, codeOf(err), c.exit)
		}
	}
}

// What writes is refused while another process holds the state.
func TestCommandsThatWriteLeaveAHeldStateAlone(t *testing.T) {
	dir := t.TempDir()
	for _, z := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, z), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	command := func(args ...string) (int, string) {
		var errw bytes.Buffer
		code := run(append([]string{"--config", filepath.Join(dir, "holdfast.yaml")}, args...), strings.NewReader(""), io.Discard, &errw)
		return code, errw.String()
	}
	if code, said := command("init", "--out-dir", dir, "--zone", "a="+dir+"/a", "--zone", "b="+dir+"/b", "--cluster", "cms", "--connection", "host=/nowhere"); code != exitNotHeld {
		t.Fatalf("init: %d %s", code, said)
	}
	lock, err := durable.Acquire(filepath.Join(dir, "state", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"init"}, exitFailed},
		{[]string{"zone", "add", "a"}, exitFailed},
		{[]string{"zone", "probe"}, exitFailed},
		{[]string{"zone", "heal"}, exitFailed},
		{[]string{"lineage", "open", "cms", "--take-over"}, exitRefused},
		{[]string{"zone", "list"}, exitDone},
		{[]string{"zone", "scrub"}, exitDone},
		{[]string{"catalog", "rebuild"}, exitDone},
		{[]string{"incident", "list"}, exitDone},
	} {
		code, said := command(c.args...)
		if code != c.code || code != exitDone && !strings.Contains(said, "what to do: stop") {
			t.Errorf("%v: exit %d, want %d: %s", c.args, code, c.code, said)
		}
	}
}

func TestCheckAsJSONIsOneDocument(t *testing.T) {
	var b bytes.Buffer
	e := &env{output: "json", out: &b}
	r := newReport([]finding{good("a", "x"), bad("b", "mend it", "y")})
	if err := e.print(r, r.print); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OK     bool
		Checks []map[string]string
	}
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OK || len(doc.Checks) != 2 || doc.Checks[1]["level"] != "FAIL" || doc.Checks[1]["remedy"] != "mend it" {
		t.Errorf("%s", b.String())
	}
	if !slices.Equal([]string{doc.Checks[0]["name"], doc.Checks[0]["detail"]}, []string{"a", "x"}) {
		t.Errorf("%s", b.String())
	}
}

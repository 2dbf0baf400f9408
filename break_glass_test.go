package holdfast

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// breakGlass runs the script over a copy of the golden zone.
func breakGlass(t *testing.T, zone, to string, more ...string) (string, error) {
	t.Helper()
	script := "docs/break-glass.py"
	if _, err := os.ReadFile(script); err != nil { // so that go test knows what its result depends on
		t.Fatal(err)
	}
	args := []string{script, "--repository", zone, "--cluster", goldenCluster, "--identity", filepath.Join(goldenDir, "data.key")}
	if to != "" {
		args = append(args, "--to", to)
	}
	cmd := exec.CommandContext(t.Context(), "python3", append(args, more...)...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func copyOfGolden(t *testing.T) string {
	t.Helper()
	zone := filepath.Join(t.TempDir(), "zone")
	if err := os.CopyFS(zone, os.DirFS(filepath.Join(goldenDir, "zone"))); err != nil {
		t.Fatal(err)
	}
	return zone
}

func trustGolden(t *testing.T) []string {
	t.Helper()
	return []string{"--trust", strings.TrimSpace(string(read(t, "signing.vkey")))}
}

func TestBreakGlassRestoresTheGoldenRepositoryToTheByte(t *testing.T) {
	zone := copyOfGolden(t)
	for n, more := range map[int][]string{2: nil, 1: {"--snapshot", "20261122T180000Z-aaaaaa"}} {
		space := filepath.Join(t.TempDir(), "space")
		to := filepath.Join(t.TempDir(), "data")
		out, err := breakGlass(t, zone, to, append(more, "--tablespace", "16400="+space)...)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, f := range goldenFiles(n) {
			path := filepath.Join(to, f.path)
			if f.outside {
				path = to + ".outside" + f.path
			}
			got := must(os.ReadFile(path))(t)
			if !bytes.Equal(got, f.bytes()) {
				t.Errorf("snapshot %d: %s is not what it was", n, f.path)
			}
		}
		if link := must(os.Readlink(filepath.Join(to, "pg_tblspc/16400")))(t); link != space {
			t.Errorf("the tablespace is at %s", link)
		}
		segment := must(os.ReadFile(filepath.Join(to, "pg_wal/000000010000000000000001")))(t)
		want := append(bytes.Repeat([]byte("a"), 0x1000), bytes.Repeat([]byte("b"), 0x1000)...)
		if len(segment) != goldenSegment || !bytes.Equal(segment[:0x2000], want) || len(bytes.Trim(segment[0x2000:], "\x00")) > 0 {
			t.Errorf("the segment is not the slices, one after the other, and zeros")
		}
		if m := must(os.Stat(filepath.Join(to, "pg_notify")))(t).Mode().Perm(); m != 0o750 {
			t.Errorf("an empty directory has mode %o", m)
		}
	}
}

func TestBreakGlassResolvesATimeToThePositionBeforeTheNextTransaction(t *testing.T) {
	zone := copyOfGolden(t)
	for at, stop := range map[string]string{
		"2026-11-22T19:04:59Z": "0/101200", "2026-11-22T20:05:30+01:00": "0/101300", "2026-11-22T19:30:00Z": "",
	} {
		to := filepath.Join(t.TempDir(), "data")
		out, err := breakGlass(t, zone, to, "--time", at)
		if err != nil {
			t.Fatalf("%s: %v: %s", at, err, out)
		}
		conf := string(must(os.ReadFile(filepath.Join(to, "postgresql.auto.conf")))(t))
		line := "recovery_target_lsn = '" + stop + "'"
		if got := strings.Contains(conf, "recovery_target_lsn"); got != (stop != "") || stop != "" && !strings.Contains(conf, line) {
			t.Errorf("%s: want %q in\n%s", at, stop, conf)
		}
	}
	for at, why := range map[string]string{"2026-11-22T21:00:00Z": "holds nothing of that time yet", "2026-11-22T17:00:00Z": "no such snapshot", "yesterday": "want a time with its zone"} {
		if out, err := breakGlass(t, zone, filepath.Join(t.TempDir(), "data"), "--time", at); err == nil || !strings.Contains(out, why) {
			t.Errorf("%s: %v, want %q in\n%s", at, err, why, out)
		}
	}
}

// Whatever byte of whatever it reads was changed, it says so and leaves nothing
// that could start.
func TestBreakGlassRefusesWhateverWasChanged(t *testing.T) {
	g := openGolden(t)
	notes, manifests := g.snapshots()
	names := []string{notes[1].Objects.Name, notes[1].Manifest.Name}
	for _, p := range manifests[1].Packs {
		names = append(names, p.Ref.Name)
	}
	for _, p := range manifests[1].Maps {
		names = append(names, p.Ref.Name)
	}
	for _, r := range must(catalog.DecodeObjects(bytes.NewReader(g.get(notes[1].Objects))))(t) {
		if strings.Contains(r.Name, "/wal/") && strings.HasSuffix(r.Name, ".age") && !strings.HasSuffix(r.Name, ".idx.age") {
			names = append(names, r.Name)
		}
	}
	names = append(names, catalog.SnapshotName(goldenCluster, notes[1].ID))
	for i, name := range names {
		for what, spoil := range map[string]func([]byte) []byte{
			"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		} {
			if what == "cut" && i > 0 && i < len(names)-1 {
				continue // all but the two that are read as text are sealed alike
			}
			zone := copyOfGolden(t)
			path, to := filepath.Join(zone, name), filepath.Join(t.TempDir(), "data")
			if err := os.WriteFile(path, spoil(must(os.ReadFile(path))(t)), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := breakGlass(t, zone, to, append(trustGolden(t), "--snapshot", notes[1].ID)...)
			if err == nil || !strings.Contains(out, name) || strings.Contains(out, "Traceback") {
				t.Errorf("%s %s: %v: %s", name, what, err, out)
			}
			if _, err := os.Stat(filepath.Join(to, "global/pg_control")); err == nil {
				t.Errorf("%s %s: pg_control is there", name, what)
			}
		}
	}
}

func TestBreakGlassBelievesOnlyWhomItIsToldToBelieve(t *testing.T) {
	zone := copyOfGolden(t)
	out, err := breakGlass(t, zone, filepath.Join(t.TempDir(), "data"), trustGolden(t)...)
	if err != nil || !strings.Contains(out, "Signatures: verified") || !strings.Contains(out, "FRESHNESS NOT VERIFIED") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := breakGlass(t, zone, filepath.Join(t.TempDir(), "data")); err != nil || !strings.Contains(out, "ORIGIN NOT VERIFIED") {
		t.Errorf("without a key: %v: %s", err, out)
	}
	stranger := "db1+1cb4c0e4+AQrgIhAXYHgn1Zk2y0pW0hnGBeQmvxQKdM5y0mJqzz5D"
	if out, err := breakGlass(t, zone, filepath.Join(t.TempDir(), "data"), "--trust", stranger); err == nil {
		t.Errorf("a key that is not whole passed: %s", out)
	}
	_, vkey, err := seal.NewSigningKey("db1")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := breakGlass(t, zone, filepath.Join(t.TempDir(), "data"), "--trust", vkey); err == nil || !strings.Contains(out, "no key of --trust signed it") {
		t.Errorf("with a stranger's key: %v: %s", err, out)
	}
}

func TestBreakGlassNamesTheDeletedInBigLettersAndFindsTheirKeys(t *testing.T) {
	zone, to := copyOfGolden(t), filepath.Join(t.TempDir(), "data")
	out, err := breakGlass(t, zone, to)
	for _, want := range []string{"DELETED PROJECTS ARE BACK", "TOMBSTONE t1", "DATABASE cms, TABLE cms.project, COLUMN id", "20 of cms.record"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: want %q in\n%s", err, want, out)
		}
	}
	if conf := string(must(os.ReadFile(filepath.Join(to, "postgresql.auto.conf")))(t)); !strings.Contains(conf, "listen_addresses = ''") || !strings.Contains(conf, "archive_mode = 'off'") {
		t.Errorf("the copy can be reached: %s", conf)
	}
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("40\n41\n411\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := breakGlass(t, zone, "", "--deleted-among", keys); err != nil || out != "41\n" {
		t.Errorf("%v: %q", err, out)
	}
}

// C-73: who can write to the zone and has the recipients can seal any manifest.
func TestBreakGlassWritesNothingBesideItsDirectories(t *testing.T) {
	g := openGolden(t)
	notes, _ := g.snapshots()
	plain := g.blob(notes[1].Manifest)
	for from, to := range map[string]string{
		`"path":"PG_VERSION"`:        `"path":"../PG_VERSION"`,
		`"path":"base/5/1259"`:       `"path":"base/../../../1259"`,
		`"path":"global/pg_control"`: `"path":"pg_tblspc/16400"`,
		`"path":"pg_notify"`:         `"path":"../pg_notify"`,
		`"path":"pg_tblspc/16400/`:   `"path":"pg_tblspc/16400/../../../`,
		`"path":"/etc/`:              `"path":"/../../etc/`,
		`"leaves":[[1,0,8332,1]`:     `"leaves":[[1,1,8331,1]`,
		`"oid":16400`:                `"oid":"../16400"`,
	} {
		zone, dir := copyOfGolden(t), t.TempDir()
		forged := bytes.Replace(plain, []byte(from), []byte(to), 1)
		if bytes.Equal(forged, plain) {
			t.Fatalf("the manifest has no %s", from)
		}
		forge(t, g, zone, notes[1], forged)
		out, err := breakGlass(t, zone, filepath.Join(dir, "in/data"), "--snapshot", notes[1].ID)
		if err == nil || strings.Contains(out, "Traceback") || strings.Contains(out, "is missing or not of") {
			t.Errorf("%s: %v: %s", to, err, out)
		}
		entries := must(os.ReadDir(dir))(t)
		inside := must(filepath.Glob(filepath.Join(dir, "in/*")))(t)
		for _, p := range inside {
			if !strings.HasPrefix(filepath.Base(p), "data") {
				entries = append(entries, nil)
			}
		}
		if len(entries) > 1 {
			t.Errorf("%s: %q and %q were made", to, entries, inside)
		}
	}
}

func TestBreakGlassRefusesANewerFormatByItsName(t *testing.T) {
	g := openGolden(t)
	notes, _ := g.snapshots()
	zone := copyOfGolden(t)
	forge(t, g, zone, notes[1], bytes.Replace(g.blob(notes[1].Manifest), []byte(`"format":1`), []byte(`"format":2`), 1))
	if out, err := breakGlass(t, zone, filepath.Join(t.TempDir(), "data"), "--snapshot", notes[1].ID); err == nil || !strings.Contains(out, "is of format 2") {
		t.Errorf("a manifest of format 2: %v: %s", err, out)
	}
	zone = copyOfGolden(t)
	path := filepath.Join(zone, catalog.SnapshotName(goldenCluster, notes[1].ID))
	newer := bytes.Replace(must(os.ReadFile(path))(t), []byte("snapshot v1"), []byte("snapshot v2"), 1)
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := breakGlass(t, zone, filepath.Join(t.TempDir(), "data")); err == nil || !strings.Contains(out, "is of version 2") {
		t.Errorf("a note of version 2: %v: %s", err, out)
	}
}

// forge puts another manifest into a zone, with a list and a note that name it,
// unsigned.
func forge(t *testing.T, g *golden, zone string, s catalog.Snapshot, manifest []byte) {
	t.Helper()
	put := func(name string, data []byte) catalog.Ref {
		if err := os.WriteFile(filepath.Join(zone, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return catalog.Ref{Name: name, Size: int64(len(data)), SHA256: hexSum(data)}
	}
	refs := must(catalog.DecodeObjects(bytes.NewReader(g.get(s.Objects))))(t)
	to := must(seal.ParseRecipients([]string{must(seal.RecipientOf(g.ids[0]))(t)}))(t)
	at := slices.Index(refs, s.Manifest)
	s.Manifest = put(s.Manifest.Name, must(seal.SealBlob(manifest, to))(t))
	refs[at] = s.Manifest
	s.Objects = put(s.Objects.Name, must(catalog.EncodeObjects(refs))(t))
	body := must(seal.CanonicalJSON(s))(t)
	put(catalog.SnapshotName(goldenCluster, s.ID), []byte("holdfast snapshot v1\n"+string(body)+"\n\n— db1 AAAA\n"))
}

func TestBreakGlassReplacesNothing(t *testing.T) {
	zone := copyOfGolden(t)
	for _, occupied := range []string{"", ".outside", ".tablespaces/16400"} {
		to := filepath.Join(t.TempDir(), "data")
		mine := filepath.Join(to+occupied, "mine")
		if err := os.MkdirAll(filepath.Dir(mine), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(mine, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := breakGlass(t, zone, to)
		if err == nil || !strings.Contains(out, "nothing is overwritten") {
			t.Errorf("%v: %s", err, out)
		}
		var left []string
		err = filepath.WalkDir(filepath.Dir(to), func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				left = append(left, p)
			}
			return err
		})
		if err != nil || !slices.Equal(left, []string{mine}) {
			t.Errorf("%v: %q lie there", err, left)
		}
	}
}

// A program that says it is age and does nothing stands for the old one: what
// is asked is what the script says before it starts.
func TestBreakGlassSaysWhatIsMissing(t *testing.T) {
	zone, dir := copyOfGolden(t), t.TempDir()
	write := func(name, text string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	old := write("age", "#!/bin/sh\necho 1.1.1\n", 0o700)
	for why, args := range map[string][]string{
		"bring age 1.3 or newer":      {"--age", old, "--identity", write("pq", "AGE-SECRET-KEY-PQ-1AAAA\n", 0o600)},
		"there is no program":         {"--age", filepath.Join(dir, "none")},
		"is sealed itself":            {"--identity", write("sealed", "-----BEGIN AGE ENCRYPTED FILE-----\n", 0o600)},
		"--identity:":                 {"--identity", filepath.Join(dir, "none")},
		"there are: 2026":             {"--snapshot", "none"},
		"holds no clusters/elsewhere": {"--cluster", "elsewhere"},
	} {
		if out, err := breakGlass(t, zone, filepath.Join(dir, "data"), args...); err == nil || !strings.Contains(out, why) {
			t.Errorf("%v: want %q in %v: %s", args, why, err, out)
		}
	}
	other := must(age.GenerateX25519Identity())(t)
	stranger := write("stranger", other.String()+"\n", 0o600)
	if out, err := breakGlass(t, zone, filepath.Join(dir, "data"), "--identity", stranger); err == nil || !strings.Contains(out, "the data identity?") {
		t.Errorf("%v: %s", err, out)
	}
}

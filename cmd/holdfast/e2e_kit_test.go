package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// ageTool is the age of the Makefile's tools: static, and new enough.
func ageTool(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("HOLDFAST_TOOLS")
	if dir == "" {
		dir = "../../.tools"
	}
	path, err := filepath.Abs(filepath.Join(dir, "bin/age"))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("there is no age for the kit; `make tools` installs it: %v", err)
	}
	return path
}

// The kit, a zone and a passphrase are enough, on a machine with nothing on its path.
func TestTheEscrowKitRestoresAlone(t *testing.T) { // promise 9
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	pg.Exec("CREATE TABLE kept AS SELECT 42 AS answer")
	r.hold("db", 0, "snapshot", "take", "cms")
	r.archived("a", "b", "c")
	daemon.stop()

	tool, kit, words := ageTool(t), r.path("kit.tar"), r.write("words", "correct horse battery staple\n")
	r.hold("db", 1, "keys", "kit", "--out", kit, "--age", "/bin/sh")
	r.hold("db", 2, "keys", "kit", "--out", kit, "--age", tool, "--identity", r.path("drill/data.key"), "--passphrase", r.write("short", "short"))
	r.hold("db", 3, "keys", "kit", "--out", kit, "--age", tool, "--identity", r.path("keys/index"), "--passphrase", words)
	doc := ask[kitDoc](r, "db", "keys", "kit", "--out", kit, "--age", tool, "--identity", r.path("drill/data.key"), "--passphrase", words)
	r.hold("db", 3, "keys", "kit", "--out", kit, "--age", tool)
	if !doc.Identity || len(doc.Files) != 9 {
		t.Fatalf("the kit: %+v", doc)
	}

	dir := r.mkdir("elsewhere")
	inside := func(path string, name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = filepath.Join(dir, path), []string{"PATH=/usr/bin:/bin", "HOME=" + dir}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	inside("", "tar", "-xf", kit)
	inside("holdfast-kit", "sha256sum", "-c", "SHA256SUMS")
	identity, err := os.ReadFile(r.path("drill/data.key"))
	sealed, serr := os.ReadFile(filepath.Join(dir, "holdfast-kit/data.key.age"))
	if err != nil || serr != nil || strings.Contains(string(sealed), "AGE-SECRET-KEY") {
		t.Fatal(err, serr, "the identity must be sealed")
	}
	// age asks for a passphrase on a terminal alone: what it would write is compared here.
	if opened := openWithPassphrase(t, sealed, "correct horse battery staple"); string(opened) != string(identity) {
		t.Error("the sealed identity is another")
	}
	if err := os.WriteFile(filepath.Join(dir, "holdfast-kit/data.key"), identity, 0o600); err != nil {
		t.Fatal(err)
	}
	if list := inside("holdfast-kit", "./holdfast", "--repository", "repository.yaml", "snapshot", "list"); !strings.Contains(list, "cms") {
		t.Errorf("the kit's program lists:\n%s", list)
	}
	readme, err := os.ReadFile(filepath.Join(dir, "holdfast-kit/README.txt"))
	if err != nil || !strings.Contains(string(readme), r.keys["db"]) || !strings.Contains(string(readme), r.path("zones/a")) || strings.Contains(string(readme), r.keys["drill"]) {
		t.Errorf("the instructions do not say where and whose: %v\n%s", err, readme)
	}
	inside("holdfast-kit", "python3", "break-glass.py", "--age", "./age", "--repository", r.path("zones/b"), "--cluster", "cms", "--identity", "data.key", "--to", filepath.Join(dir, "glass"), "--trust", r.keys["db"])
	if _, err := os.Stat(filepath.Join(dir, "glass/global/pg_control")); err != nil {
		t.Errorf("the kit's script restored nothing: %v", err)
	}
}

// The repository's file of a kit is one that --repository reads, buckets too.
func TestTheKitNamesEveryZone(t *testing.T) {
	secret := &configs.Secret{File: "/secret"}
	repo := configs.Repository{
		Zones: []configs.Zone{
			{Name: "a", S3: &configs.S3{Endpoint: "https://s3.example.net", Region: "eu", Bucket: "b\"x", Prefix: "hf", PathStyle: true, CA: secret}},
			{Name: "b", S3: &configs.S3{Region: "eu", Bucket: "b"}},
			{Name: "c", Directory: "/media/a dir"},
		},
		TrustedSigners: []configs.TrustedSigner{{Key: vkeyOf(t), May: []string{"snapshot", "wal"}, Clusters: []string{"cms"}}},
	}
	got, err := configs.ParseRepository(kitRepository(repo), "repository.yaml")
	if err != nil {
		t.Fatalf("%v\n%s", err, kitRepository(repo))
	}
	if len(got.Zones) != 3 || got.Zones[0].S3.Bucket != "b\"x" || got.Zones[0].S3.CA == nil || !got.Zones[0].S3.PathStyle || got.Zones[2].Directory != "/media/a dir" || len(got.TrustedSigners[0].May) != 2 {
		t.Errorf("%+v", got)
	}
}

func openWithPassphrase(t *testing.T, sealed []byte, words string) []byte {
	t.Helper()
	id, err := age.NewScryptIdentity(words)
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func vkeyOf(t *testing.T) string {
	t.Helper()
	_, vkey, err := seal.NewSigningKey("db")
	if err != nil {
		t.Fatal(err)
	}
	return vkey
}

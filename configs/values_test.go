package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDurationsSizesAndRatesReadWhatTheyWrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Duration(time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "ms")) * time.Millisecond)
		if back, err := ParseDuration(d.String()); err != nil || back != d {
			t.Fatalf("%v came back as %v, %v", d, back, err)
		}
		s := Size(rapid.Int64Range(0, 1<<62).Draw(t, "bytes"))
		if back, err := ParseSize(s.String()); err != nil || back != s {
			t.Fatalf("%v came back as %v, %v", s, back, err)
		}
		r := Rate(s)
		if back, err := ParseRate(r.String()); err != nil || back != r {
			t.Fatalf("%v came back as %v, %v", r, back, err)
		}
	})
}

func TestValuesThatAreRefused(t *testing.T) {
	for _, text := range []string{"", "7", "d", "-1d", "1w", "1m1h", "1h1h", "1.5h", " 1h", "106752d", "99999999999999999999s", "1s1"} {
		if d, err := ParseDuration(text); err == nil {
			t.Errorf("duration %q: %v", text, d)
		}
	}
	for _, text := range []string{"", "1", "MiB", "1MB", "-1B", "1.5GiB", "8388608TiB", "1GiB1", "1 GiB"} {
		if s, err := ParseSize(text); err == nil {
			t.Errorf("size %q: %v", text, s)
		}
	}
	for _, text := range []string{"", "1", "1MiB", "MiB/s", "1MiB/m"} {
		if r, err := ParseRate(text); err == nil {
			t.Errorf("rate %q: %v", text, r)
		}
	}
	for text, want := range map[string]time.Duration{"400d": 400 * 24 * time.Hour, "1h30m": 90 * time.Minute, "500ms": time.Second / 2, "0s": 0} {
		if d, err := ParseDuration(text); err != nil || d.Std() != want {
			t.Errorf("duration %q: %v, %v", text, d, err)
		}
	}
}

func TestSecretsLoadFromEachPlace(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("HOLDFAST_TEST_SECRET", "hunter2")
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for _, s := range []Secret{{File: write("f", "hunter2\n")}, {Env: "HOLDFAST_TEST_SECRET"}, {Credential: filepath.Base(write("c", "hunter2\r\n"))}} {
		if value, err := s.Load(); err != nil || string(value) != "hunter2" {
			t.Errorf("%v: %q, %v", s, value, err)
		}
		text, _ := json.Marshal(s)
		for _, shown := range []string{s.String(), fmt.Sprintf("%v %+v %#v %s %q", s, s, s, s, s), string(text)} {
			if strings.Contains(shown, "hunter2") {
				t.Errorf("a secret is printed: %s", shown)
			}
		}
	}
	refused := []Secret{
		{},
		{File: filepath.Join(dir, "none")},
		{File: write("empty", "\n")},
		{Env: "HOLDFAST_TEST_NONE"},
		{Credential: "none"},
		{File: write("large", strings.Repeat("x", maxSecret+1))},
	}
	for _, s := range refused {
		if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), s.String()) {
			t.Errorf("%v: %v", s, err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := (Secret{Credential: "c"}).Load(); err == nil || !strings.Contains(err.Error(), "LoadCredential=") {
		t.Error(err)
	}
}

func TestKeyPairsNeverPrintTheirSecretHalf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	text := "[default]\n# mine\naws_access_key_id = AKIA\naws_secret_access_key=hunter2\nsession_token = hunter2\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	pair, err := Credentials{File: path}.Load()
	if err != nil || pair.AccessKey != "AKIA" || pair.SecretKey != "hunter2" || pair.SessionToken != "hunter2" {
		t.Fatalf("%v, %v", pair, err)
	}
	out, err := json.Marshal(map[string]any{"pair": pair, "pointer": &pair})
	shown := fmt.Sprintf("%v %+v %#v %s %q %x %s", pair, pair, &pair, pair, pair, pair, out)
	if err != nil || strings.Contains(shown, "hunter2") || strings.Contains(shown, fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("%s, %v", shown, err)
	}
	for _, bad := range []string{"", "hunter2", "access_key_id=a", "access_key_id=a\nsecret_access_key=hunter2\nsecret_access_key=hunter2", "secret=hunter2"} {
		if _, err := parseKeyPair(bad); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := (Credentials{Kind: "instance"}).Load(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func FuzzKeyPair(f *testing.F) {
	f.Add("access_key_id = a\nsecret_access_key = b\n")
	f.Add("[x]\n;y\naws_session_token==\n")
	f.Fuzz(func(t *testing.T, text string) {
		if pair, err := parseKeyPair(text); err == nil && (pair.AccessKey == "" || pair.SecretKey == "") {
			t.Error("half a key pair was accepted")
		}
	})
}

func FuzzCron(f *testing.F) {
	for _, text := range []string{"15 */6 * * *", "CRON_TZ=Europe/Rome 15 2 * * *", "@daily", "CRON_TZ=", "TZ=UTC", "CRON_TZ=UTC TZ=UTC", "@every 1h", "*/0 * * * *"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var c Cron
		if err := c.parseScalar(text); err == nil && string(c) != text {
			t.Errorf("%q became %q", text, c)
		}
	})
}

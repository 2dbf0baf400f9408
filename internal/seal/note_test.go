package seal

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

type letter struct {
	Cluster string `json:"cluster"`
	Text    string `json:"text"`
	N       int64  `json:"n"`
}

func signer(t testing.TB, name string) (note.Signer, string) {
	t.Helper()
	skey, vkey, err := NewSigningKey(name)
	if err != nil {
		t.Fatal(err)
	}
	s, v, err := LoadSigner(skey + "\n")
	if err != nil || v != vkey || s.Name() != name {
		t.Fatalf("LoadSigner: %q, want %q: %v", v, vkey, err)
	}
	return s, vkey
}

func trust(t testing.TB, signers ...TrustedSigner) Trust {
	t.Helper()
	tr, err := NewTrust(signers)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func signed(t testing.TB, kind string, body any, s note.Signer) []byte {
	t.Helper()
	msg, err := SignNote(kind, body, s)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func TestNoteIsReadByWhoTrustsItsSignerAndNobodyElse(t *testing.T) {
	s, vkey := signer(t, "db1")
	_, otherKey := signer(t, "db1") // the same name, another key
	body := letter{"cms", "<b>&  \" \n ü", 1<<53 - 1}
	msg := signed(t, "letter v1", body, s)
	if want := "holdfast letter v1\n{\"cluster\":\"cms\","; !strings.HasPrefix(string(msg), want) {
		t.Errorf("note begins %q, want %q", msg[:40], want)
	}
	cases := map[string]struct {
		by                  TrustedSigner
		kind, duty, cluster string
		want                error
	}{
		"trusted":          {TrustedSigner{vkey, []string{"cms"}, []string{"wal"}}, "letter v1", "wal", "cms", nil},
		"every cluster":    {TrustedSigner{vkey, []string{"*"}, []string{"wal"}}, "letter v1", "wal", "cms", nil},
		"about no cluster": {TrustedSigner{vkey, nil, []string{"wal"}}, "letter v1", "wal", "", nil},
		"other duty":       {TrustedSigner{vkey, []string{"cms"}, []string{"snapshot"}}, "letter v1", "wal", "cms", ErrUntrusted},
		"other cluster":    {TrustedSigner{vkey, []string{"crm"}, []string{"wal"}}, "letter v1", "wal", "cms", ErrUntrusted},
		"no cluster":       {TrustedSigner{vkey, nil, []string{"wal"}}, "letter v1", "wal", "cms", ErrUntrusted},
		"moved":            {TrustedSigner{vkey, []string{"*"}, []string{"wal"}}, "letter v1", "wal", "crm", ErrUntrusted},
		"other key":        {TrustedSigner{otherKey, []string{"*"}, []string{"wal"}}, "letter v1", "wal", "cms", ErrUntrusted},
		"other kind":       {TrustedSigner{vkey, []string{"*"}, []string{"wal"}}, "will v1", "wal", "cms", ErrDamaged},
	}
	for name, c := range cases {
		var got letter
		by, err := trust(t, c.by).Open(msg, c.kind, c.duty, c.cluster, &got)
		if c.want == nil && (err != nil || got != body || by != "db1") {
			t.Errorf("%s: %q %+v %v", name, by, got, err)
		}
		if c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := (Trust{}).Open(msg, "letter v1", "wal", "cms", nil); !errors.Is(err, ErrUntrusted) {
		t.Errorf("the zero Trust: %v", err)
	}
}

func TestUnknownFieldsAreLaterMinorVersionsAndANewerMajorIsRefused(t *testing.T) {
	s, vkey := signer(t, "db1")
	tr := trust(t, TrustedSigner{vkey, []string{"*"}, []string{"wal"}})
	newer := map[string]any{"cluster": "cms", "text": "x", "n": 1, "later": []int{1}}
	var got letter
	if _, err := tr.Open(signed(t, "letter v1", newer, s), "letter v1", "wal", "cms", &got); err != nil || got.Text != "x" {
		t.Errorf("unknown field: %v", err)
	}
	if _, err := tr.Open(signed(t, "letter v2", newer, s), "letter v1", "wal", "cms", nil); !errors.Is(err, ErrVersion) {
		t.Errorf("newer major: %v", err)
	}
	if _, err := tr.Open(signed(t, "letter v1", newer, s), "letter v2", "wal", "cms", nil); err == nil {
		t.Error("an older major was taken for a newer one")
	}
}

func TestOneByteChangedAnywhereInANoteIsAnError(t *testing.T) {
	s, vkey := signer(t, "db1")
	tr := trust(t, TrustedSigner{vkey, []string{"*"}, []string{"wal"}})
	msg := signed(t, "letter v1", letter{"cms", "hello", 7}, s)
	for at := range msg {
		for bit := range 8 {
			bad := bytes.Clone(msg)
			bad[at] ^= 1 << bit
			if _, err := tr.Open(bad, "letter v1", "wal", "cms", nil); err == nil {
				t.Fatalf("byte %d of %d changed from %q to %q and nothing was noticed", at, len(msg), msg[at], bad[at])
			}
		}
	}
	for n := range msg {
		if _, err := tr.Open(msg[:n], "letter v1", "wal", "cms", nil); err == nil {
			t.Fatalf("cut to %d bytes and nothing was noticed", n)
		}
	}
}

func TestASecondSignatureDoesNotLendItsTrust(t *testing.T) {
	s, vkey := signer(t, "db1")
	w, wkey := signer(t, "witness")
	msg := signed(t, "letter v1", letter{"cms", "x", 1}, s)
	tr := trust(t, TrustedSigner{vkey, []string{"*"}, []string{"wal"}}, TrustedSigner{wkey, []string{"*"}, []string{"ledger"}})
	n, err := note.Open(msg, tr.Verifiers("wal"))
	if err != nil {
		t.Fatal(err)
	}
	both, err := note.Sign(n, w)
	if err != nil {
		t.Fatal(err)
	}
	if by, err := tr.Open(both, "letter v1", "wal", "cms", nil); err != nil || by != "db1" {
		t.Errorf("with a cosignature: %q %v", by, err)
	}
	alone := signed(t, "letter v1", letter{"cms", "x", 1}, w)
	if _, err := tr.Open(alone, "letter v1", "wal", "cms", nil); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a ledger key vouched for WAL: %v", err)
	}
}

func TestTrustRefusesWhatWouldTrustByAccident(t *testing.T) {
	_, vkey := signer(t, "db1")
	for name, s := range map[string]TrustedSigner{
		"no key":  {VKey: "", May: []string{"wal"}},
		"bad key": {VKey: vkey[:len(vkey)-4] + "AAAA", May: []string{"wal"}},
		"no duty": {VKey: vkey},
	} {
		if _, err := NewTrust([]TrustedSigner{s}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPeekSplitsANoteWithoutBelievingIt(t *testing.T) {
	s, _ := signer(t, "db1")
	kind, body := PeekNote(signed(t, "letter v1", letter{"cms", "x", 1}, s))
	if kind != "letter v1" || string(body) != `{"cluster":"cms","n":1,"text":"x"}` {
		t.Errorf("peeked %q %q", kind, body)
	}
	for _, bad := range []string{"", "holdfast x v1\n{}\n", "other x\n{}\n\n— a b\n", "holdfast x v1\n{}\n{}\n\n— a b\n"} {
		if kind, _ := PeekNote([]byte(bad)); kind != "" {
			t.Errorf("%q is a %q", bad, kind)
		}
	}
}

func TestSigningKeysNeverShowInErrors(t *testing.T) {
	skey, _, err := NewSigningKey("db1")
	if err != nil {
		t.Fatal(err)
	}
	secret := skey[len(skey)-20:]
	for _, bad := range []string{skey + "x", "X" + skey, strings.Replace(skey, "db1", "db2", 1), secret, ""} {
		_, _, err := LoadSigner(bad)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%v", err)
		}
	}
	for _, name := range []string{"", "a b", "a+b"} {
		if _, _, err := NewSigningKey(name); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}

func TestCanonicalJSONRefusesToRound(t *testing.T) {
	got, err := CanonicalJSON(map[string]any{"b": 1.50, "a": []any{"é<", nil, true, 1e21}, "": 0.0})
	if want := `{"":0,"a":["é<",null,true,1e+21],"b":1.5}`; err != nil || string(got) != want {
		t.Errorf("%s, want %s: %v", got, want, err)
	}
	for _, n := range []any{int64(1 << 53), uint64(1<<64 - 1), int64(-1 << 53)} {
		if _, err := CanonicalJSON(map[string]any{"n": n}); err == nil {
			t.Errorf("%v passed", n)
		}
	}
	if got, err := CanonicalJSON(int64(1<<53 - 1)); err != nil || string(got) != fmt.Sprint(1<<53-1) {
		t.Errorf("%s: %v", got, err)
	}
}

func FuzzOpenNote(f *testing.F) {
	s, vkey := signer(f, "db1")
	tr := trust(f, TrustedSigner{vkey, []string{"*"}, []string{"wal"}})
	good := signed(f, "letter v1", letter{"cms", "hello", 7}, s)
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("hello"), []byte("jello"), 1))
	f.Add(append(bytes.Clone(good), good...))
	f.Add([]byte("holdfast letter v1\n{}\n\n— db1 AAAA\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = PeekNote(data)
		var l letter
		_, err := tr.Open(data, "letter v1", "wal", "cms", &l)
		if err == nil && (l != letter{"cms", "hello", 7}) {
			t.Fatalf("forged: %+v", l)
		}
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUntrusted) && !errors.Is(err, ErrVersion) {
			t.Fatalf("unclassified error: %v", err)
		}
	})
}

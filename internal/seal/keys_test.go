package seal

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"filippo.io/age/plugin"
)

func TestRecipientsOfTwoKindsAreRefusedByNumber(t *testing.T) {
	_, pq, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	_, classic, err := NewX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseRecipients([]string{pq, " " + pq + "\n"}); err != nil {
		t.Errorf("two post-quantum: %v", err)
	}
	for _, lines := range [][]string{{pq, pq, classic}, {classic, classic, pq}} {
		_, err := ParseRecipients(lines)
		if err == nil || !strings.Contains(err.Error(), "recipient 3") || !strings.Contains(err.Error(), "one kind") || len(err.Error()) > 200 {
			t.Errorf("mixture: %v", err)
		}
	}
	if _, err := ParseRecipients(nil); err == nil {
		t.Error("no recipients were accepted")
	}
}

func TestEachOfSeveralRecipientsOpens(t *testing.T) {
	for _, makeKey := range []func() (string, string, error){NewIdentity, NewX25519Identity} {
		var secrets, recipients []string
		for range 3 {
			s, r, err := makeKey()
			if err != nil {
				t.Fatal(err)
			}
			secrets, recipients = append(secrets, s), append(recipients, r)
		}
		rec, err := ParseRecipients(recipients)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := SealBlob([]byte("hello"), rec)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range secrets {
			ids, err := ParseIdentities([]byte(s))
			if err != nil {
				t.Fatal(err)
			}
			if r, err := RecipientOf(ids[0]); err != nil || r != recipients[i] {
				t.Errorf("recipient of identity %d: %v", i, err)
			}
			if got, err := OpenBlob(sealed, ids, 10); err != nil || string(got) != "hello" {
				t.Errorf("identity %d: %v", i, err)
			}
		}
	}
}

func TestSecretsNeverShowInErrorsAboutKeys(t *testing.T) {
	secret, _, err := NewX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	tail := secret[len(secret)-16:]
	if _, err := ParseRecipients([]string{secret}); err == nil || strings.Contains(err.Error(), tail) {
		t.Errorf("an identity given as recipient: %v", err)
	}
	for _, bad := range []string{secret + "Q", "age1" + secret, "AGE-SECRET-KEY-PQ-1" + tail, "AGE-PLUGIN-" + tail, "", "# nothing"} {
		_, err := ParseIdentities([]byte("# line 1\n" + bad + "\n"))
		if err == nil || strings.Contains(err.Error(), tail) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestPluginIdentitiesAreReadAndAMissingPluginIsAnError(t *testing.T) {
	line := plugin.EncodeIdentity("holdfasttest", []byte("x"))
	ids, err := ParseIdentities([]byte(line))
	if err != nil || len(ids) != 1 {
		t.Fatalf("plugin identity: %v", err)
	}
	_, rec := pair(t, true)
	sealed, err := SealBlob([]byte("x"), rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBlob(sealed, ids, 10); err == nil || !strings.Contains(err.Error(), "holdfasttest") {
		t.Errorf("missing plugin: %v", err)
	}
	if _, err := RecipientOf(ids[0]); err == nil {
		t.Error("the recipient of a plugin's identity was told")
	}
}

func TestFingerprintIsTheBeginningOfTheTextsSHA256(t *testing.T) {
	// printf %s age1xyz | sha256sum
	if got := Fingerprint(" age1xyz\n"); got != "ff7930dc5d97e67d" {
		t.Errorf("fingerprint %s", got)
	}
}

func TestDigestKeysComeBackAndNeverPrint(t *testing.T) {
	ids, rec := pair(t, false)
	k, err := NewDigestKeys(3)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := k.Seal(rec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenDigestKeys(sealed, ids)
	if err != nil || got != k {
		t.Errorf("opened other keys: %v", err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%d"} {
		if s := fmt.Sprintf(verb, k); s != "digest keys of epoch 3" {
			t.Errorf("%s prints %q", verb, s)
		}
	}
	if b, err := json.Marshal(k); err != nil || string(b) != `{"epoch":3}` {
		t.Errorf("JSON %s: %v", b, err)
	}
	for body, want := range map[string]error{
		`{"format":2,"epoch":1,"key":"x"}`:  ErrVersion,
		`{"format":1,"epoch":1,"key":"00"}`: ErrDamaged,
		`{"format":1,"epoch":0}`:            ErrDamaged,
		`x`:                                 ErrDamaged,
	} {
		bad, err := SealBlob([]byte(body), rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDigestKeys(bad, ids); !errors.Is(err, want) {
			t.Errorf("%s: %v", body, err)
		}
	}
	if _, err := NewDigestKeys(0); err == nil {
		t.Error("epoch 0 was accepted")
	}
}

func TestMACTellsDomainsPartsAndKeysApart(t *testing.T) {
	a, b := DigestKeys{Epoch: 1}, DigestKeys{Epoch: 1, Key: [32]byte{1}}
	s := func(parts ...string) (out [][]byte) {
		for _, p := range parts {
			out = append(out, []byte(p))
		}
		return out
	}
	seen := map[string]string{}
	for what, mac := range map[string]string{
		"ab|c":   a.MAC("d", s("ab", "c")...),
		"a|bc":   a.MAC("d", s("a", "bc")...),
		"abc":    a.MAC("d", s("abc")...),
		"abc|":   a.MAC("d", s("abc", "")...),
		"domain": a.MAC("e", s("abc")...),
		"key":    b.MAC("d", s("abc")...),
		"none":   a.MAC("d"),
	} {
		if len(mac) != 32 {
			t.Errorf("%s: %d digits", what, len(mac))
		}
		if other, dup := seen[mac]; dup {
			t.Errorf("%s and %s are one", what, other)
		}
		seen[mac] = what
	}
	// python3: hmac over u64be(1)"d" u64be(2)"ab" u64be(1)"c", key of 32 zero bytes
	if got := a.MAC("d", s("ab", "c")...); got != "b479f12df0bb0c5b8c331a03b2a9aa50" {
		t.Errorf("MAC %s", got)
	}
	got, err := a.MACReader("d", strings.NewReader("c"), 1, []byte("ab"))
	if err != nil || got != a.MAC("d", s("ab", "c")...) {
		t.Errorf("streamed: %s %v", got, err)
	}
	for _, size := range []int64{0, 2} {
		if _, err := a.MACReader("d", strings.NewReader("c"), size); err == nil {
			t.Errorf("a stream of 1 byte passed for %d", size)
		}
	}
}

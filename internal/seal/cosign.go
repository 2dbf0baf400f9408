package seal

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// cosigAlgorithm is a timestamped Ed25519 cosignature (c2sp.org/tlog-cosignature).
const cosigAlgorithm = 0x04

// Cosigner signs, with a time, that it saw a checkpoint as the newest of its log.
type Cosigner struct {
	name string
	id   [4]byte
	key  ed25519.PrivateKey
}

// LoadCosigner reads a secret key that [NewSigningKey] made; vkey is the cosigner's
// own verifier key, which is another than that of notes signed with it.
func LoadCosigner(skey string) (c Cosigner, vkey string, err error) {
	s, private, _, err := loadKey(skey)
	if err != nil {
		return c, "", err
	}
	c = Cosigner{name: s.Name(), key: private}
	pub := append([]byte{cosigAlgorithm}, c.key.Public().(ed25519.PublicKey)...)
	c.id = cosigID(c.name, pub)
	return c, c.name + "+" + hex.EncodeToString(c.id[:]) + "+" + base64.StdEncoding.EncodeToString(pub), nil
}

func cosigID(name string, pub []byte) (id [4]byte) {
	sum := sha256.Sum256(append([]byte(name+"\n"), pub...))
	copy(id[:], sum[:])
	return id
}

func cosigMessage(text []byte, at uint64) []byte {
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", at), text...)
}

// Cosign returns the line of signature, with its end, that the cosigner adds to a
// checkpoint of that text.
func (c Cosigner) Cosign(text []byte, at time.Time) []byte {
	stamp := uint64(at.Unix())
	sig := append(c.id[:], binary.BigEndian.AppendUint64(nil, stamp)...)
	sig = append(sig, ed25519.Sign(c.key, cosigMessage(text, stamp))...)
	return []byte("— " + c.name + " " + base64.StdEncoding.EncodeToString(sig) + "\n")
}

// CosignVerifier checks the cosignatures of one cosigner: a note.Verifier.
type CosignVerifier struct {
	name string
	id   uint32
	key  ed25519.PublicKey
}

// NewCosignVerifier reads a cosigner's verifier key.
func NewCosignVerifier(vkey string) (v CosignVerifier, err error) {
	parts := strings.SplitN(strings.TrimSpace(vkey), "+", 3)
	bad := fmt.Errorf("witness key %q: want NAME+HASH+KEY, as `holdfast witness` prints it", vkey)
	if len(parts) != 3 || parts[0] == "" {
		return v, bad
	}
	pub, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(pub) != 1+ed25519.PublicKeySize || pub[0] != cosigAlgorithm {
		return v, bad
	}
	id := cosigID(parts[0], pub)
	if hex.EncodeToString(id[:]) != parts[1] {
		return v, bad
	}
	return CosignVerifier{parts[0], binary.BigEndian.Uint32(id[:]), pub[1:]}, nil
}

// Name implements [note.Verifier].
func (v CosignVerifier) Name() string { return v.name }

// KeyHash implements [note.Verifier].
func (v CosignVerifier) KeyHash() uint32 { return v.id }

// Verify implements [note.Verifier].
func (v CosignVerifier) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	return ed25519.Verify(v.key, cosigMessage(msg, binary.BigEndian.Uint64(sig)), sig[8:])
}

// Line takes a witness's answer for a checkpoint of that text, which must be one
// cosignature of v and nothing else, and returns the line in its one form.
func (v CosignVerifier) Line(text, answer []byte) ([]byte, error) {
	bad := fmt.Errorf("cosignature of %s: %w: want one line of its signature, got %.200q", v.name, ErrDamaged, answer)
	encoded, ok := strings.CutPrefix(string(answer), "— "+v.name+" ")
	sig, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSuffix(encoded, "\n"))
	if !ok || err != nil || len(sig) != 4+8+ed25519.SignatureSize || binary.BigEndian.Uint32(sig) != v.id || !v.Verify(text, sig[4:]) {
		return nil, bad
	}
	return []byte("— " + v.name + " " + base64.StdEncoding.EncodeToString(sig) + "\n"), nil
}

// Cosigned says when v signed a note: an error where it did not.
func (v CosignVerifier) Cosigned(signed []byte) (time.Time, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return time.Time{}, fmt.Errorf("cosignature of %s: %w", v.name, refusal(err))
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64)
	if err != nil || len(sig) < 12 {
		return time.Time{}, fmt.Errorf("cosignature of %s: %w", v.name, ErrDamaged)
	}
	return time.Unix(int64(binary.BigEndian.Uint64(sig[4:])), 0).UTC(), nil
}

package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// MaxNote bounds a note, signatures included.
const MaxNote = 4 << 20

const notePrefix = "holdfast "

// SignNote makes a C2SP signed note: "holdfast <kind>", then body as one line of
// canonical JSON, then the signature. kind is a name and its major version, as
// "snapshot v1".
func SignNote(kind string, body any, s note.Signer) ([]byte, error) {
	if _, _, err := splitKind(kind); err != nil {
		return nil, err
	}
	line, err := CanonicalJSON(body)
	if err != nil {
		return nil, fmt.Errorf("sign %s note: %w", kind, err)
	}
	msg, err := note.Sign(&note.Note{Text: notePrefix + kind + "\n" + string(line) + "\n"}, s)
	if err != nil {
		return nil, fmt.Errorf("sign %s note as %s: %w", kind, s.Name(), err)
	}
	if len(msg) > MaxNote {
		return nil, fmt.Errorf("sign %s note: %d bytes, want at most %d", kind, len(msg), MaxNote)
	}
	return msg, nil
}

// splitKind splits "snapshot v1" into its name and major version.
func splitKind(kind string) (name string, major int, err error) {
	name, v, ok := strings.Cut(kind, " v")
	major, err = strconv.Atoi(v)
	if !ok || err != nil || major < 1 || name == "" || strings.ContainsAny(name, " \n") || strconv.Itoa(major) != v {
		return "", 0, fmt.Errorf("kind of note %q: want a name and a major version, as \"snapshot v1\"", kind)
	}
	return name, major, nil
}

// PeekNote splits a note without looking at its signatures: for listings and
// diagnosis, never for a decision. kind is "" where data is not a note.
func PeekNote(data []byte) (kind string, body []byte) {
	text, _, ok := bytes.Cut(data, []byte("\n\n"))
	if !ok || len(data) > MaxNote {
		return "", nil
	}
	kind, body, err := splitText(string(text) + "\n")
	if err != nil {
		return "", nil
	}
	return kind, body
}

// splitText splits a note's text into its kind and its line of JSON.
func splitText(text string) (kind string, body []byte, err error) {
	first, rest, ok := strings.Cut(text, "\n")
	kind, prefixed := strings.CutPrefix(first, notePrefix)
	line, end, ended := strings.Cut(rest, "\n")
	if !ok || !prefixed || !ended || end != "" {
		return "", nil, fmt.Errorf("note: %w: want a line \"holdfast <kind>\" and a line of JSON", ErrDamaged)
	}
	return kind, []byte(line), nil
}

// matchKind refuses another kind, and a newer major version of the same one.
func matchKind(got, want string) error {
	name, major, err := splitKind(want)
	if err != nil {
		return err
	}
	gotName, gotMajor, err := splitKind(got)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch {
	case gotName != name:
		return fmt.Errorf("%w: it is a %s note, want %s", ErrDamaged, gotName, name)
	case gotMajor > major:
		return fmt.Errorf("%s note of version %d: %w", name, gotMajor, ErrVersion)
	case gotMajor < major:
		return fmt.Errorf("%s note of version %d: want version %d", name, gotMajor, major)
	}
	return nil
}

// NewSigningKey makes an Ed25519 key: skey is secret, vkey goes into
// repository.trusted_signers. name says whose it is, without spaces or '+'.
func NewSigningKey(name string) (skey, vkey string, err error) {
	skey, vkey, err = note.GenerateKey(rand.Reader, name)
	if err != nil {
		return "", "", fmt.Errorf("make signing key %q: %w", name, err)
	}
	if _, _, err := LoadSigner(skey); err != nil {
		return "", "", fmt.Errorf("make signing key %q: want a name without spaces and '+'", name)
	}
	return skey, vkey, nil
}

// LoadSigner reads a secret key that [NewSigningKey] made. Errors never quote it.
func LoadSigner(skey string) (note.Signer, string, error) {
	s, _, vkey, err := loadKey(skey)
	return s, vkey, err
}

// loadKey gives the private key beside the signer.
func loadKey(skey string) (note.Signer, ed25519.PrivateKey, string, error) {
	bad := errors.New("signing key: not readable: want PRIVATE+KEY+<name>+<hash>+<key>, as `holdfast keys new --signing` writes it")
	skey = strings.TrimSpace(skey)
	s, err := note.NewSigner(skey)
	if err != nil {
		return nil, nil, "", bad
	}
	parts := strings.SplitN(skey, "+", 5) // NewSigner saw all five; '+' is one of base64's characters
	key, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(key) != 1+ed25519.SeedSize {
		return nil, nil, "", bad
	}
	private := ed25519.NewKeyFromSeed(key[1:])
	vkey, err := note.NewEd25519VerifierKey(s.Name(), private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, nil, "", bad
	}
	return s, private, vkey, nil
}

// decodeBody reads a note's JSON; fields that into lacks are of a later minor
// version and are passed over.
func decodeBody(body []byte, into any) error {
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("note: %w: %w", ErrDamaged, err)
	}
	return nil
}

// refusal tells a stranger's note from a damaged one.
func refusal(err error) error {
	var unknown *note.UnverifiedNoteError
	if errors.As(err, &unknown) {
		var names []string
		for _, s := range unknown.Note.UnverifiedSigs {
			names = append(names, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
		}
		return fmt.Errorf("%w: signed by %s: if that key is yours, add it to repository.trusted_signers",
			ErrUntrusted, strings.Join(names, ", "))
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

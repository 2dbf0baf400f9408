package seal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
	"filippo.io/age/plugin"
)

// ParseRecipients reads age recipients: all post-quantum (age1pq1…) or all
// X25519 (age1…), since one classic recipient would undo the others' protection
// and age refuses it.
func ParseRecipients(lines []string) ([]age.Recipient, error) {
	if len(lines) == 0 {
		return nil, errors.New("recipients: none given: nobody could open what is sealed")
	}
	var out []age.Recipient
	firstPQ := isHybrid(lines[0])
	for i, s := range lines {
		s = strings.TrimSpace(s)
		r, err := parseRecipient(s)
		if err != nil {
			return nil, fmt.Errorf("recipient %d (%s): %w", i+1, short(s), err)
		}
		if isHybrid(s) != firstPQ {
			return nil, fmt.Errorf("recipient %d (%s) is %s and recipient 1 is %s: give recipients of one kind",
				i+1, short(s), kindOf(s), kindOf(lines[0]))
		}
		out = append(out, r)
	}
	return out, nil
}

func isHybrid(s string) bool { return strings.HasPrefix(strings.TrimSpace(s), "age1pq1") }

func kindOf(s string) string {
	if isHybrid(s) {
		return "post-quantum"
	}
	return "X25519"
}

func parseRecipient(s string) (age.Recipient, error) {
	if isHybrid(s) {
		return age.ParseHybridRecipient(s)
	}
	if strings.HasPrefix(s, "age1") {
		return age.ParseX25519Recipient(s)
	}
	return nil, errors.New("want age1pq1… or age1…")
}

// short keeps errors readable (a post-quantum recipient has 1,959 characters)
// and free of a secret that was put in a recipient's place.
func short(s string) string {
	switch {
	case !strings.HasPrefix(s, "age1"):
		return "not shown"
	case len(s) > 20:
		return s[:20] + "…"
	}
	return s
}

// ParseIdentities reads age identities, one a line, with comments and blank
// lines: native ones and those of plugins that ask for nothing. Errors name the
// line and never its content.
func ParseIdentities(data []byte) ([]age.Identity, error) {
	var out []age.Identity
	for i, line := range bytes.Split(data, []byte("\n")) {
		s := strings.TrimSpace(string(line))
		if s == "" || strings.HasPrefix(s, "#") {
			continue
		}
		id, err := parseIdentity(s)
		if err != nil { // the cause could quote the secret
			return nil, fmt.Errorf("identities, line %d: not an age identity: want AGE-SECRET-KEY-PQ-1…, AGE-SECRET-KEY-1… or AGE-PLUGIN-…", i+1)
		}
		out = append(out, id)
	}
	if len(out) == 0 {
		return nil, errors.New("identities: none found: want a line that begins with AGE-SECRET-KEY-")
	}
	return out, nil
}

func parseIdentity(s string) (age.Identity, error) {
	switch {
	case strings.HasPrefix(s, "AGE-SECRET-KEY-PQ-1"):
		return age.ParseHybridIdentity(s)
	case strings.HasPrefix(s, "AGE-PLUGIN-"):
		return plugin.NewIdentity(s, unattended)
	default:
		return age.ParseX25519Identity(s)
	}
}

// unattended refuses whatever a plugin would ask a person.
var unattended = &plugin.ClientUI{
	DisplayMessage: func(string, string) error { return nil },
	RequestValue: func(name, _ string, _ bool) (string, error) {
		return "", fmt.Errorf("age plugin %s asks for a value: use an identity that needs no one present", name)
	},
	Confirm: func(name, _, _, _ string) (bool, error) {
		return false, fmt.Errorf("age plugin %s asks for a confirmation: use an identity that needs no one present", name)
	},
	WaitTimer: func(string) {},
}

// RecipientOf returns the recipient's text for a native identity.
func RecipientOf(id age.Identity) (string, error) {
	switch id := id.(type) {
	case *age.HybridIdentity:
		return id.Recipient().String(), nil
	case *age.X25519Identity:
		return id.Recipient().String(), nil
	default:
		return "", errors.New("recipient of a plugin's identity: only the plugin can tell")
	}
}

// Fingerprint names a recipient briefly: 16 hex digits of its text's SHA-256.
func Fingerprint(recipient string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(recipient)))
	return fmt.Sprintf("%x", sum[:8])
}

// NewIdentity makes a post-quantum hybrid identity (ML-KEM-768 with X25519).
func NewIdentity() (secret, recipient string, err error) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return "", "", fmt.Errorf("make identity: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// NewX25519Identity makes a classic identity, which every age since 1.0 opens.
func NewX25519Identity() (secret, recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", fmt.Errorf("make identity: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

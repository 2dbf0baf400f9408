package seal

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"
)

// TrustedSigner is whose word counts, for which clusters, in which duties.
type TrustedSigner struct {
	VKey     string   // as [NewSigningKey] returns it
	Clusters []string // "*" is every cluster; none: only notes that are about no cluster
	May      []string // duties: snapshot, wal, tombstone, ledger
}

// Trust decides whose notes are believed. The zero Trust believes nobody.
type Trust struct {
	signers []trusted
}

type trusted struct {
	TrustedSigner
	verifier note.Verifier
}

// NewTrust reads the signers' keys.
func NewTrust(signers []TrustedSigner) (Trust, error) {
	var t Trust
	for i, s := range signers {
		v, err := note.NewVerifier(s.VKey)
		if err != nil {
			return Trust{}, fmt.Errorf("trusted signer %d (%q): %w: want <name>+<hash>+<key>", i+1, s.VKey, err)
		}
		if len(s.May) == 0 {
			return Trust{}, fmt.Errorf("trusted signer %d (%s): may is empty: say what it may vouch for", i+1, v.Name())
		}
		t.signers = append(t.signers, trusted{s, v})
	}
	return t, nil
}

// may says whether the signer has the duty for the cluster ("" is no cluster).
func (s trusted) may(duty, cluster string) bool {
	about := cluster == "" || slices.Contains(s.Clusters, cluster) || slices.Contains(s.Clusters, "*")
	return about && slices.Contains(s.May, duty)
}

// Verifiers are the keys that have the duty, for whatever cluster.
func (t Trust) Verifiers(duty string) note.Verifiers { return t.verifiers(duty, "") }

func (t Trust) verifiers(duty, cluster string) note.Verifiers {
	var list []note.Verifier
	seen := map[string]bool{}
	for _, s := range t.signers {
		id := fmt.Sprintf("%s+%08x", s.verifier.Name(), s.verifier.KeyHash())
		if s.may(duty, cluster) && !seen[id] {
			seen[id] = true
			list = append(list, s.verifier)
		}
	}
	return note.VerifierList(list...)
}

// Open reads a note of the kind that a signer with the duty for the cluster ("":
// about none) has signed, and decodes its body into into (nil: only the check).
// A body that names another cluster is refused. signer is the key's name.
func (t Trust) Open(data []byte, kind, duty, cluster string, into any) (signer string, err error) {
	if len(data) > MaxNote {
		return "", fmt.Errorf("note: %w: %d bytes, want at most %d", ErrDamaged, len(data), MaxNote)
	}
	text, signer, err := OpenSigned(data, t.verifiers(duty, cluster))
	if err != nil {
		return "", fmt.Errorf("%s note, duty %s: %w", kind, duty, err)
	}
	got, body, err := splitText(text)
	if err != nil {
		return "", err
	}
	if err := matchKind(got, kind); err != nil {
		return "", err
	}
	var about struct {
		Cluster *string `json:"cluster"`
	}
	if err := json.Unmarshal(body, &about); err != nil {
		return "", fmt.Errorf("%s note: %w: %w", kind, ErrDamaged, err)
	}
	if cluster != "" && about.Cluster != nil && *about.Cluster != cluster {
		return "", fmt.Errorf("%s note: %w: it is about cluster %q, want %q", kind, ErrUntrusted, *about.Cluster, cluster)
	}
	return signer, decodeBody(body, into)
}

// OpenSigned checks a signed note of any text and returns it with the name of
// the first key of known that signed it. The signatures of known keys must be in
// their one canonical encoding, so that no byte can change unnoticed.
func OpenSigned(data []byte, known note.Verifiers) (text, signer string, err error) {
	n, err := note.Open(data, known)
	if err != nil {
		return "", "", refusal(err)
	}
	for _, s := range n.Sigs {
		if _, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil {
			return "", "", fmt.Errorf("%w: the signature of %s is not canonical base64", ErrDamaged, s.Name)
		}
	}
	return n.Text, n.Sigs[0].Name, nil
}

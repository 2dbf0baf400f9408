// Package approval hashes plans, so that what is approved is exactly what is
// done.
//
// A plan's hash is over its canonical JSON (RFC 8785): two plans that say the
// same have one hash, whoever wrote them down. Plans wait in the repository as signed
// notes, and approvals of them are notes by approvers' own keys. It never carries a
// plan out: whoever does asks for its Standing. It holds no key; an approval that
// cannot be read or has expired does not count, and a value that cannot be JSON is an
// error.
package approval

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/gowebpki/jcs"
)

// Hash is the SHA-256, in lower-case hex, of plan's canonical JSON without its
// top-level field "hash".
func Hash(plan any) (string, error) {
	raw, err := json.Marshal(plan)
	if err != nil {
		return "", fmt.Errorf("hashing a plan: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return "", fmt.Errorf("hashing a plan: want a JSON object: %w", err)
	}
	delete(fields, "hash")
	if raw, err = json.Marshal(fields); err != nil {
		return "", fmt.Errorf("hashing a plan: %w", err)
	}
	canonical, err := jcs.Transform(raw)
	if err != nil {
		return "", fmt.Errorf("hashing a plan: %w", err)
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:]), nil
}

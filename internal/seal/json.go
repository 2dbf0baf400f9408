package seal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/gowebpki/jcs"
)

// maxSafe is the largest integer that every JSON reader holds exactly (RFC 8785,
// section 3.2.2.3, after ECMAScript's Number.MAX_SAFE_INTEGER).
const maxSafe = 1<<53 - 1

// CanonicalJSON is v as one line of canonical JSON (RFC 8785). An integer that
// ECMAScript would round is an error, not a rounded number: give it as a string.
func CanonicalJSON(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("canonical JSON: %w", err)
	}
	if err := checkNumbers(b); err != nil {
		return nil, fmt.Errorf("canonical JSON: %w", err)
	}
	b, err = jcs.Transform(b)
	if err != nil {
		return nil, fmt.Errorf("canonical JSON: %w", err)
	}
	return b, nil
}

func checkNumbers(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		n, ok := tok.(json.Number)
		if !ok || strings.ContainsAny(n.String(), ".eE") {
			continue
		}
		if i, err := strconv.ParseInt(n.String(), 10, 64); err != nil || i > maxSafe || i < -maxSafe {
			return fmt.Errorf("integer %s is beyond 2^53-1: give it as a string", n)
		}
	}
}

package seal

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"

	"filippo.io/age"
)

// DigestKeys make names and digests that tell nothing of their content to who
// lacks the key, and that all nodes of a cluster agree on. They print as their
// epoch alone.
type DigestKeys struct {
	Epoch int
	Key   [32]byte
}

// digestKeysFile is the sealed form.
type digestKeysFile struct {
	Format int    `json:"format"` // 1
	Epoch  int    `json:"epoch"`
	Key    string `json:"key"` // hex
}

// NewDigestKeys makes the keys of an epoch, from 1.
func NewDigestKeys(epoch int) (DigestKeys, error) {
	k := DigestKeys{Epoch: epoch}
	if epoch < 1 {
		return k, fmt.Errorf("make digest keys: epoch %d, want 1 or more", epoch)
	}
	_, _ = rand.Read(k.Key[:]) // never fails (crypto/rand, since Go 1.24)
	return k, nil
}

// Format keeps the key out of logs and errors, whatever the verb.
func (k DigestKeys) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "digest keys of epoch %d", k.Epoch) }

// MarshalJSON keeps the key out of JSON; Seal is how it is stored.
func (k DigestKeys) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"epoch":%d}`, k.Epoch), nil
}

// Seal makes the blob that keys/digest/ holds: recipients are those of the index
// and those of the data.
func (k DigestKeys) Seal(recipients []age.Recipient) ([]byte, error) {
	plain, err := json.Marshal(digestKeysFile{Format: 1, Epoch: k.Epoch, Key: hex.EncodeToString(k.Key[:])})
	if err != nil {
		return nil, fmt.Errorf("seal %v: %w", k, err)
	}
	return SealBlob(plain, recipients)
}

// OpenDigestKeys is the inverse of Seal.
func OpenDigestKeys(sealed []byte, ids []age.Identity) (DigestKeys, error) {
	plain, err := OpenBlob(sealed, ids, 4096)
	if err != nil {
		return DigestKeys{}, fmt.Errorf("digest keys: %w", err)
	}
	var f digestKeysFile
	if err := json.Unmarshal(plain, &f); err != nil {
		return DigestKeys{}, fmt.Errorf("digest keys: %w: not JSON", ErrDamaged) // the cause could quote
	}
	if f.Format > 1 {
		return DigestKeys{}, fmt.Errorf("digest keys: format %d: %w", f.Format, ErrVersion)
	}
	key, err := hex.DecodeString(f.Key)
	if err != nil || len(key) != 32 || f.Format != 1 || f.Epoch < 1 {
		return DigestKeys{}, fmt.Errorf("digest keys: %w: no key of 32 bytes with an epoch", ErrDamaged)
	}
	return DigestKeys{Epoch: f.Epoch, Key: [32]byte(key)}, nil
}

// MAC is HMAC-SHA256 cut to 128 bits, as 32 hex digits, over the domain and the
// parts, each with its length before it, so that no two lists of parts are one.
// The domain keeps uses of one key apart.
func (k DigestKeys) MAC(domain string, parts ...[]byte) string {
	h := k.begin(domain, parts)
	return finishMAC(h)
}

// MACReader is MAC with one more, last part of size bytes read from r; a stream
// that is shorter or longer is an error.
func (k DigestKeys) MACReader(domain string, r io.Reader, size int64, parts ...[]byte) (string, error) {
	h := k.begin(domain, parts)
	writeLength(h, size)
	n, err := io.Copy(h, io.LimitReader(r, size+1))
	if err != nil {
		return "", fmt.Errorf("digest %s: %w", domain, err)
	}
	if n != size {
		return "", fmt.Errorf("digest %s: the stream does not end at %d bytes as announced", domain, size)
	}
	return finishMAC(h), nil
}

func (k DigestKeys) begin(domain string, parts [][]byte) hash.Hash {
	h := hmac.New(sha256.New, k.Key[:])
	for _, p := range append([][]byte{[]byte(domain)}, parts...) {
		writeLength(h, int64(len(p)))
		h.Write(p)
	}
	return h
}

func writeLength(h hash.Hash, n int64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	h.Write(b[:])
}

func finishMAC(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)[:16]) }

// Package seal is how Holdfast's bytes become safe to keep where others can
// read and write: encryption (age), compression (zstd), keyed digests and
// signatures (signed notes).
//
// A pack is one age file whose plaintext is zstd frames end to end, so that
// `age -d | zstd -d` gives the bytes back without Holdfast; a blob is age over
// one zstd stream; a note is one line of canonical JSON under a signature. The
// formats are in docs/format.md, "Packs, blobs and notes".
//
// It never stores or fetches anything, never hands out a byte of a frame whose
// digest it has not checked, and never puts a secret into an error or a log.
// age does not say who sealed: a reader must have a trusted signer's word for
// what it opens, by a note or by a digest that a note binds. What was changed,
// cut or sealed to somebody else is an error that wraps [ErrDamaged] or
// [ErrIdentity]; hostile input costs bounded memory.
package seal

import "errors"

// Errors that callers branch on.
var (
	// ErrDamaged means that the bytes are not what was sealed or signed: another
	// copy may be whole.
	ErrDamaged = errors.New("object is damaged")
	// ErrIdentity means that none of the identities given opens the object.
	ErrIdentity = errors.New("no identity opens this object")
	// ErrUntrusted means that no signer trusted with this duty vouches.
	ErrUntrusted = errors.New("no trusted signer vouches for this note")
	// ErrVersion means that the object was made by a newer Holdfast.
	ErrVersion = errors.New("made by a newer version of holdfast: upgrade this one")
)

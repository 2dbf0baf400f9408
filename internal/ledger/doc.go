// Package ledger is the append-only log of all that Holdfast did: one log for
// each node's state (its origin), a Merkle tree in C2SP tlog-tiles layout, whose
// checkpoints are signed and kept in every zone. docs/format.md, "Ledger", is
// its format.
//
// Append makes an entry durable on this machine; Anchor sends what is missing
// and signs a checkpoint only when the write quorum holds the entries it covers.
// Nothing here is ever rewritten: a log that finds itself behind what the zones
// show (its state was restored from an old copy), or beside it (its state was
// cloned), refuses to sign for good, and a fresh state begins a new origin that
// names the last checkpoints of the old.
//
// Verify and Read believe no one but the trusted keys: Verify computes
// everything anew from the entries and tells what is wrong, and where. What the
// ledger cannot prove: that what was written into it was true.
package ledger

import "errors"

// Errors that callers branch on.
var (
	// ErrRolledBack means that the zones hold more of this origin than its state
	// directory: the directory is an old copy. Nothing was signed.
	ErrRolledBack = errors.New("the ledger's state is older than what the zones hold")
	// ErrForked means that the zones hold other bytes under this origin's names:
	// two copies of one state have both been running. Nothing was signed.
	ErrForked = errors.New("the zones hold another ledger of this origin")
	// ErrNoCheckpoint means that no checkpoint of a log is signed by a trusted key:
	// nothing of it is proven.
	ErrNoCheckpoint = errors.New("it has no checkpoint that a trusted key signed")
	// ErrState means that the state directory is damaged.
	ErrState = errors.New("the ledger's state is damaged")
)

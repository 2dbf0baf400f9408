// Package drills proves that what is kept can be restored: it restores it, beside
// production and in a closed room, asks the restored copy questions, and writes
// down the answers where nobody can take them back.
//
// A drill's slot, its candidates and the seed of its choice are in the ledger
// before it starts, its outcome and evidence after it was cleaned up: exactly one
// outcome for each slot. The outcome follows from the rest of the record, by
// [Verdict]; a fault of the harness is never called a fault of the backup, and
// what was not looked at is listed, always.
//
// It holds a reader that can neither write nor delete. It never touches a server
// that it did not start, never leaves a copy behind without saying so, never
// chooses what to restore by itself: see [Choose]. A drill whose outcome could not
// be recorded is an error, and its slot stays owed.
package drills

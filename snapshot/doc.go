// Package snapshot takes what recovery needs into the vault: physical snapshots
// of a cluster ([Take]) and its write-ahead log.
//
// A snapshot has two possible sources, the files beside the server and the
// replication protocol's BASE_BACKUP, and one pipeline: files are cut into blocks;
// pages are checked, what nobody's rows lie in is zeroed, and each block is held
// against what the newest snapshot that fits (the base) says of it. What differs is
// compressed, packed, sealed and sent by a bounded number of workers that fill one
// pack together; what does not is referred to where it lies. So every snapshot is
// complete, and the first is no different but that it has no base. What is in packs
// that age or are mostly dead is copied afresh from the server: nothing here can
// open a pack. Which blocks must be read is asked of the WAL that was archived, or
// of the server; in doubt, all are read.
//
// The objects appear in the order of docs/format.md (W1 to W7); snapshot.note is
// the last, and without it there is no snapshot: whatever interrupts a Take leaves
// only objects under an intent, and with them, in the state directory, what the
// next Take needs to go on without sending them again.
//
// It never reads what it sealed (a database host has no identity to open it
// with), never writes into a data directory, never overwrites an object, and
// never calls a snapshot good whose pages or WAL it could not vouch for: bad
// pages make it suspect, with reasons; missing WAL makes it fail. Errors say at
// which step and of what; there is nothing to clean up after them.
package snapshot

// Package snapshot takes what recovery needs into the vault: physical snapshots
// of a cluster ([Take]) and its write-ahead log.
//
// A snapshot has two possible sources, the files beside the server and the
// replication protocol's BASE_BACKUP, and one pipeline: pages are checked, cut
// into frames, compressed, packed, sealed and sent by a bounded number of
// workers, each of which holds one pack in the making and one on its way. The
// objects appear in the order of docs/format.md (W1 to W5); snapshot.note is the
// last, and without it there is no snapshot: whatever interrupts a Take leaves
// only objects under an intent.
//
// It never reads what it sealed (a database host has no identity to open it
// with), never writes into a data directory, never overwrites an object, and
// never calls a snapshot good whose pages or WAL it could not vouch for: bad
// pages make it suspect, with reasons; missing WAL makes it fail. Errors say at
// which step and of what; there is nothing to clean up after them.
package snapshot

// Package catalog knows what the repository holds: its names, its records, and
// the orders in which they appear and vanish (docs/format.md).
//
// It keeps no state of its own that cannot be read again from the zones. It
// believes nothing that no trusted signer vouches for, never takes an
// incomplete listing for a complete one (each answer says whether it is), and
// never reads or writes a database's bytes. A note that does not open is a
// Fault in the answer, not an end of it: one bad object hides no good one.
package catalog

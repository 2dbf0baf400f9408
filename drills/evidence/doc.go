// Package evidence makes what the ledger says of drills readable and verifiable by
// somebody who trusts nobody here: a bundle is one file with the ledgers' entries
// of a period and what proves that none is missing, and [Verify] computes all of
// it anew from that file and the keys alone. verify.py, in this directory, is a
// second verifier that shares no code with the first and finds the same.
//
// docs/format.md, "Evidence", says what a bundle holds and what is checked, in
// which order. A finding has a code, a log and an entry; there is no warning: what
// is not a finding and was not looked at stands under "not assessed".
//
// It never reads anything but what it is given, never asks a network, and never
// takes a key out of the bundle. What a bundle cannot show: that what was written
// into a ledger was true, and that there is no further ledger.
package evidence

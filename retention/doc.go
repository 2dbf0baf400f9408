// Package retention keeps and forgets: it decides what a policy lets go, removes
// it from every zone in two acts, and sees a purged project through to its
// certificate.
//
// The decision ([MakePlan]) is a pure function; every snapshot and every stretch
// of WAL stays or goes for reasons that it gives. What it cannot decide it keeps:
// on an incomplete listing, a clock that jumped, a history that it does not know.
// The newest and the newest proven snapshot always stay. Nothing is removed
// before the ledger's quorum holds the intent, the mark is in the quorum, and the
// grace has passed; what a zone owes while it is away stays owed.
//
// One value in the program can remove, and it is held here. The package takes no
// snapshot, restores nothing and opens no sealed object; it fails by removing
// less and saying so.
package retention

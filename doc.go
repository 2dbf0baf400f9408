// Package holdfast is the system on one page.
//
// Holdfast keeps PostgreSQL recoverable and proves it. One binary runs as a
// daemon beside the database (it takes snapshots and the write-ahead log), as a
// daemon beside standby environments (it restores what was taken, on a schedule,
// and writes down what came of it), and as the command with which people plan,
// restore, and read the evidence.
//
//	             db host                                   drill / restore host
//	PostgreSQL ──► snapshot ──► vault ──► zone A ──► vault ──► restore ──► PostgreSQL
//	  files, BASE_BACKUP, WAL     │  ├──► zone B ──►   │  └─► tombstones, checks, open
//	             retention ◄──────┘  └──► zone C ──►   └────► drills ──► ledger
//
// # Where things are
//
// The folders at the top are the domain. snapshot takes base snapshots and the
// WAL; restore plans and carries out restores and never imports snapshot, so that
// reading works on the day writing is broken; retention keeps and forgets, and
// alone may remove; drills proves; scheduler says when; configs reads the
// configuration and imports nothing of ours; cmd wires it all.
//
// Below, in internal, are mechanisms. zone is object storage in one place; vault
// makes several zones one, with a write quorum; seal encrypts, compresses and
// signs; durable writes files that survive a power cut; catalog knows the
// repository's names, records and orders; ledger is the append-only signed log;
// postgres speaks to PostgreSQL and runs its programs; tenancy knows which rows
// belong to a project; approval hashes plans; incident holds conditions that
// open and close; server is the HTTP API; notify tells people.
//
// # What always holds
//
// Acknowledged means durable in the write quorum. Any one zone may hang, lie or
// vanish. A database host cannot read its own backups. Nothing is overwritten;
// a snapshot exists when its last object does. A restore is complete or says that
// it is not. Retention is a floor and a ceiling. Deleted projects stay deleted. A
// drill is evidence. The bucket and a key are enough. A restored copy does no
// harm. Everything is bounded.
//
// docs/format.md gives the repository's format and the orders of writing, reading
// and removing; docs/decisions says why things are as they are; arch_test.go holds
// the table of who may import whom.
package holdfast

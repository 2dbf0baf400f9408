package catalog

import (
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// The kinds of signed notes, as they stand in a note's first line after
// "holdfast " (docs/format.md, "Notes").
const (
	KindIntent      = "snapshot-intent v1"
	KindSnapshot    = "snapshot v1"
	KindLineage     = "lineage v1"
	KindWAL         = "wal v1"
	KindForgotten   = "forgotten v1"
	KindTombstone   = "tombstone v1"
	KindAbsent      = "absent v1"
	KindStatement   = "statement v1" // body: Certificate, of phase 1
	KindCertificate = "certificate v1"
	KindProof       = "proof v1"
	KindProbe       = "probe v1"
	KindHold        = "hold v1"
	KindReleased    = "hold-released v1"
	KindPlan        = "plan v1"     // body: approval.Waiting
	KindApproval    = "approval v1" // body: approval.Approval, by an approver's own key
)

// Duty is what a trusted signer may vouch for.
type Duty string

// The duties of repository.trusted_signers[].may.
const (
	DutySnapshot  Duty = "snapshot"  // intents, snapshots, forgotten marks, plans that wait
	DutyWAL       Duty = "wal"       // lineages and WAL notes
	DutyTombstone Duty = "tombstone" // tombstones, absences, statements, certificates, holds, ends of clusters
	DutyLedger    Duty = "ledger"    // checkpoints, proofs, probes
	// DutyApproval is no node's: it is of the keys of approvals.approvers.
	DutyApproval Duty = "approval"
)

// DutyOf says which duty a kind of note needs.
func DutyOf(kind string) Duty {
	switch kind {
	case KindIntent, KindSnapshot, KindForgotten, KindPlacement, KindPlan:
		return DutySnapshot
	case KindLineage, KindWAL:
		return DutyWAL
	case KindTombstone, KindAbsent, KindStatement, KindCertificate, KindHold, KindReleased, KindRetired:
		return DutyTombstone
	case KindApproval:
		return DutyApproval
	default:
		return DutyLedger
	}
}

// Link is the number and hash of the note before this one in its lineage: each
// node's notes of one kind in one lineage form a chain, so that a zone that
// shows an older end than another is noticed. The first has Number 1 and no hash.
type Link struct {
	Number int64  `json:"number"`
	Prev   string `json:"prev,omitempty"` // SHA-256 of the whole note before, hex
}

// Ref names an object and binds its bytes.
type Ref struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // of the stored (sealed) bytes, lower-case hex
}

// Intent is written before a snapshot's first pack.
type Intent struct {
	Cluster   string    `json:"cluster"`
	ID        string    `json:"id"`
	Epoch     int       `json:"epoch"`
	Node      string    `json:"node"`
	StartedAt time.Time `json:"started_at"`
	// Base is the snapshot whose packs this one may refer to; "" for none.
	Base string `json:"base,omitempty"`
	// From is a place in the log, of this system and timeline, of which the packs
	// hold nothing older. A snapshot that is resumed has the first attempt's.
	SystemID string  `json:"system_id"`
	Timeline uint32  `json:"timeline"`
	From     lsn.LSN `json:"from_lsn"`
}

// Snapshot is a committed snapshot: the body of snapshot.note, written last.
type Snapshot struct {
	Link
	Cluster    string    `json:"cluster"`
	ID         string    `json:"id"`
	Kind       string    `json:"kind"`   // [Physical], [Logical] or [Project]
	Source     string    `json:"source"` // files | stream | copy
	Node       string    `json:"node"`
	Epoch      int       `json:"epoch"`
	SystemID   string    `json:"system_id"`
	Major      int       `json:"major"` // PostgreSQL's major version
	ServerNum  int       `json:"server_version_num"`
	Timeline   uint32    `json:"timeline"`
	StartLSN   lsn.LSN   `json:"start_lsn"`
	StopLSN    lsn.LSN   `json:"stop_lsn"`
	StartedAt  time.Time `json:"started_at"`  // the server's clock at pg_backup_start
	FinishedAt time.Time `json:"finished_at"` // the server's clock at pg_backup_stop
	SegSize    int64     `json:"wal_segment_size"`
	RawBytes   int64     `json:"raw_bytes"`
	StoredSize int64     `json:"stored_bytes"` // of all objects it needs
	NewBytes   int64     `json:"new_bytes"`    // of the objects made for it
	Files      int64     `json:"files"`
	Pages      Pages     `json:"pages"`
	Suspect    bool      `json:"suspect"`
	Reasons    []string  `json:"suspect_reasons,omitempty"`
	Manifest   Ref       `json:"manifest"`
	Objects    Ref       `json:"objects"`       // objects.list
	Recipients []string  `json:"recipients"`    // SHA-256 (16 hex digits) of each data recipient's text
	WAL        []Ref     `json:"wal,omitempty"` // what consistency needs, as far as it was archived when this was signed
	LockUntil  time.Time `json:"lock_until,omitzero"`
	// Oldest is when the oldest of the snapshots began whose packs or maps this one
	// refers to: StartedAt where it refers to none. Zero: not told.
	Oldest time.Time `json:"oldest_at,omitzero"`
	// KeyMAC is of a project's snapshot: whose it is, as a tombstone says it, by the keys
	// of DigestEpoch.
	KeyMAC      string `json:"key_mac,omitempty"`
	DigestEpoch int    `json:"digest_epoch,omitempty"`
	OID         uint32 `json:"oid,omitempty"` // of its schema or database, which keeps it when it is renamed
}

// Of says whether a project's snapshot is of a tombstone's project, by its key or, on
// one history, by the OID of what was renamed.
func (s Snapshot) Of(t Tombstone) bool {
	if s.Kind != Project || s.Cluster != t.Cluster {
		return false
	}
	return s.KeyMAC == t.KeyMAC && s.DigestEpoch == t.DigestEpoch || s.OID != 0 && s.OID == t.OID && s.sameServer(t)
}

// OfAnother says that a project's snapshot is certainly not of a tombstone's project.
func (s Snapshot) OfAnother(t Tombstone) bool {
	if s.Kind != Project || s.DigestEpoch != t.DigestEpoch || s.Of(t) {
		return false
	}
	return s.OID == 0 && t.OID == 0 || s.OID != 0 && t.OID != 0 && s.sameServer(t)
}

// sameServer says that OIDs mean the same.
func (s Snapshot) sameServer(t Tombstone) bool {
	return s.SystemID == t.SystemID && s.Timeline == t.Timeline
}

// Pages counts what the page checksums said.
type Pages struct {
	Checked int64 `json:"checked"`
	Skipped int64 `json:"skipped"`
	Bad     int64 `json:"bad"`
}

// Lineage claims a writer epoch of a cluster.
type Lineage struct {
	Cluster   string    `json:"cluster"`
	Epoch     int       `json:"epoch"`
	SystemID  string    `json:"system_id"`
	Major     int       `json:"major"`
	Timeline  uint32    `json:"timeline"`
	StartLSN  lsn.LSN   `json:"start_lsn"`
	Node      string    `json:"node"`
	State     string    `json:"state"` // random id of the node's state directory, held under its lock
	Boot      string    `json:"boot"`  // kernel boot id
	ClaimedAt time.Time `json:"claimed_at"`
	// Parent is the epoch before and how it ended: promoted | taken_over | upgraded | "".
	Parent int    `json:"parent,omitempty"`
	How    string `json:"how,omitempty"`
}

// WAL vouches for one archived object (a segment, slice or small file).
type WAL struct {
	Link
	Cluster  string  `json:"cluster"`
	Epoch    int     `json:"epoch"`
	Timeline uint32  `json:"timeline"`
	SystemID string  `json:"system_id"`
	File     string  `json:"file"` // the name PostgreSQL knows
	From     lsn.LSN `json:"from_lsn,omitzero"`
	To       lsn.LSN `json:"to_lsn,omitzero"` // exclusive; equal to From for .history and .backup
	Slice    bool    `json:"slice,omitempty"`
	Object   Ref     `json:"object"`
	Index    Ref     `json:"index,omitzero"`
	Raw      string  `json:"raw_sha256"` // of the plaintext file or slice
	RawSize  int64   `json:"raw_bytes"`
	// LastRecordEnd is where the last complete record in the stretch ends.
	LastRecordEnd lsn.LSN `json:"last_record_end,omitzero"`
	// FirstTime and LastTime bound the commit and abort times in it, the server's clock.
	FirstTime time.Time `json:"first_time,omitzero"`
	LastTime  time.Time `json:"last_time,omitzero"`
	// ArchivedAt is when the bytes were durable; ServerTime the server's own clock
	// as its last message before that told it.
	ArchivedAt time.Time `json:"archived_at"`
	ServerTime time.Time `json:"server_time,omitzero"`
}

// Forgotten marks objects for removal: the first of two acts.
type Forgotten struct {
	Cluster   string    `json:"cluster"`
	ID        string    `json:"id"`
	MarkedAt  time.Time `json:"marked_at"`
	NotBefore time.Time `json:"not_before"` // MarkedAt plus the removal grace
	Snapshots []string  `json:"snapshots,omitempty"`
	WAL       []WALSpan `json:"wal,omitempty"`
	Reasons   []string  `json:"reasons"`
	PlanHash  string    `json:"plan_hash"`
}

// Covered is the reason for which a file of WAL goes although its bytes stay: a longer
// file of its lineage and timeline holds them.
const Covered = "a longer file covers it"

// OnlyCovered says that no byte of WAL goes under the mark.
func (f Forgotten) OnlyCovered() bool {
	return len(f.Snapshots) == 0 && len(f.Reasons) == 1 && f.Reasons[0] == Covered
}

// WALSpan is a stretch of WAL of one lineage and timeline, To exclusive.
type WALSpan struct {
	Epoch    int     `json:"epoch"`
	Timeline uint32  `json:"timeline"`
	From     lsn.LSN `json:"from_lsn"`
	To       lsn.LSN `json:"to_lsn"`
}

// Takes says whether e lies within the stretch. A file that holds no WAL (a history, a
// .partial) stands for a place, and only a stretch of that place takes it: what goes
// around it says nothing of it.
func (s WALSpan) Takes(e WALEntry) bool {
	return s.Epoch == e.Epoch && s.Timeline == e.Timeline && s.From <= e.From && e.To <= s.To && (e.From < e.To || s.From == s.To)
}

// Taken says whether one of the stretches takes e.
func (e WALEntry) Taken(by []WALSpan) bool {
	return slices.ContainsFunc(by, func(s WALSpan) bool { return s.Takes(e) })
}

// Tombstone says that a project is deleted. It holds no personal data.
type Tombstone struct {
	ID          string    `json:"id"`
	Cluster     string    `json:"cluster"`
	Layout      string    `json:"layout"` // rows | schema | database
	Database    string    `json:"database"`
	Root        string    `json:"root"`          // schema-qualified root table
	Key         string    `json:"key"`           // its key column
	KeyMAC      string    `json:"key_mac"`       // HMAC of the key's text, by digest epoch
	DigestEpoch int       `json:"digest_epoch"`  // whose keys made KeyMAC
	OID         uint32    `json:"oid,omitempty"` // of the schema or the database, which keeps it when it is renamed
	SystemID    string    `json:"system_id"`
	Epoch       int       `json:"epoch"`
	Timeline    uint32    `json:"timeline"`
	LSN         lsn.LSN   `json:"lsn"` // live's insert position when it was requested
	RequestedAt time.Time `json:"requested_at"`
	Deadline    time.Time `json:"deadline"`
	Counts      []Count   `json:"counts"` // rows per table in live at the request
}

// Count is a number of rows in a table.
type Count struct {
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
}

// Absent says that live no longer held a tombstone's project: a restore to a
// later point needs no replay of it.
type Absent struct {
	Tombstone string    `json:"tombstone"`
	SystemID  string    `json:"system_id"`
	Epoch     int       `json:"epoch"`
	Timeline  uint32    `json:"timeline"`
	LSN       lsn.LSN   `json:"lsn"`
	SeenAt    time.Time `json:"seen_at"`
	Vacuumed  []string  `json:"vacuumed"` // the tables seen vacuumed or rewritten since
}

// The phases of a certificate.
const (
	PhaseLogical = 1 // live is without the project, and no restore brings it back
	PhaseFinal   = 2 // no zone holds a copy
)

// Certificate says what was done to a purged project's copies, and what was not.
type Certificate struct {
	Phase       int               `json:"phase,omitempty"`      // 0, of older writers: final
	Supersedes  string            `json:"supersedes,omitempty"` // the entry of phase 1: origin/index
	ID          string            `json:"id"`
	Tombstone   string            `json:"tombstone"`
	Cluster     string            `json:"cluster"`
	IssuedAt    time.Time         `json:"issued_at"`
	RequestedAt time.Time         `json:"requested_at"`
	AbsentAt    time.Time         `json:"absent_at"`
	Deadline    time.Time         `json:"deadline"`
	Zones       []CertificateZone `json:"zones"`
	Method      string            `json:"method"`
	Covers      []string          `json:"covers"`
	NotCovered  []string          `json:"not_covered"`
	// Subject names the project to whoever knows its key, and to nobody else.
	Subject *CertificateSubject `json:"subject,omitempty"`
	// LastCopyEnds is of phase 1: when no zone holds a copy any more; zero where a hold
	// keeps one. Until then Controls say what keeps the copies beyond use.
	LastCopyEnds time.Time `json:"last_copy_ends_at,omitzero"`
	Controls     []string  `json:"controls,omitempty"`
	Copies       []Made    `json:"copies_made,omitempty"` // by Holdfast, outside the zones
	Software     string    `json:"software,omitempty"`
	LedgerIndex  int64     `json:"ledger_index"`
	LedgerLog    string    `json:"ledger_origin"`
}

// CertificateSubject is what a tombstone says of the project.
type CertificateSubject struct {
	Layout      string  `json:"layout"`
	KeyMAC      string  `json:"key_mac"`
	DigestEpoch int     `json:"digest_epoch"`
	Counts      []Count `json:"counts"`
}

// The states of a copy that Holdfast made.
const (
	MadeRemoved = "removed"      // by Holdfast
	MadeCleared = "cleared"      // the project was removed from it before it opened, or it came after the project
	MadeBeyond  = "out of reach" // it left Holdfast's hands, and may hold the project
)

// Made is a copy that Holdfast made of what a project was in: the type of the ledger's
// entry that tells of it, and where that is.
type Made struct {
	What      string    `json:"what"`
	At        time.Time `json:"at"`
	Origin    string    `json:"ledger_origin"`
	Index     int64     `json:"ledger_index"`
	State     string    `json:"state"`
	RemovedAt time.Time `json:"removed_at,omitzero"`
}

// CertificateZone is what one zone's own versions listing showed.
type CertificateZone struct {
	Name       string    `json:"name"`
	ListedAt   time.Time `json:"listed_at"`
	Versions   int64     `json:"versions_seen"` // of all objects under the cluster
	OldestCopy time.Time `json:"oldest_copy,omitzero"`
	Remaining  int64     `json:"remaining"` // that could hold the project: 0 but for phase 1
	LastEnds   time.Time `json:"last_ends_at,omitzero"`
	BlockedBy  []string  `json:"blocked_by,omitempty"`
}

// Proof says that a drill restored a snapshot and what it reached.
type Proof struct {
	Drill    string    `json:"drill"`
	Cluster  string    `json:"cluster"`
	Snapshot string    `json:"snapshot"`
	Zone     string    `json:"zone,omitempty"`
	Level    string    `json:"level"`
	Outcome  string    `json:"outcome"`
	At       time.Time `json:"at"`
	Origin   string    `json:"origin"`
	Index    int64     `json:"index"`
	// RTO is how long the drill took from its plan until the copy answered, in seconds;
	// nil when it was not measured.
	RTO *float64 `json:"rto_seconds,omitempty"`
}

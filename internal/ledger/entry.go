package ledger

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// The types of entries.
const (
	TypeConfig         = "config"
	TypeSnapshotTaken  = "snapshot.taken"
	TypeSnapshotFailed = "snapshot.failed"
	TypeWALGap         = "wal.gap"
	TypeRetentionPlan  = "retention.plan"
	TypeRemovalIntent  = "removal.intent"
	TypeRemovalResult  = "removal.result"
	TypeRestoreStarted = "restore.started"
	TypeRestoreEnded   = "restore.finished"
	TypeRestoreGone    = "restore.discarded"
	TypeDrillPlans     = "drill.plans"   // which drills are configured
	TypeDrillDue       = "drill.due"     // body embeds [Due]
	TypeDrillOutcome   = "drill.outcome" // body embeds [Outcome]
	TypeTombstone      = "tombstone"
	TypePurgeAbsent    = "purge.absent"
	TypeStatement      = "purge.statement"
	TypeCertificate    = "certificate"
	TypeZoneProbe      = "zone.probe"
	TypeLineage        = "lineage"
	TypeHeartbeat      = "heartbeat"
	TypeOrigin         = "origin"        // body: [Origin]
	TypeAnchoredLate   = "anchored_late" // body: [Late]
	TypeKeyRotated     = "key.rotated"   // body: [KeyRotated]
)

// Schema is what an entry's envelope follows. Unknown fields belong to later
// minor versions; a newer major is refused.
const Schema = "holdfast-entry/1"

// Entry is what happened, as the one who did it tells it.
type Entry struct {
	Type        string
	Subject     map[string]string // cluster, system_id, epoch, timeline, snapshot, …
	Actor       Actor
	PolicyHash  string // of the policy in force; "" where none applies
	Related     []string
	Evidence    []Evidence
	NotAssessed []NotAssessed
	Body        any // an object; no personal data: what is here can never be removed
}

// KeyRotated is the body of an entry that names the key which follows another: the
// last that a signing key's successor has to do with before it signs itself.
type KeyRotated struct {
	Kind string `json:"kind"` // signing | data | index
	Old  string `json:"old"`  // a verifier key, or the fingerprint of a recipient
	New  string `json:"new"`
}

// Actor is who did it.
type Actor struct {
	Kind  string `json:"kind"` // human | schedule | api | holdfast
	KeyID string `json:"key_id,omitempty"`
	Authn string `json:"authn,omitempty"`
}

// Evidence is an object that an entry vouches for by its digest.
type Evidence struct {
	Name      string `json:"name"`
	SHA256    string `json:"sha256"`
	Size      int64  `json:"size"`
	Media     string `json:"media,omitempty"`
	Object    string `json:"object,omitempty"`
	VersionID string `json:"version_id,omitempty"`
}

// NotAssessed says what was not looked at, and why.
type NotAssessed struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// Software is the program that wrote an entry.
type Software struct {
	Version string `json:"version"`
	VCS     string `json:"vcs,omitempty"`
	SHA256  string `json:"sha256,omitempty"` // of the binary
}

// Host is where it ran, without its name.
type Host struct {
	Node    string `json:"node"`
	Machine string `json:"machine,omitempty"` // hash of the machine id
	Boot    string `json:"boot,omitempty"`
}

// Clock is what the machine's clocks said.
type Clock struct {
	Wall   time.Time `json:"wall"`
	Boot   int64     `json:"boot_ms"` // since boot, suspended time included
	Source string    `json:"source"`
}

// Envelope is an entry as it is written.
type Envelope struct {
	Schema      string            `json:"schema"`
	RecordID    string            `json:"record_id"` // a ULID
	Type        string            `json:"type"`
	Subject     map[string]string `json:"subject"`
	PolicyHash  string            `json:"policy_hash"`
	ConfigHash  string            `json:"config_hash"`
	Software    Software          `json:"software"`
	Host        Host              `json:"host"`
	Actor       Actor             `json:"actor"`
	Time        Clock             `json:"time"`
	Related     []string          `json:"prev_related"`
	Evidence    []Evidence        `json:"evidence"`
	NotAssessed []NotAssessed     `json:"not_assessed"`
	Body        json.RawMessage   `json:"body"`
}

// Record is an entry in its place.
type Record struct {
	Origin string
	Index  int64
	Leaf   []byte // the exact bytes that were hashed
	Envelope
}

// encode makes the leaf: one line of canonical JSON.
func (e Entry) encode(c *Config, now time.Time) ([]byte, error) {
	body, err := seal.CanonicalJSON(e.Body)
	if err != nil {
		return nil, fmt.Errorf("%s entry: %w", e.Type, err)
	}
	if e.Type == "" || len(body) == 0 || body[0] != '{' {
		return nil, fmt.Errorf("%q entry: want a type, and a body that is a JSON object", e.Type)
	}
	leaf, err := seal.CanonicalJSON(Envelope{
		Schema: Schema, RecordID: newULID(now), Type: e.Type, Subject: e.Subject,
		PolicyHash: e.PolicyHash, ConfigHash: c.ConfigHash, Software: c.Software, Host: c.Host, Actor: e.Actor,
		Time:    Clock{Wall: now.UTC(), Boot: sinceBoot(), Source: "system"},
		Related: e.Related, Evidence: e.Evidence, NotAssessed: e.NotAssessed, Body: body,
	})
	if err != nil {
		return nil, fmt.Errorf("%s entry: %w", e.Type, err)
	}
	if len(leaf) > MaxLeaf {
		return nil, fmt.Errorf("%s entry: %d bytes, want at most %d: put the evidence into an object and its SHA-256 here", e.Type, len(leaf), MaxLeaf)
	}
	return leaf, nil
}

// decodeRecord reads a leaf; bytes that are not their own canonical form are
// refused, so that two readers cannot understand one entry differently.
func decodeRecord(origin string, index int64, leaf []byte) (Record, error) {
	r := Record{Origin: origin, Index: index, Leaf: leaf}
	if err := json.Unmarshal(leaf, &r.Envelope); err != nil {
		return r, fmt.Errorf("entry is not JSON: %w", err)
	}
	again, err := seal.CanonicalJSON(json.RawMessage(leaf))
	if err != nil || string(again) != string(leaf) || !utf8.Valid(leaf) {
		return r, fmt.Errorf("entry is not canonical JSON (RFC 8785)")
	}
	if r.Schema != Schema {
		return r, fmt.Errorf("entry of schema %q, want %q: %w", r.Schema, Schema, seal.ErrVersion)
	}
	return r, nil
}

// newULID is 48 bits of milliseconds and 80 of chance in Crockford's base 32
// (github.com/ulid/spec).
func newULID(now time.Time) string {
	var b [17]byte // a leading byte makes 130 bits of digits out of 128
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<8>>8)
	copy(b[1:7], b[2:8])
	_, _ = rand.Read(b[7:])
	return crockford.EncodeToString(shift(b))[:26]
}

var crockford = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// shift puts two zero bits before the 16 bytes b[1:], so that 26 digits hold them.
func shift(b [17]byte) []byte {
	out := make([]byte, 17)
	for i := range 16 {
		out[i] |= b[i+1] >> 2
		out[i+1] |= b[i+1] << 6
	}
	return out
}

func sinceBoot() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return ts.Nano() / int64(time.Millisecond)
}

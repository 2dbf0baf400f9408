package catalog

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The repository's names, the same in every zone (docs/format.md, "Names").
const (
	IdentityName   = "holdfast.json"
	ClustersPrefix = "clusters/"
	ForgottenDir   = "forgotten/"
	TombstonesDir  = "tombstones/"
	CertificateDir = "certificates/"
	ProofsDir      = "proofs/"
	HoldsDir       = "holds/"
	RetiredDir     = "retired/"
	DigestKeysDir  = "keys/digest/"
	LedgerDir      = "ledger/"
)

var (
	nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	idRE   = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_.-]{0,79}$`)
)

// CheckName says whether s can name a cluster, zone, node or drill: such names
// are path elements of the repository.
func CheckName(s string) error {
	if !nameRE.MatchString(s) {
		return fmt.Errorf("name %q: want 1 to 63 of a-z, 0-9, '-' and '_', beginning with a letter or digit", s)
	}
	return nil
}

// CheckID says whether s can be an id (of a snapshot, tombstone, note).
func CheckID(s string) error {
	if !idRE.MatchString(s) {
		return fmt.Errorf("id %q: want 1 to 80 letters, digits, '-', '_' and '.', beginning with a letter or digit", s)
	}
	return nil
}

// ClusterDir is where all of one cluster's own objects live.
func ClusterDir(cluster string) string { return ClustersPrefix + cluster + "/" }

// LineagesDir holds a cluster's writer epochs.
func LineagesDir(cluster string) string { return ClusterDir(cluster) + "lineages/" }

// LineageName is the claim of one writer epoch.
func LineageName(cluster string, epoch int) string {
	return fmt.Sprintf("%s%08d.note", LineagesDir(cluster), epoch)
}

// ParseLineageName is the inverse of [LineageName] for a full object name.
func ParseLineageName(name string) (epoch int, ok bool) {
	base, found := strings.CutSuffix(name[strings.LastIndexByte(name, '/')+1:], ".note")
	if !found || len(base) != 8 {
		return 0, false
	}
	epoch, err := strconv.Atoi(base)
	return epoch, err == nil && epoch > 0
}

// SnapshotsDir holds a cluster's snapshots.
func SnapshotsDir(cluster string) string { return ClusterDir(cluster) + "snapshots/" }

// SnapshotDir holds one snapshot's objects.
func SnapshotDir(cluster, id string) string { return SnapshotsDir(cluster) + id + "/" }

// The objects of a snapshot, in the order in which they appear.
func IntentName(cluster, id string) string   { return SnapshotDir(cluster, id) + "intent.note" }
func ManifestName(cluster, id string) string { return SnapshotDir(cluster, id) + "manifest.age" }
func ObjectsName(cluster, id string) string  { return SnapshotDir(cluster, id) + "objects.list" }
func SnapshotName(cluster, id string) string { return SnapshotDir(cluster, id) + "snapshot.note" }

// PackName names the n-th pack of a snapshot by the SHA-256 of its sealed bytes.
func PackName(cluster, id string, n int, digest [32]byte) string {
	return fmt.Sprintf("%spacks/%d-%x.age", SnapshotDir(cluster, id), n, digest)
}

// MapName names the n-th map object of a snapshot by the SHA-256 of its sealed bytes.
func MapName(cluster, id string, n int, digest [32]byte) string {
	return fmt.Sprintf("%smaps/%d-%x.age", SnapshotDir(cluster, id), n, digest)
}

// BegunAt reads from the name of a snapshot's object when that snapshot was
// begun, by the clock of its node: the ids of snapshots begin with it.
func BegunAt(name string) (time.Time, bool) {
	parts := strings.Split(name, "/")
	if len(parts) < 5 || parts[0]+"/" != ClustersPrefix || parts[2] != "snapshots" {
		return time.Time{}, false
	}
	id, _, _ := strings.Cut(parts[3], "-")
	at, err := time.Parse("20060102T150405Z", id)
	return at, err == nil
}

// WALDir holds one lineage's WAL of one timeline.
func WALDir(cluster string, epoch int, timeline uint32) string {
	return fmt.Sprintf("%s%08d/%08X/", WALRoot(cluster), epoch, timeline)
}

// WALRoot holds all of a cluster's WAL.
func WALRoot(cluster string) string { return ClusterDir(cluster) + "wal/" }

// WALName names an archived file (a segment, .history, .backup or .partial) by
// its name and the keyed digest (hex) of its bytes.
func WALName(cluster string, epoch int, timeline uint32, file, mac string) string {
	return WALDir(cluster, epoch, timeline) + file + "-" + mac + ".age"
}

// WALIndexName names the index that belongs to an archived segment or slice:
// name is the object's own full name.
func WALIndexName(name string) string { return strings.TrimSuffix(name, ".age") + ".idx.age" }

// SliceName names a piece of a segment that is not yet full: bytes [from,to) of
// the segment, each in hex.
func SliceName(cluster string, epoch int, timeline uint32, segment string, from, to uint32, mac string) string {
	return fmt.Sprintf("%s%s.%08X-%08X-%s.age", WALDir(cluster, epoch, timeline), segment, from, to, mac)
}

// WALNoteName names the signed note of a stretch of WAL, LSNs in 16 hex digits.
// what tells notes of one stretch apart: the first 8 digits of the object's mac.
func WALNoteName(cluster string, epoch int, timeline uint32, from, to uint64, what string) string {
	return fmt.Sprintf("%s%016X-%016X-%s.note", WALDir(cluster, epoch, timeline), from, to, what)
}

// ForgottenName names a mark under which objects will be removed.
func ForgottenName(cluster, id string) string { return ForgottenDir + cluster + "/" + id + ".note" }

// TombstoneName, AbsentName, StatementName: a project's deletion, that live was seen
// empty, and the first phase of its certificate.
func TombstoneName(id string) string   { return TombstonesDir + id + "/tombstone.note" }
func StatementName(id string) string   { return TombstonesDir + id + "/statement.note" }
func AbsentName(id string) string      { return TombstonesDir + id + "/absent.note" }
func CertificateName(id string) string { return CertificateDir + id + ".note" }

// ProofName names the record that a snapshot was restored and held: origin is
// the ledger of the node that saw it, id the drill's.
func ProofName(origin, id string) string { return ProofsDir + origin + "/" + id + ".note" }

// ProbeName names the signed result of probing a zone.
func ProbeName(origin, zone, id string) string {
	return ProofsDir + origin + "/probe-" + zone + "-" + id + ".note"
}

// DigestKeyName names the sealed keys of one digest epoch.
func DigestKeyName(epoch int) string { return fmt.Sprintf("%s%08d.age", DigestKeysDir, epoch) }

// LedgerOriginDir holds one node's ledger.
func LedgerOriginDir(origin string) string { return LedgerDir + origin + "/" }

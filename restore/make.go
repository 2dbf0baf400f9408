package restore

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Inputs is all that a plan follows from.
type Inputs struct {
	Cluster  string
	Now      time.Time
	Target   Target
	Snapshot catalog.Snapshot // chosen by Choose
	Why      []string
	Moment   Moment
	// Legs are the way through the timelines, Notes the WAL on it, Histories the
	// timeline history files that recovery reads.
	Timeline  uint32
	Legs      []leg
	Notes     []catalog.Noted[catalog.WAL]
	Histories []File
	Objects   []catalog.Ref // of the snapshot
	// Tombstones of the cluster, and when live was seen without their projects.
	Tombstones []catalog.Tombstone
	Absences   map[string]catalog.Absent
	// Missing names what did not answer; nothing missing is a proof of freshness.
	Missing     []string
	TombstoneOK bool
	Zones       []ZoneRange
	RTO         time.Duration
	Rates       Rates
}

// Rates are what an ETA is computed from, in bytes a second: the slow and the
// fast bound. Zero takes careful ones.
type Rates struct {
	FetchLow, FetchHigh   float64 // raw bytes restored
	ReplayLow, ReplayHigh float64 // bytes of WAL
}

// careful are rates that a two-core machine reaches, with a margin.
var careful = Rates{FetchLow: 60e6, FetchHigh: 300e6, ReplayLow: 30e6, ReplayHigh: 160e6}

// settling is what starting, promoting and checking take, in seconds.
const settling = 4.0

// MakePlan is the plan that follows from in: a pure function.
func MakePlan(in Inputs) (Plan, error) {
	s := in.Snapshot
	legs, left := upTo(in.Legs, s.Timeline, in.Moment.End.LSN)
	if in.Moment.Stop != 0 {
		in.Moment.Upto = min(in.Moment.Upto, left)
	}
	wal, err := files(legs, pieces(in.Legs, in.Notes), s.SegSize, s.StartLSN, fetchTo(in.Moment, s, in.Notes))
	if err != nil {
		return Plan{}, fmt.Errorf("planning a restore of %s to %s from snapshot %s: %w", in.Cluster, in.Target, s.ID, err)
	}
	p := Plan{
		Cluster: in.Cluster, MadeAt: in.Now, Target: in.Target, Snapshot: s.ID,
		Why: append(append([]string{}, in.Why...), in.Moment.Why), Epoch: s.Epoch, SystemID: s.SystemID, Major: s.Major,
		Timeline: legs[len(legs)-1].Timeline, SegSize: s.SegSize, WAL: WALRange{s.StartLSN, in.Moment.End.LSN},
		Files: append(wal, in.Histories...), ExpectedEnd: in.Moment.End, TombstoneOK: in.TombstoneOK,
		Tombstones: []string{}, Freshness: "proven", Zones: in.Zones,
	}
	if in.Moment.Stop != 0 {
		p.Stop = Stop{"recovery_target_lsn", in.Moment.Stop.String(), in.Moment.Upto}
	}
	if len(in.Missing) > 0 {
		p.Freshness = "not proven: " + strings.Join(in.Missing, "; ")
	}
	for _, t := range in.Tombstones {
		if applies(t, in.Absences, s.SystemID, in.Legs, in.Moment.End.LSN) {
			p.Tombstones = append(p.Tombstones, t.ID)
		}
	}
	weigh(&p, in)
	p.Commands = byHand(p)
	p.Hash, err = approval.Hash(p)
	return p, err
}

// fetchTo is where the WAL that must be there ends. A record that switches
// segments ends where the next one begins; of the bytes between, which say
// nothing, an archive that ends with it has only some.
func fetchTo(m Moment, s catalog.Snapshot, notes []catalog.Noted[catalog.WAL]) lsn.LSN {
	end := max(m.End.LSN, m.Upto, s.StopLSN)
	for _, n := range notes {
		if w := n.Body; w.From < w.To && w.To < end && w.LastRecordEnd == end {
			return max(w.To, s.StopLSN)
		}
	}
	return end
}

// applies says whether a tombstone must be replayed in a database restored to
// end: not, where the restored history holds the moment at which live was seen
// without the project (DESIGN, "Keeping and forgetting").
func applies(t catalog.Tombstone, absences map[string]catalog.Absent, systemID string, legs []leg, end lsn.LSN) bool {
	a, seen := absences[t.ID]
	return !seen || a.SystemID != systemID || a.LSN > end || !passes(legs, a.Timeline, a.LSN)
}

func weigh(p *Plan, in Inputs) {
	var wal int64
	for _, o := range in.Objects {
		p.Bytes += o.Size
	}
	for _, f := range p.Files {
		wal += f.Size
		for _, part := range f.Parts {
			p.Bytes += part.Object.Size
		}
	}
	p.DiskNeeded = in.Snapshot.RawBytes + in.Snapshot.RawBytes/20 + 2*wal + 64<<20
	r := in.Rates
	if r == (Rates{}) {
		r = careful
	}
	raw, log := float64(in.Snapshot.RawBytes), float64(p.WAL.To-p.WAL.From)
	p.ETA = Range{Low: settling/2 + raw/r.FetchHigh + log/r.ReplayHigh, High: settling + raw/r.FetchLow + log/r.ReplayLow}
	if in.RTO > 0 {
		p.RTO = &Objective{in.RTO.Seconds(), p.ETA.High <= in.RTO.Seconds()}
	}
}

func byHand(p Plan) []string {
	return []string{
		fmt.Sprintf("holdfast restore run %s --to DIR --identity FILE %s --snapshot %s", p.Cluster, p.Target.flags(), p.Snapshot),
		fmt.Sprintf("# or by hand: open clusters/%s/snapshots/%s/manifest.age with `age -d -i KEY | zstd -d`, write its files into DIR,", p.Cluster, p.Snapshot),
		fmt.Sprintf("# put the WAL from %s to %s (clusters/%s/wal/…, each by `age -d | zstd -d`) into DIR/pg_wal, write backup_label,", p.WAL.From, p.WAL.To, p.Cluster),
		p.endByHand(),
	}
}

func (p Plan) endByHand() string {
	if p.Target.Standby != nil {
		return "# create DIR/standby.signal, set primary_conninfo, restore_command, archive_mode = off and, until replay has passed every tombstone, hot_standby = off"
	}
	return "# create DIR/recovery.signal" + p.stopByHand() + ", start PostgreSQL, and compare pg_last_wal_replay_lsn() with the expected end " + p.ExpectedEnd.LSN.String()
}

func (p Plan) stopByHand() string {
	return fmt.Sprintf(", set recovery_target_lsn = '%s' and recovery_target_inclusive = off", p.ExpectedEnd.LSN)
}

// String is the target in words.
func (t Target) String() string {
	switch t.Kind {
	case AtTime:
		return "time " + stamp(t.Time)
	case AtLSN:
		return "LSN " + t.LSN.String()
	case AtXID:
		return fmt.Sprintf("transaction %d", t.XID)
	case AtName:
		return fmt.Sprintf("restore point %q", t.Name)
	case Immediate:
		return "the snapshot's own end"
	}
	if t.Standby != nil {
		return "the end of the archive, as a standby of live"
	}
	return "the end of the archive"
}

func (t Target) flags() string {
	switch t.Kind {
	case AtTime:
		return "--time " + stamp(t.Time)
	case AtLSN:
		return "--lsn " + t.LSN.String()
	case AtXID:
		return fmt.Sprintf("--xid %d", t.XID)
	case AtName:
		return fmt.Sprintf("--name '%s'", strings.ReplaceAll(t.Name, "'", `'\''`))
	}
	if t.Standby != nil {
		return t.Standby.flags()
	}
	return "--" + t.Kind
}

func (s Standby) flags() string {
	out := "--standby"
	if s.Primary != "" {
		out += fmt.Sprintf(" --primary '%s'", strings.ReplaceAll(s.Primary, "'", `'\''`))
	}
	if s.Slot != "" {
		out += " --slot " + s.Slot
	}
	if s.StreamOnly {
		out += " --stream-only"
	}
	return out
}

// Check refuses a target that says too much or too little.
func (t Target) Check() error {
	switch {
	case t.Kind == AtTime && t.Time.IsZero(), t.Kind == AtLSN && t.LSN == 0, t.Kind == AtXID && t.XID == 0, t.Kind == AtName && t.Name == "":
		return fmt.Errorf("restore target %q lacks its value", t.Kind)
	case t.Kind != Latest && t.Kind != AtTime && t.Kind != AtLSN && t.Kind != AtXID && t.Kind != AtName && t.Kind != Immediate:
		return fmt.Errorf("restore target %q: want latest, time, lsn, xid, name or immediate", t.Kind)
	case t.Standby != nil && (t.Kind != Latest || t.Timeline != 0):
		return fmt.Errorf("restore target %q: a standby follows live to its end, on live's own timeline", t.Kind)
	case t.Standby != nil:
		return t.Standby.check()
	}
	return nil
}

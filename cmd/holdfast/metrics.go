package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
)

// collector tells Prometheus what status tells people, read when it is scraped.
type collector struct {
	n   *node
	ctx context.Context //nolint:containedctx // Collect has none
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
}

var (
	descZoneUp       = desc("zone_up", "1 when the zone answers and shows its identity.", "zone")
	descZoneBehind   = desc("zone_behind_objects", "Objects that the zone still lacks.", "zone")
	descVerified     = desc("zone_verified_objects", "Copies in the zone that rolling verification read and found right within twice node.scrub.every.", "zone")
	descExpected     = desc("zone_objects", "Copies that the zone should hold.", "zone")
	descBadCopies    = desc("zone_bad_objects", "Copies that were wrong, missing or beneath later versions when last looked at.", "zone")
	descShortLocks   = desc("zone_short_locks", "Objects whose lock ends before it must.", "zone")
	descOldestCheck  = desc("zone_oldest_verification_timestamp_seconds", "When the copy was read that was not read for longest.", "zone")
	descRPO          = desc("rpo_seconds", "Time of commits that would be lost if the server were gone now.", "cluster")
	descWALBehind    = desc("wal_behind_bytes", "WAL on the server that the quorum does not hold yet.", "cluster")
	descArchiving    = desc("archiving", "1 while the WAL is being archived.", "cluster")
	descSlotKept     = desc("slot_kept_bytes", "WAL that a server keeps for the replication slot.", "cluster", "host")
	descSlotLost     = desc("slot_lost", "1 when the server has given up the WAL that the slot was for.", "cluster", "host")
	descSlotFullIn   = desc("slot_full_seconds", "Until the room for kept WAL is used up, at the rate of the last minutes; left out while it does not grow.", "cluster", "host")
	descSpoolBytes   = desc("spool_bytes", "Sealed WAL on this node's disk that the zones have not taken yet.", "cluster")
	descSpoolQuota   = desc("spool_quota_bytes", "What the WAL spool may take.", "cluster")
	descStateFree    = desc("state_free_bytes", "Free room of the state directory's disk, beside the reserve.")
	descReserveHeld  = desc("reserve_held", "1 while the reserve of the state directory is whole; left out without one.")
	descLastSnapshot = desc("last_snapshot_timestamp_seconds", "When the newest snapshot finished.", "cluster")
	descLastProof    = desc("last_proof_timestamp_seconds", "When a drill last passed.", "cluster")
	descIncidents    = desc("incidents_open", "Open incidents.", "severity")
	descLedgerSize   = desc("ledger_entries", "Entries of this node's ledger.", "origin")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descZoneUp, descZoneBehind, descVerified, descExpected, descBadCopies, descShortLocks, descOldestCheck, descRPO, descWALBehind, descArchiving, descSlotKept, descSlotLost, descSlotFullIn, descSpoolBytes, descSpoolQuota, descStateFree, descReserveHeld, descLastSnapshot, descLastProof, descIncidents, descLedgerSize} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What cannot be read now is left out.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, z := range c.n.vault.State() {
		up := 0.0
		if z.State == "up" {
			up = 1
		}
		gauge(descZoneUp, up, z.Name)
		gauge(descZoneBehind, float64(z.BehindObjects), z.Name)
	}
	c.copies(gauge)
	for name, p := range c.n.protectors() {
		p.mu.Lock()
		s := p.session
		p.mu.Unlock()
		if s == nil {
			gauge(descArchiving, 0, name)
			continue
		}
		gauge(descArchiving, 1, name)
		pos := s.archive.Position()
		gauge(descWALBehind, float64(pos.Behind), name)
		gauge(descSpoolBytes, float64(pos.Spool.Bytes), name)
		gauge(descSpoolQuota, float64(pos.Spool.Quota), name)
		if rpo, known := c.n.rpo(name); known {
			gauge(descRPO, rpo.Seconds(), name)
		}
		for _, v := range p.slots(s) {
			v.measure(name, gauge)
		}
	}
	c.disk(gauge)
	c.fromRepository(gauge)
	c.incidents(gauge)
	gauge(descLedgerSize, float64(c.n.ledger.Status().Size), c.n.ledger.Origin())
}

func (c collector) copies(gauge func(*prometheus.Desc, float64, ...string)) {
	s := c.n.scrubber.Load()
	if s == nil {
		return
	}
	for _, v := range s.Coverage() {
		gauge(descExpected, float64(v.Objects), v.Zone)
		gauge(descVerified, float64(v.Verified), v.Zone)
		gauge(descBadCopies, float64(v.Bad+v.Hidden), v.Zone)
		gauge(descShortLocks, float64(v.Short), v.Zone)
		if !v.Oldest.IsZero() {
			gauge(descOldestCheck, float64(v.Oldest.Unix()), v.Zone)
		}
	}
}

func (c collector) fromRepository(gauge func(*prometheus.Desc, float64, ...string)) {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	for _, conf := range c.n.cfg.Clusters {
		st, err := c.n.clusterStatus(ctx, conf.Name)
		if err != nil {
			c.n.log.Warn("cannot read the repository for the metrics", zap.Error(err))
			return
		}
		if st.LastSnapshot != nil {
			gauge(descLastSnapshot, float64(st.LastSnapshot.FinishedAt.Unix()), conf.Name)
		}
		if st.LastProof != nil {
			gauge(descLastProof, float64(st.LastProof.At.Unix()), conf.Name)
		}
	}
}

func (c collector) incidents(gauge func(*prometheus.Desc, float64, ...string)) {
	list, err := c.n.incidents.List()
	if err != nil {
		return
	}
	open := map[string]float64{"critical": 0, "warning": 0}
	for _, i := range list {
		if i.Open() {
			open[i.Severity]++
		}
	}
	for severity, n := range open {
		gauge(descIncidents, n, severity)
	}
}

func (n *node) metrics(ctx context.Context) (*prometheus.Registry, error) {
	reg := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{n, ctx}} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return reg, nil
}

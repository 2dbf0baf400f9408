package configs

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Allowed lists the zones in which a cluster may be placed: those that its residency
// permits.
func (r *Repository) Allowed(c Residency) []Zone {
	return slices.DeleteFunc(slices.Clone(r.Zones), func(z Zone) bool { return c.Refuses(z.Jurisdiction) != "" })
}

// checkQuorum: one less than the zones a cluster may use, so that the loss of
// any one zone stops nothing (DESIGN, promise 2).
func (d *decoder) checkQuorum(c *Config) {
	r := &c.Repository
	const field = "repository.write_quorum"
	if r.AcceptStopOnZoneLoss || len(r.Zones) == 0 || d.bad[field] {
		return
	}
	const unless = "; or say accept_stop_on_zone_loss: true"
	if len(r.Zones) == 1 {
		d.at(field, "one zone: its loss stops writes", "more zones"+unless)
		return
	}
	if most := len(r.Zones) - 1; r.WriteQuorum > most {
		d.at(field, fmt.Sprintf("a quorum of %d in %d zone(s): the loss of one stops writes", r.WriteQuorum, len(r.Zones)), fmt.Sprintf("at most %d%s", most, unless))
		return
	}
	for i, cluster := range c.Clusters {
		n := len(r.Allowed(cluster.Residency))
		if n > 0 && r.WriteQuorum > n-1 {
			d.at(fmt.Sprintf("clusters[%d].residency", i), fmt.Sprintf("%d zone(s) for a write quorum of %d: the loss of one stops writes", n, r.WriteQuorum), fmt.Sprintf("at least %d zones%s", r.WriteQuorum+1, unless))
		}
	}
}

var passwordRE = regexp.MustCompile(`(?i)(^|[\s?&])password\s*=|^postgres(ql)?://[^/@]*:[^/@]*@`)

func (d *decoder) checkCluster(cfg *Config, i int) {
	c, field := &cfg.Clusters[i], fmt.Sprintf("clusters[%d]", i)
	if passwordRE.MatchString(c.Connection) {
		d.found[field+".connection"] = "a password in it"
		d.at(field+".connection", "a password in it", "none: secrets are never here; use clusters[].password, peer, certificates or passfile")
	}
	d.checkSecret(field+".password", c.Password)
	if c.DataDirectory != "" {
		d.absolute(field+".data_directory", c.DataDirectory)
	}
	if c.Connection == "" && c.DataDirectory != "" {
		d.at(field+".data_directory", "a data directory without connection", "both: files are read between pg_backup_start and stop")
	}
	if c.Snapshots.Source == "files" && c.DataDirectory == "" {
		d.at(field+".snapshots.source", "files without data_directory", "stream, or data_directory given")
	}
	d.checkWAL(&c.WAL, field+".wal")
	d.checkResidency(cfg, c, field+".residency")
	d.checkRetention(&c.Retention, field+".retention")
	d.checkLocks(cfg, c, field)
	if c.Projects != nil {
		d.checkProjects(c, field+".projects")
	}
}

var slotRE = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

func (d *decoder) checkWAL(w *WAL, field string) {
	if w.Mode == "push" && d.given(field+".slot") {
		d.at(field+".slot", quote(w.Slot)+" with mode push", "no slot: only mode stream has one")
	}
	// PostgreSQL, ReplicationSlotValidateName: NAMEDATALEN-1 of these.
	if !slotRE.MatchString(w.Slot) && !d.bad[parent(field)+".name"] {
		d.at(field+".slot", quote(w.Slot), "1 to 63 of a-z, 0-9 and _")
	}
}

func (d *decoder) checkRetention(r *Retention, field string) {
	if _, err := time.LoadLocation(r.TimeZone); err != nil || r.TimeZone == "Local" {
		d.at(field+".time_zone", quote(r.TimeZone), "a name of the tz database, such as UTC or Europe/Rome")
	}
	if d.bad[field+".keep_at_most"] {
		return
	}
	if r.Window > r.KeepAtMost {
		d.at(field+".window", fmt.Sprintf("%v, longer than keep_at_most %v", r.Window, r.KeepAtMost), "window ≤ keep_at_most")
	}
	if r.KeepAtLeast > r.KeepAtMost && r.KeepAtLeast != r.Window {
		d.at(field+".keep_at_least", fmt.Sprintf("%v, longer than keep_at_most %v", r.KeepAtLeast, r.KeepAtMost), "keep_at_least ≤ keep_at_most")
	}
	if r.RenewAfter > r.KeepAtMost {
		d.at(field+".renew_after", fmt.Sprintf("%v, longer than keep_at_most %v", r.RenewAfter, r.KeepAtMost), "renew_after ≤ keep_at_most")
	}
	// Bytes may be renew_after older than the snapshot that needs them.
	longest := r.KeepAtMost - min(r.RenewAfter, r.KeepAtMost)
	if floor := max(r.Window, r.KeepAtLeast); floor <= r.KeepAtMost && r.RenewAfter <= r.KeepAtMost && floor > longest {
		d.at(field+".renew_after", fmt.Sprintf("%v, which leaves snapshots %v of keep_at_most %v: less than window or keep_at_least, %v", r.RenewAfter, longest, r.KeepAtMost, floor),
			"window, keep_at_least ≤ keep_at_most - renew_after")
	}
	own := Counts{Hourly: r.Hourly, Daily: r.Daily, Weekly: r.Weekly, Monthly: r.Monthly, Yearly: r.Yearly}
	for _, count := range own.beyond(longest) {
		d.at(field+"."+count.name, fmt.Sprintf("%d, the oldest of which would need bytes older than keep_at_most %v (renew_after %v)", count.n, r.KeepAtMost, r.RenewAfter), "fewer, a longer keep_at_most or a shorter renew_after")
	}
	d.checkCounts(r.Logical, r, field+".logical")
	d.checkCounts(r.Project, r, field+".project")
}

// checkCounts is for a class of its own, if it is given.
func (d *decoder) checkCounts(c *Counts, r *Retention, field string) {
	if c == nil {
		return
	}
	if c.KeepAtLeast > 0 && c.KeepAtLeast+r.RemovalGrace >= r.KeepAtMost {
		d.at(field+".keep_at_least", fmt.Sprintf("%v, with removal_grace %v no less than keep_at_most %v", c.KeepAtLeast, r.RemovalGrace, r.KeepAtMost), "keep_at_least + removal_grace < keep_at_most")
	}
	for _, count := range c.beyond(r.KeepAtMost) {
		d.at(field+"."+count.name, fmt.Sprintf("%d, the oldest of which would be older than keep_at_most %v", count.n, r.KeepAtMost), "fewer, or a longer keep_at_most")
	}
}

// counted is one of the counts.
type counted struct {
	name string
	n    int
	span time.Duration
}

// beyond are the counts that a ceiling would not let be reached: the oldest of n is at
// least n-1 spans old.
func (c Counts) beyond(longest Duration) (out []counted) {
	const day = 24 * time.Hour
	for _, one := range []counted{
		{"hourly", c.Hourly, time.Hour},
		{"daily", c.Daily, day},
		{"weekly", c.Weekly, 7 * day},
		{"monthly", c.Monthly, 28 * day},
		{"yearly", c.Yearly, 365 * day},
	} {
		if one.n > 1 && int64(one.n-1) > int64(longest)/int64(one.span) {
			out = append(out, one)
		}
	}
	return out
}

func (d *decoder) checkProjects(c *Cluster, field string) {
	p := c.Projects
	if p.Layout == "rows" && p.Rows == nil && !d.bad[field+".rows"] {
		d.at(field+".rows", "nothing", "it given: layout rows needs database, root and key")
	}
	if p.Layout != "rows" && p.Rows != nil && !d.bad[field+".layout"] {
		d.at(field+".rows", "rows with layout "+cmp.Or(p.Layout, "none"), "none: only layout rows has it")
	}
	if p.Layout == "rows" && p.Database != "" {
		d.at(field+".database", p.Database+" with layout rows", "none: rows.database says where the rows are")
	}
	// A deleted project lies in cluster snapshots and WAL until those age out and
	// their objects are removed.
	least := c.Retention.KeepAtMost + c.Retention.RemovalGrace
	if p.Purge.Within < least && !p.Purge.Early {
		d.at(field+".purge.within", p.Purge.Within.String(), fmt.Sprintf("at least %v (keep_at_most %v and removal_grace %v), or early: true", least, c.Retention.KeepAtMost, c.Retention.RemovalGrace))
	}
	if p.Media != nil && len(p.Media.Command) > 0 {
		d.absolute(field+".media.command[0]", p.Media.Command[0])
	}
	if p.Media != nil && len(p.Media.Command) == 0 && !d.bad[field+".media.command"] {
		d.at(field+".media.command", "an empty list", "the program and its arguments")
	}
	if p.Purge.Grace > p.Purge.Within {
		d.at(field+".purge.grace", fmt.Sprintf("%v, longer than within %v", p.Purge.Grace, p.Purge.Within), "grace ≤ within")
	}
}

func (d *decoder) checkEnvironments(c *Config) {
	live := slices.ContainsFunc(c.Clusters, func(c Cluster) bool { return c.Connection != "" })
	for i := range c.Environments {
		e, field := &c.Environments[i], fmt.Sprintf("environments[%d]", i)
		d.absolute(field+".directory", e.Directory)
		d.absolute(field+".binaries", e.Binaries)
		d.checkSecret(field+".identity", e.Identity)
		if live && e.Identity != nil && !c.Node.AllowIdentity {
			d.at(field+".identity", "a data identity on a node that reaches a live cluster", "it on another node; or node.allow_identity: true, which accepts that this host can read its own backups")
		}
	}
	d.unique("environments", len(c.Environments), func(i int) string { return c.Environments[i].Directory })
}

func (d *decoder) checkDrill(c *Config, i int) {
	drill, field := &c.Drills[i], fmt.Sprintf("drills[%d]", i)
	clusters, environments, zones := []string{}, []string{}, []string{}
	for _, x := range c.Clusters {
		clusters = append(clusters, x.Name)
	}
	for _, x := range c.Environments {
		environments = append(environments, x.Name)
	}
	for _, x := range c.Repository.Zones {
		zones = append(zones, x.Name)
	}
	d.oneOf(field+".cluster", drill.Cluster, "clusters[].name", clusters)
	d.oneOf(field+".environment", drill.Environment, "environments[].name", environments)
	d.oneOf(field+".zone", drill.Zone, "repository.zones[].name", zones)
	d.checkPlaces(c, i)
	d.unique(field+".checks", len(drill.Checks), func(i int) string { return drill.Checks[i].Name })
	for j, check := range drill.Checks {
		if strings.TrimSpace(check.SQL) == "" && check.SQL != "" {
			d.at(fmt.Sprintf("%s.checks[%d].sql", field, j), quote(check.SQL), "a query")
		}
	}
	if len(drill.Checks) > 0 && drill.Level != "L8" && !d.bad[field+".level"] {
		d.at(field+".level", drill.Level+" with checks", "L8: at lower levels the checks are not run")
	}
}

// oneOf refuses a name that nothing has; "" is another rule's business.
func (d *decoder) oneOf(field, name, what string, names []string) {
	if name == "" || d.bad[field] || slices.Contains(names, name) {
		return
	}
	meant := fmt.Sprintf("one of %s: %s", what, listed(names))
	if guess := nearest(name, names); guess != "" {
		meant += fmt.Sprintf(" (did you mean %q?)", guess)
	}
	d.at(field, quote(name), meant)
}

package configs

import (
	"cmp"
	"fmt"
	"slices"
)

// Given says whether the residency restricts anything but the number of copies.
func (r Residency) Given() bool { return len(r.Allow)+len(r.Forbid) > 0 }

// Refuses says why something of the cluster must not be in a jurisdiction, "" where
// it may be. A place that does not say where it is may be anywhere.
func (r Residency) Refuses(jurisdiction string) string {
	switch {
	case slices.Contains(r.Forbid, jurisdiction):
		return fmt.Sprintf("residency.forbid names %s", jurisdiction)
	case len(r.Allow) > 0 && !slices.Contains(r.Allow, jurisdiction):
		return fmt.Sprintf("residency.allow is %s, and not %s", listed(r.Allow), cmp.Or(jurisdiction, "a place that does not say its jurisdiction"))
	case r.Given() && jurisdiction == "":
		return fmt.Sprintf("residency.forbid is %s, and the place does not say its jurisdiction", listed(r.Forbid))
	}
	return ""
}

// Jurisdiction is where an environment is: where it says, else where its node is.
func (c *Config) Jurisdiction(e Environment) string {
	return cmp.Or(e.Jurisdiction, c.Node.Jurisdiction)
}

func (d *decoder) checkResidency(cfg *Config, c *Cluster, field string) {
	known := []string{}
	for _, z := range cfg.Repository.Zones {
		if z.Jurisdiction != "" && !slices.Contains(known, z.Jurisdiction) {
			known = append(known, z.Jurisdiction)
		}
	}
	for i, j := range c.Residency.Allow {
		at := fmt.Sprintf("%s.allow[%d]", field, i)
		if !slices.Contains(known, j) {
			d.at(at, quote(j), "a jurisdiction of some zone: "+listed(known))
		}
		if slices.Contains(c.Residency.Forbid, j) {
			d.at(at, quote(j)+", which "+field+".forbid names as well", "each jurisdiction in one of allow and forbid")
		}
	}
	n := len(cfg.Repository.Allowed(c.Residency))
	if c.Residency.Copies > n && len(cfg.Repository.Zones) > 0 {
		d.at(field+".copies", fmt.Sprint(c.Residency.Copies), fmt.Sprintf("at most %d: so many zones are allowed", n))
	}
	if n == 0 && len(c.Residency.Forbid) > 0 {
		d.at(field+".forbid", listed(c.Residency.Forbid), "at least one of repository.zones[].jurisdiction left: "+listed(known))
	}
	if why := c.Residency.Refuses(cfg.Node.Jurisdiction); why != "" && cfg.Node.Jurisdiction != "" && c.Connection != "" {
		d.at("node.jurisdiction", fmt.Sprintf("%s, where cluster %s must not be: %s", quote(cfg.Node.Jurisdiction), c.Name, why), "a node with clusters[].connection and its index identity where "+field+" permits them")
	}
}

// checkPlaces holds environments, and the identities in them, against the residency
// of the clusters that drills restore there.
func (d *decoder) checkPlaces(cfg *Config, i int) {
	drill := &cfg.Drills[i]
	c := slices.IndexFunc(cfg.Clusters, func(c Cluster) bool { return c.Name == drill.Cluster })
	e := slices.IndexFunc(cfg.Environments, func(e Environment) bool { return e.Name == drill.Environment })
	if c < 0 || e < 0 {
		return
	}
	where := cfg.Jurisdiction(cfg.Environments[e])
	if why := cfg.Clusters[c].Residency.Refuses(where); why != "" {
		d.at(fmt.Sprintf("drills[%d].environment", i), fmt.Sprintf("%s in %s for cluster %s", quote(drill.Environment), cmp.Or(where, "an unknown jurisdiction"), drill.Cluster),
			fmt.Sprintf("an environment that clusters[%d].residency permits: %s", c, why))
	}
	z := slices.IndexFunc(cfg.Repository.Zones, func(z Zone) bool { return z.Name == drill.Zone })
	if z >= 0 {
		if why := cfg.Clusters[c].Residency.Refuses(cfg.Repository.Zones[z].Jurisdiction); why != "" {
			d.at(fmt.Sprintf("drills[%d].zone", i), quote(drill.Zone)+" for cluster "+drill.Cluster, fmt.Sprintf("a zone that clusters[%d].residency permits: %s", c, why))
		}
	}
}

// checkLocks finds floors and locks at odds with what must go: a store keeps what it
// locks, and what is let go at its floor still waits its grace and may be as much
// older as its packs are.
func (d *decoder) checkLocks(cfg *Config, c *Cluster, field string) {
	r := &c.Retention
	for _, name := range []string{"keep_at_most", "keep_at_least", "window", "renew_after", "removal_grace"} {
		if d.bad[field+".retention."+name] {
			return
		}
	}
	lock, name := r.KeepAtLeast, "keep_at_least"
	if r.Window > lock {
		lock, name = r.Window, "window"
	}
	so := ""
	locks := slices.ContainsFunc(cfg.Repository.Allowed(c.Residency), func(z Zone) bool { return z.ObjectLock != "none" })
	if locks {
		so = ", for which object_lock locks"
	}
	if lock+r.RemovalGrace+r.RenewAfter >= r.KeepAtMost {
		d.at(field+".retention."+name, fmt.Sprintf("%v%s, with removal_grace %v and renew_after %v: no room below keep_at_most %v", lock, so, r.RemovalGrace, r.RenewAfter, r.KeepAtMost),
			name+" + removal_grace + renew_after < keep_at_most")
	}
	if c.Projects != nil && locks && c.Projects.Purge.Within < lock+r.RemovalGrace {
		d.at(field+".projects.purge.within", fmt.Sprintf("%v, less than retention.%s %v, for which object_lock locks, and removal_grace %v", c.Projects.Purge.Within, name, lock, r.RemovalGrace),
			"purge.within ≥ "+name+" + removal_grace, early or not: no zone lets go of what it locks")
	}
}

package retention

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

// What a certificate covers in the database, and what not, by layout.
var (
	coversOf = map[string]string{
		tenancy.Rows:     "rows that foreign keys tie to the project's root row, in the database that was configured",
		tenancy.Schema:   "the project's schema in the database that was configured, with all that was in it",
		tenancy.Database: "the project's database, with all that was in it",
	}
	notCoveredOf = map[string][]string{
		tenancy.Rows: {
			"tables that no foreign key ties to the root, materialized views, large objects",
			"values of deleted rows that live's indexes keep until REINDEX (bounds of b-tree pages, entries of GIN) and its statistics until ANALYZE",
			"other databases",
		},
		tenancy.Schema: {
			"large objects, which no schema holds; other schemas and databases, roles",
			"names (of the schema, its tables and columns) that indexes of live's catalogues keep until REINDEX, and what statistics of the catalogues keep until ANALYZE",
		},
		tenancy.Database: {
			"other databases, roles",
			"the database's name in indexes of live's catalogues until REINDEX, and in every database's statistics of them until ANALYZE",
		},
	}
)

// How each phase came about.
const (
	methodLogical = "deletion in live, and a tombstone: live was seen without the project, whose bytes a vacuum had passed since; copies in the zones end as retention removes them"
	methodFinal   = "expiry: every version of every snapshot and WAL object that was made before live was without the project has been removed from every zone, and each zone was listed afterwards, versions included"
)

// controls keep what is left beyond use. They are what Holdfast does, and no more.
var controls = []string{
	"every restore and drill by Holdfast removes the project, by its tombstone, before anybody can connect, and fails, or opens to superusers alone by an order of its own, where the set of tombstones cannot be proven complete",
	"copies are sealed to the data recipients: whoever holds a data identity and does without Holdfast can read them until they end",
	"a request to delete cannot be taken back",
}

// state issues the first phase: what is done, what is left, and when that ends.
func (a *advance) state(ctx context.Context, t catalog.Tombstone, absent catalog.Absent, one Purge) error {
	c, err := a.draft(ctx, t, absent, one)
	if err != nil {
		return err
	}
	c.Phase, c.Method, c.Controls, c.LastCopyEnds = catalog.PhaseLogical, methodLogical, controls, one.LastCopyEnds
	if c.LedgerIndex, err = a.Ledger.AppendAnchored(ctx, entryStatement, a.about(t), c); err != nil {
		return err
	}
	if err := a.putNote(ctx, catalog.StatementName(c.ID), catalog.KindStatement, c); err != nil {
		return err
	}
	a.stated[t.ID] = c
	return nil
}

// certify issues the final phase: it tells the ledger, then writes the certificate.
func (a *advance) certify(ctx context.Context, t catalog.Tombstone, absent catalog.Absent, one Purge) (catalog.Certificate, error) {
	c, err := a.draft(ctx, t, absent, one)
	if err != nil {
		return c, err
	}
	c.Phase, c.Method = catalog.PhaseFinal, methodFinal
	if s := a.statement(t.ID); s != nil {
		c.Supersedes = fmt.Sprintf("%s/%d", s.LedgerLog, s.LedgerIndex)
	}
	if c.LedgerIndex, err = a.Ledger.AppendAnchored(ctx, entryCertificate, a.about(t), c); err != nil {
		return c, err
	}
	return c, a.putNote(ctx, catalog.CertificateName(c.ID), catalog.KindCertificate, c)
}

// draft is what both phases say.
func (a *advance) draft(ctx context.Context, t catalog.Tombstone, absent catalog.Absent, one Purge) (c catalog.Certificate, err error) {
	c = catalog.Certificate{
		ID: t.ID, Tombstone: t.ID, Cluster: t.Cluster, IssuedAt: a.Now().UTC(), RequestedAt: t.RequestedAt, AbsentAt: absent.SeenAt, Deadline: t.Deadline,
		Covers:     []string{coversOf[t.Layout], "snapshots and WAL in the zones named here"},
		NotCovered: append(slices.Clone(notCoveredOf[t.Layout]), "replicas, exports, logs and copies that Holdfast did not make", "copies made here that are out of reach", "what a store keeps below its own interface"),
		Subject:    &catalog.CertificateSubject{Layout: t.Layout, KeyMAC: t.KeyMAC, DigestEpoch: t.DigestEpoch, Counts: t.Counts},
		Software:   a.Software, LedgerLog: a.Origin,
	}
	for _, z := range one.Zones {
		c.Zones = append(c.Zones, catalog.CertificateZone{
			Name: z.Name, ListedAt: a.found.at.UTC(), Versions: z.versions, OldestCopy: z.oldest.UTC(), Remaining: z.Copies, LastEnds: z.LastEnds, BlockedBy: z.BlockedBy,
		})
	}
	if a.conn != nil { // by name, where live can be asked
		names, err := tenancy.NotCovered(ctx, a.conn, tenancy.LayoutOf(t))
		if err != nil {
			return c, err
		}
		c.NotCovered = append(c.NotCovered, names...)
	}
	if a.Made == nil {
		c.NotCovered = append(c.NotCovered, "copies that Holdfast made outside the zones: nobody was asked for them")
		return c, nil
	}
	made, unread, err := a.Made(ctx, t)
	c.Copies = made
	if len(unread) > 0 {
		c.NotCovered = append(c.NotCovered, "copies that these ledgers tell of, which could not be read: "+strings.Join(unread, ", "))
	}
	return c, err
}

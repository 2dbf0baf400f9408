package snapshot

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// server is the connection that a Take begins and ends its backup on, and what
// the server said before it.
type server struct {
	conn  *postgres.Conn
	facts postgres.Facts
}

func openServer(ctx context.Context, cfg TakeConfig) (*server, error) {
	conn, err := postgres.Connect(ctx, cfg.DSN, postgres.ConnectOptions{AppName: "holdfast snapshot"})
	if err != nil {
		return nil, err
	}
	facts, err := postgres.GetFacts(ctx, conn)
	if err == nil {
		err = fit(facts, cfg)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &server{conn, facts}, nil
}

// fit refuses what would make a snapshot worthless or that this program cannot read.
func fit(f postgres.Facts, cfg TakeConfig) error {
	switch {
	case f.BlockSize != page.Size || f.SegmentBlocks != page.SegmentBlocks:
		return fmt.Errorf("the server has pages of %d bytes, %d in a file: this program reads %d and %d only",
			f.BlockSize, f.SegmentBlocks, page.Size, page.SegmentBlocks)
	case f.WALLevel == "minimal":
		return errors.New("wal_level is minimal: set it to replica or logical and restart the server")
	case cfg.Source == SourceFiles && cfg.DataDirectory == "" && f.DataDirectory == "":
		return errors.New("the role may not see data_directory: grant it pg_read_all_settings, or configure the path")
	}
	return nil
}

func (s *server) close() { _ = s.conn.Close() }

// inDatabase is dsn with another database.
func inDatabase(dsn, database string) (string, error) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database)
		return dsn + " dbname='" + quoted + "'", nil
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return "", errors.New("the connection string is no URL") // the cause would quote it
	}
	u.Path, u.RawPath = "/"+database, ""
	q := u.Query()
	q.Del("dbname")
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// describe fills the header with what is known before the copy (C-9).
func (t *take) describe() {
	f := t.srv.facts
	t.header = catalog.ManifestHeader{
		Cluster: t.cfg.Cluster, Snapshot: t.id, DigestEpoch: t.cfg.Keys.Epoch,
		Facts: catalog.ServerFacts{
			SystemID: f.SystemID, ServerNum: f.ServerNum, Major: f.Major, Timeline: f.Timeline,
			ControlVersion: f.ControlVersion, CatalogVersion: f.CatalogVersion,
			BlockSize: f.BlockSize, RelSegBlocks: f.SegmentBlocks, WALSegSize: f.SegSize,
			FromStandby: f.InRecovery, ChecksumsStart: f.ChecksumVersion,
			WALLevel: f.WALLevel, FullPageWrites: f.FullPageWrites,
			Architecture: f.Platform.Architecture, WordBits: f.Platform.WordBits, ByteOrder: f.Platform.ByteOrder, OS: f.Platform.OS,
			Encoding: f.Encoding, Collation: f.Collation,
			DataDirectory: f.DataDirectory, HotStandby: f.HotStandby, ConfigFiles: f.ConfigFiles,
		},
	}
}

// started and stopped note where the backup began and ended.
func (t *take) started(start lsn.LSN, timeline uint32) {
	t.header.Facts.StartLSN, t.header.Facts.Timeline = start, timeline
}

// stopped takes the end of the backup and looks once more at what must not have
// changed since its beginning (C-7, C-20).
func (t *take) stopped(ctx context.Context, r postgres.StopResult) error {
	h := &t.header
	h.Label, h.TablespaceMap = r.Label, r.TablespaceMap
	h.Facts.StopLSN, h.Facts.FinishedAt, h.Facts.CheckpointLSN = r.LSN, r.Time.UTC(), r.Parsed.Checkpoint
	now, err := postgres.GetFacts(ctx, t.srv.conn)
	if err != nil {
		return fmt.Errorf("look at the server after the backup: %w", err)
	}
	if now.SystemID != h.Facts.SystemID || now.InRecovery != h.Facts.FromStandby || now.Timeline != h.Facts.Timeline {
		return fmt.Errorf("%w: system %s, in recovery %v, timeline %d before; %s, %v, %d after", postgres.ErrChanged,
			h.Facts.SystemID, h.Facts.FromStandby, h.Facts.Timeline, now.SystemID, now.InRecovery, now.Timeline)
	}
	if h.Facts.FromStandby {
		h.Facts.MinRecoveryEnd = r.LSN
	}
	for i := range h.Tablespaces {
		for _, s := range now.Tablespaces {
			if s.OID == h.Tablespaces[i].OID {
				h.Tablespaces[i].Name = s.Name
			}
		}
	}
	h.Facts.ChecksumsStop = now.ChecksumVersion
	if h.Facts.ChecksumsStart != h.Facts.ChecksumsStop {
		t.suspect("data checksums were switched during the backup (from state %d to %d): pages could not be judged", h.Facts.ChecksumsStart, h.Facts.ChecksumsStop)
	}
	return nil
}

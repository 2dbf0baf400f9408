package restore

import (
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres"
)

// manifestFile describes the restored files for pg_verifybackup (C-26).
const manifestFile = "backup_manifest"

// describe makes all files and directories durable and writes a manifest of them
// as they are now; of pg_control as it will be. The sums were made as the files
// were written, so that nothing large is read.
func (t *tree) describe(control []byte) error {
	id, err := strconv.ParseUint(t.header.Facts.SystemID, 10, 64)
	if err != nil {
		return fmt.Errorf("the manifest's system identifier: %w", err)
	}
	target := filepath.Join(t.root, manifestFile)
	f, err := os.OpenFile(target+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	m := postgres.NewManifestWriter(f, t.header.Facts.Major, id)
	if err := t.syncAll(m); err != nil {
		return err
	}
	last := postgres.ManifestFile{Path: controlFile, Size: int64(len(control)), Modified: time.Now()}
	last.CRC32C(crc32.Checksum(control, castagnoli))
	if err := m.File(last); err != nil {
		return err
	}
	facts := t.header.Facts
	if err := m.Close([]postgres.WALRange{{Timeline: facts.Timeline, Start: facts.StartLSN, End: facts.StopLSN}}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(target+".new", target); err != nil {
		return err
	}
	if err := durable.SyncDir(t.root); err != nil {
		return err
	}
	return t.own(target)
}

func (t *tree) syncAll(m *postgres.ManifestWriter) error {
	var g errgroup.Group
	g.SetLimit(syncers)
	defer func() { _ = g.Wait() }() // after an error; else below
	roots := map[string]string{t.root: ""}
	for oid, dir := range t.spaces {
		roots[dir] = "pg_tblspc/" + strconv.Itoa(int(oid))
	}
	for root, prefix := range roots {
		err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() && !d.Type().IsRegular() || d.Name() == manifestFile+".new" {
				return err
			}
			g.Go(func() error { return syncPath(file) })
			if d.IsDir() {
				return nil
			}
			rel, err := filepath.Rel(root, file)
			if err != nil {
				return err
			}
			return t.tell(m, strings.TrimPrefix(prefix+"/"+rel, "/"), file, d)
		})
		if err != nil {
			return err
		}
	}
	return g.Wait()
}

// tell adds one file to the manifest.
func (t *tree) tell(m *postgres.ManifestWriter, rel, file string, d fs.DirEntry) error {
	if rel == manifestFile || strings.HasPrefix(rel, "pg_wal/") {
		return nil
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	out := postgres.ManifestFile{Path: rel, Size: info.Size(), Modified: info.ModTime()}
	i, known := t.find(rel)
	if !known || t.ours[rel] {
		data, err := os.ReadFile(file) // a small one of ours
		if err != nil {
			return err
		}
		out.CRC32C(crc32.Checksum(data, castagnoli))
		return m.File(out)
	}
	e := &t.files[i]
	if e.size != out.Size {
		return fmt.Errorf("%s has %d bytes, and was written with %d", file, out.Size, e.size)
	}
	out.CRC32C(finishSum(e.sum.Load(), e.size))
	return m.File(out)
}

package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// closing is a snapshot of which the quorum holds all but the manifest, the list and
// the note. age is randomised: whoever goes on must send these very bytes.
type closing struct {
	Snapshot catalog.Snapshot `json:"snapshot"`
	Manifest []byte           `json:"manifest"`
	Objects  []byte           `json:"objects"`
}

// freshEnough is how old a snapshot may be that an earlier process took and this one
// only commits, to be what was asked for now.
const freshEnough = 15 * time.Minute

const closingName = "closing.json"

// store keeps c for the next process, should this one not come to its end.
func (t *take) store(c closing) error {
	if t.cfg.State == "" {
		return nil
	}
	text, err := json.Marshal(c)
	if err == nil {
		err = durable.WriteFile(filepath.Join(t.making.dir, closingName), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the end of the snapshot: %w", err)
	}
	return nil
}

// closed reads what an earlier process came to of its attempt's end; nil: not there.
func (t *take) closed() *closing {
	var c closing
	text, err := os.ReadFile(filepath.Join(t.making.dir, closingName))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err == nil && c.Snapshot.ID != t.id {
		err = fmt.Errorf("it is of %s", c.Snapshot.ID)
	}
	if err == nil {
		return &c
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.log.Info("what was to end an interrupted snapshot is of no use", zap.Error(err))
	}
	return nil
}

// deliver writes the manifest, the list and last the note (W4, W5).
func (t *take) deliver(ctx context.Context, c closing) (catalog.Snapshot, error) {
	s := c.Snapshot
	if _, err := t.put(ctx, s.Manifest.Name, c.Manifest); err != nil {
		return s, fmt.Errorf("write the manifest: %w", err)
	}
	if _, err := t.put(ctx, s.Objects.Name, c.Objects); err != nil {
		return s, fmt.Errorf("write the list of objects: %w", err)
	}
	if err := t.kept(ctx); err != nil {
		return s, err
	}
	refs, err := catalog.DecodeObjects(strings.NewReader(string(c.Objects)))
	if err != nil {
		return s, err
	}
	return s, t.putNote(ctx, &s, append(refs, s.Objects))
}

// putNote commits: in each zone only when that zone holds every object.
func (t *take) putNote(ctx context.Context, s *catalog.Snapshot, refs []catalog.Ref) (err error) {
	if t.cfg.Chain != nil {
		t.cfg.Chain.Lock()
		defer t.cfg.Chain.Unlock()
	}
	if s.Link, err = t.nextLink(ctx, s.Node, s.Epoch); err != nil {
		return err
	}
	body, err := seal.SignNote(catalog.KindSnapshot, s, t.cfg.Signer)
	if err != nil {
		return err
	}
	var needs []vault.Need
	for _, r := range refs {
		needs = append(needs, vault.Need{Name: r.Name, Size: r.Size, SHA256: r.SHA256})
	}
	_, err = t.cfg.Store.PutNote(ctx, catalog.SnapshotName(s.Cluster, s.ID), body, needs, vault.PutOptions{LockUntil: t.cfg.LockUntil})
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"filippo.io/age"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/notify"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// node is what acts: the world with its state held, its ledger open, and its
// incidents at hand. One process of a node has it.
type node struct {
	*world
	ledger    *ledger.Ledger
	incidents *incident.Store
	notify    *notify.Notifier
	keys      seal.DigestKeys             // of the newest epoch; zero on a node without index identity
	runner    *scheduler.Runner           // nil without a daemon
	scrubber  atomic.Pointer[vault.Scrub] // nil before the daemon's first turn
	grew      atomic.Bool                 // a snapshot was taken since what must be where was read

	keeping  sync.Mutex // retention and purges act one at a time
	closing  sync.Mutex // slots of drills get their outcome one at a time
	mu       sync.Mutex
	clusters map[string]*protected // by name; those with a connection
	revisit  map[string]bool       // clusters of which a zone that came back may show what was removed
}

// openNode opens the configuration to act on it: no other process may.
func (e *env) openNode(ctx context.Context, cfg *configs.Config, log *zap.Logger) (*node, error) {
	w, err := openWorld(ctx, cfg, log, true)
	if err != nil {
		return nil, err
	}
	n, err := newNode(ctx, w)
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return n, nil
}

func newNode(ctx context.Context, w *world) (n *node, err error) {
	n = &node{world: w, clusters: map[string]*protected{}, revisit: map[string]bool{}}
	w.holder.node = n
	boundMemory(int64(w.cfg.Node.Limits.Memory))
	if w.signer == nil {
		return nil, usage("repository.signing_key is missing: a node that acts signs what it does; `holdfast keys new signing --out FILE` makes one")
	}
	if n.incidents, err = incident.New(w.state("incidents")); err != nil {
		return nil, err
	}
	if n.notify, err = notifier(w.cfg.Notify, w.log); err != nil {
		return nil, err
	}
	hash, err := configHash(w.cfg.Path)
	if err != nil {
		return nil, err
	}
	witnesses, err := n.witnesses()
	if err != nil {
		return nil, err
	}
	n.ledger, err = ledger.Open(ledger.Config{
		Witnesses: witnesses,
		Dir:       w.state("ledger"), Repository: w.repoID, Origin: w.cfg.Node.Name, Signer: w.signer, Trust: w.trust,
		Store: ledger.FromWriter(w.vault.Writer(), nil), Now: w.now, ConfigHash: hash,
		Software: ledger.Software{Version: version},
		Host:     ledger.Host{Node: w.cfg.Node.Name, Boot: w.holder.boot},
	})
	if err != nil {
		return nil, err
	}
	w.onClose(n.ledger.Close)
	if err := n.noteConfig(ctx, hash); err != nil {
		return nil, err
	}
	if err := n.tellConfirmed(ctx); err != nil {
		return nil, err
	}
	if len(w.index) > 0 {
		if n.keys, err = w.digestKeys(ctx, 0); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// configHash is the SHA-256 of the configuration as it stands in the file.
func configHash(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("hashing the configuration: %w", err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// noteConfig makes a ledger entry when the configuration is not the one that ran last.
func (n *node) noteConfig(ctx context.Context, hash string) error {
	last, err := os.ReadFile(n.state("config.sha256"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the hash of the last configuration: %w", err)
	}
	if strings.TrimSpace(string(last)) == hash {
		return nil
	}
	_, err = n.append(ctx, "config", nil, map[string]string{"sha256": hash, "before": strings.TrimSpace(string(last))})
	if err != nil {
		return err
	}
	return durable.WriteFile(n.state("config.sha256"), []byte(hash+"\n"), 0o600)
}

// append writes an entry that is fsynced here and sent soon.
func (n *node) append(ctx context.Context, typ string, subject map[string]string, body any) (int64, error) {
	return n.ledger.Append(ctx, ledger.Entry{Type: typ, Subject: subject, Actor: actor(ctx), Body: body})
}

// appendAnchored writes an entry that the quorum holds when it returns.
func (n *node) appendAnchored(ctx context.Context, typ string, subject map[string]string, body any) (int64, error) {
	return n.ledger.AppendAnchored(ctx, ledger.Entry{Type: typ, Subject: subject, Actor: actor(ctx), Body: body})
}

type actorKey struct{}

// asHuman marks what a person asked for.
func asHuman(ctx context.Context) context.Context {
	return context.WithValue(ctx, actorKey{}, ledger.Actor{Kind: "human", Authn: "socket"})
}

func actor(ctx context.Context) ledger.Actor {
	if a, ok := ctx.Value(actorKey{}).(ledger.Actor); ok {
		return a
	}
	return ledger.Actor{Kind: "schedule"}
}

// digestKeys reads the keys of an epoch, or of the newest one for 0, with the
// identities at hand.
func (w *world) digestKeys(ctx context.Context, epoch int, more ...age.Identity) (seal.DigestKeys, error) {
	ids := append(slices.Clone(w.index), more...)
	if epoch == 0 {
		listing, err := w.vault.Reader().List(ctx, catalog.DigestKeysDir)
		if err != nil {
			return seal.DigestKeys{}, fmt.Errorf("looking for the digest keys: %w", err)
		}
		for _, o := range listing.Objects {
			var n int
			if _, err := fmt.Sscanf(o.Name, catalog.DigestKeysDir+"%08d.age", &n); err == nil {
				epoch = max(epoch, n)
			}
		}
		if epoch == 0 {
			return seal.DigestKeys{}, failed("`holdfast init` creates the repository with its digest keys", "the repository shows no digest keys (zones complete: %v)", listing.Complete)
		}
	}
	var keys seal.DigestKeys
	_, err := w.vault.Reader().Fetch(ctx, catalog.DigestKeyName(epoch), func(_ string, body []byte) error {
		k, err := seal.OpenDigestKeys(body, ids)
		if err == nil {
			keys = k
		}
		return err
	})
	if err != nil {
		return keys, fmt.Errorf("opening the digest keys of epoch %d: %w", epoch, err)
	}
	return keys, nil
}

// noHeal says what back-fill must not bring back: what lies under a forgotten
// mark. It answers from what was read last, so that it never blocks.
func (w *world) noHeal(name string) bool {
	rest, ok := strings.CutPrefix(name, catalog.ClustersPrefix)
	if !ok || w.holder == nil || w.holder.node == nil {
		return false
	}
	n := w.holder.node
	n.mu.Lock()
	defer n.mu.Unlock()
	cluster, below, _ := strings.Cut(rest, "/")
	if p := n.clusters[cluster]; p != nil {
		return p.forgotten.covers(below)
	}
	return false
}

// raise opens an incident, tells who is to be told, and writes it down.
func (n *node) raise(ctx context.Context, i incident.Incident) {
	out, opened, err := n.incidents.Raise(i, n.now())
	if err != nil {
		n.log.Error("cannot keep an incident", zap.String("key", i.Key), zap.Error(err))
	}
	if !opened {
		return
	}
	n.log.Warn("incident opened", zap.String("key", i.Key), zap.String("title", i.Title), zap.String("detail", i.Detail))
	if _, err := n.append(ctx, "incident", map[string]string{"key": i.Key, "cluster": i.Cluster}, out); err != nil {
		n.log.Error("cannot write an incident into the ledger", zap.Error(err))
	}
	n.notify.Send(ctx, "incident", out)
}

// settle closes an incident, if it is open, because of what was seen.
func (n *node) settle(ctx context.Context, key, seen string) {
	closed, err := n.incidents.Close(key, seen, n.now())
	if err != nil {
		n.log.Error("cannot close an incident", zap.String("key", key), zap.Error(err))
	}
	if closed == nil {
		return
	}
	n.log.Info("incident closed", zap.String("key", key), zap.String("seen", seen))
	if _, err := n.append(ctx, "incident", map[string]string{"key": key, "cluster": closed.Cluster}, closed); err != nil {
		n.log.Error("cannot write an incident into the ledger", zap.Error(err))
	}
	n.notify.Send(ctx, "incident", closed)
}

// fingerprints name the data recipients in a snapshot's note.
func (w *world) fingerprints() []string {
	var out []string
	for _, r := range w.cfg.Repository.Recipients {
		out = append(out, seal.Fingerprint(r))
	}
	return out
}

// putNote signs body and puts it into the quorum.
func (n *node) putNote(ctx context.Context, name, kind string, body any) (catalog.Ref, error) {
	note, err := seal.SignNote(kind, body, n.signer)
	if err != nil {
		return catalog.Ref{}, fmt.Errorf("signing %s: %w", name, err)
	}
	st, err := n.vault.Writer().Put(ctx, name, note, vault.PutOptions{})
	if err != nil {
		return catalog.Ref{}, fmt.Errorf("writing %s: %w", name, err)
	}
	return catalog.Ref{Name: name, Size: st.Size, SHA256: st.SHA256}, nil
}

// marshal is JSON that cannot fail: of our own plain structs.
func marshal(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

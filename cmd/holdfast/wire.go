package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/internal/zone/s3zone"
)

// world is what a configuration opens: the repository to read, and, on a node
// with keys and its state held, to write.
type world struct {
	cfg      *configs.Config
	log      *zap.Logger
	now      func() time.Time
	repoID   string
	drivers  map[string]zone.Driver
	zones    []*zone.Zone
	vault    *vault.Vault
	trust    seal.Trust
	catalog  *catalog.Reader
	index    []age.Identity  // opens manifests and WAL indexes
	data     []age.Recipient // can open data
	indexTo  []age.Recipient // data, and the index identity's own
	signer   note.Signer
	vkey     string
	holder   *holding // nil: reads only, or writes a note without being a node
	journal  string   // of the vault, where there is no holder; "": reads only
	cleanups []func() error
}

// holding is what only the one process that holds the node's state has.
type holding struct {
	stateID string
	boot    string
	lock    *durable.Lock
	reserve *durable.Reserve
	node    *node
}

// close undoes open, in reverse.
func (w *world) close() error {
	var errs []error
	for _, f := range slices.Backward(w.cleanups) {
		errs = append(errs, f())
	}
	w.cleanups = nil
	return errors.Join(errs...)
}

func (w *world) onClose(f func() error) { w.cleanups = append(w.cleanups, f) }

func (w *world) state(elem ...string) string {
	return filepath.Join(append([]string{w.cfg.Node.State}, elem...)...)
}

// open opens the repository for reading, by the configuration or by --repository.
func (e *env) open(ctx context.Context) (*world, error) {
	var cfg *configs.Config
	if e.repository != "" {
		repo, err := configs.LoadRepository(e.repository)
		if err != nil {
			return nil, &fault{exit: exitUsage, err: err}
		}
		cfg = &configs.Config{Repository: *repo, Path: e.repository}
	} else {
		var err error
		if cfg, err = e.load(); err != nil {
			return nil, err
		}
	}
	return openWorld(ctx, cfg, e.logger(), false)
}

// writable reopens the repository so that a note can be written into its quorum by who is
// no node. A zone that misses it gets it when a node verifies its copies.
func (w *world) writable() (err error) {
	if w.journal, err = os.MkdirTemp("", "holdfast-"); err != nil {
		return fmt.Errorf("making a directory for the vault's journal: %w", err)
	}
	w.onClose(func() error { return os.RemoveAll(w.journal) })
	w.zones = nil
	return w.openVault(context.Background())
}

// openWorld opens the repository; hold says that it will be written, by this
// process alone.
func openWorld(ctx context.Context, cfg *configs.Config, log *zap.Logger, hold bool) (_ *world, err error) {
	w := &world{cfg: cfg, log: log, now: time.Now, drivers: map[string]zone.Driver{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if hold {
		if err := w.hold(); err != nil {
			return nil, err
		}
		if err := w.requireConfirmed(); err != nil {
			return nil, err
		}
	}
	for _, step := range []func(context.Context) error{w.openKeys, w.openDrivers, w.identify, w.openVault} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// hold takes the state directory for this process.
func (w *world) hold() error {
	if err := durable.MkdirAll(w.cfg.Node.State, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	lock, err := durable.Acquire(w.state("lock"))
	if err != nil {
		return failed("stop the other process, or give this node another node.state", "taking the state directory %s: %w", w.cfg.Node.State, err)
	}
	w.onClose(lock.Release)
	reserve := durable.NewReserve(w.state("reserve"), int64(w.cfg.Node.Limits.Reserve))
	if _, err := reserve.Tend(); err != nil { // first: on a full disk nothing else could be opened
		w.log.Warn("cannot see to the reserve of the state directory", zap.Error(err))
	}
	id, err := stateID(w.state("id"))
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = []byte("unknown")
	}
	w.holder = &holding{stateID: id, boot: strings.TrimSpace(string(boot)), lock: lock, reserve: reserve}
	return nil
}

// stateID is the random id of a state directory, made once.
func stateID(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(data)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the state directory's id: %w", err)
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	id := hex.EncodeToString(b[:])
	return id, durable.WriteFile(path, []byte(id+"\n"), 0o600)
}

func (w *world) openKeys(context.Context) (err error) {
	r := w.cfg.Repository
	if w.trust, err = trustOf(r.TrustedSigners); err != nil {
		return &fault{exit: exitUsage, err: fmt.Errorf("repository.trusted_signers: %w", err)}
	}
	if len(r.Recipients) > 0 {
		if w.data, err = seal.ParseRecipients(r.Recipients); err != nil {
			return &fault{exit: exitUsage, err: fmt.Errorf("repository.recipients: %w", err)}
		}
	}
	if r.IndexIdentity != nil {
		if err := w.openIndex(); err != nil {
			return &fault{exit: exitUsage, err: fmt.Errorf("repository.index_identity: %w", err)}
		}
	}
	if r.SigningKey != nil {
		key, err := r.SigningKey.Load()
		if err == nil {
			w.signer, w.vkey, err = seal.LoadSigner(strings.TrimSpace(string(key)))
		}
		if err != nil {
			return &fault{exit: exitUsage, err: fmt.Errorf("repository.signing_key: %w", err)}
		}
	}
	return w.refuseOwnKey()
}

func (w *world) openIndex() error {
	data, err := w.cfg.Repository.IndexIdentity.Load()
	if err != nil {
		return err
	}
	if w.index, err = seal.ParseIdentities(data); err != nil {
		return err
	}
	texts := slices.Clone(w.cfg.Repository.Recipients)
	for _, id := range w.index {
		own, err := seal.RecipientOf(id)
		if err != nil {
			return err
		}
		texts = append(texts, own)
	}
	w.indexTo, err = seal.ParseRecipients(texts)
	return err
}

// trustOf converts the configuration's signers; no clusters means all.
func trustOf(signers []configs.TrustedSigner) (seal.Trust, error) {
	var out []seal.TrustedSigner
	for _, s := range signers {
		t := seal.TrustedSigner{VKey: s.Key, Clusters: s.Clusters, May: s.May}
		if len(t.Clusters) == 0 {
			t.Clusters = []string{"*"}
		}
		out = append(out, t)
	}
	return seal.NewTrust(out)
}

func (w *world) openDrivers(context.Context) error {
	for _, z := range w.cfg.Repository.Zones {
		d, err := openDriver(z)
		if err != nil {
			return &fault{exit: exitUsage, err: fmt.Errorf("zone %s: %w", z.Name, err)}
		}
		w.drivers[z.Name] = crashDriver(d)
		w.onClose(d.Close)
	}
	return nil
}

func openDriver(z configs.Zone) (zone.Driver, error) {
	if z.S3 == nil {
		return dirzone.New(z.Directory)
	}
	s := z.S3
	c := s3zone.Config{Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, Prefix: s.Prefix, PathStyle: s.PathStyle}
	if z.ObjectLock != "none" {
		c.LockMode = z.ObjectLock
	}
	keys, err := s.Credentials.Load()
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	c.Credentials = s3zone.Keys(keys)
	if s.LedgerCredentials != nil {
		if keys, err = s.LedgerCredentials.Load(); err != nil {
			return nil, fmt.Errorf("ledger_credentials: %w", err)
		}
		c.LedgerCredentials = s3zone.Keys(keys)
	}
	if s.DeleteCredentials != nil {
		if keys, err = s.DeleteCredentials.Load(); err != nil {
			return nil, fmt.Errorf("delete_credentials: %w", err)
		}
		c.DeleteCredentials = s3zone.Keys(keys)
	}
	if s.CA != nil {
		if c.CA, err = s.CA.Load(); err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
	}
	return s3zone.New(c)
}

// identify finds out which repository this is: the one that this node knows
// already, else the one that more than half of the zones that answer show.
func (w *world) identify(ctx context.Context) error {
	known := w.state("repository.json")
	if w.cfg.Node.State != "" {
		var pin struct {
			Repository string `json:"repository"`
		}
		if data, err := os.ReadFile(known); err == nil && json.Unmarshal(data, &pin) == nil && pin.Repository != "" {
			w.repoID = pin.Repository
			return nil
		}
	}
	votes, faults := w.askIdentities(ctx)
	best := ""
	for id, n := range votes {
		if n > votes[best] {
			best = id
		}
	}
	switch {
	case best == "":
		return failed("`holdfast init` creates the repository; mount or reach its zones if it exists", "no zone shows a repository: %w", errors.Join(faults...))
	case len(votes) > 1:
		return failed("correct repository.zones: each must be a zone of one repository", "the zones show %d different repositories", len(votes))
	}
	w.repoID = best
	if w.holder == nil {
		return nil
	}
	data, err := json.Marshal(map[string]string{"repository": best})
	if err != nil {
		return err
	}
	return durable.WriteFile(known, data, 0o600)
}

func (w *world) askIdentities(ctx context.Context) (votes map[string]int, faults []error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	type answer struct {
		id  zone.Identity
		err error
	}
	answers := make(chan answer, len(w.cfg.Repository.Zones))
	for _, z := range w.cfg.Repository.Zones {
		go func() {
			id, err := zone.ReadIdentity(ctx, w.drivers[z.Name])
			if err == nil && id.Zone != z.Name {
				err = fmt.Errorf("it is zone %s", id.Zone)
			}
			if err != nil {
				err = fmt.Errorf("zone %s: %w", z.Name, err)
			}
			answers <- answer{id, err}
		}()
	}
	votes = map[string]int{}
	var enough <-chan time.Time
	for begun := time.Now(); len(faults)+total(votes) < len(w.cfg.Repository.Zones); {
		select {
		case a := <-answers:
			if a.err != nil {
				faults = append(faults, a.err)
				continue
			}
			votes[a.id.Repository]++
			if 2*votes[a.id.Repository] > len(w.cfg.Repository.Zones) && enough == nil {
				enough = time.After(max(250*time.Millisecond, time.Since(begun)))
			}
		case <-enough: // the others change nothing: each is guarded by its own identity
			return votes, faults
		case <-ctx.Done(): // a hung zone has no vote
			return votes, append(faults, ctx.Err())
		}
	}
	return votes, faults
}

func total(votes map[string]int) (n int) {
	for _, v := range votes {
		n += v
	}
	return n
}

// openVault puts the guard before each zone and makes them one.
func (w *world) openVault(context.Context) error {
	for _, z := range w.cfg.Repository.Zones {
		want := zone.Identity{Format: zone.Format, Repository: w.repoID, Zone: z.Name}
		w.zones = append(w.zones, zone.Open(z.Name, w.drivers[z.Name], want, zone.Options{}))
	}
	c := vault.Config{Zones: w.zones, Quorum: w.cfg.Repository.WriteQuorum, Log: w.log, Place: w.place(), Upload: int64(w.cfg.Node.Limits.Upload)}
	if w.holder != nil {
		c.State = w.state("vault")
		c.NoHeal, c.Lock, c.OnReturn = w.noHeal, w.lockKept, w.zoneReturned
	} else {
		c.State = w.journal
	}
	var err error
	if w.vault, err = vault.Open(c); err != nil {
		return err
	}
	w.onClose(w.vault.Close)
	w.catalog = catalog.NewReader(w.vault.Reader(), w.trust)
	return nil
}

// cluster finds a configured cluster.
func (w *world) cluster(name string) (configs.Cluster, error) {
	var known []string
	for _, c := range w.cfg.Clusters {
		if c.Name == name {
			return c, nil
		}
		known = append(known, c.Name)
	}
	return configs.Cluster{}, usage("cluster %q is not in the configuration (it has: %s)", name, strings.Join(known, ", "))
}

package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

// rig is a repository of three directories with its keys, for taking snapshots.
type rig struct {
	t       testing.TB
	dirs    []string
	vault   *vault.Vault
	signer  note.Signer
	trust   seal.Trust
	data    []age.Identity
	index   []age.Identity
	dataTo  []age.Recipient
	indexTo []age.Recipient
	keys    seal.DigestKeys
	state   string
	secrets secrets
	mask    func(page []byte) // what pages are compared without; nil: nothing
}

func newRig(t testing.TB) *rig {
	t.Helper()
	s := secrets{State: t.TempDir()}
	var err error
	s.Sign, s.Verify, err = seal.NewSigningKey("node")
	noErr(t, err)
	s.Data, _, err = seal.NewX25519Identity()
	noErr(t, err)
	s.Index, _, err = seal.NewX25519Identity()
	noErr(t, err)
	keys, err := seal.NewDigestKeys(1)
	noErr(t, err)
	s.Digest = keys.Key
	for i := range 3 {
		s.Dirs = append(s.Dirs, t.TempDir())
		d, err := dirzone.New(s.Dirs[i])
		noErr(t, err)
		noErr(t, zone.Initialise(t.Context(), d, zone.Identity{Format: 1, Repository: "repo", Zone: fmt.Sprintf("z%d", i)}))
	}
	return s.open(t)
}

// secrets are what another process needs to have the same rig.
type secrets struct {
	Sign, Verify, Data, Index string
	Digest                    [32]byte
	Dirs                      []string
	State                     string
}

func (s secrets) open(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, secrets: s, state: s.State, dirs: s.Dirs, keys: seal.DigestKeys{Epoch: 1, Key: s.Digest}}
	var err error
	r.signer, _, err = seal.LoadSigner(s.Sign)
	noErr(t, err)
	r.trust, err = seal.NewTrust([]seal.TrustedSigner{{VKey: s.Verify, Clusters: []string{"*"}, May: []string{"snapshot", "wal"}}})
	noErr(t, err)
	r.data, r.dataTo = identityOf(t, s.Data)
	r.index, r.indexTo = identityOf(t, s.Index)
	var zones []*zone.Zone
	for i, dir := range s.Dirs {
		id := zone.Identity{Format: 1, Repository: "repo", Zone: fmt.Sprintf("z%d", i)}
		d, err := dirzone.New(dir)
		noErr(t, err)
		zones = append(zones, zone.Open(id.Zone, d, id, zone.Options{}))
	}
	r.vault, err = vault.Open(vault.Config{Zones: zones, Quorum: 2, State: t.TempDir(), RetryAfter: 10 * time.Millisecond})
	noErr(t, err)
	t.Cleanup(func() { r.vault.Close() })
	return r
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func identity(t testing.TB) ([]age.Identity, []age.Recipient) {
	t.Helper()
	secret, _, err := seal.NewX25519Identity()
	noErr(t, err)
	return identityOf(t, secret)
}

func identityOf(t testing.TB, secret string) ([]age.Identity, []age.Recipient) {
	t.Helper()
	ids, err := seal.ParseIdentities([]byte(secret))
	noErr(t, err)
	public, err := seal.RecipientOf(ids[0])
	noErr(t, err)
	to, err := seal.ParseRecipients([]string{public})
	noErr(t, err)
	return ids, to
}

// config takes from pg into the rig.
func (r *rig) config(pg *pgtest.Cluster, source string) TakeConfig {
	return r.configOf(pg.DSN("postgres"), source)
}

func (r *rig) configOf(dsn, source string) TakeConfig {
	return TakeConfig{
		Cluster: "main", Node: "node", Epoch: 1, Source: source, DSN: dsn, Fast: true,
		Store: r.vault.Writer(), Signer: r.signer, Trust: r.trust,
		Data: r.dataTo, Index: r.indexTo, Fingerprints: []string{"0123456789abcdef"},
		WAL: keptWAL{dsn}, Keys: r.keys, State: r.state, Identities: r.index,
	}
}

func (r *rig) take(cfg TakeConfig) catalog.Snapshot {
	r.t.Helper()
	s, err := Take(r.t.Context(), cfg)
	noErr(r.t, err)
	return s
}

// keptWAL is for servers that keep all their WAL in pg_wal: what is flushed there
// is as durable as these tests need.
type keptWAL struct{ dsn string }

func (k keptWAL) WaitDurable(ctx context.Context, upTo lsn.LSN) error {
	conn, err := pgx.Connect(ctx, k.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var there bool
		err := conn.QueryRow(ctx, `SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
			ELSE pg_current_wal_flush_lsn() END >= $1::text::pg_lsn`, upTo.String()).Scan(&there)
		if err != nil || there {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// manifest opens a snapshot's manifest by way of its note.
func (r *rig) manifest(s catalog.Snapshot) catalog.Manifest {
	r.t.Helper()
	ctx := r.t.Context()
	noted, _, err := openSnapshot(ctx, r.vault.Reader(), r.trust, catalog.SnapshotName(s.Cluster, s.ID), s.Cluster)
	noErr(r.t, err)
	sealed, err := r.vault.Reader().Get(ctx, noted.Manifest.Name, noted.Manifest.Size, noted.Manifest.SHA256)
	noErr(r.t, err)
	plain, err := seal.OpenBlob(sealed, r.index, 1<<30)
	noErr(r.t, err)
	m, err := catalog.DecodeManifest(bytes.NewReader(plain))
	noErr(r.t, err)
	return m
}

// leaves opens the page maps of a manifest.
func (r *rig) leaves(m catalog.Manifest) *catalog.MapSet {
	fetch := func(ctx context.Context, ref catalog.Ref) ([]byte, error) {
		return r.vault.Reader().Get(ctx, ref.Name, ref.Size, ref.SHA256)
	}
	set := catalog.NewMapSet(r.t.TempDir(), m.Maps, m.Packs, fetch, r.index)
	r.t.Cleanup(func() { set.Close() })
	return set
}

// packs decompresses all packs of a manifest, by number and offset.
func (r *rig) packs(m catalog.Manifest) map[uint32]map[int64][]byte {
	r.t.Helper()
	frames := map[uint32]map[int64][]byte{}
	for _, p := range m.Packs {
		of := map[int64][]byte{}
		frames[uint32(p.N)] = of
		body, err := r.vault.Reader().Get(r.t.Context(), p.Ref.Name, p.Ref.Size, p.Ref.SHA256)
		noErr(r.t, err)
		pack, err := seal.OpenPack(bytes.NewReader(body), int64(len(body)), r.data)
		noErr(r.t, err)
		index, err := pack.Index()
		noErr(r.t, err)
		for _, f := range index {
			of[f.Off], err = pack.Frame(f)
			noErr(r.t, err)
		}
	}
	return frames
}

// unpack writes the files of a snapshot below dir, which exists. It is no restore:
// it exists to prove what was taken.
func (r *rig) unpack(m catalog.Manifest, dir string) {
	r.t.Helper()
	frames, maps := r.packs(m), r.leaves(m)
	for _, d := range m.Header.Dirs {
		noErr(r.t, os.MkdirAll(filepath.Join(dir, d.Path), 0o700))
	}
	for _, f := range m.Files {
		at := filepath.Join(dir, f.Path)
		if f.Outside {
			at = filepath.Join(r.t.TempDir(), "outside")
		}
		file, err := os.OpenFile(at, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		noErr(r.t, err)
		noErr(r.t, file.Truncate(f.Size)) // what is zero stays a hole
		noErr(r.t, maps.Leaves(r.t.Context(), f, func(first int64, l catalog.Leaf) error {
			for _, run := range l.Runs {
				if run.Frame == catalog.ZeroFrame {
					continue
				}
				x := l.Frames[run.Frame]
				raw, ok := frames[x.Pack][x.Off]
				if !ok || len(raw) != x.Raw {
					return fmt.Errorf("%s: pack %d has no frame at %d of %d bytes", f.Path, x.Pack, x.Off, x.Raw)
				}
				if _, err := file.WriteAt(raw[run.Off:run.Off+run.Bytes(first, f.Size)], (first+int64(run.First))*page.Size); err != nil {
					return err
				}
			}
			return nil
		}))
		noErr(r.t, file.Close())
	}
	noErr(r.t, os.WriteFile(filepath.Join(dir, "backup_label"), m.Header.Label, 0o600))
}

// revive unpacks a snapshot beside pg, gives it pg's WAL and starts it.
func (r *rig) revive(s catalog.Snapshot, pg *pgtest.Cluster) *pgtest.Cluster {
	r.t.Helper()
	m := r.manifest(s)
	dir := pg.Mkdir("revived-" + s.ID)
	r.unpack(m, dir)
	for _, space := range m.Header.Tablespaces {
		if !space.InPlace {
			at := pg.Mkdir(fmt.Sprintf("revived-space-%s-%d", s.ID, space.OID))
			link := filepath.Join(dir, "pg_tblspc", fmt.Sprint(space.OID))
			noErr(r.t, os.RemoveAll(at))
			noErr(r.t, os.Rename(link, at))
			noErr(r.t, os.Symlink(at, link))
			noErr(r.t, pgtest.Own(at))
		}
	}
	segments, err := filepath.Glob(filepath.Join(pg.DataDir, "pg_wal", "0*"))
	noErr(r.t, err)
	for _, name := range segments {
		data, err := os.ReadFile(name)
		noErr(r.t, err)
		noErr(r.t, os.WriteFile(filepath.Join(dir, "pg_wal", filepath.Base(name)), data, 0o600))
	}
	noErr(r.t, pgtest.Own(dir))
	copied := pg.Adopt(dir, "archive_mode = off")
	copied.Start()
	return copied
}

// notes are the zones in which a snapshot is committed.
func (r *rig) notes() (zones []int) {
	for i, dir := range r.dirs {
		found, err := filepath.Glob(filepath.Join(dir, "clusters/main/snapshots/*/snapshot.note"))
		noErr(r.t, err)
		if len(found) > 0 {
			zones = append(zones, i)
		}
	}
	return zones
}

// startPG starts a server that writes nothing by itself, however long a test takes:
// what autovacuum changes meanwhile is in no snapshot from before.
func startPG(t testing.TB, opts ...pgtest.Option) *pgtest.Cluster {
	t.Helper()
	own := []pgtest.Option{pgtest.WithSetting("wal_keep_size", "4GB"), pgtest.WithSetting("autovacuum", "off")}
	return pgtest.Start(t, append(own, opts...)...)
}

// fill makes a table of about n kB.
func fill(pg *pgtest.Cluster, table string, n int) {
	pg.Exec(fmt.Sprintf(`CREATE TABLE %s (id int PRIMARY KEY, pad text);
		INSERT INTO %s SELECT i, md5(i::text) || repeat('x', 900) FROM generate_series(1, %d) i`, table, table, n))
}

func containsAny(list []string, part string) bool {
	for _, s := range list {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

var putOptions vault.PutOptions

func refs(list ...catalog.Ref) func(context.Context, uint32, lsn.LSN, lsn.LSN) ([]catalog.Ref, error) {
	return func(context.Context, uint32, lsn.LSN, lsn.LSN) ([]catalog.Ref, error) { return list, nil }
}

func port(pg *pgtest.Cluster) string { return fmt.Sprint(pg.Port) }

// churn runs pgbench beside tables that are made, grow, are truncated and dropped,
// until the returned function is called.
func churn(t *testing.T, pg *pgtest.Cluster) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	bench := exec.CommandContext(ctx, pg.Bin("pgbench"), "-n", "-c", "2", "-T", "600", "-h", pg.SocketDir, "-p", port(pg), "-U", "postgres", "postgres")
	noErr(t, bench.Start())
	conn := pg.Conn("postgres")
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			for _, sql := range []string{
				"CREATE TABLE IF NOT EXISTS brief AS SELECT i, repeat('y', 800) FROM generate_series(1, 500) i",
				"INSERT INTO brief SELECT i, repeat('z', 800) FROM generate_series(1, 200) i",
				"CHECKPOINT", "TRUNCATE brief", "DROP TABLE brief",
			} {
				if _, err := conn.Exec(ctx, sql); err != nil {
					done <- err
					return
				}
			}
			if n == 0 {
				close(started)
			}
		}
	}()
	select {
	case <-started:
	case err := <-done:
		t.Fatal(err)
	}
	return func() {
		cancel()
		<-done
		_ = bench.Wait() // killed
		conn.Close(context.Background())
		pg.Exec("DROP TABLE IF EXISTS brief")
	}
}

// spoil stops pg and writes bytes into a page of a table; it returns the file.
func spoil(t *testing.T, pg *pgtest.Cluster, table string, block, off int64, bytes []byte) (path string) {
	t.Helper()
	if pg.PID() == 0 {
		pg.Start()
	}
	path = pgtest.Value[string](pg, "SELECT pg_relation_filepath($1::text::regclass)", table)
	pg.Stop()
	f, err := os.OpenFile(filepath.Join(pg.DataDir, path), os.O_WRONLY, 0)
	noErr(t, err)
	_, err = f.WriteAt(bytes, block*8192+off)
	noErr(t, err)
	noErr(t, f.Close())
	return path
}

package control_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// image builds a pg_control as a server of that version lays it out.
func image(version uint32) []byte {
	d := make([]byte, control.FileSize)
	binary.LittleEndian.PutUint64(d, 7300000000000000001)
	binary.LittleEndian.PutUint32(d[8:], version)
	binary.LittleEndian.PutUint64(d[32:], 0x2000060)
	binary.LittleEndian.PutUint32(d[48:], 3)
	binary.LittleEndian.PutUint64(d[208:], math.Float64bits(1234567))
	binary.LittleEndian.PutUint32(d[252:], 1)
	seal(d, version)
	return d
}

func seal(d []byte, version uint32) {
	at := 288
	if version == 1800 {
		at = 292
	}
	binary.LittleEndian.PutUint32(d[at:], crc32.Checksum(d[:at], crc32.MakeTable(crc32.Castagnoli)))
}

func TestEveryKnownVersionParses(t *testing.T) {
	for _, version := range []uint32{1300, 1700, 1800} {
		c, err := control.Parse(image(version))
		if err != nil || c.SystemID != 7300000000000000001 || c.Timeline != 3 || c.Checkpoint != 0x2000060 || c.ChecksumVersion != 1 {
			t.Errorf("%d: %+v, %v", version, c, err)
		}
	}
	for _, version := range []uint32{0, 1201, 1902, 0x14050000} {
		if _, err := control.Parse(image(version)); err == nil || !strings.Contains(err.Error(), fmt.Sprint(version)) {
			t.Errorf("version %d: %v, want a refusal that names it", version, err)
		}
	}
}

// Every installed major's own file, against what pg_controldata prints of it.
func TestParseAgreesWithPgControldata(t *testing.T) {
	c := pgtest.Start(t)
	c.Stop()
	got, raw, err := control.ReadFile(filepath.Join(c.DataDir, "global", "pg_control"))
	if err != nil || len(raw) != control.FileSize {
		t.Fatal(len(raw), err)
	}
	said := map[string]string{}
	for _, line := range strings.Split(c.Run("pg_controldata", c.DataDir), "\n") {
		k, v, _ := strings.Cut(line, ":")
		said[k] = strings.TrimSpace(v)
	}
	for key, value := range map[string]any{
		"Database system identifier":           got.SystemID,
		"pg_control version number":            got.Version,
		"Catalog version number":               got.CatalogVersion,
		"Latest checkpoint location":           got.Checkpoint,
		"Latest checkpoint's REDO location":    got.Redo,
		"Latest checkpoint's TimeLineID":       got.Timeline,
		"Latest checkpoint's PrevTimeLineID":   got.PrevTimeline,
		"Latest checkpoint's NextXID":          fmt.Sprintf("%d:%d", got.NextXID>>32, uint32(got.NextXID)),
		"Latest checkpoint's NextOID":          got.NextOID,
		"Minimum recovery ending location":     got.MinRecovery,
		"Min recovery ending loc's timeline":   got.MinRecoveryTLI,
		"Backup start location":                got.BackupStart,
		"Backup end location":                  got.BackupEnd,
		"max_connections setting":              got.MaxConnections,
		"max_worker_processes setting":         got.MaxWorkers,
		"max_wal_senders setting":              got.MaxWALSenders,
		"max_prepared_xacts setting":           got.MaxPrepared,
		"max_locks_per_xact setting":           got.MaxLocksPerXact,
		"Database block size":                  got.BlockSize,
		"Blocks per segment of large relation": got.SegmentBlocks,
		"WAL block size":                       got.WALBlockSize,
		"Bytes per WAL segment":                got.SegSize,
		"Data page checksum version":           got.ChecksumVersion,
	} {
		if fmt.Sprint(value) != said[key] {
			t.Errorf("%s: parsed %v, pg_controldata says %s", key, value, said[key])
		}
	}
	if got.State != control.ShutDown || said["Database cluster state"] != "shut down" || got.WALLevel != 1 {
		t.Errorf("state %d (%s), wal_level %d", got.State, said["Database cluster state"], got.WALLevel)
	}
}

// C-18
func TestAnyFlippedBitIsAChecksumError(t *testing.T) {
	good := image(1300)
	for at := range 292 {
		bad := append([]byte(nil), good...)
		bad[at] ^= 0x10
		_, err := control.Parse(bad)
		if err == nil {
			t.Fatalf("byte %d: accepted", at)
		}
		if version := at >= 8 && at < 12; !version && !errors.Is(err, control.ErrChecksum) {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
}

// C-18: a reader beside a writer that tears its writes gets a whole file each time.
func TestReadFileReadsATornFileAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pg_control")
	old, whole := image(1700), image(1700)
	binary.LittleEndian.PutUint64(whole[32:], 0x3000028)
	seal(whole, 1700)
	torn := append(append([]byte(nil), whole[:100]...), old[100:]...)
	if err := os.WriteFile(path, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := control.ReadFile(path); !errors.Is(err, control.ErrChecksum) || !strings.Contains(err.Error(), "20 times") {
		t.Errorf("a file that stays torn: %v", err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		f, _ := os.OpenFile(path, os.O_WRONLY, 0)
		defer f.Close()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			f.WriteAt([][]byte{torn, whole, whole, whole}[n%4], 0)
		}
	}()
	for range 50 {
		if _, data, err := control.ReadFile(path); err != nil || !bytes.Equal(data, whole) {
			t.Errorf("%v", err)
		}
	}
	close(stop)
	<-done
}

// C-4: a real server does not start from a poisoned pg_control without a label.
func TestAServerRefusesAPoisonedControlFileWithoutALabel(t *testing.T) {
	c := pgtest.Start(t)
	c.Stop()
	path := filepath.Join(c.DataDir, "global", "pg_control")
	before, raw, err := control.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	poisoned, err := control.Poison(raw)
	if err != nil {
		t.Fatal(err)
	}
	after, err := control.Parse(poisoned)
	if err != nil || after.Checkpoint != control.PoisonLSN || len(poisoned) != len(raw) {
		t.Fatalf("%+v, %v", after, err)
	}
	if after.Checkpoint = before.Checkpoint; after != before {
		t.Errorf("more than the checkpoint changed:\n%+v\n%+v", before, after)
	}
	if err := os.WriteFile(path, poisoned, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.TryStart(); err == nil {
		t.Fatal("the server started from a poisoned pg_control")
	}
	if !strings.Contains(c.Log(), "could not locate a valid checkpoint record") {
		t.Errorf("it failed for another reason:\n%s", c.Log())
	}
}

func TestPoisonRefusesWhatDoesNotParse(t *testing.T) {
	d := image(1800)
	d[40] ^= 1
	if _, err := control.Poison(d); !errors.Is(err, control.ErrChecksum) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range []uint32{1300, 1700, 1800, 1902} {
		f.Add(image(v))
		f.Add(image(v)[:289])
	}
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := control.Parse(data); err != nil {
			return
		}
		p, err := control.Poison(data)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := control.Parse(p); err != nil || c.Checkpoint != control.PoisonLSN {
			t.Fatal(c, err)
		}
	})
}

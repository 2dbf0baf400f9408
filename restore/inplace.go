package restore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/control"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

// InPlace is a restore that takes the place of a cluster's own directory. It is
// restored beside, into Beside, and then the two directories are exchanged, in one
// step where the file system can: what was there before is kept in Kept until
// [SignOff], and put back by [PutBack].
type InPlace struct {
	Dir     string    `json:"dir"`
	Beside  string    `json:"beside"`
	Kept    string    `json:"kept"`
	Control string    `json:"control,omitempty"` // SHA-256 of pg_control when it took the place
	At      time.Time `json:"at,omitzero"`       // when it did; zero: not yet
}

// ErrStarted means that a restored directory has been started since it took a
// place: what was written since would be lost with it.
var ErrStarted = errors.New("it was started since it was restored")

// NewInPlace looks whether dir can be replaced: the directory of a stopped server
// of this system, on a file system that its neighbours are on.
func NewInPlace(dir, systemID string, now time.Time) (InPlace, error) {
	if err := replaceable(dir); err != nil {
		return InPlace{}, fmt.Errorf("restoring in the place of %s: %w", dir, err)
	}
	c, _, err := control.ReadFile(filepath.Join(dir, controlFile))
	if err != nil {
		return InPlace{}, fmt.Errorf("restoring in the place of %s: whose directory it is cannot be seen: %w: move it away yourself, and restore with --to", dir, err)
	}
	if is := strconv.FormatUint(c.SystemID, 10); is != systemID {
		return InPlace{}, fmt.Errorf("restoring in the place of %s: it is of system %s, and the snapshot of %s: this is another cluster's directory", dir, is, systemID)
	}
	stamp := now.UTC().Format("20060102T150405Z")
	return InPlace{Dir: dir, Beside: dir + ".restored-" + stamp, Kept: dir + ".before-" + stamp}, nil
}

func replaceable(dir string) error {
	at, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	up, err := os.Stat(filepath.Dir(dir))
	if err != nil {
		return err
	}
	if !at.IsDir() {
		return errors.New("it is no directory itself, but a link or a file: name the directory")
	}
	own, parent := at.Sys().(*syscall.Stat_t), up.Sys().(*syscall.Stat_t)
	if own.Dev != parent.Dev {
		return errors.New("it is a mount point, which cannot be exchanged: restore into it with --delta, or beside it")
	}
	if pid := running(dir); pid != 0 {
		return fmt.Errorf("%w: process %d", ErrRunning, pid)
	}
	return nil
}

// Swap lets the restored directory take the place. It is closed, whole, and gets
// back the settings that a copy beside production must not have.
func (p InPlace) Swap(programs sandbox.Programs) error {
	m, err := ReadMarker(p.Beside)
	if err != nil {
		return fmt.Errorf("taking the place of %s: %w", p.Dir, err)
	}
	if m.Result == nil || !m.Result.Complete || m.State != "closed" {
		return fmt.Errorf("taking the place of %s: the restore into %s is %s, not closed and complete", p.Dir, p.Beside, m.State)
	}
	if err := replaceable(p.Dir); err != nil {
		return fmt.Errorf("taking the place of %s: %w", p.Dir, err)
	}
	for _, name := range []string{"postgresql.auto.conf", openConf} {
		if err := producing(filepath.Join(p.Beside, name), programs); err != nil {
			return fmt.Errorf("taking the place of %s: %w", p.Dir, err)
		}
	}
	if p.Control, err = sumOf(filepath.Join(p.Beside, controlFile)); err != nil {
		return fmt.Errorf("taking the place of %s: %w", p.Dir, err)
	}
	p.At = time.Now().UTC()
	m.InPlace = &p
	if err := m.write(p.Beside, programs); err != nil {
		return fmt.Errorf("taking the place of %s: %w", p.Dir, err)
	}
	if err := exchange(p.Beside, p.Dir); err != nil {
		return fmt.Errorf("taking the place of %s: %w", p.Dir, err)
	}
	err = errors.Join(os.Rename(p.Beside, p.Kept), durable.SyncDir(filepath.Dir(p.Dir)))
	if err != nil {
		return &TakenError{Dir: p.Dir, Err: err}
	}
	return nil
}

// TakenError means that a restored directory has taken the place, and that something
// after that failed: what was there before is beside it, under one of its two names.
type TakenError struct {
	Dir string
	Err error
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("%s is the restored cluster; what was there is beside it, and may not bear its last name: %v", e.Dir, e.Err)
}

func (e *TakenError) Unwrap() error { return e.Err }

// exchange gives two directories each other's name: in one step, or, where the
// file system cannot, with the second moved aside for a moment.
func exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = exchangeBySteps(a, b)
	}
	if err != nil {
		return fmt.Errorf("exchanging %s and %s: %w", a, b, err)
	}
	return nil
}

// exchangeBySteps undoes what it did where a step fails. A crash between two of them
// leaves the second directory under the name that it says.
func exchangeBySteps(a, b string) error {
	aside := b + ".exchanging"
	if err := os.Rename(b, aside); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return errors.Join(fmt.Errorf("%w; %s was moved to %s", err, b, aside), os.Rename(aside, b))
	}
	if err := os.Rename(aside, a); err != nil {
		return errors.Join(fmt.Errorf("%w; %s was moved to %s", err, b, aside), os.Rename(b, a), os.Rename(aside, b))
	}
	return nil
}

// recovering are settings that lead a server back into recovery, or to another.
var recovering = regexp.MustCompile(`(?i)^#holdfast# \s*(recovery_target\w*|restore_command|archive_cleanup_command|recovery_end_command|primary_conninfo|primary_slot_name|promote_trigger_file)\s*[= ]`)

// producing gives a file of settings back what was commented out of it, but for
// what would make the server a standby again.
func producing(path string, programs sandbox.Programs) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Debian keeps it elsewhere
	}
	if err != nil {
		return err
	}
	data, _, _ = bytes.Cut(data, []byte(ours))
	var out bytes.Buffer
	for line := range bytes.Lines(data) {
		if !recovering.Match(line) {
			line = bytes.TrimPrefix(line, []byte("#holdfast# "))
		}
		out.Write(line)
	}
	return errors.Join(durable.WriteFile(path, out.Bytes(), 0o600), programs.Own(path))
}

func sumOf(path string) (string, error) {
	data, err := os.ReadFile(path)
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), err
}

// placed reads what a directory that took a place says, and where the one of before is.
func placed(dir string) (m Marker, kept string, err error) {
	if m, err = ReadMarker(dir); err != nil {
		return m, "", err
	}
	if m.InPlace == nil || m.InPlace.At.IsZero() {
		return m, "", fmt.Errorf("%s took no other directory's place", dir)
	}
	for _, kept = range []string{m.InPlace.Kept, m.InPlace.Beside, dir + ".exchanging"} {
		if _, err := os.Lstat(kept); err == nil {
			return m, kept, nil
		}
	}
	return m, "", fmt.Errorf("what %s took the place of is no longer in %s: %w", dir, m.InPlace.Kept, fs.ErrNotExist)
}

// SignOff removes what was kept, and the marker of the restore, and returns where that was.
func SignOff(dir string) (string, error) {
	m, kept, err := placed(dir)
	if errors.Is(err, fs.ErrNotExist) && m.InPlace != nil { // a signoff that was cut off is gone on with
		return m.InPlace.Kept, durable.Remove(filepath.Join(dir, marker))
	}
	if err != nil {
		return "", fmt.Errorf("signing off: %w", err)
	}
	if spaces, err := os.ReadDir(filepath.Join(kept, "pg_tblspc")); err == nil && len(spaces) > 0 {
		return "", fmt.Errorf("signing off %s: %w", dir, &SpacesError{filepath.Join(kept, "pg_tblspc")})
	}
	if pid := running(kept); pid != 0 {
		return "", fmt.Errorf("signing off %s: %w in %s: process %d", dir, ErrRunning, kept, pid)
	}
	// pg_control goes first: what is left half-way cannot start.
	if err := os.Remove(filepath.Join(kept, controlFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("signing off %s: %w", dir, err)
	}
	if err := os.RemoveAll(kept); err != nil {
		return "", fmt.Errorf("signing off %s: %w", dir, err)
	}
	// It is production's own directory from here on: nothing of a restore's may open or
	// discard it any more.
	return kept, durable.Remove(filepath.Join(dir, marker))
}

// SpacesError means that a directory that is to be removed has tablespaces elsewhere,
// which would stay: remove them, and their links in Dir, first.
type SpacesError struct{ Dir string }

func (e *SpacesError) Error() string {
	return "it has tablespaces, which the links in " + e.Dir + " lead to: remove those that nobody wants, and the links, first"
}

// PutBack gives the directory of before its place again; the restored one is where
// it was restored to, closed. One that was started since is [ErrStarted], unless
// lose says that what was written may go.
func PutBack(dir string, lose bool, programs sandbox.Programs) (restored string, err error) {
	m, kept, err := placed(dir)
	if err != nil {
		return "", fmt.Errorf("putting back: %w", err)
	}
	if err := replaceable(dir); err != nil {
		return "", fmt.Errorf("putting back what was in %s: %w", dir, err)
	}
	sum, err := sumOf(filepath.Join(dir, controlFile))
	if err != nil {
		return "", fmt.Errorf("putting back what was in %s: %w", dir, err)
	}
	if sum != m.InPlace.Control && !lose {
		return "", fmt.Errorf("putting back what was in %s: %w", dir, ErrStarted)
	}
	restored = m.InPlace.Beside
	if err := exchange(kept, dir); err != nil {
		return "", err
	}
	if kept != restored { // else a crash came between the two steps
		err = os.Rename(kept, restored)
	}
	return restored, errors.Join(err, durable.SyncDir(filepath.Dir(dir)), unplaced(restored, m, programs))
}

func unplaced(dir string, m Marker, programs sandbox.Programs) error {
	m.InPlace = nil
	return m.write(dir, programs)
}

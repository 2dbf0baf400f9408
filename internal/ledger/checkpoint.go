package ledger

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Checkpoint is a signed statement of a tree's size and root hash (C2SP
// tlog-checkpoint).
type Checkpoint struct {
	Origin string    `json:"origin"` // without the repository
	Size   int64     `json:"size"`
	Root   tlog.Hash `json:"root"`
	Signer string    `json:"signer"` // the key's name
	Signed []byte    `json:"signed"` // the whole note
}

// logOrigin is a checkpoint's first line: unique among all logs of the world.
func logOrigin(repository, origin string) string { return "holdfast/" + repository + "/" + origin }

func checkpointText(repository string, c Checkpoint) string {
	return fmt.Sprintf("%s\n%d\n%s\n", logOrigin(repository, c.Origin), c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

func signCheckpoint(repository string, c Checkpoint, s note.Signer) (Checkpoint, error) {
	signed, err := note.Sign(&note.Note{Text: checkpointText(repository, c)}, s)
	if err != nil {
		return c, fmt.Errorf("sign checkpoint of size %d: %w", c.Size, err)
	}
	c.Signed, c.Signer = signed, s.Name()
	return c, nil
}

// ParseCheckpoint reads a checkpoint without looking at its signatures: for one
// that somebody kept, never for one that is to be believed.
func ParseCheckpoint(data []byte) (c Checkpoint, err error) {
	text, _, ok := strings.Cut(string(data), "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(data) > seal.MaxNote || len(lines) != 3 {
		return c, fmt.Errorf("checkpoint: %w: want three lines and signatures", seal.ErrDamaged)
	}
	c.Origin = lines[0][strings.LastIndexByte(lines[0], '/')+1:]
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err == nil {
		c.Root, err = tlog.ParseHash(lines[2])
	}
	if err != nil {
		return c, fmt.Errorf("checkpoint: %w: no size and root hash in their places", seal.ErrDamaged)
	}
	return c, nil
}

// openCheckpoint believes the keys that have the duty "ledger". Text that is not
// in its one form (C2SP's extension lines too) is refused.
func openCheckpoint(data []byte, repository, origin string, trust seal.Trust) (Checkpoint, error) {
	if len(data) > seal.MaxNote {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: %d bytes", seal.ErrDamaged, len(data))
	}
	text, signer, err := seal.OpenSigned(data, trust.Verifiers("ledger"))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	c := Checkpoint{Origin: origin, Signer: signer, Signed: data}
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[0] != logOrigin(repository, origin) {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: it is of log %q, want %q", seal.ErrDamaged, lines[0], logOrigin(repository, origin))
	}
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err == nil {
		c.Root, err = tlog.ParseHash(lines[2])
	}
	if err != nil || c.Size < 1 || checkpointText(repository, c) != text {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: no size and root hash in their places", seal.ErrDamaged)
	}
	return c, nil
}

package ledger

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// proofLine begins a proof (c2sp.org/tlog-proof).
const proofLine = "c2sp.org/tlog-proof@v1\n"

// Prove makes the detached proof that the entry index is in c's tree: a text that
// is checked without the log, by [CheckProof] or by any reader of
// c2sp.org/tlog-proof.
func Prove(ctx context.Context, src Source, c Checkpoint, index int64) ([]byte, error) {
	path, err := tlog.ProveRecord(c.Size, index, provenBy(ctx, src, c))
	if err != nil {
		return nil, fmt.Errorf("prove entry %d of ledger %s: %w", index, c.Origin, err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%sindex %d\n", proofLine, index)
	for _, h := range path {
		fmt.Fprintln(&b, base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(c.Signed)
	return b.Bytes(), nil
}

// CheckProof says whether proof shows that leaf is the entry index of the log
// origin, under a checkpoint that a trusted key signed.
func CheckProof(proof, leaf []byte, trust seal.Trust, repository, origin string, index int64) error {
	head, signed, ok := strings.Cut(string(proof), "\n\n")
	lines := strings.Split(head+"\n", "\n")
	if !ok || !strings.HasPrefix(head, proofLine) || lines[1] != "index "+strconv.FormatInt(index, 10) {
		return fmt.Errorf("proof: %w: want the lines %q and \"index %d\"", seal.ErrDamaged, strings.TrimSpace(proofLine), index)
	}
	c, err := openCheckpoint([]byte(signed), repository, origin, trust)
	if err != nil {
		return fmt.Errorf("proof: %w", err)
	}
	var path tlog.RecordProof
	for _, line := range lines[2 : len(lines)-1] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			return fmt.Errorf("proof: %w: %q is no hash", seal.ErrDamaged, line)
		}
		path = append(path, h)
	}
	if err := tlog.CheckRecord(path, c.Size, c.Root, index, tlog.RecordHash(leaf)); err != nil {
		return fmt.Errorf("proof: %w: it does not lead from the entry to the root", seal.ErrDamaged)
	}
	return nil
}

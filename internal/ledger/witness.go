package ledger

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Witness cosigns checkpoints of a repository's ledgers, each log's only when it
// continues what it cosigned of it before (c2sp.org/tlog-witness). It keeps one
// checkpoint a log, and it is durable before the cosignature leaves.
type Witness struct {
	Dir        string
	Repository string
	Trust      seal.Trust
	Signer     seal.Cosigner
	Now        func() time.Time

	mu sync.Mutex
}

// Answer is what a witness answers, in the words of HTTP.
type Answer struct {
	Status int
	Type   string // of the body
	Body   []byte
}

// LatestPath is where, with the name of a log behind it, a witness shows the
// checkpoint that it cosigned last: the proof behind a refusal.
const LatestPath = "/latest/"

// Latest is the checkpoint of a log that was cosigned last.
func (w *Witness) Latest(origin string) Answer {
	if !originRE.MatchString(origin) {
		return answer(http.StatusBadRequest, "%q is the name of no log", origin)
	}
	data, err := os.ReadFile(w.path(origin))
	if err != nil {
		return answer(http.StatusNotFound, "nothing of log %s was cosigned", origin)
	}
	return Answer{Status: http.StatusOK, Type: "text/plain; charset=utf-8", Body: data}
}

// sizeType is the type of the body that names the size a witness has.
const sizeType = "text/x.tlog.size"

// maxProof is how many hashes a proof has at most.
const maxProof = 63

func answer(status int, format string, args ...any) Answer {
	return Answer{Status: status, Type: "text/plain; charset=utf-8", Body: fmt.Appendf(nil, format+"\n", args...)}
}

// AddCheckpoint judges a request's body: the size that the log believes to be the
// witness's, the proof from there, and the checkpoint.
func (w *Witness) AddCheckpoint(body []byte) Answer {
	old, proof, signed, err := parseAdd(body)
	if err != nil {
		return answer(http.StatusBadRequest, "%v", err)
	}
	seen, err := ParseCheckpoint(signed)
	if err != nil {
		return answer(http.StatusBadRequest, "%v", err)
	}
	if first, _, _ := bytes.Cut(signed, []byte("\n")); string(first) != logOrigin(w.Repository, seen.Origin) || !originRE.MatchString(seen.Origin) {
		return answer(http.StatusNotFound, "log %q is none of repository %s", first, w.Repository)
	}
	c, err := openCheckpoint(signed, w.Repository, seen.Origin, w.Trust)
	if err != nil {
		return answer(http.StatusForbidden, "%v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if refused := w.continues(c, old, proof); refused != nil {
		return *refused
	}
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	line := w.Signer.Cosign(append(text, '\n'), w.Now())
	if err := durable.WriteFile(w.path(c.Origin), append(bytes.Clone(signed), line...), 0o600); err != nil {
		return answer(http.StatusInternalServerError, "keeping the checkpoint: %v", err)
	}
	return Answer{Status: http.StatusOK, Type: "text/plain; charset=utf-8", Body: line}
}

// continues says what is wrong with c as the next checkpoint of its log; nil: nothing.
func (w *Witness) continues(c Checkpoint, old int64, proof tlog.TreeProof) *Answer {
	var last Checkpoint
	data, err := os.ReadFile(w.path(c.Origin))
	if err == nil {
		last, err = ParseCheckpoint(data)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	refuse := func(a Answer) *Answer { return &a }
	switch {
	case err != nil:
		return refuse(answer(http.StatusInternalServerError, "reading the checkpoint that was cosigned last: %v", err))
	case old > c.Size:
		return refuse(answer(http.StatusBadRequest, "the old size %d is larger than the checkpoint's %d", old, c.Size))
	case old != last.Size:
		return refuse(Answer{Status: http.StatusConflict, Type: sizeType, Body: fmt.Appendf(nil, "%d\n", last.Size)})
	case old == c.Size && c.Root != last.Root:
		return refuse(Answer{Status: http.StatusConflict, Type: sizeType, Body: fmt.Appendf(nil, "%d\n", last.Size)})
	case (old == 0 || old == c.Size) && len(proof) > 0:
		return refuse(answer(http.StatusBadRequest, "a proof where none is needed"))
	case old == 0 || old == c.Size:
		return nil
	}
	if err := tlog.CheckTree(proof, c.Size, c.Root, old, last.Root); err != nil {
		return refuse(answer(http.StatusUnprocessableEntity, "the checkpoint does not continue the one of size %d: %v", old, err))
	}
	return nil
}

func (w *Witness) path(origin string) string { return filepath.Join(w.Dir, origin+".checkpoint") }

// parseAdd splits "old N", the lines of the proof, an empty line and the checkpoint.
func parseAdd(body []byte) (old int64, proof tlog.TreeProof, signed []byte, err error) {
	head, signed, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	digits, named := strings.CutPrefix(lines[0], "old ")
	old, err = strconv.ParseInt(digits, 10, 64)
	if !ok || !named || err != nil || old < 0 || strconv.FormatInt(old, 10) != digits || len(lines)-1 > maxProof {
		return 0, nil, nil, errors.New("want \"old SIZE\", at most 63 lines of proof, an empty line and a checkpoint")
	}
	for _, line := range lines[1:] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			return 0, nil, nil, fmt.Errorf("%q is no hash", line)
		}
		proof = append(proof, h)
	}
	return old, proof, signed, nil
}

func formatAdd(old int64, proof tlog.TreeProof, signed []byte) []byte {
	b := fmt.Appendf(nil, "old %d\n", old)
	for _, h := range proof {
		b = append(b, base64.StdEncoding.EncodeToString(h[:])...)
		b = append(b, '\n')
	}
	return append(append(b, '\n'), signed...)
}

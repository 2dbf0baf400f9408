package ledger

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// What can be wrong with an excerpt: the values of [Fault.Code].
const (
	FaultStrange   = "bundle"    // an object that belongs to no excerpt
	FaultSignature = "signature" // a checkpoint that no trusted key signed
	FaultRoot      = "root"      // the hashes do not give a checkpoint's root
	FaultEntry     = "entry"     // an entry that is not the one that was hashed, or none of ours
	FaultGap       = "gap"       // hashes or entries that are missing
	FaultCut       = "cut"       // a checkpoint seen elsewhere is not of this log
)

// WriteExcerpt gives put what proves the entries of c's tree from the bundle on
// that holds the entry from, and that there are no others: c, the hashes of all
// its entries, and those bundles. Earlier entries stay behind.
func WriteExcerpt(ctx context.Context, src Source, c Checkpoint, from int64, put func(name string, body []byte) error) error {
	if from < 0 || from >= c.Size {
		return fmt.Errorf("excerpt of ledger %s: from entry %d, and it has %d", c.Origin, from, c.Size)
	}
	give := func(path string, body []byte) error { return put(OriginDir(c.Origin)+path, body) }
	if err := give(checkpointPath(c.Size), c.Signed); err != nil {
		return err
	}
	hashes := provenBy(ctx, src, c)
	for n := int64(0); n*width < c.Size; n++ {
		w := int(min(width, c.Size-n*width))
		proven, err := provenHashes(hashes, n, w)
		if err != nil {
			return fmt.Errorf("excerpt of ledger %s: %w", c.Origin, err)
		}
		tile := make([]byte, 0, w*tlog.HashSize)
		for _, h := range proven {
			tile = append(tile, h[:]...)
		}
		if err := give(tilePath(tlog.Tile{H: height, N: n, W: w}), tile); err != nil {
			return err
		}
		if n < from/width {
			continue
		}
		leaves, err := readBundle(ctx, src, c, n, hashes)
		if err != nil {
			return fmt.Errorf("excerpt of ledger %s: %w", c.Origin, err)
		}
		if err := give(tilePath(bundleOf(n, w)), encodeBundle(leaves)); err != nil {
			return err
		}
	}
	return nil
}

// Excerpt is a log of which all hashes are there, and the entries from From on.
type Excerpt struct {
	Origin  string
	From    int64      // the first entry whose bytes are there
	Top     Checkpoint // Size 0: none that a trusted key signed
	Records []Record   // those that are what was hashed
	Faults  []Fault

	log verified
}

// Contains says whether c is a checkpoint of this very log.
func (e *Excerpt) Contains(c Checkpoint) bool {
	return c.Origin == e.Origin && e.log.contains(c)
}

// Excerpts reads the excerpt of every log that src has, and computes each anew.
// What is wrong is in the Faults; the error says only that src could not be read.
func Excerpts(ctx context.Context, src Source, trust seal.Trust, repository string) ([]*Excerpt, error) {
	names, err := src.List(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("read excerpts: %w", err)
	}
	var out []*Excerpt
	for _, o := range origins(names) {
		e := &Excerpt{Origin: o.name, log: verified{listed: o, bundles: map[int64][]tlog.Tile{}}}
		r := &excerptReader{ctx, src, Config{Repository: repository, Trust: trust}, e}
		r.read()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

type excerptReader struct {
	ctx  context.Context
	src  Source
	conf Config
	*Excerpt
}

func (r *excerptReader) fault(code string, index int64, path, format string, args ...any) {
	name := ""
	if path != "" {
		name = OriginDir(r.Origin) + path
	}
	r.Faults = append(r.Faults, Fault{Origin: r.Origin, Index: index, Name: name, Code: code, What: fmt.Sprintf(format, args...)})
}

func (r *excerptReader) read() {
	var checkpoints []Checkpoint
	for _, size := range r.log.listed.checkpoints {
		c, err := fetchCheckpoint(r.ctx, r.src, r.conf, r.Origin, size)
		if err != nil {
			r.fault(FaultSignature, size, checkpointPath(size), "%v", err)
			continue
		}
		checkpoints = append(checkpoints, c)
		r.Top, r.log.top = c, c
	}
	if r.Top.Size == 0 {
		r.fault(FaultSignature, -1, "", "it has no checkpoint that a trusted key signed: none of its entries is proven")
		return
	}
	bundles := r.strange()
	if !r.hashes() {
		return
	}
	for _, c := range checkpoints {
		if !r.Contains(c) {
			r.fault(FaultRoot, c.Size, checkpointPath(c.Size), "the hashes do not give its root")
		}
	}
	r.entries(bundles)
}

// strange names what an excerpt does not hold, and returns the numbers of the
// bundles that it does.
func (r *excerptReader) strange() (bundles []int64) {
	for _, name := range r.log.strange {
		r.fault(FaultStrange, -1, name[len(OriginDir(r.Origin)):], "not an object of a ledger")
	}
	for _, t := range r.log.tiles {
		fits := t.N*width < r.Top.Size && t.W == int(min(width, r.Top.Size-t.N*width))
		switch {
		case fits && t.L == entriesLevel:
			bundles = append(bundles, t.N)
		case !fits || t.L != 0:
			r.fault(FaultStrange, -1, tilePath(t), "not an object of this excerpt")
		}
	}
	slices.Sort(bundles)
	return bundles
}

// hashes reads the hashes of all entries; where one is missing there are none.
func (r *excerptReader) hashes() (ok bool) {
	defer func() {
		if !ok {
			r.log.hashes = nil
		}
	}()
	for n := int64(0); n*width < r.Top.Size; n++ {
		t := tlog.Tile{H: height, N: n, W: int(min(width, r.Top.Size-n*width))}
		body, err := r.src.Fetch(r.ctx, OriginDir(r.Origin)+tilePath(t), func(_ string, body []byte) error {
			if len(body) != t.W*tlog.HashSize {
				return fmt.Errorf("%d bytes, want %d", len(body), t.W*tlog.HashSize)
			}
			return nil
		})
		if err != nil {
			r.fault(FaultGap, n*width, tilePath(t), "the hashes of its entries are missing: %v", err)
			return false
		}
		for i := range t.W {
			stored, err := tlog.StoredHashesForRecordHash(n*width+int64(i), tlog.Hash(body[i*tlog.HashSize:]), &r.log)
			if err != nil {
				r.fault(FaultGap, n*width+int64(i), tilePath(t), "%v", err)
				return false
			}
			r.log.hashes = append(r.log.hashes, stored...)
		}
	}
	return true
}

// entries reads the bundles from the first that is there to the end.
func (r *excerptReader) entries(bundles []int64) {
	if len(bundles) == 0 {
		r.From = r.Top.Size
		r.fault(FaultGap, r.Top.Size-1, "", "none of its entries is there")
		return
	}
	r.From = bundles[0] * width
	for n := bundles[0]; n*width < r.Top.Size; n++ {
		if !slices.Contains(bundles, n) {
			r.fault(FaultGap, n*width, "", "the entries from here to %d are missing", min((n+1)*width, r.Top.Size)-1)
			continue
		}
		r.bundle(n)
	}
}

func (r *excerptReader) bundle(n int64) {
	t := bundleOf(n, int(min(width, r.Top.Size-n*width)))
	var leaves [][]byte
	_, err := r.src.Fetch(r.ctx, OriginDir(r.Origin)+tilePath(t), func(_ string, body []byte) (err error) {
		leaves, err = decodeBundle(body, t.W)
		return err
	})
	for i, leaf := range leaves {
		index := n*width + int64(i)
		if tlog.RecordHash(leaf) != r.log.hashes[tlog.StoredHashIndex(0, index)] {
			r.fault(FaultEntry, index, tilePath(t), "the entry is not the one that was hashed")
			continue
		}
		rec, err := decodeRecord(r.Origin, index, leaf)
		if err != nil {
			r.fault(FaultEntry, index, tilePath(t), "%v", err)
			continue
		}
		r.Records = append(r.Records, rec)
	}
	if err != nil {
		r.fault(FaultEntry, n*width+int64(min(len(leaves), t.W-1)), tilePath(t), "%v", err)
	}
}

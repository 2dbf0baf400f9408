package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Object is one object of a log and the bytes that it must have.
type Object struct {
	Name   string // in the repository
	Size   int64
	SHA256 string // hex
}

// Objects returns the objects of every log that the largest checkpoint of a
// trusted key proves: each that some zone shows and each that the log needs. Their
// bytes follow from the entries, whichever zone has a good copy of those. The
// faults are logs and checkpoints of which no zone has one.
func Objects(ctx context.Context, src Source, trust seal.Trust, repository string) (out []Object, faults []string, err error) {
	names, err := src.List(ctx, dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list the ledger's objects: %w", err)
	}
	for _, o := range origins(names) {
		s := &sound{verified: verified{listed: o, bundles: map[int64][]tlog.Tile{}}, src: src}
		err := s.checkpoints(ctx, Config{Repository: repository, Trust: trust})
		if err == nil {
			err = s.entries(ctx)
		}
		if err == nil {
			err = s.tiles()
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if err != nil {
			s.faults = append(s.faults, fmt.Sprintf("ledger %s: no zone has what proves it: %v", o.name, err))
		}
		out, faults = append(out, s.objects...), append(faults, s.faults...)
	}
	return out, faults, nil
}

// sound is one log as it should be.
type sound struct {
	verified
	src     Source
	objects []Object
	faults  []string
}

func (s *sound) add(path string, body []byte) {
	sum := sha256.Sum256(body)
	s.objects = append(s.objects, Object{OriginDir(s.name) + path, int64(len(body)), hex.EncodeToString(sum[:])})
}

func (s *sound) checkpoints(ctx context.Context, conf Config) error {
	for _, size := range s.listed.checkpoints {
		c, err := fetchCheckpoint(ctx, s.src, conf, s.name, size)
		if err != nil {
			s.faults = append(s.faults, fmt.Sprintf("%s%s: %v", OriginDir(s.name), checkpointPath(size), err))
			continue
		}
		s.top = c
		s.add(checkpointPath(size), c.Signed)
	}
	if s.top.Size == 0 {
		return errors.New("it has no checkpoint that a trusted key signed")
	}
	return nil
}

func (s *sound) entries(ctx context.Context) error {
	for _, t := range s.listed.tiles {
		if t.L == entriesLevel && t.N*width+int64(t.W) <= s.top.Size {
			s.bundles[t.N] = append(s.bundles[t.N], t)
		}
	}
	hashes := provenBy(ctx, s.src, s.top)
	for n := int64(0); n*width < s.top.Size; n++ {
		leaves, err := readBundle(ctx, s.src, s.top, n, hashes)
		if err != nil {
			return err
		}
		for i, leaf := range leaves {
			stored, err := tlog.StoredHashesForRecordHash(n*width+int64(i), tlog.RecordHash(leaf), s)
			if err != nil {
				return err
			}
			s.hashes = append(s.hashes, stored...)
		}
		for _, t := range s.bundles[n] {
			s.add(tilePath(t), encodeBundle(leaves[:t.W]))
		}
	}
	return nil
}

func (s *sound) tiles() error {
	for _, t := range s.hashTiles() {
		body, err := tlog.ReadTileData(t, s)
		if err != nil {
			return err
		}
		s.add(tilePath(t), body)
	}
	return nil
}

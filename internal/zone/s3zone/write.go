package s3zone

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// The keys of what we note beside an object. The call's is random: it tells our
// own write from another's when the reply was lost and the next try meets it.
const (
	metaSHA256 = "holdfast-sha256"
	metaCall   = "holdfast-call"
)

// conflictTries bounds answers of 409, by which a store says that creations met
// and none is known to have won.
const conflictTries = 5

// Create implements zone.Creator.
func (d *Driver) Create(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	in, err := d.input(name, body, opt)
	if err != nil {
		return err
	}
	in.IfNoneMatch = aws.String("*")
	for try := 1; ; try++ {
		err := d.put(ctx, name, in, body, opt)
		switch code(err) {
		case "PreconditionFailed":
			return d.whose(ctx, name, in.Metadata[metaCall])
		case "ConditionalRequestConflict", "OperationAborted":
			if try < conflictTries {
				continue
			}
		}
		return explain(ctx, err)
	}
}

// whose is nil if the object that stands in the way was made by this call. What does
// not show itself is a delete marker, which some servers count as existing.
func (d *Driver) whose(ctx context.Context, name, call string) error {
	head, err := d.head(ctx, name, "")
	if err = explain(ctx, err); errors.Is(err, fs.ErrNotExist) {
		return fs.ErrExist
	}
	if err != nil {
		return err
	}
	if head.Metadata[metaCall] == call {
		return nil
	}
	return fs.ErrExist
}

// Repair implements zone.Repairer.
func (d *Driver) Repair(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	in, err := d.input(name, body, opt)
	if err != nil {
		return err
	}
	return explain(ctx, d.put(ctx, name, in, body, opt))
}

func (d *Driver) put(ctx context.Context, name string, in *s3.PutObjectInput, body []byte, opt zone.CreateOptions) error {
	client, _, err := d.at(name)
	if err != nil {
		return err
	}
	in.Body = &sending{ctx: ctx, body: bytes.NewReader(body), opt: opt}
	_, err = client.PutObject(ctx, in)
	return err
}

// sending is a body on its way, from its beginning again where it is tried again.
type sending struct {
	ctx  context.Context
	body *bytes.Reader
	opt  zone.CreateOptions
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	if perr := s.opt.Spend(s.ctx, n); perr != nil {
		return 0, perr
	}
	return n, err
}

func (s *sending) Seek(off int64, whence int) (int64, error) { return s.body.Seek(off, whence) }

func (d *Driver) input(name string, body []byte, opt zone.CreateOptions) (*s3.PutObjectInput, error) {
	_, key, err := d.at(name)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(body); sum != opt.SHA256 {
		return nil, fmt.Errorf("%w: the body's is %x, and %x was to be written", zone.ErrDigest, sum, opt.SHA256)
	}
	in := &s3.PutObjectInput{
		Bucket: &d.bucket, Key: key,
		ContentLength:     aws.Int64(int64(len(body))),
		ContentType:       aws.String("application/octet-stream"),
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
		Metadata:          map[string]string{metaSHA256: hex.EncodeToString(opt.SHA256[:]), metaCall: rand.Text()},
	}
	if d.mode != "" && !opt.LockUntil.IsZero() {
		in.ObjectLockMode = d.mode
		in.ObjectLockRetainUntilDate = aws.Time(wholeSecond(opt.LockUntil))
	}
	return in, nil
}

// wholeSecond rounds up: stores keep seconds, and a lock must not end early.
func wholeSecond(t time.Time) time.Time {
	return t.Add(time.Second - 1).Truncate(time.Second).UTC()
}

// ExtendLock implements zone.LockExtender. errors.ErrUnsupported where the
// driver was configured without locks or the bucket has none.
func (d *Driver) ExtendLock(ctx context.Context, name, version string, until time.Time) error {
	if d.mode == "" {
		return fmt.Errorf("lock %s: the zone is configured without object lock: %w", name, errors.ErrUnsupported)
	}
	head, err := d.head(ctx, name, version)
	if err != nil {
		return explain(ctx, err)
	}
	locked, how, err := d.retained(ctx, name, version, head)
	if err != nil {
		return explain(ctx, err)
	}
	until = wholeSecond(until)
	if !until.After(locked) {
		return nil
	}
	mode := types.ObjectLockRetentionMode(d.mode)
	if how == types.ObjectLockModeCompliance {
		mode = types.ObjectLockRetentionModeCompliance // it can be extended, never weakened
	}
	client, key, err := d.at(name)
	if err != nil {
		return err
	}
	of := head.VersionId // of an older version, some stores do not repeat it
	if version != "" {
		of = &version
	}
	_, err = client.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
		Bucket: &d.bucket, Key: key, VersionId: of,
		Retention: &types.ObjectLockRetention{Mode: mode, RetainUntilDate: &until},
	})
	return explain(ctx, err)
}

// RemoveVersion implements zone.Remover. An object without a version id is the
// store's version "null"; a plain DELETE would only hide it beneath a marker
// where versions are kept.
func (d *Driver) RemoveVersion(ctx context.Context, name, version string) error {
	client, key, err := d.at(name)
	if err != nil {
		return err
	}
	if d.remover != nil {
		client = d.remover
	}
	_, err = client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &d.bucket, Key: key, VersionId: versionID(version)})
	switch c := code(err); {
	case err == nil, c == "NoSuchVersion", c == "NoSuchKey", c == "NotFound":
		return nil
	case c == "":
		return explain(ctx, err)
	}
	// Stores say "access denied" both of a lock and of missing rights.
	o, serr := d.Stat(ctx, name, versionOr(version))
	if serr == nil && o.LockedUntil.After(time.Now()) {
		return fmt.Errorf("%w until %s: %s", zone.ErrLocked, o.LockedUntil.Format(time.RFC3339), code(err))
	}
	return explain(ctx, err)
}

func versionID(version string) *string { return aws.String(versionOr(version)) }

func versionOr(version string) string {
	if version == "" {
		return nullVersion
	}
	return version
}

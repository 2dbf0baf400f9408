package s3zone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// nullVersion is S3's name for the version of an object that has none.
const nullVersion = "null"

// Read implements zone.Reader. Where the whole object is read its CRC32C is
// checked at its end (zone.ErrDigest); of a range it cannot be.
func (d *Driver) Read(ctx context.Context, name, version string, off, length int64) (io.ReadCloser, error) {
	client, key, err := d.at(name)
	if err != nil {
		return nil, err
	}
	if length == 0 {
		_, err := d.head(ctx, name, version)
		return http.NoBody, explain(ctx, err)
	}
	in := &s3.GetObjectInput{Bucket: &d.bucket, Key: key, ChecksumMode: types.ChecksumModeEnabled}
	if version != "" {
		in.VersionId = &version
	}
	switch {
	case length > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", off, off+length-1))
	case off > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", off))
	}
	out, err := client.GetObject(ctx, in)
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return http.NoBody, nil // it begins where the object has ended
	}
	if err != nil {
		return nil, explain(ctx, err)
	}
	return &body{ctx: ctx, rc: out.Body}, nil
}

// body gives the errors of a body their meaning.
type body struct {
	ctx context.Context
	rc  io.ReadCloser
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.rc.Read(p)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	if strings.Contains(err.Error(), "checksum did not match") { // the SDK's error has no type
		return n, fmt.Errorf("%w: %w", zone.ErrDigest, err)
	}
	return n, explain(b.ctx, err)
}

func (b *body) Close() error { return b.rc.Close() }

// Stat implements zone.Reader. Latest is told only where no version is named.
func (d *Driver) Stat(ctx context.Context, name, version string) (zone.Object, error) {
	out, err := d.head(ctx, name, version)
	if err != nil {
		return zone.Object{}, explain(ctx, err)
	}
	locked, _, err := d.retained(ctx, name, version, out)
	if err != nil {
		return zone.Object{}, explain(ctx, err)
	}
	return zone.Object{
		Name: name, Size: aws.ToInt64(out.ContentLength), Version: plainVersion(out.VersionId), Latest: version == "",
		Modified: aws.ToTime(out.LastModified), SHA256: out.Metadata[metaSHA256], LockedUntil: locked,
	}, nil
}

// retained is until when a version is locked, and how. Of an older version some
// servers tell that only when they are asked for it.
func (d *Driver) retained(ctx context.Context, name, version string, head *s3.HeadObjectOutput) (time.Time, types.ObjectLockMode, error) {
	until, mode := aws.ToTime(head.ObjectLockRetainUntilDate), head.ObjectLockMode
	if !until.IsZero() || version == "" || version == nullVersion || d.mode == "" {
		return until, mode, nil
	}
	client, key, err := d.at(name)
	if err != nil {
		return until, mode, err
	}
	out, err := client.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &d.bucket, Key: key, VersionId: &version})
	if status(err) >= 400 && status(err) < 500 {
		return until, mode, nil // it has none, or none that we may see
	}
	if err != nil || out.Retention == nil {
		return until, mode, err
	}
	return aws.ToTime(out.Retention.RetainUntilDate), types.ObjectLockMode(out.Retention.Mode), nil
}

func (d *Driver) head(ctx context.Context, name, version string) (*s3.HeadObjectOutput, error) {
	client, key, err := d.at(name)
	if err != nil {
		return nil, err
	}
	in := &s3.HeadObjectInput{Bucket: &d.bucket, Key: key}
	if version != "" {
		in.VersionId = &version
	}
	return client.HeadObject(ctx, in)
}

func plainVersion(id *string) string {
	if v := aws.ToString(id); v != nullVersion {
		return v
	}
	return ""
}

// code is the server's code of an error, "" where no server answered.
func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

func status(err error) int {
	if r, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return r.HTTPStatusCode()
	}
	return 0
}

// explain puts the SDK's errors into the contract's words.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	switch code(err) {
	case "NoSuchKey", "NotFound", "NoSuchVersion", "MethodNotAllowed":
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err) // 405 is a delete marker's answer
	case "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch":
		return fmt.Errorf("%w: %w", zone.ErrDigest, err)
	case "NotImplemented", "InvalidBucketState", "ObjectLockConfigurationNotFoundError", "InvalidBucketObjectLockConfiguration":
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	case "InvalidRequest":
		if said := strings.ReplaceAll(strings.ToLower(err.Error()), " ", ""); strings.Contains(said, "objectlockconfiguration") {
			return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		return err
	case "KeyTooLongError", "EntityTooLarge", "InvalidArgument":
		return err
	}
	return fmt.Errorf("%w: %w", zone.ErrUnreachable, err)
}

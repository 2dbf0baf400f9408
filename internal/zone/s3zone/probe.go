package s3zone

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

var _ zone.Prober = (*Driver)(nil)

// LockMode implements zone.Prober.
func (d *Driver) LockMode() string { return strings.ToLower(string(d.mode)) }

// TryCorrupt implements zone.Prober.
func (d *Driver) TryCorrupt(ctx context.Context, name string, body []byte) error {
	in, err := d.input(name, body, zone.CreateOptions{SHA256: sha256.Sum256(body)})
	if err != nil {
		return err
	}
	in.ChecksumAlgorithm, in.ChecksumCRC32C = "", aws.String("AAAAAA==")
	in.Body = bytes.NewReader(body)
	_, err = d.client.PutObject(ctx, in)
	return explain(ctx, err)
}

// TryShorten implements zone.Prober.
func (d *Driver) TryShorten(ctx context.Context, name, version string, until time.Time) error {
	_, key, err := d.at(name)
	if err != nil {
		return err
	}
	_, err = d.client.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
		Bucket: &d.bucket, Key: key, VersionId: versionID(version),
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionMode(d.mode), RetainUntilDate: aws.Time(wholeSecond(until))},
	})
	return explain(ctx, err)
}

// TryBypass implements zone.Prober.
func (d *Driver) TryBypass(ctx context.Context, name, version string) error {
	_, key, err := d.at(name)
	if err != nil {
		return err
	}
	_, err = d.client.DeleteObject(ctx, &s3.DeleteObjectInput{
		Bucket: &d.bucket, Key: key, VersionId: versionID(version), BypassGovernanceRetention: aws.Bool(true),
	})
	if code(err) != "" {
		return fmt.Errorf("%w: %w", zone.ErrLocked, err)
	}
	return explain(ctx, err)
}

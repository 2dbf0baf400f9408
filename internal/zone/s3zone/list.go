package s3zone

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

func (d *Driver) lister(prefix string) *s3.Client {
	if strings.HasPrefix(prefix, "ledger/") {
		return d.ledger
	}
	return d.client
}

// List implements zone.Lister. A bucket that locks is listed by its versions, and a
// name by its oldest: whoever may write could put delete markers and other bytes on
// top of all there is, and what a reader lists must not change by that.
func (d *Driver) List(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	if d.mode == "" {
		return d.listLatest(ctx, prefix, yield)
	}
	var oldest zone.Object
	err := d.ListVersions(ctx, prefix, func(o zone.Object) error {
		if o.Marker {
			return nil
		}
		before := oldest
		if oldest = o; before.Name == "" || before.Name == o.Name {
			return nil
		}
		return yield(before)
	})
	if err != nil || oldest.Name == "" {
		return err
	}
	return yield(oldest)
}

func (d *Driver) listLatest(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	in := &s3.ListObjectsV2Input{Bucket: &d.bucket, Prefix: aws.String(d.prefix + prefix)}
	for {
		out, err := d.lister(prefix).ListObjectsV2(ctx, in)
		if err != nil {
			return explain(ctx, err)
		}
		for _, o := range out.Contents {
			name, ok := d.name(o.Key)
			if !ok {
				continue
			}
			object := zone.Object{Name: name, Size: aws.ToInt64(o.Size), Latest: true, Modified: aws.ToTime(o.LastModified)}
			if err := yield(object); err != nil {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// ListVersions implements zone.VersionLister.
func (d *Driver) ListVersions(ctx context.Context, prefix string, yield func(zone.Object) error) error {
	in := &s3.ListObjectVersionsInput{Bucket: &d.bucket, Prefix: aws.String(d.prefix + prefix)}
	for {
		out, err := d.lister(prefix).ListObjectVersions(ctx, in)
		if err != nil {
			return explain(ctx, err)
		}
		for _, o := range d.merge(out) {
			if err := yield(o); err != nil {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return nil
		}
		in.KeyMarker, in.VersionIdMarker = out.NextKeyMarker, out.NextVersionIdMarker
	}
}

// merge puts a page's versions and markers, which come apart, into one order.
func (d *Driver) merge(page *s3.ListObjectVersionsOutput) []zone.Object {
	objects := make([]zone.Object, 0, len(page.Versions)+len(page.DeleteMarkers))
	for _, v := range page.Versions {
		if name, ok := d.name(v.Key); ok {
			objects = append(objects, zone.Object{
				Name: name, Size: aws.ToInt64(v.Size), Version: plainVersion(v.VersionId),
				Latest: aws.ToBool(v.IsLatest), Modified: aws.ToTime(v.LastModified),
			})
		}
	}
	for _, m := range page.DeleteMarkers {
		if name, ok := d.name(m.Key); ok {
			objects = append(objects, zone.Object{
				Name: name, Version: plainVersion(m.VersionId), Marker: true,
				Latest: aws.ToBool(m.IsLatest), Modified: aws.ToTime(m.LastModified),
			})
		}
	}
	slices.SortStableFunc(objects, func(a, b zone.Object) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		if a.Latest != b.Latest {
			return cmp.Compare(rank(a.Latest), rank(b.Latest))
		}
		return b.Modified.Compare(a.Modified)
	})
	return objects
}

func rank(latest bool) int {
	if latest {
		return 0
	}
	return 1
}

// name is the object's name of a key; keys that end in a slash are other
// programs' directories.
func (d *Driver) name(key *string) (string, bool) {
	name, ok := strings.CutPrefix(aws.ToString(key), d.prefix)
	return name, ok && name != "" && !strings.HasSuffix(name, "/")
}

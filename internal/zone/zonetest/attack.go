package zonetest

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Vandalise lays other bytes and then a delete marker over a key, as whoever may write
// to a bucket can.
func Vandalise(t testing.TB, s *S3Server, key string) {
	t.Helper()
	cl := s.Client(t)
	if _, err := cl.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.Bucket, Key: &key, Body: strings.NewReader("forged")}); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.Bucket, Key: &key}); err != nil {
		t.Fatal(err)
	}
}

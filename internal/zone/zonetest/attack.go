package zonetest

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/holdfast-dr/holdfast/internal/zone/s3zone"
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

// User makes a key pair of the server that may do nothing but what policies of buckets
// allow it.
func (s *S3Server) User(t testing.TB, name string) s3zone.Keys {
	t.Helper()
	k := s3zone.Keys{AccessKey: name, SecretKey: name + "-secret-key"}
	cmd := exec.CommandContext(t.Context(), s.program, "admin", "--access", s.AccessKey, "--secret", s.SecretKey, "--region", s.Region,
		"--endpoint-url", s.Endpoint, "--allow-insecure", "create-user", "--access", k.AccessKey, "--secret", k.SecretKey, "--role", "user")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make user %s: %v: %s", name, err, out)
	}
	return k
}

// Policy sets the server's own bucket's policy.
func (s *S3Server) Policy(t testing.TB, text string) {
	t.Helper()
	if _, err := s.Client(t).PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &s.Bucket, Policy: &text}); err != nil {
		t.Fatalf("set the policy: %v\n%s", err, text)
	}
}

package s3zone_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

// statements are those of a policy of docs/policies, for one user of one bucket.
func statements(t *testing.T, file, user, bucket, prefix string) (out []map[string]any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "policies", file))
	if err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer("BUCKET", bucket, "PREFIX", prefix).Replace(string(text))
	var policy struct{ Statement []map[string]any }
	if err := json.Unmarshal([]byte(filled), &policy); err != nil {
		t.Fatal(err)
	}
	for _, s := range policy.Statement {
		s["Sid"], s["Principal"] = s["Sid"].(string)+user, map[string]any{"AWS": []string{user}}
		out = append(out, s)
	}
	return out
}

// The policies that the documentation gives are enough for what each pair of credentials
// does, and for nothing more.
func TestWritingNeedsNoRightToDeleteAndDeletingNoRightToWrite(t *testing.T) {
	server := zonetest.StartS3(t, 1)[0]
	writer, deleter := server.User(t, "writer"), server.User(t, "deleter")
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": append(
		statements(t, "write.json", "writer", server.Bucket, "hf"), statements(t, "delete.json", "deleter", server.Bucket, "hf")...)})
	if err != nil {
		t.Fatal(err)
	}
	server.Policy(t, string(policy))
	c := server.Config()
	c.Prefix, c.Credentials = "hf", writer
	alone := zonetest.Dial(t, c)
	c.DeleteCredentials = deleter
	both := zonetest.Dial(t, c)
	z := zonetest.Open(t, alone, "a")
	body := []byte("body")
	put := func(name string, lock time.Time) zone.Object {
		t.Helper()
		if err := z.Create(t.Context(), name, body, zone.CreateOptions{SHA256: sha256.Sum256(body), LockUntil: lock}); err != nil {
			t.Fatal(err)
		}
		o, err := z.Stat(t.Context(), name, "")
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	locked, free := put("clusters/x/locked", time.Now().Add(time.Hour)), put("clusters/x/free", time.Time{})
	if err := z.ExtendLock(t.Context(), locked.Name, locked.Version, time.Now().Add(2*time.Hour)); err != nil {
		t.Errorf("the writer cannot lengthen a lock: %v", err)
	}
	if names, err := zonetest.Names(t.Context(), z, "clusters/"); err != nil || len(names) != 2 {
		t.Errorf("the writer lists %q, %v", names, err)
	}
	if err := alone.RemoveVersion(t.Context(), free.Name, free.Version); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
		t.Errorf("the writer alone removed: %v, want AccessDenied", err)
	}
	if err := both.RemoveVersion(t.Context(), locked.Name, locked.Version); !errors.Is(err, zone.ErrLocked) {
		t.Errorf("the deleter removed what is locked: %v, want ErrLocked", err)
	}
	if err := both.RemoveVersion(t.Context(), free.Name, free.Version); err != nil {
		t.Errorf("with both pairs: %v", err)
	}
	c.Credentials, c.DeleteCredentials = deleter, nil
	if err := zonetest.Dial(t, c).Create(t.Context(), "clusters/x/more", body, zone.CreateOptions{SHA256: sha256.Sum256(body)}); err == nil {
		t.Error("the deleter can write")
	}
	if strings.Contains(fmt.Sprintf("%+v %#v", deleter, deleter), "secret") {
		t.Error("keys print their secret")
	}
}

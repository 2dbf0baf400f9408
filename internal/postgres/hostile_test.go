package postgres_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/holdfast-dr/holdfast/internal/postgres"
)

const num = 150018

// manifestOf writes a backup_manifest that sums itself.
func manifestOf(version, files string) []byte {
	body := fmt.Sprintf("{ \"PostgreSQL-Backup-Manifest-Version\": %s,\n\"Files\": [%s],\n\"WAL-Ranges\": [\n"+
		"{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n", version, files)
	return fmt.Appendf(nil, "%s\"Manifest-Checksum\": \"%x\"}\n", body, sha256.Sum256([]byte(body)))
}

func entry(name string, size int) string {
	return fmt.Sprintf("{ \"Path\": %q, \"Size\": %d, \"Last-Modified\": \"2026-01-02 03:04:05 GMT\" }", name, size)
}

const label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\nSTART TIMELINE: 1\n"

func tarOf(headers ...tar.Header) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		body := []byte(nil)
		if h.Typeflag == tar.TypeReg {
			body = []byte(label)
			h.Size = int64(len(body))
		}
		if err := errors.Join(w.WriteHeader(&h), onlyErr(w.Write(body))); err != nil {
			panic(err)
		}
	}
	w.Close()
	return buf.Bytes()
}

func onlyErr(_ int, err error) error { return err }

func regular(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: time.Unix(1, 0)}
}

func row(values ...string) *pgproto3.DataRow {
	r := &pgproto3.DataRow{}
	for _, v := range values {
		if v == "NULL" {
			r.Values = append(r.Values, nil)
			continue
		}
		r.Values = append(r.Values, []byte(v))
	}
	return r
}

func set(rows ...*pgproto3.DataRow) (out []pgproto3.BackendMessage) {
	out = append(out, &pgproto3.RowDescription{})
	for _, r := range rows {
		out = append(out, r)
	}
	return append(out, &pgproto3.CommandComplete{})
}

func data(kind byte, body []byte) pgproto3.BackendMessage {
	return &pgproto3.CopyData{Data: append([]byte{kind}, body...)}
}

// session is an honest server's whole answer around the messages of one copy.
func session(copied ...pgproto3.BackendMessage) (out []pgproto3.BackendMessage) {
	out = append(out, set(row("0/2000028", "1"))...)
	out = append(out, set(row("NULL", "NULL", "100"))...)
	out = append(out, &pgproto3.CopyOutResponse{})
	out = append(out, copied...)
	out = append(out, &pgproto3.CopyDone{})
	out = append(out, set(row("0/2000100", "1"))...)
	return append(out, &pgproto3.CommandComplete{}, &pgproto3.ReadyForQuery{})
}

func honest(archive, manifest []byte) []pgproto3.BackendMessage {
	return session(data('n', []byte("base.tar\x00\x00")), data('d', archive), data('p', binary.BigEndian.AppendUint64(nil, 10)),
		data('m', nil), data('d', manifest))
}

func read(t testing.TB, said []pgproto3.BackendMessage) (postgres.BaseBackupResult, *folder, error) {
	f := newFolder("")
	r, err := postgres.ReadBackup(num, postgres.BaseBackupOptions{}, f, said...)
	return r, f, err
}

func TestAnHonestAnswerIsTaken(t *testing.T) {
	archive := tarOf(regular("backup_label"), tar.Header{Typeflag: tar.TypeDir, Name: "base/", Mode: 0o700}, regular("base/1"))
	for name, a := range map[string][]byte{
		"with the two blocks of zeros, as 18 sends": archive,
		"without them, as older servers":            archive[:len(archive)-1024],
		"with more zeros than needed":               append(append([]byte(nil), archive...), make([]byte, 4096)...),
	} {
		r, f, err := read(t, honest(a, manifestOf("1", entry("base/1", len(label)))))
		if err != nil || len(f.sums) != 1 || f.size["base/1"] != int64(len(label)) || string(r.Label) != label || len(r.Dirs) != 1 || r.End != 0x2000100 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// C-73
func TestNoPathLeavesTheDataDirectory(t *testing.T) {
	for _, name := range []string{
		"../evil", "/etc/passwd", "base/../../evil", "base/../global/1", "..", "a/./b", "a//b", "back\\slash", "pg_tblspc/../../x",
	} {
		_, f, err := read(t, honest(tarOf(regular("backup_label"), regular(name)), manifestOf("1", "")))
		if err == nil || !strings.Contains(err.Error(), "not a path inside") || len(f.sums) > 0 {
			t.Errorf("%q was taken: %v", name, err)
		}
	}
	for kind, h := range map[string]tar.Header{
		"link":      {Typeflag: tar.TypeSymlink, Name: "base/x", Linkname: "/etc"},
		"hard link": {Typeflag: tar.TypeLink, Name: "base/x", Linkname: "/etc/passwd"},
		"device":    {Typeflag: tar.TypeChar, Name: "base/x"},
		"pipe":      {Typeflag: tar.TypeFifo, Name: "base/x"},
	} {
		if _, _, err := read(t, honest(tarOf(h), manifestOf("1", ""))); err == nil {
			t.Errorf("a %s was taken", kind)
		}
	}
	for _, name := range []string{"../1.tar", "0.tar", "x.tar", "1.tar.gz", "", "99999999999.tar"} {
		said := session(data('n', []byte(name+"\x00/x\x00")), data('d', tarOf(regular("backup_label"))))
		if _, _, err := read(t, said); err == nil {
			t.Errorf("an archive named %q was taken", name)
		}
	}
}

// C-24, C-26: what is cut short, repeated, missing or out of place is no backup.
func TestABrokenAnswerIsNoBackup(t *testing.T) {
	whole := tarOf(regular("backup_label"), regular("base/1"))
	m := manifestOf("1", entry("base/1", len(label)))
	n := data('n', []byte("base.tar\x00\x00"))
	bad := map[string][]pgproto3.BackendMessage{
		"archive cut in a file":        honest(whole[:512+512+512+20], m),
		"archive cut in a header":      honest(whole[:1024+100], m),
		"bytes after the archive":      honest(append(append([]byte(nil), whole...), 1), m),
		"a file twice":                 honest(tarOf(regular("backup_label"), regular("base/1"), regular("base/1")), m),
		"no label":                     honest(tarOf(regular("base/1")), m),
		"a file of the manifest":       honest(tarOf(regular("backup_label")), m),
		"no manifest":                  session(n, data('d', whole)),
		"manifest cut":                 honest(whole, m[:len(m)-60]),
		"manifest changed":             honest(whole, bytes.Replace(m, []byte("base/1"), []byte("base/2"), 1)),
		"manifest too large":           honest(whole, make([]byte, 1<<20+1)),
		"two manifests":                session(n, data('d', whole), data('m', nil), data('d', m), data('m', nil), data('d', m)),
		"data before an archive":       session(data('d', whole)),
		"an unknown message":           session(n, data('x', nil)),
		"an empty message":             session(n, &pgproto3.CopyData{}),
		"archive without an end":       session(data('n', []byte("base.tar"))),
		"a short progress":             session(n, data('p', []byte{1})),
		"a message that is no copy":    session(n, &pgproto3.ReadyForQuery{}),
		"an error in the midst":        session(n, data('d', whole), &pgproto3.ErrorResponse{Code: "XX001"}),
		"nothing":                      nil,
		"no start":                     set(),
		"a start that is no LSN":       set(row("x", "1")),
		"timeline 0":                   set(row("0/1", "0")),
		"tablespace of one column":     append(set(row("0/1", "1")), set(row("1"))...),
		"tablespace with a strange id": append(set(row("0/1", "1")), set(row("x", "/y", "1"))...),
	}
	for name, said := range bad {
		if r, _, err := read(t, said); err == nil {
			t.Errorf("%s: taken as %+v", name, r)
		}
	}
	for cut := range len(honest(whole, m)) {
		if _, _, err := read(t, honest(whole, m)[:cut]); err == nil {
			t.Errorf("an answer that ends after %d messages was taken", cut)
		}
	}
}

// C-26: what the server summed up is what must have come.
func TestAFileThatArrivedOtherThanItWasSentIsNoBackup(t *testing.T) {
	archive := tarOf(regular("backup_label"), regular("base/1"))
	var want postgres.ManifestFile
	want.CRC32C(crc32.Checksum([]byte(label), crc32.MakeTable(crc32.Castagnoli)))
	summed := func(sum string) []byte {
		e := strings.TrimSuffix(entry("base/1", len(label)), " }")
		return manifestOf("1", e+fmt.Sprintf(`, "Checksum-Algorithm": "CRC32C", "Checksum": %q }`, sum))
	}
	if _, _, err := read(t, honest(archive, summed(want.Checksum))); err != nil {
		t.Error(err)
	}
	if _, _, err := read(t, honest(archive, summed("00000000"))); err == nil || !strings.Contains(err.Error(), "base/1 did not arrive as the server sent it") {
		t.Error(err)
	}
	if _, _, err := read(t, honest(archive, manifestOf("1", entry("base/2", 1)))); err == nil || !strings.Contains(err.Error(), "did not send it") {
		t.Error(err)
	}
}

// C-24: the form of 13 and 14, one plain copy for each archive and the manifest.
func TestTheOldFormOfTheAnswerIsTaken(t *testing.T) {
	plain := func(body []byte) []pgproto3.BackendMessage {
		half := len(body) / 2
		return []pgproto3.BackendMessage{
			&pgproto3.CopyOutResponse{}, &pgproto3.CopyData{Data: body[:half]},
			&pgproto3.NoticeResponse{}, &pgproto3.CopyData{Data: body[half:]}, &pgproto3.CopyDone{},
		}
	}
	said := append(set(row("0/2000028", "1")), set(row("16400", "/away", "7"), row("NULL", "NULL", "100"))...)
	said = append(said, plain(tarOf(regular("PG_14_202107181/5/1")))...)
	base := tarOf(regular("backup_label"), tar.Header{Typeflag: tar.TypeSymlink, Name: "pg_tblspc/16400", Linkname: "/away"}, regular("PG_VERSION"))
	said = append(said, plain(base[:len(base)-1024])...)
	said = append(said, plain(manifestOf("1", entry("PG_VERSION", len(label))+","+entry("pg_tblspc/16400/PG_14_202107181/5/1", len(label))))...)
	said = append(said, set(row("0/2000100", "1"))...)
	said = append(said, &pgproto3.ReadyForQuery{})
	f := newFolder("")
	var done int64
	r, err := postgres.ReadBackup(140000, postgres.BaseBackupOptions{Progress: func(d, _ int64) { done = d }}, f, said...)
	if err != nil || f.size["pg_tblspc/16400/PG_14_202107181/5/1"] == 0 || len(f.size) != 2 || string(r.TablespaceMap) != "16400 /away\n" || done != r.Bytes {
		t.Errorf("%v %+v %v", f.size, r, err)
	}
}

// C-26
func TestManifestForms(t *testing.T) {
	m, err := postgres.ParseManifest(manifestOf("2,\n\"System-Identifier\": 7300000000000000001",
		`{ "Encoded-Path": "62617365ff", "Size": 3, "Last-Modified": "2026-01-02 03:04:05 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "0a0b0c0d" }`))
	if err != nil || m.Version != 2 || m.SystemID != 7300000000000000001 || len(m.Files) != 1 || m.Files[0].Path != "base\xff" ||
		!m.Files[0].Modified.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) || m.Files[0].Checksum != "0a0b0c0d" ||
		len(m.WALRanges) != 1 || m.WALRanges[0].End != 0x2000100 {
		t.Errorf("%+v, %v", m, err)
	}
	for name, bad := range map[string][]byte{
		"version 3":       manifestOf("3", ""),
		"neither path":    manifestOf("1", `{ "Size": 3, "Last-Modified": "2026-01-02 03:04:05 GMT" }`),
		"path not hex":    manifestOf("1", `{ "Encoded-Path": "zz", "Size": 3, "Last-Modified": "2026-01-02 03:04:05 GMT" }`),
		"negative size":   manifestOf("1", entry("x", -1)),
		"no time":         manifestOf("1", `{ "Path": "x", "Size": 3, "Last-Modified": "" }`),
		"not JSON":        []byte("x\n\"Manifest-Checksum\": \"\"}"),
		"range backwards": bytes.Replace(manifestOf("1", ""), []byte("0/2000100"), []byte("0/1000000"), 1),
		"empty":           nil,
	} {
		if _, err := postgres.ParseManifest(bad); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(manifestOf("1", entry("base/1", 8192)))
	f.Add(manifestOf("2,\n\"System-Identifier\": 1", ""))
	f.Add([]byte("{\n\"Manifest-Checksum\": \"\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := postgres.ParseManifest(data); err == nil && m.Version != 1 && m.Version != 2 {
			t.Fatal(m.Version)
		}
	})
}

// FuzzBaseBackup sends any bytes as the messages of a copy: each message is a
// length byte (times eight) and its body. No file may leave the data directory,
// and what is accepted has a label.
func FuzzBaseBackup(f *testing.F) {
	frame := func(messages ...pgproto3.BackendMessage) (out []byte) {
		for _, m := range messages {
			d := m.(*pgproto3.CopyData).Data
			for first := true; first || len(d) > 0; first = false {
				n := min(len(d), 2040)
				part := append([]byte(nil), d[:n]...)
				d = d[n:]
				for len(part)%8 != 0 {
					part = append(part, 0)
				}
				out = append(append(out, byte(len(part)/8)), part...)
				if len(d) > 0 {
					d = append([]byte{'d'}, d...)
				}
			}
		}
		return out
	}
	f.Add(frame(data('n', []byte("base.tar\x00\x00")), data('d', tarOf(regular("backup_label"), regular("base/1")))))
	f.Add(frame(data('n', []byte("16400.tar\x00/x\x00")), data('m', nil), data('d', manifestOf("1", ""))))
	f.Add([]byte{1, 'd', 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		var copied []pgproto3.BackendMessage
		for len(in) > 0 {
			n := min(int(in[0])*8, len(in)-1)
			copied = append(copied, &pgproto3.CopyData{Data: in[1 : 1+n]})
			in = in[1+n:]
		}
		r, err := postgres.ReadBackup(num, postgres.BaseBackupOptions{}, localOnly{t}, session(copied...)...)
		if err == nil && len(r.Label) == 0 {
			t.Fatal("a backup without a label was taken")
		}
		for _, d := range r.Dirs {
			if !filepath.IsLocal(d.Path) {
				t.Fatalf("directory %q", d.Path)
			}
		}
	})
}

type localOnly struct{ t *testing.T }

func (l localOnly) File(_ context.Context, h postgres.FileHeader, r io.Reader) error {
	if !filepath.IsLocal(h.Path) || h.Size < 0 || h.Mode&^0o777 != 0 {
		l.t.Fatalf("%+v", h)
	}
	n, err := io.Copy(io.Discard, r)
	if err == nil && n != h.Size {
		l.t.Fatalf("%s: %d bytes of %d without an error", h.Path, n, h.Size)
	}
	return err
}

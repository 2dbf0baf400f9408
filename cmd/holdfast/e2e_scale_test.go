package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// scale is how large the cluster of the test is. HOLDFAST_SCALE=full, which
// `make soak` sets, takes the sizes that stand for a million relations and 2 TB.
type scale struct {
	files     int // relations of one page
	gigabytes int // of one relation, in files of 1 GB that are sparse
	limit     time.Duration
}

const (
	memoryLimit = 256 << 20 // limits.memory
	memorySlack = 64 << 20  // what the program takes besides: its code, stacks, the collector's margin
)

func scaleOf() scale {
	if os.Getenv("HOLDFAST_SCALE") == "full" {
		return scale{300_000, 2048, 2 * time.Hour}
	}
	return scale{30_000, 64, 5 * time.Minute}
}

// C-16, the 12th and the 20th of the tests: memory does not grow with the number of
// relations or their size, and all of them come back.
func TestT12AndT20ManyRelationsAndLargeOnesFitTheMemoryLimit(t *testing.T) {
	s := scaleOf()
	pg := pgtest.Create(t)
	dir := crowd(t, pg, s)
	pg.Start()
	r := newRig(t, pg, false)
	r.cluster += fmt.Sprintf("    data_directory: %q\n", pg.DataDir)
	r.configure()
	r.limit("db")
	r.limit("drill")

	var first, second snapshotDoc
	r.within(s, &first, "db", "snapshot", "take", "cms")
	if first.Suspect || first.RawBytes < int64(s.gigabytes)<<30 {
		t.Errorf("the first snapshot: %+v", first)
	}
	r.within(s, &second, "db", "snapshot", "take", "cms")
	if second.NewBytes > first.NewBytes/2 {
		t.Errorf("nothing changed, and the second snapshot made %s where the first made %s", size(second.NewBytes), size(first.NewBytes))
	}
	var verified snapshot.VerifyReport
	r.within(s, &verified, "drill", "snapshot", "verify", "--deep", "--identity", r.path("drill/data.key"), second.ID)
	if d := verified.Deep; !verified.OK() || d == nil || d.Pages.Checked < int64(s.files+s.gigabytes*page.SegmentBlocks) {
		t.Errorf("verified: %+v, %+v", verified, d)
	}
	to := r.path("restored")
	var restored restoreDoc
	r.within(s, &restored, "drill", "restore", "run", "cms", "--to", to, "--identity", r.path("drill/data.key"), "--binaries", pg.BinDir())
	if !restored.Complete {
		t.Errorf("restored: %+v", restored)
	}
	compareCrowd(t, filepath.Join(pg.DataDir, dir), filepath.Join(to, dir), s)
	r.daemonWithin(s)
}

// daemonWithin holds a daemon's memory to the limit while it archives what the server
// writes and takes a snapshot.
func (r *rig) daemonWithin(s scale) {
	r.t.Helper()
	daemon := r.daemon("db")
	r.pg.Exec("CREATE TABLE written (a text)")
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range 10 {
			r.pg.Exec("INSERT INTO written SELECT repeat(md5(g::text), 16) FROM generate_series(1, 20000) g")
		}
	}()
	var third snapshotDoc
	r.within(s, &third, "db", "snapshot", "take", "cms")
	<-written
	r.archived("a", "b", "c")
	peak, ok := residentPeak(daemon.cmd.Process.Pid)
	r.t.Logf("the daemon took at most %s of memory", size(peak))
	if !ok || third.Suspect || peak > memoryLimit+memorySlack {
		r.t.Errorf("the daemon took %s of memory for %+v, limits.memory is %s", size(peak), third, size(memoryLimit))
	}
	daemon.stop()
}

// firstNode is where the numbers of the files begin; no catalogue knows them, and a
// copy asks none.
const firstNode = 10_000_000

// crowd puts files into a stopped cluster and returns their directory in it.
func crowd(t *testing.T, pg *pgtest.Cluster, s scale) string {
	t.Helper()
	var dir string
	for _, d := range []string{"base/5", "base/1"} {
		if _, err := os.Stat(filepath.Join(pg.DataDir, d)); err == nil {
			dir = d
			break
		}
	}
	root := filepath.Join(pg.DataDir, dir)
	for i := range s.files {
		if err := os.WriteFile(filepath.Join(root, strconv.Itoa(firstNode+i)), crowdPage(i, 0), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for seg := range s.gigabytes {
		if err := sparse(filepath.Join(root, largeName(seg)), seg); err != nil {
			t.Fatal(err)
		}
	}
	if err := pgtest.Own(root); err != nil {
		t.Fatal(err)
	}
	return dir
}

func largeName(seg int) string {
	if seg == 0 {
		return strconv.Itoa(firstNode - 1)
	}
	return fmt.Sprintf("%d.%d", firstNode-1, seg)
}

// farPages is how far apart the pages of the large relation are that hold anything.
const farPages = 64 << 20

// sparse makes one gigabyte of a relation.
func sparse(path string, seg int) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for at := int64(0); at < 1<<30; at += farPages {
		block := uint32(seg)*page.SegmentBlocks + uint32(at/page.Size)
		if _, err := f.WriteAt(crowdPage(seg, block), at); err != nil {
			return err
		}
	}
	return f.Truncate(1 << 30)
}

// crowdPage is a page that is like no other, with its checksum.
func crowdPage(n int, block uint32) []byte {
	p := make([]byte, page.Size)
	binary.LittleEndian.PutUint16(p[12:], page.Size-64) // pd_lower: no hole that may be zeroed
	binary.LittleEndian.PutUint16(p[14:], page.Size-64) // pd_upper
	copy(p[4096:], fmt.Sprintf("page %d of relation %d", block, n))
	binary.LittleEndian.PutUint16(p[8:], page.Checksum(p, block))
	return p
}

// compareCrowd compares every hundredth small file and all that the large one holds.
func compareCrowd(t *testing.T, want, got string, s scale) {
	t.Helper()
	for i := 0; i < s.files; i += 100 {
		name := strconv.Itoa(firstNode + i)
		a, b := readFile(t, filepath.Join(want, name)), readFile(t, filepath.Join(got, name))
		if !bytes.Equal(a, b) {
			t.Fatalf("%s came back as other bytes", name)
		}
	}
	entries, err := os.ReadDir(got)
	if err != nil || len(entries) < s.files+s.gigabytes {
		t.Errorf("%d files came back, want more than %d (%v)", len(entries), s.files+s.gigabytes, err)
	}
	for seg := range s.gigabytes {
		name := filepath.Join(got, largeName(seg))
		info, err := os.Stat(name)
		if err != nil || info.Size() != 1<<30 {
			t.Fatalf("%s: %v, %v", name, info, err)
		}
		if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 64<<20 {
			t.Errorf("%s takes %s of disk: its holes were written", name, size(used))
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < 1<<30; at += farPages {
			p := make([]byte, page.Size)
			if _, err := f.ReadAt(p, at); err != nil || !bytes.Equal(p, crowdPage(seg, uint32(seg)*page.SegmentBlocks+uint32(at/page.Size))) {
				t.Fatalf("%s: block %d came back as other bytes (%v)", name, at/page.Size, err)
			}
		}
		f.Close()
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// limit gives a configured node its memory.
func (r *rig) limit(node string) {
	r.t.Helper()
	name := node + "/holdfast.yaml"
	text := string(readFile(r.t, r.path(name)))
	r.write(name, strings.Replace(text, "hf.sock}", fmt.Sprintf("hf.sock, limits: {memory: %dMiB}}", memoryLimit>>20), 1))
}

// within runs the program in a process of its own, reads the document it prints,
// and holds its memory to the limit.
func (r *rig) within(s scale, doc any, node string, args ...string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), s.limit)
	defer cancel()
	what := strings.Join(args[:2], " ")
	cmd := r.command(ctx, node, append([]string{"--output", "json", "--quiet"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	peak, err := watchPeak(cmd.Process.Pid, ended)
	if err != nil {
		r.t.Fatalf("holdfast %s: %v\n%s%s", what, err, out.String(), errs.String())
	}
	if err := json.Unmarshal(out.Bytes(), doc); err != nil {
		r.t.Fatalf("holdfast %s: %v\n%s", what, err, out.String())
	}
	r.t.Logf("%s: %d files and %d GB took %s and at most %s of memory", what, s.files, s.gigabytes, time.Since(begun).Round(time.Millisecond), size(peak))
	if peak > memoryLimit+memorySlack {
		r.t.Errorf("%s took %s of memory, limits.memory is %s", what, size(peak), size(memoryLimit))
	}
}

// watchPeak follows the largest resident set of a process until it ended. The
// kernel keeps the peak; only what is reached in the last moments can be missed.
func watchPeak(pid int, ended <-chan error) (peak int64, err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return peak, err
		case <-tick.C:
			if now, ok := residentPeak(pid); ok {
				peak = max(peak, now)
			}
		}
	}
}

func residentPeak(pid int) (int64, bool) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			return kib << 10, err == nil
		}
	}
	return 0, false
}

//go:build linux && amd64

package durabletest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/durable/durabletest"
)

const helperEnv = "HOLDFAST_DURABLE_HELPER"

var (
	before = bytes.Repeat([]byte("old!"), 3000)
	after  = bytes.Repeat([]byte("the new"), 5000)
)

// operations are what a helper process does to the file f of a directory, in
// which setup has put before where old is set.
var operations = map[string]struct {
	old bool
	act func(f string) error
}{
	"WriteFile":    {true, func(f string) error { return durable.WriteFile(f, after, 0o600) }},
	"WriteNewFile": {false, func(f string) error { return durable.WriteFile(f, after, 0o600) }},
	"Create":       {false, func(f string) error { return durable.Create(f, after, 0o600) }},
	"MkdirAll":     {false, func(f string) error { return durable.MkdirAll(filepath.Join(f, "a", "b"), 0o700) }},
	"Remove":       {true, durable.Remove},
}

func TestMain(m *testing.M) {
	if what, f, ok := strings.Cut(os.Getenv(helperEnv), " "); ok {
		if err := help(what, f); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func help(what, f string) error {
	if op, ok := operations[what]; ok {
		return op.act(f)
	}
	l, err := durable.OpenLog(f, func([]byte) error { return nil })
	if err != nil {
		return err
	}
	switch what {
	case "Append":
		return errors.Join(l.Append(after, []byte("second of the batch")), l.Close())
	case "Rewrite":
		return errors.Join(l.Rewrite([][]byte{after, after}), l.Append([]byte("last")), l.Close())
	}
	return errors.New("no such helper")
}

func helper(what string, prepare func(f string) error) func(dir string) (*exec.Cmd, error) {
	return func(dir string) (*exec.Cmd, error) {
		f := filepath.Join(dir, "f")
		if err := prepare(f); err != nil {
			return nil, err
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), helperEnv+"="+what+" "+f, "GORACE=atexit_sleep_ms=0")
		return cmd, nil
	}
}

func temporary(path string) bool { return strings.HasPrefix(filepath.Base(path), durable.TempPrefix) }

// C-36; promise 1
func TestEachStepKilledOrFailedLeavesOldOrNew(t *testing.T) {
	for name, op := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prepare := func(f string) error {
				if !op.old {
					return nil
				}
				return os.WriteFile(f, before, 0o600)
			}
			check := func(dir string, fault durabletest.Fault, out durabletest.Outcome) error {
				return checkFile(filepath.Join(dir, "f"), name, op.old, out.ExitCode == 0)
			}
			steps, err := durabletest.EachStep(t.TempDir, helper(name, prepare), check)
			if err == nil {
				err = durabletest.CheckOrder(steps, temporary)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// checkFile: an acknowledged operation has happened; any other has or has not.
func checkFile(f, what string, old, acked bool) error {
	got, err := os.ReadFile(f)
	isOld := old && bytes.Equal(got, before) || !old && errors.Is(err, fs.ErrNotExist)
	isNew := err == nil && bytes.Equal(got, after)
	switch what {
	case "Remove":
		isNew = errors.Is(err, fs.ErrNotExist)
	case "MkdirAll":
		info, serr := os.Stat(filepath.Join(f, "a", "b"))
		isNew = serr == nil && info.IsDir()
		isOld = !isNew
	}
	if !isNew && (acked || !isOld) {
		return fmt.Errorf("acknowledged %v, file of %d bytes, %w", acked, len(got), err)
	}
	return nil
}

// promise 1
func TestEachStepOfALogKilledOrFailedKeepsWhatWasAcknowledged(t *testing.T) {
	for name, want := range map[string][]string{
		"Append":  {"kept", string(after), "second of the batch"},
		"Rewrite": {string(after), string(after), "last"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prepare := func(f string) error {
				l, err := durable.OpenLog(f, nil)
				if err != nil {
					return err
				}
				return errors.Join(l.Append([]byte("kept")), l.Close())
			}
			check := func(dir string, fault durabletest.Fault, out durabletest.Outcome) error {
				return checkLog(filepath.Join(dir, "f"), want, out.ExitCode == 0)
			}
			steps, err := durabletest.EachStep(t.TempDir, helper(name, prepare), check)
			if err == nil {
				err = durabletest.CheckOrder(steps, temporary)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func checkLog(f string, want []string, acked bool) error {
	var got []string
	l, err := durable.OpenLog(f, func(r []byte) error { got = append(got, string(r)); return nil })
	if err != nil {
		return err
	}
	defer l.Close()
	all := strings.Join(got, "|")
	whole, part := strings.Join(want, "|"), strings.Join(want[:2], "|")
	if all == whole || !acked && (all == "kept" || want[0] != "kept" && all == part) {
		return nil
	}
	return fmt.Errorf("acknowledged %v, replayed %d records of %d bytes", acked, len(got), len(all))
}

func TestCheckOrderSeesWhatAPowerCutWouldLose(t *testing.T) {
	step := func(call, path, to string) durabletest.Step {
		return durabletest.Step{Call: call, Path: path, To: to}
	}
	for name, steps := range map[string][]durabletest.Step{
		"renamed before its bytes were fsynced": {step("write", "/d/.tmp-1", ""), step("rename", "/d/.tmp-1", "/d/f"), step("fsync", "/d", "")},
		"directory not fsynced":                 {step("write", "/d/.tmp-1", ""), step("fsync", "/d/.tmp-1", ""), step("rename", "/d/.tmp-1", "/d/f")},
		"directory fsynced too early":           {step("fsync", "/d", ""), step("link", "/d/.tmp-1", "/d/f")},
		"bytes not fsynced":                     {step("write", "/d/f", "")},
		"parent not fsynced":                    {step("mkdir", "/d/a", ""), step("fsync", "/d/a", "")},
	} {
		if err := durabletest.CheckOrder(steps, temporary); err == nil {
			t.Errorf("%s: not seen", name)
		}
	}
}

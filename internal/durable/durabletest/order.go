//go:build linux && amd64

package durabletest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
)

// CheckOrder says what a power cut after the last step could lose or tear: a
// name given to a file whose bytes were not fsynced, bytes written and not
// fsynced, an entry of a directory that was not fsynced. Names for which
// ignore says so (temporary files) may be lost.
func CheckOrder(steps []Step, ignore func(path string) bool) error {
	dirty := map[string]bool{}  // files with bytes that are not fsynced
	listed := map[string]Step{} // directories with entries that are not fsynced
	entry := func(path string, s Step) {
		if !ignore(path) {
			listed[filepath.Dir(path)] = s
		}
	}
	for _, s := range steps {
		switch s.Call {
		case "write", "truncate":
			dirty[s.Path] = true
		case "fsync":
			delete(dirty, s.Path)
			delete(listed, s.Path)
		case "rename", "link":
			if dirty[s.Path] {
				return fmt.Errorf("%s: its bytes were not fsynced before", s)
			}
			entry(s.To, s)
		case "mkdir", "unlink", "creat":
			entry(s.Path, s)
		}
	}
	for path := range dirty {
		if !ignore(path) && !slices.ContainsFunc(steps, func(s Step) bool { return s.Call == "unlink" && s.Path == path }) {
			return fmt.Errorf("write %s: its bytes were not fsynced in the end", path)
		}
	}
	for dir, s := range listed {
		return fmt.Errorf("%s: %s was not fsynced in the end", s, dir)
	}
	return nil
}

// EachStep runs a helper from a fresh state again and again: once whole, then
// with each of its steps killed and each failed. setup makes the state and
// returns the helper; check looks at what the helper left.
func EachStep(dir func() string, setup func(dir string) (*exec.Cmd, error), check func(dir string, fault Fault, out Outcome) error) ([]Step, error) {
	whole, err := once(dir(), -1, None, setup, check)
	if err != nil {
		return nil, err
	}
	if len(whole.Steps) == 0 {
		return nil, fmt.Errorf("the helper took no step")
	}
	for _, fault := range []Fault{Kill, Fail} {
		for n := range whole.Steps {
			if _, err := once(dir(), n, fault, setup, check); err != nil {
				return nil, err
			}
		}
	}
	return whole.Steps, nil
}

func once(dir string, n int, fault Fault, setup func(string) (*exec.Cmd, error), check func(string, Fault, Outcome) error) (Outcome, error) {
	cmd, err := setup(dir)
	if err != nil {
		return Outcome{}, err
	}
	out, err := Trace(cmd, dir, n, fault)
	if err == nil {
		err = check(dir, fault, out)
	}
	if err != nil {
		return out, fmt.Errorf("fault %s at step %d of %v: %w", fault, n, out.Steps, err)
	}
	return out, nil
}

// String implements fmt.Stringer.
func (f Fault) String() string { return [...]string{"none", "kill", "fail"}[f] }

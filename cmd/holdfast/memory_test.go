package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheControlGroupsMemoryIsTheNearestLimitAbove(t *testing.T) {
	root := t.TempDir()
	for dir, max := range map[string]string{"": "", "system.slice": "1000000\n", "system.slice/holdfast.service": "max\n"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if max != "" {
			if err := os.WriteFile(filepath.Join(root, dir, "memory.max"), []byte(max), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	self := filepath.Join(root, "self")
	for text, want := range map[string]int64{
		"0::/system.slice/holdfast.service\n": 1000000,
		"0::/system.slice\n":                  1000000,
		"0::/\n":                              0,
		"1:memory:/old\n":                     0,
	} {
		if err := os.WriteFile(self, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := groupMemory(self, root); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if got := groupMemory(filepath.Join(root, "missing"), root); got != 0 {
		t.Errorf("without a file: %d, want 0", got)
	}
}

//go:build linux && amd64

package dirzone_test

import (
	"bytes"
	"context"
	"crypto/sha256"
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
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

const helperEnv = "HOLDFAST_DIRZONE_HELPER"

var packBody = bytes.Repeat([]byte("pack"), 10_000)

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperEnv); dir != "" {
		d, err := dirzone.New(dir)
		if err == nil {
			err = d.Create(context.Background(), "a/b/pack.age", packBody, zone.CreateOptions{SHA256: sha256.Sum256(packBody)})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// promise 1; C-36
func TestEachStepOfACreationKilledOrFailedLeavesAllOrNothing(t *testing.T) {
	setup := func(dir string) (*exec.Cmd, error) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), helperEnv+"="+dir, "GORACE=atexit_sleep_ms=0")
		return cmd, nil
	}
	check := func(dir string, _ durabletest.Fault, out durabletest.Outcome) error {
		d, err := dirzone.New(dir)
		if err != nil {
			return err
		}
		got, err := zonetest.Get(t.Context(), d, "a/b/pack.age")
		there := err == nil && bytes.Equal(got, packBody)
		if !there && (out.ExitCode == 0 || !errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("exit %d, %d bytes, %w", out.ExitCode, len(got), err)
		}
		names, err := zonetest.Names(t.Context(), d, "")
		if err != nil || (len(names) == 1) != there || len(names) > 1 {
			return fmt.Errorf("there %v, listed %q, %w", there, names, err)
		}
		err = d.Create(t.Context(), "a/b/pack.age", packBody, zone.CreateOptions{SHA256: sha256.Sum256(packBody)})
		if there != errors.Is(err, fs.ErrExist) || !there && err != nil {
			return fmt.Errorf("there %v, and creating again: %w", there, err)
		}
		return nil
	}
	steps, err := durabletest.EachStep(t.TempDir, setup, check)
	if err == nil {
		err = durabletest.CheckOrder(steps, func(path string) bool {
			return strings.HasPrefix(filepath.Base(path), durable.TempPrefix)
		})
	}
	if err != nil {
		t.Error(err)
	}
}

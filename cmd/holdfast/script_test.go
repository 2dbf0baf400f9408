package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func TestMain(m *testing.M) {
	testscript.Main(tidy{m}, map[string]func(){"holdfast": main})
}

// The scripts are what users type, with what they then read.
//
//	code N holdfast …  runs holdfast and wants that exit code
//	postgres           starts a server, whose connection string is then $PG
//	flip FILE          changes a byte in the middle of a file
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("HOLDFAST_CONFIG", e.WorkDir+"/none.yaml")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": wantCode,
			"flip": flipByte,
			"postgres": func(ts *testscript.TestScript, _ bool, _ []string) {
				c := pgtest.Start(t)
				ts.Setenv("PG", c.DSN("postgres"))
				ts.Setenv("PGBIN", c.BinDir())
			},
		},
	})
}

func wantCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v: %v", args[1:], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v ended with %d, want %d", args[1:], got, want)
	}
}

func flipByte(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.Chmod(path, 0o600))
	ts.Check(os.WriteFile(path, data, 0o600))
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/server"
)

// The exit codes (docs/commands.md).
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
	exitNotHeld = 4
)

// fault is an error with the exit code that it ends a command with, and what to
// do next.
type fault struct {
	exit   int
	err    error
	remedy string
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// Problem is the fault as the API answers it.
func (f *fault) Problem() *server.Problem {
	return server.NewProblem(f.exit, f.err.Error(), f.remedy)
}

// quietly ends a command with an exit code when all was said already.
func quietly(code int) error { return &fault{exit: code, err: silent{code}} }

func usage(format string, args ...any) error {
	return &fault{exit: exitUsage, err: fmt.Errorf(format, args...)}
}

func refused(remedy, format string, args ...any) error {
	return &fault{exit: exitRefused, err: fmt.Errorf(format, args...), remedy: remedy}
}

func notHeld(remedy, format string, args ...any) error {
	return &fault{exit: exitNotHeld, err: fmt.Errorf(format, args...), remedy: remedy}
}

func failed(remedy, format string, args ...any) error {
	return &fault{exit: exitFailed, err: fmt.Errorf(format, args...), remedy: remedy}
}

// codeOf is the exit code that err ends a command with.
func codeOf(err error) int {
	var f *fault
	var p *server.Problem
	var c configs.Faults
	var s silent
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &f):
		return f.exit
	case errors.As(err, &p):
		return p.Exit
	case errors.As(err, &c):
		return exitUsage
	case errors.As(err, &s):
		return s.code
	}
	return exitFailed
}

// explain prints err for a person.
func explain(w io.Writer, err error) {
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(w, "holdfast: interrupted")
		return
	}
	fmt.Fprintf(w, "holdfast: %v\n", err)
	var f *fault
	var p *server.Problem
	remedy := ""
	if errors.As(err, &f) {
		remedy = f.remedy
	} else if errors.As(err, &p) {
		remedy = p.Remedy
	}
	if remedy != "" {
		fmt.Fprintf(w, "  what to do: %s\n", remedy)
	}
}

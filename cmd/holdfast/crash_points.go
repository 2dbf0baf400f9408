//go:build crashpoints

package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-dr/holdfast/internal/zone"
)

// crashes kills this process, as kill -9 does, at the n-th event that matches.
// HOLDFAST_CRASH_AT is "N REGEXP". Events are "before create NAME", "after create
// NAME", the same of repair and remove, once for each zone; and of a job "during
// KIND PROGRESS" and "after KIND". Only the crash test's own build has it.
type crashes struct {
	n    int64
	expr *regexp.Regexp
	seen atomic.Int64
}

var crash = newCrashes(os.Getenv("HOLDFAST_CRASH_AT"))

func newCrashes(spec string) *crashes {
	count, expr, found := strings.Cut(spec, " ")
	n, err := strconv.ParseInt(count, 10, 64)
	if spec != "" && (!found || err != nil) {
		panic(fmt.Sprintf("HOLDFAST_CRASH_AT=%q: want N REGEXP", spec))
	}
	return &crashes{n: n, expr: regexp.MustCompile(expr)}
}

func (c *crashes) pass(event string) {
	if c.n > 0 && c.expr.MatchString(event) && c.seen.Add(1) == c.n {
		fmt.Fprintf(os.Stderr, "crash point: %s\n", event)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nothing happens behind the point
	}
}

func (c *crashes) around(act, name string, do func() error) error {
	c.pass("before " + act + " " + name)
	err := do()
	if err == nil {
		c.pass("after " + act + " " + name)
	}
	return err
}

func crashPoint(event string, progress any) {
	if progress != nil {
		event += fmt.Sprintf(" %+v", progress)
	}
	crash.pass(event)
}

func crashDriver(d zone.Driver) zone.Driver {
	if v, ok := d.(zone.Vanisher); ok {
		return vanishing{fragile{d}, v}
	}
	return fragile{d}
}

// fragile is a zone in which each change is a point to die at.
type fragile struct{ zone.Driver }

// vanishing keeps what a directory says of itself.
type vanishing struct {
	fragile
	zone.Vanisher
}

func (f fragile) Create(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	return crash.around("create", name, func() error { return f.Driver.Create(ctx, name, body, opt) })
}

func (f fragile) Repair(ctx context.Context, name string, body []byte, opt zone.CreateOptions) error {
	return crash.around("repair", name, func() error { return f.Driver.Repair(ctx, name, body, opt) })
}

func (f fragile) RemoveVersion(ctx context.Context, name, version string) error {
	return crash.around("remove", name, func() error { return f.Driver.RemoveVersion(ctx, name, version) })
}

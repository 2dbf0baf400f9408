package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
)

// The levels of a finding.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "FAIL"
)

// finding is one thing that was looked at.
type finding struct {
	Name   string `json:"name"`
	Level  string `json:"level"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

func good(name, format string, args ...any) finding {
	return finding{Name: name, Level: levelOK, Detail: fmt.Sprintf(format, args...)}
}

func warn(name, remedy, format string, args ...any) finding {
	return finding{name, levelWarn, fmt.Sprintf(format, args...), remedy}
}

func bad(name, remedy, format string, args ...any) finding {
	return finding{name, levelFail, fmt.Sprintf(format, args...), remedy}
}

// report is what check prints.
type report struct {
	OK     bool      `json:"ok"`
	Checks []finding `json:"checks"`
}

func newReport(list []finding) report {
	r := report{OK: true, Checks: list}
	for _, f := range list {
		r.OK = r.OK && f.Level != levelFail
	}
	return r
}

func (r report) print(w io.Writer) {
	n := map[string]int{}
	for _, f := range r.Checks {
		n[f.Level]++
		indent := strings.Repeat(" ", 5)
		fmt.Fprintf(w, "%-4s %s: %s\n", f.Level, f.Name, strings.ReplaceAll(f.Detail, "\n", "\n"+indent))
		if f.Remedy != "" && f.Level != levelOK {
			fmt.Fprintf(w, "%swhat to do: %s\n", indent, strings.ReplaceAll(f.Remedy, "\n", "\n"+indent))
		}
	}
	fmt.Fprintf(w, "%d ok, %s, %d failed\n", n[levelOK], count(n[levelWarn], "warning"), n[levelFail])
}

func (e *env) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [CLUSTER]",
		Short: "Look at everything that can be wrong, and say how to mend it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := e.load()
			var faults configs.Faults
			if errors.As(err, &faults) {
				return e.reportFaults(faults)
			}
			if err != nil {
				return err
			}
			only := ""
			if len(args) > 0 {
				only = args[0]
				if _, err := (&world{cfg: cfg}).cluster(only); err != nil {
					return err
				}
			}
			r := e.examine(cmd.Context(), cfg, only, "")
			if err := e.print(r, r.print); err != nil {
				return err
			}
			if !r.OK {
				return quietly(exitNotHeld)
			}
			return nil
		},
	}
}

// reportFaults is check of a configuration that is refused: nothing else can be
// looked at. Where a data identity is all that is wrong, a check did not hold;
// anything else is a fault of the configuration.
func (e *env) reportFaults(faults configs.Faults) error {
	code := exitNotHeld
	var list []finding
	for _, f := range faults {
		name, remedy := "configuration", "correct the line; `holdfast config example` shows every field"
		if strings.Contains(f.Found, "data identity") {
			name, remedy = "data identity", "move the identity to the node that restores, and take it out of this configuration; node.allow_identity: true accepts it (demos, tests, a single machine)"
		} else {
			code = exitUsage
		}
		list = append(list, bad(name, remedy, "%s", f.Error()))
	}
	r := newReport(list)
	if err := e.print(r, r.print); err != nil {
		return err
	}
	return quietly(code)
}

// examine looks at everything, or at one cluster and what it stands on. pending is
// a data identity that init has just made here and told to move away.
func (e *env) examine(ctx context.Context, cfg *configs.Config, only, pending string) report {
	list := []finding{good("configuration", "%s: %s", cfg.Path, summarise(cfg))}
	list = append(list, checkSecrets(cfg)...)
	list = append(list, checkIdentity(cfg, pending)...)
	list = append(list, checkState(cfg)...)
	if pending == "" { // init: nobody has started it yet
		list = append(list, checkDaemon(ctx, cfg)...)
	}
	w, err := openWorld(ctx, cfg, zap.NewNop(), false) // what it would log is found below
	if err != nil {
		list = append(list, bad("repository", remedyOf(err, "see the line above"), "%v", err))
		w = nil
	} else {
		defer w.close()
		list = append(list, checkRepository(ctx, w)...)
		list = append(list, checkHolds(ctx, w, only)...)
	}
	for _, c := range cfg.Clusters {
		if c.Connection == "" || only != "" && c.Name != only {
			continue
		}
		dsn, err := dsnOf(c)
		if err != nil {
			continue // told as a secret that cannot be read
		}
		list = append(list, judgeServer(c, cfg.Node.Name, askServer(ctx, w, c, dsn))...)
	}
	if w != nil {
		list = append(list, checkEnvironments(ctx, w, w.retainedIn(ctx))...)
	}
	return newReport(list)
}

// checkRepository looks at the zones and at what signs and opens.
func checkRepository(ctx context.Context, w *world) []finding {
	list := checkZones(ctx, w)
	list = append(list, checkDigestKeys(ctx, w)...)
	return append(list, checkSigner(w)...)
}

// remedyOf is what an error says to do, or otherwise.
func remedyOf(err error, otherwise string) string {
	var f *fault
	if errors.As(err, &f) && f.remedy != "" {
		return f.remedy
	}
	return otherwise
}

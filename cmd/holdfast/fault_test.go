package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/server"
)

func TestEveryKindOfErrorEndsWithItsOwnExitCode(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"nothing wrong":                   {nil, exitDone},
		"no kind at all":                  {errors.New("the disk is gone"), exitFailed},
		"a fault":                         {&fault{exit: exitRefused, err: errors.New("not empty")}, exitRefused},
		"a fault, wrapped":                {fmt.Errorf("restore: %w", &fault{exit: exitNotHeld, err: errors.New("cut")}), exitNotHeld},
		"what the daemon answered":        {&server.Problem{Exit: exitRefused}, exitRefused},
		"a configuration":                 {configs.Faults{}, exitUsage},
		"an objective missed, all said":   {silent{exitNotHeld}, exitNotHeld},
		"a drill that failed, all said":   {fmt.Errorf("drill: %w", silent{exitNotHeld}), exitNotHeld},
		"a scrub that found bad copies":   {quietly(exitNotHeld), exitNotHeld},
		"a drill that came to no outcome": {silent{exitFailed}, exitFailed},
	} {
		if got := codeOf(c.err); got != c.want {
			t.Errorf("%s: exit %d, want %d", name, got, c.want)
		}
	}
}

package restore_test

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/restore"
)

// processOf describes a child of ours as it would describe itself.
func processOf(t *testing.T, pid int) restore.Process {
	t.Helper()
	p := must[restore.Process](t)(restore.ThisProcess())
	stat := strings.Fields(string(must[[]byte](t)(exec.CommandContext(t.Context(), "cat", "/proc/"+strconv.Itoa(pid)+"/stat").Output())))
	p.PID, p.Started = pid, must[uint64](t)(strconv.ParseUint(stat[21], 10, 64))
	return p
}

func TestAProcessIsEndedAndOneThatHasItsNumberIsNot(t *testing.T) {
	if p := must[restore.Process](t)(restore.ThisProcess()); !p.Alive() {
		t.Errorf("%+v, which asks, is not alive", p)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	is := processOf(t, cmd.Process.Pid)
	other, booted := is, is
	other.Started--
	booted.Boot = "of another boot"
	for _, p := range []restore.Process{other, booted} {
		if err := p.Terminate(t.Context()); !errors.Is(err, restore.ErrGone) || p.Alive() {
			t.Errorf("%+v: %v, want ErrGone", p, err)
		}
	}
	if !is.Alive() {
		t.Fatal("a process that has only the number was ended")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := is.Terminate(ctx); err != nil {
		t.Error(err)
	}
	if is.Alive() { // ended, though nobody has waited for it
		t.Error("it lives on")
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("it ended by %v, not the signal", err)
	}
	if err := is.Terminate(t.Context()); !errors.Is(err, restore.ErrGone) {
		t.Errorf("ended already: %v", err)
	}
}

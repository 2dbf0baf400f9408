package datadir_test

import (
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
)

// A program that a thread started, and that is to die with its parent, dies with that
// thread: whoever gives way must leave its thread alive, and as it was.
func TestGivingWayEndsWithTheWorkAndKillsNoProgramOfTheThread(t *testing.T) {
	for range 50 {
		child := make(chan *exec.Cmd)
		go func() {
			runtime.LockOSThread() // to give way on the thread that starts the program
			defer runtime.UnlockOSThread()
			cmd := exec.Command("sleep", "600")
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Error(err)
			}
			back, err := datadir.GiveWay()
			if err != nil || !datadir.GivesWay() {
				t.Errorf("gives way: %t, %v", datadir.GivesWay(), err)
			}
			back()
			if datadir.GivesWay() {
				t.Error("it gives way for ever")
			}
			child <- cmd
		}()
		cmd := <-child
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var status syscall.WaitStatus
		_ = cmd.Wait()
		status, _ = cmd.ProcessState.Sys().(syscall.WaitStatus)
		if status.Signal() != syscall.SIGTERM {
			t.Fatalf("the program was ended by %v", status.Signal())
		}
	}
}

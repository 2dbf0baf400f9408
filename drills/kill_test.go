package drills_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/restore"
)

// victimEnv names the file that tells a process which drill to run until it is killed.
const victimEnv = "HOLDFAST_TEST_VICTIM"

// order is what the file says.
type order struct {
	Keys       keys
	State, Log string
	Program    string
	Definition drills.Definition
	Slot       drills.Slot
	Phase      string // in which it says "ready" and stands still
}

// victim runs a drill and stands still in a phase of its restore.
func victim(path string) int {
	err := func() error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var o order
		if err := json.Unmarshal(data, &o); err != nil {
			return err
		}
		repo, err := o.Keys.open(o.State)
		if err != nil {
			return err
		}
		log, err := repo.ledger(o.Log)
		if err != nil {
			return err
		}
		_, err = drills.Run(context.Background(), drills.Deps{
			Repo: repo.repo(), Log: log, Program: o.Program, Replay: noTombstones,
			Progress: func(_ string, p restore.Progress) {
				if p.Phase == o.Phase {
					fmt.Println("ready")
					select {}
				}
			},
		}, o.Definition, o.Slot)
		return err
	}()
	fmt.Fprintln(os.Stderr, "not killed:", err)
	return 1
}

// A drill that is killed leaves no server, and what it leaves is removed at the
// next start; its slot is run again with the choice that it had.
func TestAKilledDrillIsSweptAndItsSlotRunsAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.take()
	w.flush()
	for _, phase := range []string{"fetch", "replay"} {
		t.Run(phase, func(t *testing.T) {
			w := *w
			w.t = t
			w.logDir = filepath.Join(t.TempDir(), "ledger")
			o := order{w.keys, filepath.Join(t.TempDir(), "vault"), w.logDir, w.program, w.definition(drills.Random), slot(), phase}
			w.murder(o)
			left := must[[]os.DirEntry](t)(os.ReadDir(w.env.Directory))
			if len(left) != 1 {
				t.Fatalf("the killed drill left %v", left)
			}
			swept := must[[]drills.Swept](t)(drills.Sweep(t.Context(), w.env))
			if len(swept) != 1 || swept[0].Slot != o.Slot.Key || swept[0].Name != "weekly" || !swept[0].Cleanup.Verified || swept[0].Cleanup.Bytes == 0 {
				t.Fatalf("swept: %+v", swept)
			}
			if left := must[[]os.DirEntry](t)(os.ReadDir(w.env.Directory)); len(left) != 0 {
				t.Fatalf("after sweeping: %v", left)
			}
			w.log = must[*ledger.Ledger](t)(w.ledger(w.logDir))
			defer w.log.Close()
			owed := must[[]drills.Owing](t)(drills.Owed(t.Context(), w.log, time.Time{}))
			if len(owed) != 1 || owed[0].Slot != o.Slot.Key {
				t.Fatalf("owed: %+v", owed)
			}
			rec := must[drills.Record](t)(drills.Run(t.Context(), w.deps(), o.Definition, o.Slot))
			w.sound(rec)
			expect(t, rec, drills.Pass, "", "L8")
		})
	}
}

// murder starts a drill in another process and kills it when it says that it is
// in the phase.
func (w *world) murder(o order) {
	t := w.t
	t.Helper()
	path := filepath.Join(t.TempDir(), "order")
	if err := os.WriteFile(path, must[[]byte](t)(json.Marshal(o)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(w.program)
	cmd.Env = append(os.Environ(), victimEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Errorf("the victim said %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
}

// What a drill holds that runs is not swept away under it.
func TestARunningDrillIsNotSwept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill()
	w.take()
	w.flush()
	deps := w.deps()
	tried := 0
	deps.Progress = func(_ string, p restore.Progress) {
		if p.Phase != "replay" || tried > 0 {
			return
		}
		tried++
		if swept, err := drills.Sweep(context.WithoutCancel(t.Context()), w.env); err != nil || len(swept) > 0 {
			t.Errorf("swept %+v, %v", swept, err)
		}
	}
	rec := must[drills.Record](t)(drills.Run(t.Context(), deps, w.definition(drills.Latest), slot()))
	w.sound(rec)
	expect(t, rec, drills.Pass, "", "L8")
	if tried == 0 {
		t.Error("nothing was tried")
	}
}

func TestSweepLeavesWhatIsNotOurs(t *testing.T) {
	env := drills.Environment{Name: "x", Directory: t.TempDir()}
	for _, name := range []string{"drill-notes", "data", "drill-1234567"} {
		if err := os.Mkdir(filepath.Join(env.Directory, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if swept, err := drills.Sweep(t.Context(), env); err != nil || len(swept) > 0 {
		t.Errorf("swept %+v, %v", swept, err)
	}
	if left := must[[]os.DirEntry](t)(os.ReadDir(env.Directory)); len(left) != 3 {
		t.Errorf("left: %v", left)
	}
	env.Directory += "/absent"
	if swept, err := drills.Sweep(t.Context(), env); err != nil || len(swept) > 0 {
		t.Errorf("an environment that was never used: %+v, %v", swept, err)
	}
}

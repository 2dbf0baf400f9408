package ahead

import (
	"cmp"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/internal/thin"
)

// DefaultPrefetch is how many segments are fetched ahead of recovery.
const DefaultPrefetch = 8

// fillWait bounds the wait for a segment that may be on its way into the spool;
// fillLook is how often it is looked for.
const (
	fillWait = 30 * time.Second
	fillLook = 5 * time.Millisecond
)

// Main carries out a command line (without the program's name) if it is recovery's
// fetch of a segment that is in the spool; done says that the program ends with
// code. Otherwise nothing was done.
func Main(args []string) (code int, done bool) {
	c, ok := thin.Parse(args)
	if !ok || c.Verb != "fetch" || len(c.Args) != 2 || c.Flags["room"] != "" {
		return 0, false
	}
	return thin.ExitFetched, spooled(c)
}

// spooled says whether the spool had what recovery asks for.
func spooled(c thin.Command) bool {
	name, dest := c.Args[0], c.Args[1]
	n, err := strconv.Atoi(cmp.Or(c.Flags["prefetch"], strconv.Itoa(DefaultPrefetch)))
	spool, ok := SpoolFor(name, dest)
	if err != nil || !ok || n <= 0 {
		return false
	}
	for until := time.Now().Add(fillWait); ; time.Sleep(fillLook) {
		filling := spool.locked(fillName) // looked at first: what it put is seen below
		left, ok := spool.take(name, dest)
		if ok {
			if left <= n/4 {
				_ = StartFill(c.Flags["config"], c.Flags["cluster"], c.Flags["identity"], n, name, dest) // the next fetch tries again
			}
			return true
		}
		if !filling || time.Now().After(until) {
			return false
		}
	}
}

// StartFill starts a process that keeps the n segments behind the one that recovery has,
// now name, in the spool beside dest, unless there is one, and does not wait for it. It
// ends by itself.
func StartFill(config, cluster, identity string, n int, name, dest string) error {
	if spool, _ := SpoolFor(name, dest); spool.locked(lockName) {
		return nil
	}
	program, err := thin.Whole()
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	args := []string{program, "wal", "fetch", "--fill", "--prefetch", strconv.Itoa(n)}
	for _, f := range [][2]string{{"--config", config}, {"--cluster", cluster}, {"--identity", identity}} {
		if f[1] != "" {
			args = append(args, f[0], f[1])
		}
	}
	p, err := os.StartProcess(program, append(args, name, dest), &os.ProcAttr{
		Files: []*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	return p.Release()
}

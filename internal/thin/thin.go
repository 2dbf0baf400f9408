package thin

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Main carries out a command line (without the program's name) if it is one of
// the two and goes well; done says that the program ends with code. Otherwise
// nothing was said and nothing is lost: the program goes on as for any command.
func Main(args []string, errw io.Writer) (code int, done bool) {
	c, ok := parse(args)
	switch {
	case !ok:
		return 0, false
	case c.verb == "push" && len(c.args) == 1 && c.only("config", "cluster"):
		if code, done = pushed(c); done && code != exitDone {
			fmt.Fprintln(errw, "holdfast: interrupted")
		}
		return code, done
	case c.verb == "fetch" && len(c.args) == 2 && c.flags["room"] == "":
		return ExitFetched, spooled(c)
	case c.verb == "fetch" && len(c.args) == 2:
		code, err := Fetch(c.flags["room"], c.args[0], c.args[1])
		if err != nil {
			fmt.Fprintf(errw, "holdfast: %v\n", err)
		}
		return code, true
	}
	return 0, false
}

// command is `wal push` or `wal fetch` as it was typed.
type command struct {
	verb  string
	args  []string
	flags map[string]string
	given map[string]bool
}

// only says that no other flags were given.
func (c command) only(flags ...string) bool {
	for name := range c.given {
		if !slices.Contains(flags, name) {
			return false
		}
	}
	return true
}

// parse reads what PostgreSQL is configured to run; any other command line, and
// any flag but these, is none of ours.
func parse(args []string) (c command, ok bool) {
	c.flags = map[string]string{
		"config": os.Getenv("HOLDFAST_CONFIG"), "cluster": "", "room": "", "identity": "", "prefetch": strconv.Itoa(DefaultPrefetch),
	}
	c.given = map[string]bool{}
	var words []string
	for i := 0; i < len(args); i++ {
		flag, isFlag := strings.CutPrefix(args[i], "--")
		if !isFlag {
			if strings.HasPrefix(args[i], "-") {
				return c, false
			}
			words = append(words, args[i])
			continue
		}
		name, value, joined := strings.Cut(flag, "=")
		if _, ours := c.flags[name]; !ours || !joined && i+1 == len(args) {
			return c, false
		}
		if !joined {
			i++
			value = args[i]
		}
		c.flags[name], c.given[name] = value, true
	}
	if len(words) < 3 || words[0] != "wal" || words[1] != "push" && words[1] != "fetch" {
		return c, false
	}
	c.verb, c.args = words[1], words[2:]
	return c, true
}

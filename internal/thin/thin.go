package thin

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Main carries out a command line (without the program's name) if it is one of
// the two and goes well; done says that the program ends with code. Otherwise
// nothing was said and nothing is lost: the program goes on as for any command.
func Main(args []string, errw io.Writer) (code int, done bool) {
	c, ok := Parse(args)
	switch {
	case !ok:
		return 0, false
	case c.Verb == "push" && len(c.Args) == 1 && c.only("config", "cluster"):
		return exitDone, pushed(c, errw)
	case c.Verb == "fetch" && len(c.Args) == 2 && c.Flags["room"] != "":
		code, err := Fetch(c.Flags["room"], c.Args[0], c.Args[1])
		if err != nil {
			fmt.Fprintf(errw, "holdfast: %v\n", err)
		}
		return code, true
	}
	return 0, false
}

// Command is `wal push` or `wal fetch` as it was typed.
type Command struct {
	Verb  string // push or fetch
	Args  []string
	Flags map[string]string // all that these commands have, "" without a default
	given []string
}

// only says that no other flags were given.
func (c Command) only(flags ...string) bool {
	for _, name := range c.given {
		if !slices.Contains(flags, name) {
			return false
		}
	}
	return true
}

// Parse reads what PostgreSQL is configured to run; any other command line, and
// any other flag, is none of ours.
func Parse(args []string) (c Command, ok bool) {
	c.Flags = map[string]string{"config": os.Getenv("HOLDFAST_CONFIG"), "cluster": "", "room": "", "identity": "", "prefetch": ""}
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
		if _, ours := c.Flags[name]; !ours || !joined && i+1 == len(args) {
			return c, false
		}
		if !joined {
			i++
			value = args[i]
		}
		c.Flags[name] = value
		c.given = append(c.given, name)
	}
	if len(words) < 3 || words[0] != "wal" || words[1] != "push" && words[1] != "fetch" {
		return c, false
	}
	c.Verb, c.Args = words[1], words[2:]
	return c, true
}

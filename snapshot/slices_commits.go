package snapshot

import (
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// commits looks for what clients wait for in a stream of WAL.
type commits struct {
	r    *walrec.Reader
	last lsn.LSN // end of the newest; all of what came, where the WAL cannot be read
}

// watch returns where the newest commit ends that somebody may wait for; with on
// false none is looked for.
func (a *assembler) watch(on bool) lsn.LSN {
	if !on {
		a.commits = nil
		return 0
	}
	if a.commits == nil {
		cfg := a.cfg
		cfg.Start = a.start
		r, err := walrec.NewReader(cfg)
		if err != nil {
			return a.pos()
		}
		a.commits = &commits{r: r}
		a.commits.take(a.buf)
	}
	if a.commits.r == nil {
		return a.pos()
	}
	return a.commits.last
}

// take reads what follows. WAL that cannot be read is none to keep clients waiting for.
func (c *commits) take(data []byte) {
	if c == nil || c.r == nil {
		return
	}
	err := c.r.Feed(data, func(r *walrec.Record) error {
		if r.Awaited() {
			c.last = r.End
		}
		return nil
	})
	if err != nil {
		c.r = nil
	}
}

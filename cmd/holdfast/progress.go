package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// progress tells how far long work is: a bar with rate and ETA on a terminal, a
// line every ten seconds elsewhere, nothing with --quiet.
type progress struct {
	mu       sync.Mutex
	w        io.Writer // nil: quiet
	terminal bool
	what     string
	began    time.Time
	last     time.Time
	shown    bool
}

func (e *env) progress(what string) *progress {
	p := &progress{what: what, began: time.Now(), last: time.Now()}
	if e.quiet {
		return p
	}
	p.w = e.err
	if f, ok := e.err.(*os.File); ok {
		if st, err := f.Stat(); err == nil {
			p.terminal = st.Mode()&os.ModeCharDevice != 0
		}
	}
	return p
}

// show tells step, done of total bytes.
func (p *progress) show(step string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	every := 10 * time.Second
	if p.terminal {
		every = 100 * time.Millisecond
	}
	now := time.Now()
	if p.w == nil || now.Sub(p.last) < every {
		return
	}
	p.last, p.shown = now, true
	line := fmt.Sprintf("%s: %s", p.what, step)
	if total > 0 {
		took := now.Sub(p.began)
		rate := float64(done) / took.Seconds()
		line += fmt.Sprintf(" %s of %s, %3d%%, %s/s", size(done), size(total), min(100, done*100/total), size(int64(rate)))
		if rate > 0 && done < total {
			line += ", " + span(time.Duration(float64(total-done)/rate*float64(time.Second))) + " to go"
		}
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K%s", line)
	} else {
		fmt.Fprintln(p.w, line)
	}
}

// any tells what a job's handler reports.
func (p *progress) any(v any) {
	if t, ok := v.(takeProgress); ok {
		p.show(t.Step, t.Done, t.Total)
	}
}

func (p *progress) job(j scheduler.Job) {
	var t takeProgress
	if json.Unmarshal(j.Progress, &t) == nil && t.Step != "" {
		p.show(t.Step, t.Done, t.Total)
		return
	}
	p.show(string(j.State), 0, 0)
}

func (p *progress) restore(r restore.Progress) { p.show(r.Phase, r.Done, r.Total) }

// end clears the bar.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil && p.terminal && p.shown {
		fmt.Fprint(p.w, "\r\033[K")
	}
	p.w = nil
}

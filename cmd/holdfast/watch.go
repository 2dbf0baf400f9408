package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/drills/evidence"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/notify"
)

// watcher looks at the ledgers from outside: it only reads, and keeps nothing but
// the checkpoints that it saw and the alarms that it gave.
type watcher struct {
	*world
	late   time.Duration // how old a node's newest entry may be
	window time.Duration // how far back slots are looked at
	gone   []string      // nodes that may be silent
	dir    string        // of its own state; "" keeps none
}

// watchDoc is what one look saw.
type watchDoc struct {
	OK     bool         `json:"ok"`
	At     time.Time    `json:"at"`
	Logs   []watchedLog `json:"logs"`
	Alarms []alarm      `json:"alarms"`
}

type watchedLog struct {
	Origin string    `json:"origin"`
	Node   string    `json:"node,omitempty"`
	Size   int64     `json:"size"`
	Last   time.Time `json:"last,omitzero"`
	Ended  bool      `json:"ended"` // the node writes another since
}

type alarm struct {
	Key    string `json:"key"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

func (e *env) watchCommand() *cobra.Command {
	var every, late, window time.Duration
	var state string
	var once bool
	var gone []string
	cmd := &cobra.Command{
		Use: "watch", Short: "Watch the ledgers from outside, and alarm when a checkpoint or a drill's slot is late", Args: cobra.NoArgs,
		Long: "Watch needs nothing but read access to the zones and the keys of who writes ledgers: run it where the\ndaemons' failure is not its own. It tells the receivers of `notify` (event incident), and prints. It keeps\nthe checkpoints that it saw, so that a ledger that is cut or replaced is an alarm. --once looks once and exits 4 with alarms.",
		RunE: func(c *cobra.Command, _ []string) error {
			w, err := e.open(c.Context())
			if err != nil {
				return err
			}
			defer w.close()
			x := &watcher{world: w, late: late, window: window, gone: gone, dir: state}
			if x.dir == "" && w.cfg.Node.State != "" {
				x.dir = w.state("watch")
			}
			if once {
				return e.watchOnce(c.Context(), x)
			}
			if x.dir == "" {
				return usage("--repository names no state: say with --state DIR where the checkpoints that were seen are kept")
			}
			return x.run(c.Context(), every)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&every, "every", time.Minute, "how often to look")
	f.DurationVar(&late, "late", 45*time.Minute, "how old the newest entry of a node may be; nodes write one every ten minutes")
	f.DurationVar(&window, "window", 14*24*time.Hour, "how far back slots are looked at")
	f.StringArrayVar(&gone, "gone", nil, "a `NODE` that was given up and may be silent; may be repeated")
	f.StringVar(&state, "state", "", "`DIR` for the checkpoints that were seen (default watch in node.state)")
	f.BoolVar(&once, "once", false, "look once, print what was seen, and exit 4 with alarms")
	return cmd
}

func (e *env) watchOnce(ctx context.Context, x *watcher) error {
	doc, err := x.look(ctx)
	if err != nil {
		return err
	}
	err = e.print(doc, func(out io.Writer) {
		for _, l := range doc.Logs {
			fmt.Fprintf(out, "ledger %s of node %s: %d entries, the newest %s%s\n", l.Origin, l.Node, l.Size, clock(l.Last), either(l.Ended, "; ended", ""))
		}
		for _, a := range doc.Alarms {
			fmt.Fprintf(out, "ALARM %s: %s\n", a.Title, a.Detail)
		}
		if doc.OK {
			fmt.Fprintln(out, "nothing is late")
		}
	})
	if err != nil || doc.OK {
		return err
	}
	return silent{exitNotHeld}
}

// run looks again and again until ctx ends. That it cannot look is an alarm, too.
func (x *watcher) run(ctx context.Context, every time.Duration) error {
	if err := durable.MkdirAll(x.dir, 0o700); err != nil {
		return fmt.Errorf("making the watcher's directory: %w", err)
	}
	store, err := incident.New(filepath.Join(x.dir, "incidents"))
	if err != nil {
		return err
	}
	log := daemonLogger()
	tell, err := notifier(x.cfg.Notify, log)
	if err != nil {
		return err
	}
	defer tell.Wait()
	sdNotify(daemon.SdNotifyReady)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		doc, err := x.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			doc.Alarms = append(doc.Alarms, alarm{"watch-blind", "the ledgers cannot be read", err.Error()})
		}
		if err := x.tell(ctx, store, tell, log, doc, err == nil); err != nil {
			return err
		}
		sdNotify(daemon.SdNotifyWatchdog)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// tell opens an incident for each alarm, and closes those whose opposite was seen.
func (x *watcher) tell(ctx context.Context, store *incident.Store, to *notify.Notifier, log *zap.Logger, doc watchDoc, saw bool) error {
	now, alive := x.now(), map[string]bool{}
	for _, a := range doc.Alarms {
		alive[a.Key] = true
		i, opened, err := store.Raise(incident.Incident{Key: a.Key, Severity: "critical", Title: a.Title, Detail: a.Detail, Remedy: "look at the node: `holdfast status` and its log there"}, now)
		if err != nil {
			return err
		}
		if opened {
			log.Error("alarm", zap.String("key", a.Key), zap.String("title", a.Title), zap.String("detail", a.Detail))
			to.Send(ctx, "incident", i)
		}
	}
	if !saw {
		return nil
	}
	open, err := store.List()
	if err != nil {
		return err
	}
	for _, i := range open {
		if !i.Open() || alive[i.Key] {
			continue
		}
		closed, err := store.Close(i.Key, "it was seen to be over", now)
		if err != nil {
			return err
		}
		log.Info("alarm is over", zap.String("key", i.Key))
		to.Send(ctx, "incident", *closed)
	}
	return nil
}

// look reads every ledger once.
func (x *watcher) look(ctx context.Context) (watchDoc, error) {
	now := x.now().UTC()
	doc := watchDoc{At: now, Logs: []watchedLog{}, Alarms: []alarm{}}
	src := ledger.FromReader(x.vault.Reader())
	origins, err := evidence.Origins(ctx, src)
	if err != nil {
		return doc, err
	}
	kept, err := x.kept()
	if err != nil {
		return doc, err
	}
	var logs [][]ledger.Record
	for _, o := range origins {
		l, records, err := x.read(ctx, &doc, src, o, kept[o])
		if errors.Is(err, ledger.ErrNoCheckpoint) && kept[o].Size == 0 {
			continue // nobody's, or of a node that has not signed yet
		}
		delete(kept, o)
		if err != nil { // the others are looked at all the same
			doc.alarm("ledger-unread/"+o, "ledger "+o+" cannot be read", "%v", err)
			continue
		}
		doc.Logs, logs = append(doc.Logs, l), append(logs, records)
	}
	for o, c := range kept {
		doc.alarm("ledger-cut/"+o, "ledger "+o+" is gone", "it had %d entries when it was seen last", c.Size)
	}
	doc.silent(now, x.late, x.gone)
	for _, f := range evidence.Judge(logs, evidence.Period{From: now.Add(-x.window), To: now}, slotsOf).Faults {
		switch f.Code {
		case evidence.FaultSlot, evidence.FaultSchedule, evidence.FaultClock:
			sum := sha256.Sum256([]byte(f.What)) // one entry about plans may miss several slots
			doc.alarm(fmt.Sprintf("drill-%s/%s/%d/%x", f.Code, f.Origin, f.Index, sum[:4]), "the ledgers do not tell what became of a drill", "%s, entry %d: %s", f.Origin, f.Index, f.What)
		}
	}
	doc.OK = len(doc.Alarms) == 0
	return doc, nil
}

func (d *watchDoc) alarm(key, title, format string, args ...any) {
	d.Alarms = append(d.Alarms, alarm{key, title, fmt.Sprintf(format, args...)})
}

// read reads one ledger, and holds it against the checkpoint that was kept.
func (x *watcher) read(ctx context.Context, doc *watchDoc, src ledger.Source, origin string, kept ledger.Checkpoint) (l watchedLog, records []ledger.Record, err error) {
	c, err := ledger.Latest(ctx, src, x.trust, x.repoID, origin)
	if err != nil {
		return l, nil, err
	}
	l = watchedLog{Origin: origin, Size: c.Size}
	same := kept.Size == 0
	if !same {
		if same, err = ledger.Contains(ctx, src, c, kept); err != nil {
			return l, nil, err
		}
	}
	if !same {
		doc.alarm("ledger-cut/"+origin, "ledger "+origin+" was cut or replaced", "it had %d entries with root %s, and shows %d that are not the same", kept.Size, kept.Root, c.Size)
	} else if c.Size > kept.Size {
		if err := x.keep(c); err != nil {
			return l, nil, err
		}
	}
	if records, err = evidence.Entries(ctx, src, c, doc.At.Add(-x.window)); err != nil {
		return l, nil, err
	}
	last := records[len(records)-1]
	l.Node, l.Last = last.Host.Node, last.Time.Wall
	return l, records, nil
}

// silent finds nodes whose newest entry is too old. A log that its node gave up for
// another is ended.
func (d *watchDoc) silent(now time.Time, late time.Duration, gone []string) {
	newest := map[string]int{}
	for i, l := range d.Logs {
		if j, ok := newest[l.Node]; !ok || l.Last.After(d.Logs[j].Last) {
			newest[l.Node] = i
		}
	}
	for i := range d.Logs {
		l := &d.Logs[i]
		if l.Ended = newest[l.Node] != i || slices.Contains(gone, l.Node); !l.Ended && now.Sub(l.Last) > late {
			d.alarm("ledger-late/"+l.Node, "node "+l.Node+" is silent", "the newest entry of its ledger %s is of %s, %s ago", l.Origin, clock(l.Last), span(now.Sub(l.Last)))
		}
	}
}

// kept are the checkpoints that were seen before, by origin.
func (x *watcher) kept() (map[string]ledger.Checkpoint, error) {
	out := map[string]ledger.Checkpoint{}
	if x.dir == "" {
		return out, nil
	}
	list, err := os.ReadDir(x.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the checkpoints that were seen: %w", err)
	}
	for _, f := range list {
		if !strings.HasSuffix(f.Name(), keptSuffix) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(x.dir, f.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading a checkpoint that was seen: %w", err)
		}
		c, err := ledger.ParseCheckpoint(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; remove it once you know why it is damaged", filepath.Join(x.dir, f.Name()), err)
		}
		out[c.Origin] = c
	}
	return out, nil
}

const keptSuffix = ".checkpoint"

func (x *watcher) keep(c ledger.Checkpoint) error {
	if x.dir == "" {
		return nil
	}
	err := durable.MkdirAll(x.dir, 0o700)
	if err == nil {
		err = durable.WriteFile(filepath.Join(x.dir, c.Origin+keptSuffix), c.Signed, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keeping a checkpoint that was seen: %w", err)
	}
	return nil
}

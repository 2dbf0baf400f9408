package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/snapshot"
)

var opZoneProbe = server.Op[probeIn, probesDocument]{ID: "zone-probe", Method: http.MethodPost, Path: "/v1/zones/probe", Summary: "Try what zones really do, and record it signed"}

// probeIn names a zone; none: all.
type probeIn struct {
	Zone string `query:"zone"`
}

type probesDocument struct {
	OK    bool            `json:"ok"`
	Zones []probeDocument `json:"zones"`
}

type probeDocument struct {
	zone.ProbeResult
	Findings []finding   `json:"findings"`
	Note     catalog.Ref `json:"note"`
}

func (e *env) probeZones(ctx context.Context, name string) error {
	cfg, err := e.load()
	if err != nil {
		return err
	}
	if name != "" {
		if _, err := configuredZone(cfg, name); err != nil {
			return err
		}
	}
	var doc probesDocument
	if client, derr := server.Dial(ctx, cfg.Node.Socket); derr == nil {
		doc, err = server.Call(ctx, client, opZoneProbe, probeIn{name})
	} else {
		err = e.asNode(ctx, func(ctx context.Context, n *node) error {
			doc, err = n.probeZones(ctx, probeIn{name})
			return err
		})
	}
	if err != nil {
		return err
	}
	if err := e.print(doc, func(w io.Writer) { printProbes(w, doc) }); err != nil {
		return err
	}
	if !doc.OK {
		return quietly(exitNotHeld)
	}
	return nil
}

// probeZones tries one zone, or all: one that cannot be tried keeps no other from it.
func (n *node) probeZones(ctx context.Context, in probeIn) (probesDocument, error) {
	doc := probesDocument{OK: true, Zones: []probeDocument{}}
	if in.Zone != "" {
		if _, err := configuredZone(n.cfg, in.Zone); err != nil {
			return doc, err
		}
	}
	var faults []error
	for i, z := range n.zones {
		if in.Zone != "" && z.Name() != in.Zone {
			continue
		}
		p, err := n.probe(ctx, z, n.cfg.Repository.Zones[i])
		if err != nil {
			faults = append(faults, err)
			continue
		}
		doc.OK = doc.OK && len(failing(p.Findings)) == 0
		doc.Zones = append(doc.Zones, p)
	}
	return doc, errors.Join(faults...)
}

func failing(list []finding) (out []finding) {
	for _, f := range list {
		if f.Level == levelFail {
			out = append(out, f)
		}
	}
	return out
}

// tellProbe opens an incident where a zone does not do what it must, and closes it when
// it does.
func (n *node) tellProbe(ctx context.Context, p probeDocument) {
	key := "zone-behaviour/" + p.Zone
	bad := failing(p.Findings)
	if len(bad) == 0 {
		n.settle(ctx, key, "the zone was tried and does what it must")
		return
	}
	var details []string
	for _, f := range bad {
		details = append(details, f.Name+": "+f.Detail)
	}
	n.raise(ctx, incident.Incident{
		Key: key, Severity: "critical", Title: "zone " + p.Zone + " does not do what it must",
		Detail: strings.Join(details, "; "), Remedy: bad[0].Remedy + "; then `holdfast zone probe " + p.Zone + "`; docs/runbooks/zone-behaviour.md",
	})
}

// firstProbe is how long after its first start a node tries the zones by itself: whoever
// sets a node up does so by hand.
const firstProbe = time.Hour

// tendProbes tries each zone anew once in node.scrub.probe, until ctx ends: a store may
// do no more what it did when it was set up, and nobody tells. Nodes that take no
// snapshots may hold credentials that only read, and leave it.
func (n *node) tendProbes(ctx context.Context) error {
	every := n.cfg.Node.Scrub.Probe.Std()
	if !n.takesSnapshots() {
		return nil
	}
	for {
		next, err := n.probeDue(ctx, every)
		if err != nil && ctx.Err() == nil {
			n.log.Warn("not every zone could be tried; that is done again later", zap.Error(err))
		}
		select {
		case <-time.After(next):
		case <-ctx.Done():
			return nil
		}
	}
}

// probeDue tries the zones whose turn it is, and says when the next one's is.
func (n *node) probeDue(ctx context.Context, every time.Duration) (next time.Duration, err error) {
	last, err := n.probed()
	if err != nil {
		return every, err
	}
	next = every
	for i, z := range n.zones {
		now, name := n.now(), z.Name()
		at, known := last[name]
		if !known || at.After(now) { // new, or the clock stepped back
			at = now.Add(min(every, firstProbe) - every)
		}
		if due := at.Add(every); due.After(now) {
			last[name], next = at, min(next, due.Sub(now))
			continue
		}
		if _, perr := n.probe(ctx, z, n.cfg.Repository.Zones[i]); perr != nil {
			err = errors.Join(err, perr)
			next = min(next, firstProbe)
			continue
		}
		last[name] = now
	}
	data, jerr := json.Marshal(last)
	if jerr == nil {
		jerr = durable.WriteFile(n.state("probes.json"), data, 0o600)
	}
	return next, errors.Join(err, jerr)
}

// probed tells when zones were tried last, as this state directory knows.
func (n *node) probed() (map[string]time.Time, error) {
	last := map[string]time.Time{}
	data, err := os.ReadFile(n.state("probes.json"))
	if errors.Is(err, os.ErrNotExist) {
		return last, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &last)
	}
	if err != nil {
		return nil, fmt.Errorf("reading when zones were tried: %w; remove the file %s", err, n.state("probes.json"))
	}
	return last, nil
}

// probe tries one zone, keeps what it did as a signed note and an entry, and tells where
// that is not what it must do.
func (n *node) probe(ctx context.Context, z *zone.Zone, c configs.Zone) (probeDocument, error) {
	r, err := zone.Probe(ctx, z, n.now())
	if err != nil {
		return probeDocument{}, failed("`holdfast zone list` shows which zones answer", "%w", err)
	}
	p := probeDocument{ProbeResult: r, Findings: judgeProbe(c, r)}
	name := catalog.ProbeName(n.ledger.Origin(), z.Name(), snapshot.NewID(n.now()))
	if p.Note, err = n.putNote(ctx, name, catalog.KindProbe, r); err != nil {
		return p, err
	}
	if _, err = n.append(ctx, ledger.TypeZoneProbe, map[string]string{"zone": z.Name()}, map[string]any{"result": r, "note": p.Note}); err == nil {
		n.tellProbe(ctx, p)
	}
	return p, err
}

// judgeProbe says what of a zone's behaviour Holdfast can and cannot live with.
func judgeProbe(c configs.Zone, r zone.ProbeResult) []finding {
	var out []finding
	add := func(name string, held bool, otherwise finding, detail string) {
		if held {
			otherwise = good(name, "%s", detail)
		}
		otherwise.Name = name
		out = append(out, otherwise)
	}
	const other = "use another store: what is written could be lost or replaced"
	add("conditional create", r.ConditionalCreate, bad("", other, "of sixteen writers at once not exactly one won, or its bytes did not stay"), "of sixteen writers at once one won")
	add("list after write", r.ListAfterWrite, bad("", other, "an object just written was not listed"), "an object just written is listed")
	add("range read", r.RangeRead, bad("", "use another store: restores read ranges", "a range was not what was written there"), "ranges are what was written there")
	add("checksum", r.ChecksumRefused, warn("", "nothing to do: Holdfast reads back and compares digests by itself", "a body with the checksum of another was taken"), "a body with a wrong checksum is refused")
	skew := time.Duration(r.ClockSkewSeconds * float64(time.Second))
	add("clock", skew.Abs() < time.Minute, warn("", "set both clocks by NTP: locks and listings carry the store's time", "the store's clock differs from this host's by %s", skew.Round(time.Second)), "the store's clock agrees with this host's")
	switch {
	case c.ObjectLock == "none":
		add("object lock", true, finding{}, "none is configured")
		if r.DefaultRetention {
			out = append(out, warn("default retention", "know that nothing can be removed before it ends; or take the bucket's default retention away", "the store locks objects by itself"))
		}
	case r.Lock == zone.LockUnknown: // told below as not assessed
	default:
		add("object lock", r.Lock == c.ObjectLock, bad("", "turn object lock on for the bucket, with the mode that is configured, or configure what it does", "%s is configured, and the store was seen to do: %s", c.ObjectLock, r.Lock), c.ObjectLock+", and the store refused to remove a locked version")
		add("shortening a lock", r.ShorteningRefused, bad("", "take the right to shorten retention from these credentials", "the store shortened a lock"), "refused")
		add("bypass", !r.BypassPossible, warn("", "take s3:BypassGovernanceRetention from these credentials", "these credentials removed a locked version"), "these credentials cannot remove a locked version")
	}
	if len(r.Left) > 0 {
		out = append(out, warn("left behind", "let these credentials remove below probe/, or have a lifecycle rule do it", "%s of the probe could not be removed again", count(len(r.Left), "object")))
	}
	for _, what := range r.NotAssessed {
		if c.ObjectLock != "none" {
			out = append(out, warn("not assessed", "", "%s", what))
		}
	}
	return out
}

func printProbes(w io.Writer, doc probesDocument) {
	for _, z := range doc.Zones {
		fmt.Fprintf(w, "zone %s (recorded in %s)\n", z.Zone, z.Note.Name)
		newReport(z.Findings).print(w)
	}
}

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/retention"
)

// approvers makes people's keys, and has the nodes' configurations ask two of them. They
// sit at a machine that has the repository alone.
func (r *rig) approvers(names ...string) {
	r.t.Helper()
	r.mkdir("people")
	rule := "approvals:\n  needed: 2\n  approvers:\n"
	for _, name := range names {
		rule += fmt.Sprintf("    - %q\n", r.hold("", 0, "keys", "new", "approver", "--name", name, "--out", r.path("people/"+name)))
	}
	r.cluster += rule
	r.write("people/repository.yaml", fmt.Sprintf("format: 1\nzones:\n%swrite_quorum: 2\ntrusted_signers: [{key: %q, may: [snapshot, wal, tombstone, ledger]}]\n", r.zones, r.keys["db"]))
}

// approve approves a plan at the people's own machine.
func (r *rig) approve(name, hash string, more ...string) approvedDoc {
	r.t.Helper()
	return ask[approvedDoc](r, "", append([]string{"--repository", r.path("people/repository.yaml"), "approve", hash, "--key", r.path("people/" + name), "--yes"}, more...)...)
}

// Two of three people approve what a policy lets go, one on a machine that has the
// repository and a key and nothing else; the node verifies both, and its ledger has them.
func TestApproversSignAPolicyThatKeepsLess(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, true)
	const policy = "    retention: {window: 1s, hourly: 0, daily: 0, keep_at_least: 1h, keep_at_most: 30d, removal_grace: 1s, approve_shorter: true}\n"
	r.cluster = policy
	r.approvers("ann", "bob", "cleo")
	r.configure()
	for range 3 {
		r.hold("db", 0, "snapshot", "take", "cms")
	}
	r.hold("db", 0, "retention", "apply", "cms")
	r.cluster = strings.Replace(r.cluster, "keep_at_least: 1h", "keep_at_least: 1s", 1)
	r.host("db", pg.DSN("postgres"))
	var c *retention.Change
	await(t, "snapshots beyond the new floor", func() bool {
		c = ask[retention.Plan](r, "db", "retention", "plan", "cms").Change
		return c != nil && len(c.Goes) > 0
	})
	r.daemon("db")
	if code, _, errs := r.try("db", "retention", "apply", "cms", "--force", "--approve", c.Hash); code != exitRefused || !strings.Contains(errs, "holdfast approve "+c.Hash+" --key FILE") {
		t.Fatalf("by one person's word: exit %d, %s", code, errs)
	}
	r.shows(c.Hash)
	if one := r.approve("ann", c.Hash); len(one.Approvals) != 1 || one.Needed != 2 || one.Enough || !one.New || !strings.HasPrefix(one.Key, "ann+") {
		t.Errorf("one approval: %+v", one)
	}
	if again := r.approve("ann", c.Hash); len(again.Approvals) != 1 || again.New {
		t.Errorf("the same key again: %+v", again)
	}
	if code, _, errs := r.try("db", "retention", "apply", "cms", "--force"); code != exitRefused || !strings.Contains(errs, "1 of 2") {
		t.Errorf("with one approval: exit %d, %s", code, errs)
	}
	text := r.hold("db", 0, "approve", c.Hash, "--key", r.path("people/cleo"), "--yes") // beside the daemon, whose ledger has it
	if !strings.Contains(text, "2 of 2") || !strings.Contains(text, "that is enough") {
		t.Errorf("two approvals:\n%s", text)
	}
	doc := ask[applied](r, "db", "retention", "apply", "cms", "--force")
	if len(doc.Marked) == 0 || doc.Marked[0] != c.Goes[0] {
		t.Errorf("approved, and marked %v, want %v", doc.Marked, c.Goes)
	}
	told := r.hold("db", 0, "--output", "json", "ledger", "show", "--type", "retention.policy")
	if !strings.Contains(told, `"key": "ann+`) || !strings.Contains(told, `"key": "cleo+`) || !strings.Contains(told, c.Hash) {
		t.Errorf("the ledger tells of the policy:\n%s", told)
	}
	if told := r.hold("db", 0, "--output", "json", "ledger", "show", "--type", "approval"); strings.Count(told, `"key":`) != 1 || !strings.Contains(told, "cleo+") {
		t.Errorf("the ledger tells of approvals:\n%s", told)
	}
	r.hold("db", 0, "ledger", "verify")
}

// shows looks at what an approver is shown and asked, and at who is none.
func (r *rig) shows(hash string) {
	r.t.Helper()
	people := []string{"--repository", r.path("people/repository.yaml"), "approve", hash, "--key"}
	code, out, errs := r.try("", append(people, r.path("people/bob"))...) // nothing is typed
	for _, said := range []string{"policy-change of cluster cms", "keep_at_least 1s instead of 1h0m0s", "because of it would go at once"} {
		if !strings.Contains(out, said) || code != exitRefused || !strings.Contains(errs, "Type yes") {
			r.t.Errorf("shown before it is approved, exit %d:\n%s%s", code, out, errs)
		}
	}
	for _, key := range []string{"keys/db", "people/stranger"} {
		if key == "people/stranger" {
			r.hold("", 0, "keys", "new", "approver", "--out", r.path(key))
		}
		secret, err := os.ReadFile(r.path(key))
		if err != nil {
			r.t.Fatal(err)
		}
		code, out, errs := r.try("", append(people, r.path(key), "--yes")...)
		if code != exitRefused || !strings.Contains(errs, "none of the 3 approvers'") || strings.Contains(out+errs, strings.TrimSpace(string(secret))) {
			r.t.Errorf("with %s: exit %d, %s%s", key, code, out, errs)
		}
	}
	if code, _, errs := r.try("", "--repository", r.path("people/repository.yaml"), "approve", strings.Repeat("0", 64), "--key", r.path("people/bob")); code != exitUsage {
		r.t.Errorf("a plan that does not wait: exit %d, %s", code, errs)
	}
	if code, _, errs := r.try("", append(people, r.path("data.key"))...); code != exitUsage {
		r.t.Errorf("no key: exit %d, %s", code, errs)
	}
}

func TestANodesOwnKeyIsNoApprovers(t *testing.T) {
	r := &rig{t: t, dir: t.TempDir(), program: program(t)}
	own := r.hold("", 0, "keys", "new", "signing", "--name", "db", "--out", r.path("own"))
	other := r.hold("", 0, "keys", "new", "approver", "--out", r.path("other"))
	renamed := "boss+12345678" + strings.TrimPrefix(own, approval.KeyID(own))
	for key, want := range map[string]bool{own: false, renamed: false, other: true} {
		w := &world{vkey: own, cfg: &configs.Config{Approvals: &configs.Approvals{Needed: 1, Approvers: []string{key}}}}
		if err := w.refuseOwnKey(); (err == nil) != want {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// What an approver reads follows from what is hashed; a plan that says another thing than
// it was asked for as, or that is not understood whole, is not shown to be approved.
func TestAPlanThatIsNotUnderstoodWholeIsNotShown(t *testing.T) {
	for name, c := range map[string]struct {
		what, cluster, plan string
		want                int // exit code
	}{
		"as it was asked for": {retention.PlanRetire, "cms", `{"kind":"cluster-retire","cluster":"cms","lineages":[{"epoch":1,"system_id":"7"}],"removal_grace":"24h0m0s"}`, exitDone},
		"another cluster":     {retention.PlanRetire, "cms", `{"kind":"cluster-retire","cluster":"crm","lineages":[],"removal_grace":"24h0m0s"}`, exitRefused},
		"another kind":        {retention.PlanChange, "cms", `{"kind":"cluster-retire","cluster":"cms","lineages":[],"removal_grace":"24h0m0s"}`, exitRefused},
		"a field too much":    {retention.PlanRetire, "cms", `{"kind":"cluster-retire","cluster":"cms","lineages":[],"removal_grace":"24h0m0s","also":"more"}`, exitFailed},
		"an unknown kind":     {"other", "cms", `{"kind":"other","cluster":"cms"}`, exitFailed},
		"no policy":           {retention.PlanChange, "cms", `{"kind":"policy-change","cluster":"cms","before":{},"after":{}}`, exitFailed},
	} {
		lines, err := doesText(approval.Waiting{PlanHash: "h", What: c.what, Cluster: c.cluster, Plan: []byte(c.plan)})
		if codeOf(err) != c.want || (len(lines) > 0) != (c.want == exitDone) {
			t.Errorf("%s: %q, %v", name, lines, err)
		}
	}
	if got := printable("a\x1b[2Jb\nc\u202e"); got != "a?[2Jb?c?" {
		t.Errorf("%q", got)
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// A witness that somebody else runs cosigns what the nodes write, holds nothing up
// when it is away, and its file is what a reviewer holds the evidence against.
func TestAWitnessCosignsTheLedgersOfTheNodes(t *testing.T) {
	r := newRig(t, pgtest.Start(t), false)
	r.configure()
	var id struct {
		Repository string `json:"repository"`
	}
	data, err := os.ReadFile(r.path("zones/a/holdfast.json"))
	if err == nil {
		err = json.Unmarshal(data, &id)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.hold("", 0, "keys", "new", "signing", "--name", "auditor", "--out", r.path("keys/auditor"))
	base := []string{"witness", "--key", r.path("keys/auditor"), "--state", r.path("seen"), "--repository-id", id.Repository, "--log", r.keys["db"], "--listen"}
	r.hold("", 2, append(base, "0.0.0.0:0")...)
	cmd := r.command(context.Background(), "", append([]string{"--output", "json"}, append(base, "127.0.0.1:0")...)...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var says struct{ Key, Listen string }
	if err := json.NewDecoder(out).Decode(&says); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(r.path("db/holdfast.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	r.write("db/holdfast.yaml", strings.Replace(string(text), "  trusted_signers:\n", fmt.Sprintf("  witnesses: [{url: \"http://%s\", key: %q}]\n  trusted_signers:\n", says.Listen, says.Key), 1))
	daemon := r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	verify := func(want int, name string, more ...string) {
		t.Helper()
		file := r.path(name)
		await(t, "evidence", func() bool { code, _, _ := r.try("db", "evidence", "export", "--out", file); return code == 0 })
		r.hold("", want, append([]string{"evidence", "verify", file, "--key", r.keys["db"], "--witness", says.Key}, more...)...)
	}
	await(t, "a cosigned checkpoint", func() bool { list, err := os.ReadDir(r.path("seen")); return err == nil && len(list) == 1 })
	list, err := os.ReadDir(r.path("seen"))
	if err != nil {
		t.Fatal(err)
	}
	seen := r.path("seen/" + list[0].Name())
	daemon.stop()
	verify(0, "seen.tar", "--known", seen)

	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("the witness ended with %v", err)
	}
	r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	await(t, "an incident about the witness", func() bool {
		for _, i := range ask[incidentsDoc](r, "db", "incident", "list").Incidents {
			if i.Key == "witness/http://"+says.Listen && i.Open() {
				return true
			}
		}
		return false
	})
	key := "witness/http://" + says.Listen
	r.hold("db", 2, "incident", "note", "nothing/there", "asked the auditor")
	r.hold("db", 2, "incident", "note", key, " ")
	r.hold("db", 0, "incident", "note", key, "asked the auditor", "--by", "on-call")
	if shown := r.hold("db", 0, "incident", "show", key); !strings.Contains(shown, "by on-call: asked the auditor") {
		t.Errorf("the incident:\n%s", shown)
	}
	await(t, "the note in the ledger", func() bool {
		return strings.Contains(r.hold("db", 0, "ledger", "show", "--type", "incident"), "incident.note")
	})
	verify(4, "unseen.tar")
}

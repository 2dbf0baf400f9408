package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// A watcher with nothing but read access tells that a node fell silent, and that a
// ledger was cut, which no verification of what is left could find.
func TestTheWatcherTellsOfSilenceAndOfCutLedgers(t *testing.T) {
	r := newRig(t, pgtest.Start(t), false)
	r.configure()
	daemon := r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	seen := r.mkdir("seen")
	file := r.write("repository.yaml", "format: 1\nzones:\n"+r.zones+fmt.Sprintf("trusted_signers:\n  - {key: %q, may: [ledger]}\n", r.keys["db"]))
	watch := func(want int, more ...string) (doc watchDoc) {
		t.Helper()
		args := append([]string{"--repository", file, "--output", "json", "watch", "--once", "--state", seen}, more...)
		if err := json.Unmarshal([]byte(r.hold("", want, args...)), &doc); err != nil {
			t.Fatal(err)
		}
		return doc
	}
	early := r.path("early")
	if err := os.CopyFS(early, os.DirFS(r.path("zones/a/ledger"))); err != nil {
		t.Fatal(err)
	}
	first := watch(0)
	if !first.OK || len(first.Logs) != 1 || first.Logs[0].Node != "db" || first.Logs[0].Size == 0 {
		t.Fatalf("%+v", first)
	}
	r.hold("db", 0, "snapshot", "take", "cms")
	await(t, "more entries", func() bool { return watch(0).Logs[0].Size > first.Logs[0].Size })
	daemon.stop()
	watch(0)

	watch(0, "--late", "1ms", "--gone", "db")
	if doc := watch(4, "--late", "1ms"); len(doc.Alarms) != 1 || doc.Alarms[0].Key != "ledger-late/db" {
		t.Errorf("a silent node: %+v", doc.Alarms)
	}
	for _, z := range zoneLetters { // every zone shows the ledger as it was
		dir := r.path("zones/" + z + "/ledger")
		if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(early))); err != nil {
			t.Fatal(err)
		}
	}
	r.hold("", 0, "--repository", file, "ledger", "verify") // whole by itself
	if doc := watch(4); len(doc.Alarms) != 1 || !strings.HasPrefix(doc.Alarms[0].Key, "ledger-cut/db-") {
		t.Errorf("a ledger that was cut: %+v", doc.Alarms)
	}
	for _, z := range zoneLetters {
		if err := os.RemoveAll(r.path("zones/" + z + "/ledger")); err != nil {
			t.Fatal(err)
		}
	}
	if doc := watch(4); len(doc.Alarms) != 1 || !strings.Contains(doc.Alarms[0].Title, "is gone") {
		t.Errorf("a ledger that is gone: %+v", doc.Alarms)
	}
}

// As a service it tells the receivers once when an alarm opens and once when it is over.
func TestTheWatcherTellsPeople(t *testing.T) {
	r := newRig(t, pgtest.Start(t), false)
	r.configure()
	daemon := r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	daemon.stop()
	told := make(chan incident.Incident, 16)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		var m struct {
			Event string            `json:"event"`
			About incident.Incident `json:"about"`
		}
		if err := json.NewDecoder(q.Body).Decode(&m); err == nil && m.Event == "incident" {
			told <- m.About
		}
	}))
	defer receiver.Close()
	r.mkdir("watch")
	r.write("watch/holdfast.yaml", r.repository("watch", "drill")+fmt.Sprintf("notify:\n  - {name: pager, url: {file: %s}, on: [incident]}\n", r.write("watch/url", receiver.URL)))
	watching := r.command(context.Background(), "watch", "watch", "--every", "200ms", "--late", "1ms")
	if err := watching.Start(); err != nil {
		t.Fatal(err)
	}
	if i := <-told; i.Key != "ledger-late/db" || !i.Open() {
		t.Errorf("the first alarm: %+v", i)
	}
	if err := errors.Join(watching.Process.Signal(syscall.SIGTERM), watching.Wait()); err != nil {
		t.Errorf("the watcher ended with %v", err)
	}
	again := r.command(context.Background(), "watch", "watch", "--every", "200ms", "--late", "1h")
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	if i := <-told; i.Key != "ledger-late/db" || i.Open() {
		t.Errorf("the end of the alarm: %+v", i)
	}
	if err := errors.Join(again.Process.Signal(syscall.SIGTERM), again.Wait()); err != nil {
		t.Errorf("the watcher ended with %v", err)
	}
	select {
	case i := <-told:
		t.Errorf("told once more: %+v", i)
	default:
	}
}

package notify

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestAReceiverIsToldWhatItAskedForAndTriedAgain(t *testing.T) {
	var calls atomic.Int32
	got := make(chan Message, 4)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var m Message
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Error(err)
		}
		got <- m
	}))
	defer srv.Close()
	n, err := New([]Receiver{{"oncall", srv.URL, []string{"incident"}}}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	n.Send(t.Context(), "drill", nil)
	n.Send(t.Context(), "incident", map[string]string{"key": "zone-down/a"})
	n.Wait()
	if m := <-got; m.Event != "incident" || calls.Load() != 2 {
		t.Errorf("told %+v in %d calls", m, calls.Load())
	}
}

func TestAddressesNeverPrint(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	n, err := New([]Receiver{{"oncall", "http://127.0.0.1:1/s3cret", []string{"incident"}}}, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	n.Send(t.Context(), "incident", nil)
	n.Wait()
	if logs.Len() == 0 {
		t.Fatal("nothing was logged")
	}
	for _, e := range logs.All() {
		if strings.Contains(e.Message, "s3cret") || strings.Contains(e.ContextMap()["error"].(string), "s3cret") {
			t.Errorf("logged %v", e)
		}
	}
	if _, err := New([]Receiver{{"x", "s3cret", nil}}, nil); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a bad address: %v", err)
	}
}

package incident

import (
	"testing"
	"time"
)

func TestAnIncidentOpensOnceAndClosesByWhatWasSeen(t *testing.T) {
	dir := t.TempDir()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	i := Incident{Key: "zone-down/a", Severity: "warning", Title: "zone a does not answer"}
	if _, opened, err := s.Raise(i, t0); !opened || err != nil {
		t.Fatalf("first: opened %v, %v", opened, err)
	}
	if again, opened, err := s.Raise(i, t0.Add(time.Minute)); opened || err != nil || again.Times != 2 {
		t.Errorf("second: opened %v, %+v, %v", opened, again, err)
	}
	s, _ = New(dir) // another process
	if c, err := s.Close("zone-down/a", "it answered", t0.Add(time.Hour)); err != nil || c == nil || c.Open() {
		t.Errorf("closing: %+v, %v", c, err)
	}
	if c, err := s.Close("zone-down/a", "it answered", t0.Add(time.Hour)); err != nil || c != nil {
		t.Errorf("closing what is closed: %+v, %v", c, err)
	}
	if _, opened, _ := s.Raise(i, t0.Add(2*time.Hour)); !opened {
		t.Error("a new occurrence after closing did not open")
	}
	if all, err := s.List(); err != nil || len(all) != 2 || !all[0].Open() || all[1].Open() {
		t.Errorf("listing: %+v, %v", all, err)
	}
}

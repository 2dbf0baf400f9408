package server

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type echoIn struct {
	Name string    `path:"name"`
	N    int       `query:"n"`
	At   time.Time `query:"at"`
	Body struct {
		Text string `json:"text"`
	}
}

type echoOut struct {
	Name string    `json:"name"`
	N    int       `json:"n"`
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

var opEcho = Op[echoIn, echoOut]{ID: "echo", Method: http.MethodPost, Path: "/v1/echo/{name}", Summary: "Say it again"}

func start(t *testing.T, do func(context.Context, echoIn) (echoOut, error)) string {
	t.Helper()
	s := New("test")
	Serve(s, opEcho, do)
	socket := filepath.Join(t.TempDir(), "s", "holdfast.sock")
	l, err := ListenUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

func TestAnOperationArrivesAsItWasCalled(t *testing.T) {
	socket := start(t, func(_ context.Context, in echoIn) (echoOut, error) {
		return echoOut{in.Name, in.N, in.At.UTC(), in.Body.Text}, nil
	})
	c, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2027, 3, 1, 12, 0, 0, 123456789, time.FixedZone("", 3600))
	in := echoIn{Name: "a b/c", N: 7, At: at}
	in.Body.Text = "ü\n"
	out, err := Call(t.Context(), c, opEcho, in)
	if err != nil || out != (echoOut{"a b/c", 7, at.UTC(), "ü\n"}) {
		t.Errorf("got %+v, %v", out, err)
	}
}

func TestAProblemKeepsItsExitCodeAndRemedy(t *testing.T) {
	socket := start(t, func(context.Context, echoIn) (echoOut, error) {
		return echoOut{}, NewProblem(3, "removing the last snapshot of cms: refused", "take another first")
	})
	c, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Call(t.Context(), c, opEcho, echoIn{Name: "x"})
	p := new(Problem)
	if !errors.As(err, &p) || p.Exit != 3 || p.Remedy != "take another first" || p.Status != http.StatusConflict {
		t.Errorf("got %#v", err)
	}
}

func TestTheSocketIsForItsOwnerAndGroupAndForOneDaemon(t *testing.T) {
	socket := start(t, func(_ context.Context, in echoIn) (echoOut, error) { return echoOut{}, nil })
	st, err := os.Stat(socket)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := ListenUnix(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "another daemon answers") {
		t.Errorf("a second daemon: %v", err)
	}
}

func TestNobodyAnswering(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "gone.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), socket); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("got %v", err)
	}
	l, err := ListenUnix(t.Context(), socket) // a stale socket is taken over
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

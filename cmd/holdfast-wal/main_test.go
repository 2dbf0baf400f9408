package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The program finishes what goes well, and is holdfast for all else: arguments,
// messages and exit code are its.
func TestWhatGoesWellEndsHereAndAllElseIsHoldfasts(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "holdfast-wal")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(args ...string) (code int, said string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			return exit.ExitCode(), string(out)
		} else if err != nil {
			t.Fatal(err)
		}
		return 0, string(out)
	}
	for want, args := range map[int][]string{1: {"--config", "none", "wal", "push", "pg_wal/x"}, 254: {"wal", "fetch", "x", "y"}} {
		if code, said := run(args...); code != want || !strings.Contains(said, "must lie beside it") {
			t.Errorf("%s without holdfast: %d, %s", args, code, said)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "holdfast"), []byte("#!/bin/sh\necho \"holdfast ran: $*\"\nexit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	socket := daemon(t)
	config := filepath.Join(dir, "holdfast.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "node:\n  socket: %s\n", socket), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, said := run("--config", config, "wal", "push", "pg_wal/taken"); code != 0 || said != "" {
		t.Errorf("a push that a daemon takes: %d, %s", code, said)
	}
	for _, args := range []string{"--config " + config + " wal push pg_wal/refused", "wal fetch 000000010000000000000001 RECOVERYXLOG", "wal status", "version"} {
		if code, said := run(strings.Fields(args)...); code != 7 || said != "holdfast ran: "+args+"\n" {
			t.Errorf("%s: %d, %s", args, code, said)
		}
	}
}

// daemon answers on a socket, and takes what is called so.
func daemon(t *testing.T) (socket string) {
	dir, err := os.MkdirTemp("/tmp", "thin") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			request := make([]byte, 4096)
			n, _ := conn.Read(request)
			status := "409 Conflict"
			if strings.Contains(string(request[:n]), "pg_wal/taken") {
				status = "200 OK"
			}
			_, _ = io.WriteString(conn, "HTTP/1.0 "+status+"\r\nContent-Type: application/json\r\n\r\n{}")
			conn.Close()
		}
	}()
	return socket
}
